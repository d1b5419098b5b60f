// TCP connections whose every wait has an end.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <utility>

namespace regolith {

class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket();
  int descriptor() const { return descriptor_; }
  bool open() const { return descriptor_ >= 0; }

  using Clock = std::chrono::steady_clock;

  // A socket that listens at the first free one of the ports from `port` on; port 0: at any. Throws CommError.
  static Socket listen(int port, int ports);
  int port() const;  // that it listens at
  // Nothing at `until`.
  Socket accept(Clock::time_point until) const;
  // Nothing where nobody listens there. `unknown`: set to why the system does not know the address, or emptied.
  static Socket connect(const std::string& address, int port, Clock::time_point until, std::string* unknown = nullptr);
  std::string peer() const;  // the other side's address

  // Asked now and then while a transfer waits; throws to end it.
  using Check = std::function<void()>;
  // False where the connection ended.
  bool send(const void* data, size_t bytes, const Check& check) const;
  bool receive(void* data, size_t bytes, const Check& check) const;
  // Both at once, so that a ring of ranks may send before anyone has received.
  static bool exchange(const Socket& to, const void* data, size_t bytes, const Socket& from, void* received,
                       size_t received_bytes, const Check& check);

 private:
  int descriptor_ = -1;
};

std::string host_name();

}  // namespace regolith
