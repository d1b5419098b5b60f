#include "engine/comm/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "engine/base/error.h"

namespace regolith {
namespace {

constexpr int kPollMs = 100;

Socket prepared(int descriptor) {
  const int on = 1;
  ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  return Socket(descriptor);
}

// What is left after a call of send() or recv(); -1: the connection ended.
ssize_t left_after(ssize_t moved, size_t bytes) {
  if (moved > 0) return static_cast<ssize_t>(bytes) - moved;
  const bool again = moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  return again ? static_cast<ssize_t>(bytes) : -1;
}

}  // namespace

Socket::~Socket() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Socket Socket::listen(int port, int ports) {
  std::string error;
  for (int i = 0; i < std::max(ports, 1); ++i) {
    Socket s(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ::setsockopt(s.descriptor_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<uint16_t>(port + i));
    at.sin_addr.s_addr = INADDR_ANY;
    if (::bind(s.descriptor_, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0 && ::listen(s.descriptor_, 128) == 0) {
      ::fcntl(s.descriptor_, F_SETFL, O_NONBLOCK);
      return s;
    }
    error = std::strerror(errno);
  }
  throw CommError("cannot listen at port " + std::to_string(port) + " for the other ranks: " + error);
}

int Socket::port() const {
  sockaddr_in at{};
  socklen_t size = sizeof at;
  ::getsockname(descriptor_, reinterpret_cast<sockaddr*>(&at), &size);
  return ntohs(at.sin_port);
}

std::string Socket::peer() const {
  sockaddr_in at{};
  socklen_t size = sizeof at;
  ::getpeername(descriptor_, reinterpret_cast<sockaddr*>(&at), &size);
  char text[INET_ADDRSTRLEN] = {};
  ::inet_ntop(AF_INET, &at.sin_addr, text, sizeof text);
  return text;
}

Socket Socket::accept(Clock::time_point until) const {
  while (Clock::now() < until) {
    pollfd wait{descriptor_, POLLIN, 0};
    if (::poll(&wait, 1, kPollMs) <= 0) continue;
    if (const int d = ::accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC); d >= 0) return prepared(d);
  }
  return {};
}

Socket Socket::connect(const std::string& address, int port, Clock::time_point until, std::string* unknown) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  const int failed = ::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (unknown != nullptr) *unknown = failed == 0 ? "" : std::string("does not resolve: ") + ::gai_strerror(failed);
  if (failed != 0) return {};
  Socket s(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  int result = ::connect(s.descriptor_, found->ai_addr, found->ai_addrlen);
  ::freeaddrinfo(found);
  if (result != 0 && errno == EINPROGRESS) {
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd wait{s.descriptor_, POLLOUT, 0};
    int error = ETIMEDOUT;
    socklen_t size = sizeof error;
    if (::poll(&wait, 1, static_cast<int>(std::clamp<int64_t>(ms, 0, 5000))) > 0)
      ::getsockopt(s.descriptor_, SOL_SOCKET, SO_ERROR, &error, &size);
    result = error;
  }
  if (result != 0) return {};
  return prepared(std::exchange(s.descriptor_, -1));
}

bool Socket::exchange(const Socket& to, const void* data, size_t bytes, const Socket& from, void* received,
                      size_t received_bytes, const Check& check) {
  const auto* out = static_cast<const char*>(data);
  auto* in = static_cast<char*>(received);
  while (bytes > 0 || received_bytes > 0) {
    pollfd waits[2];
    int n = 0;
    if (bytes > 0) waits[n++] = {to.descriptor_, POLLOUT, 0};
    if (received_bytes > 0) waits[n++] = {from.descriptor_, POLLIN, 0};
    const int ready = ::poll(waits, n, kPollMs);
    if (ready <= 0) {
      if (check) check();
      continue;
    }
    if (bytes > 0 && waits[0].revents != 0) {
      const ssize_t left = left_after(::send(to.descriptor_, out, bytes, MSG_NOSIGNAL), bytes);
      if (left < 0) return false;
      out += bytes - left;
      bytes = left;
    }
    if (received_bytes > 0 && waits[n - 1].revents != 0) {
      const ssize_t left = left_after(::recv(from.descriptor_, in, received_bytes, 0), received_bytes);
      if (left < 0) return false;
      in += received_bytes - left;
      received_bytes = left;
    }
  }
  return true;
}

bool Socket::send(const void* data, size_t bytes, const Check& check) const {
  return exchange(*this, data, bytes, {}, nullptr, 0, check);
}

bool Socket::receive(void* data, size_t bytes, const Check& check) const {
  return exchange({}, nullptr, 0, *this, data, bytes, check);
}

std::string host_name() {
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  return host;
}

}  // namespace regolith
