// Ranks that train one network together: processes (or, in tests, threads) with a device each, which do the same steps
// and exchange their gradients in between.
//
// All ranks make the same calls in the same order. A call returns when it has what it needs of the others. One that
// waits for a rank that has failed, died or gone silent throws CommError within kSilence. Where a process computes for
// longer than kGrace after that, and calls nothing, it is ended with the message.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace regolith {

class Communicator {
 public:
  // After which a rank that shows no sign of life is taken for lost. Signs do not depend on what a rank computes.
  static constexpr std::chrono::seconds kSilence{10};
  static constexpr std::chrono::seconds kGrace{5};

  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;  // "rank 2 of 4 on host": for messages
  bool is_root() const { return rank() == 0; }

  // In host memory. all: (size, bytes), in the order of the ranks.
  virtual void gather(const void* mine, size_t bytes, void* all) = 0;
  virtual void broadcast(void* data, size_t bytes, int from) = 0;
  // In place. Each value is added in an order of the library's, the same on all ranks.
  virtual void sum(float* values, int64_t count) = 0;

  // Tells the others that this rank ends with an error, so that their calls throw it. They say whose it is.
  virtual void fail(const std::string& message) noexcept = 0;
  // Throws CommError once another has failed. For waits that are none of this class.
  virtual void check() {}
  // Rank 0, which speaks for all, is gone: rank 1 does then.
  virtual bool lost_root() const { return false; }
  // Called once by another thread when one has failed, to end such a wait; {}: no more.
  virtual void on_failure(std::function<void()>) {}

  // By gather(), in the order of the ranks.
  int64_t sum(int64_t value);
  void sum(std::vector<int64_t>& values);
  bool any(bool value);
  void barrier() { any(false); }
  std::vector<std::string> gather(const std::string& text);
  std::string broadcast(const std::string& text, int from);
};

// Ranks that are threads of this process, for tests: the communicators of all of them, to be given away one each.
std::vector<std::unique_ptr<Communicator>> make_local(int size);

}  // namespace regolith
