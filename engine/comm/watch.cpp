#include "engine/comm/watch.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "engine/base/error.h"
#include "engine/comm/communicator.h"

namespace regolith {
namespace {

constexpr char kAlive = 'a', kFailure = 'f', kEnd = 'e';
constexpr std::chrono::seconds kBeat{1};
constexpr uint32_t kLongest = 1 << 16;  // bytes of a message

void say(const Socket& socket, char what) {
  if (socket.open()) (void)!::send(socket.descriptor(), &what, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void say_failure(const Socket& socket, const std::string& text) {
  const auto size = static_cast<uint32_t>(std::min<size_t>(text.size(), kLongest));
  std::string message(1, kFailure);
  message.append(reinterpret_cast<const char*>(&size), sizeof size);
  message.append(text, 0, size);
  if (socket.open()) (void)!::send(socket.descriptor(), message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

std::string rank_name(int rank, int size, const std::string& host) {
  return "rank " + std::to_string(rank) + " of " + std::to_string(size) + " on " + host;
}

Watch::Watch(int rank, std::vector<std::string> names, std::vector<Socket> connections)
    : rank_(rank), names_(std::move(names)) {
  for (Socket& socket : connections) {
    const int peer = rank == 0 ? static_cast<int>(peers_.size()) + 1 : 0;
    peers_.push_back({peer, std::move(socket), Socket::Clock::now()});
  }
  thread_ = std::thread([this] { run(); });
}

Watch::~Watch() {
  ending_ = true;
  thread_.join();
  for (const Peer& peer : peers_) say(peer.socket, kEnd);
}

void Watch::fail(const std::string& message) noexcept {
  told_ = true;
  try {
    set_failure(names_[rank_] + ": " + message);
  } catch (const std::exception&) {  // no memory for the text: the others hear that the connection ends
  }
}

void Watch::set_failure(const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (failed_) return;
  failure_ = text;
  failed_ = true;
  for (const Peer& peer : peers_) say_failure(peer.socket, text);
  if (on_failure_) on_failure_();
}

void Watch::lose(const Peer& peer, const std::string& how) {
  if (!failed_ && peer.rank == 0) lost_root_ = true;
  set_failure(names_[peer.rank] + how);
}

void Watch::on_failure(std::function<void()> call) {
  const std::lock_guard lock(mutex_);
  on_failure_ = std::move(call);
  if (failed_ && on_failure_) on_failure_();
}

void Watch::check() {
  if (!failed_) return;
  told_ = true;
  const std::lock_guard lock(mutex_);
  throw CommError(failure_);
}

void Watch::hear(Peer& peer) {
  char what = 0;
  const ssize_t got = ::recv(peer.socket.descriptor(), &what, 1, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  if (got <= 0) {
    peer.left = true;
    return lose(peer, " is gone: its process has ended");
  }
  peer.heard = Socket::Clock::now();
  if (what == kEnd) peer.left = true;
  if (what != kFailure) return;
  uint32_t size = 0;
  const auto until = Socket::Clock::now() + std::chrono::seconds(1);
  const Socket::Check check = [&] {
    if (Socket::Clock::now() > until) throw CommError("");
  };
  std::string text;
  try {
    if (peer.socket.receive(&size, sizeof size, check)) {
      text.resize(std::min(size, kLongest));
      peer.socket.receive(text.data(), text.size(), check);
    }
  } catch (const CommError&) {
    text = names_[peer.rank] + " failed";
  }
  set_failure(text);  // rank 0 passes it on
}

void Watch::run() {
  auto beat = Socket::Clock::now(), well = beat, turn = beat;
  while (!ending_) {
    std::vector<pollfd> waits;
    std::vector<Peer*> waited;
    for (Peer& peer : peers_)
      if (!peer.left) waits.push_back({peer.socket.descriptor(), POLLIN, 0}), waited.push_back(&peer);
    ::poll(waits.data(), waits.size(), 50);
    for (size_t i = 0; i < waits.size(); ++i)
      if (waits[i].revents != 0) hear(*waited[i]);
    const auto now = Socket::Clock::now();
    if (now - turn > kBeat)  // this process was stopped: what it has not heard is nobody's silence
      for (Peer& peer : peers_) peer.heard = now;
    turn = now;
    if (now - beat >= kBeat) {
      beat = now;
      const std::lock_guard lock(mutex_);
      for (const Peer& peer : peers_)
        if (!peer.left) say(peer.socket, kAlive);
    }
    for (const Peer& peer : peers_)
      if (!peer.left && now - peer.heard > Communicator::kSilence)
        lose(peer, " has given no sign of life for " + std::to_string(Communicator::kSilence.count()) + " s");
    if (!failed_ || told_)
      well = now;
    else if (now - well > Communicator::kGrace)
      leave();
  }
}

// What it computes meanwhile serves nobody.
void Watch::leave() {
  const std::lock_guard lock(mutex_);
  if (rank_ == 0 || (rank_ == 1 && lost_root_))
    std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, failure_.c_str());
  std::_Exit(1);
}

}  // namespace regolith
