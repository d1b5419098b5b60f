#include "kernels/host/checked.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/execution.h"
#include "kernels/host/fiber.h"
#include "kernels/host/sanitizers.h"

namespace regolith::host {

constinit thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr size_t kLanesOfWarp = 32, kMostThreads = 1024, kMostShared = 227 * 1024;  // of a block, on an H100
constexpr size_t kGuard = 512, kMostPieces = 32;
constexpr unsigned char kGuardBytes[2] = {0xa5, 0xff};  // NaN in every float type, and not the NaN of the poison

std::atomic<uint64_t> next_seed{[] {
  const char* given = std::getenv("REGOLITH_CHECKED_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
}()};

std::string text(Dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

struct Abandoned {};  // unwinds the threads of a block that has failed

// The shared memory of the block that runs: a guard, then each piece with a guard behind it.
class SharedMemory {
 public:
  ~SharedMemory() { release(); }

  void open(size_t bytes) {
    const size_t needed = bytes + (kMostPieces + 1) * (kGuard + 16);
    // New pages for each block are new to ThreadSanitizer: blocks that share nothing else must not race here.
    if (needed > size_ || kWatchesRaces) {
      release();
      void* m = mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (m == MAP_FAILED) throw std::bad_alloc();
      memory_ = static_cast<unsigned char*>(m);
      size_ = needed;
    }
    count_ = used_ = 0;
    limit_ = bytes;
    forbid(memory_, size_);
  }

  // Null where that is wrong, and `wrong` says why.
  void* take(size_t index, size_t bytes, std::string& wrong) {
    if (index < count_) {
      if (pieces_[index].bytes == bytes) return pieces_[index].data;
      wrong = "piece " + std::to_string(index) + " of shared memory has " + std::to_string(pieces_[index].bytes) +
              " bytes for one thread and " + std::to_string(bytes) + " for another: all must take the same";
      return nullptr;
    }
    if (index > count_ || index >= kMostPieces) {
      wrong = "takes more than " + std::to_string(kMostPieces) + " pieces of shared memory, or not one after another";
      return nullptr;
    }
    used_ += (bytes + 15) / 16 * 16;
    if (used_ > limit_) {
      wrong = "takes " + std::to_string(used_) + " bytes of shared memory, but was launched with " +
              std::to_string(limit_) + ": give launch() the sum of its pieces' shared_bytes()";
      return nullptr;
    }
    unsigned char* data = count_ == 0 ? memory_ + kGuard : pieces_[count_ - 1].end();
    const Piece piece{data, bytes};
    allow(data - kGuard, piece.end() - data + kGuard);
    if (count_ == 0) fill_guard(memory_, data);
    std::memset(data, 0xff, bytes);  // NaN
    fill_guard(data + bytes, piece.end());
    forbid(data - kGuard, kGuard);
    forbid(data + bytes, piece.end() - data - bytes);
    pieces_[count_++] = piece;
    return data;
  }

  // Which guard was written to; empty where none was.
  std::string damage() {
    if (count_ == 0) return {};
    allow(memory_, pieces_[count_ - 1].end() - memory_);
    for (size_t i = 0; i < count_; ++i) {
      const Piece& p = pieces_[i];
      const std::string piece =
          " of piece " + std::to_string(i) + " of shared memory (" + std::to_string(p.bytes) + " bytes) was written to";
      if (i == 0)
        for (const unsigned char* c = p.data; c-- > memory_;)
          if (*c != guard_byte(c)) return "byte -" + std::to_string(p.data - c) + piece;
      for (const unsigned char* c = p.data + p.bytes; c < p.end(); ++c)
        if (*c != guard_byte(c)) return "byte " + std::to_string(c - p.data) + piece;
    }
    return {};
  }

 private:
  struct Piece {
    unsigned char* data;
    size_t bytes;
    unsigned char* end() const { return data + (bytes + 15) / 16 * 16 + kGuard; }
  };
  static unsigned char guard_byte(const unsigned char* p) { return kGuardBytes[reinterpret_cast<uintptr_t>(p) % 2]; }
  static void fill_guard(unsigned char* from, unsigned char* to) {
    for (; from < to; ++from) *from = guard_byte(from);
  }
  void release() {
    if (memory_ == nullptr) return;
    allow(memory_, size_);
    munmap(memory_, size_);
    memory_ = nullptr;
  }

  unsigned char* memory_ = nullptr;
  size_t size_ = 0, limit_ = 0, used_ = 0, count_ = 0;
  Piece pieces_[kMostPieces];
};

class Executor {
 public:
  ~Executor() {
    const Unwatched unwatched;
    for (auto& set : fibers_) set.clear();
  }
  void run_grid(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body);
  void barrier();
  void meet_warp(const void* mine, void* all, size_t bytes);  // no bytes: a barrier
  void* take_shared(size_t index, size_t bytes);

 private:
  struct Thread {
    Executor* executor;
    unsigned rank;
    bool left = false;  // the kernel has returned
    std::unique_ptr<Fiber> fiber;
  };
  // A set of fibers runs one block. ThreadSanitizer needs two sets in turn: a fiber that ran the block before has its
  // accesses in its past, and would hide the races with that block.
  static constexpr int kSets = kWatchesRaces ? 2 : 1;
  struct Warp {
    unsigned lanes, arrived;
    unsigned turn;  // exchanges so far; buffers and tags alternate, for a fast lane may be at the next one already
    size_t bytes;   // of the exchange that is open
    alignas(16) unsigned char values[2][kLanesOfWarp * kMostExchanged];
    uint64_t tags[kSets][2];
  };

  void prepare(Dim3 block);
  void run_block(Dim3 index);
  void run_thread(Thread& t);
  void wait();
  void abandon();
  uint64_t random();
  KernelError fault(const std::string& what) const;
  std::string stuck() const;

  const char* name_ = "";
  const std::function<void()>* body_ = nullptr;
  uint64_t seed_ = 0, random_ = 0;
  unsigned threads_ = 0, arrived_ = 0, left_ = 0, barriers_ = 0;
  int set_ = 0;
  bool abandoned_ = false;
  std::exception_ptr fault_;
  size_t shared_bytes_ = 0;
  SharedMemory shared_;
  Thread* current_ = nullptr;
  std::vector<std::unique_ptr<Thread>> fibers_[kSets];
  std::vector<unsigned> ready_;
  std::vector<std::unique_ptr<Warp>> warps_;
  // What ThreadSanitizer takes for locks. A barrier's tag must not be the next barrier's: the first fiber that goes on
  // releases that one before the last has acquired this one, and all between them would look ordered.
  uint64_t start_tag_ = 0, end_tag_ = 0, barrier_tags_[kSets][2] = {};
};

thread_local Executor executor;

uint64_t Executor::random() {  // splitmix64
  uint64_t z = random_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

KernelError Executor::fault(const std::string& what) const {
  return KernelError(std::string("kernel ") + name_ + ", block " + text(blockIdx) + " of grid " + text(gridDim) +
                     " with " + text(blockDim) + " threads, seed " + std::to_string(seed_) + ": " + what);
}

void Executor::prepare(Dim3 block) {
  threads_ = block.x * block.y * block.z;
  for (auto& set : fibers_)
    while (set.size() < threads_) {
      auto t = std::make_unique<Thread>();
      t->executor = this;
      t->rank = static_cast<unsigned>(set.size());
      t->fiber = std::make_unique<Fiber>(
          [](void* p) {
            Thread& thread = *static_cast<Thread*>(p);
            for (;;) thread.executor->run_thread(thread);
          },
          t.get());
      set.push_back(std::move(t));
    }
  while (warps_.size() * kLanesOfWarp < threads_) warps_.push_back(std::make_unique<Warp>());
}

void Executor::run_grid(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes,
                        const std::function<void()>& body) {
  const Unwatched unwatched;
  name_ = name;
  gridDim = grid;
  blockDim = block;
  blockIdx = {0, 0, 0};
  random_ = seed_ = next_seed.fetch_add(1, std::memory_order_relaxed);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64) throw fault("no GPU runs a block of this size");
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) throw fault("no GPU runs a grid of this size");
  if (shared_bytes > kMostShared) throw fault("asks for more shared memory than any GPU has");
  prepare(block);
  body_ = &body;
  shared_bytes_ = shared_bytes;
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  for (size_t i = 0; i < order.size() && fault_ == nullptr; ++i) {
    const uint32_t b = order[i];
    set_ = i % kSets;
    run_block({b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y});
  }
  acquire(&end_tag_);
  if (fault_ != nullptr) std::rethrow_exception(std::exchange(fault_, nullptr));
}

void Executor::run_block(Dim3 index) {
  blockIdx = index;
  arrived_ = left_ = barriers_ = 0;
  abandoned_ = false;
  shared_.open(shared_bytes_);
  ready_.resize(threads_);
  std::iota(ready_.begin(), ready_.end(), 0u);
  for (unsigned t = 0; t < threads_; ++t) fibers_[set_][t]->left = false;
  for (size_t w = 0; w * kLanesOfWarp < threads_; ++w) {
    warps_[w]->lanes = static_cast<unsigned>(std::min(kLanesOfWarp, threads_ - w * kLanesOfWarp));
    warps_[w]->arrived = warps_[w]->turn = 0;
  }
  release(&start_tag_);
  while (left_ < threads_) {
    if (ready_.empty()) {
      fault_ = std::make_exception_ptr(fault(stuck()));
      abandon();
    }
    std::swap(ready_[random() % ready_.size()], ready_.back());
    current_ = fibers_[set_][ready_.back()].get();
    ready_.pop_back();
    const unsigned r = current_->rank;
    threadIdx = {r % blockDim.x, r / blockDim.x % blockDim.y, r / blockDim.x / blockDim.y};
    current_->fiber->resume();
    if (fault_ != nullptr && !abandoned_) abandon();
  }
  if (fault_ == nullptr) {
    const std::string damage = shared_.damage();
    if (!damage.empty()) fault_ = std::make_exception_ptr(fault(damage));
  }
}

void Executor::run_thread(Thread& t) {
  acquire(&start_tag_);
  try {
    if (!abandoned_) (*body_)();
  } catch (const Abandoned&) {
  } catch (...) {
    const Unwatched unwatched;
    if (fault_ == nullptr) fault_ = std::current_exception();
  }
  release(&end_tag_);
  {
    const Unwatched unwatched;
    ++left_;
    t.left = true;
  }
  t.fiber->suspend();
}

void Executor::abandon() {
  abandoned_ = true;
  ready_.clear();
  for (unsigned t = 0; t < threads_; ++t)
    if (!fibers_[set_][t]->left) ready_.push_back(t);
}

std::string Executor::stuck() const {
  const std::string in_block = std::to_string(threads_ - left_) + " of " + std::to_string(threads_) + " threads";
  if (arrived_ > 0)
    return "a barrier was reached by " + std::to_string(arrived_) + " of " + std::to_string(threads_) + " threads (" +
           std::to_string(left_) + " left the kernel, " + std::to_string(threads_ - left_ - arrived_) +
           " wait for their warp): every thread must reach every sync_block()";
  for (size_t w = 0;; ++w)
    if (warps_[w]->arrived > 0)
      return "an exchange in warp " + std::to_string(w) + " was reached by " + std::to_string(warps_[w]->arrived) +
             " of " + std::to_string(warps_[w]->lanes) + " lanes (the others left the kernel; " + in_block +
             " are still in it): every lane must reach every shuffle, sync_warp and mma";
}

void Executor::wait() {
  current_->fiber->suspend();
  if (abandoned_) throw Abandoned{};
}

void Executor::barrier() {
  const Unwatched unwatched;
  uint64_t* tag = &barrier_tags_[set_][barriers_ % 2];
  release(tag);
  if (++arrived_ == threads_) {
    arrived_ = 0;
    ++barriers_;
    for (unsigned t = 0; t < threads_; ++t) ready_.push_back(t);
  }
  wait();
  acquire(tag);
}

void Executor::meet_warp(const void* mine, void* all, size_t bytes) {
  const Unwatched unwatched;
  const unsigned w = current_->rank / kLanesOfWarp, lane = current_->rank % kLanesOfWarp;
  Warp& warp = *warps_[w];
  const unsigned turn = warp.turn % 2;
  unsigned char* values = warp.values[turn];
  if (bytes > kMostExchanged) throw fault("exchanges " + std::to_string(bytes) + " bytes at once");
  if (warp.arrived == 0) {
    warp.bytes = bytes;
    std::memset(values + warp.lanes * bytes, 0, (kLanesOfWarp - warp.lanes) * bytes);
  } else if (warp.bytes != bytes) {
    throw fault("the lanes of warp " + std::to_string(w) + " meet in different exchanges");
  }
  if (bytes > 0) std::memcpy(values + lane * bytes, mine, bytes);
  uint64_t* tag = bytes == 0 ? &warp.tags[set_][turn] : nullptr;
  if (tag != nullptr) release(tag);
  if (++warp.arrived == warp.lanes) {
    warp.arrived = 0;
    ++warp.turn;
    for (unsigned i = 0; i < warp.lanes; ++i) ready_.push_back(static_cast<unsigned>(w * kLanesOfWarp) + i);
  }
  wait();
  if (tag != nullptr) acquire(tag);
  if (bytes > 0) std::memcpy(all, values, kLanesOfWarp * bytes);
}

void* Executor::take_shared(size_t index, size_t bytes) {
  const Unwatched unwatched;
  std::string wrong;
  void* piece = shared_.take(index, bytes, wrong);
  if (piece == nullptr) throw fault(wrong);
  return piece;
}

}  // namespace

void run_grid(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  executor.run_grid(name, grid, block, shared_bytes, body);
}
void set_seed(uint64_t seed) { next_seed.store(seed, std::memory_order_relaxed); }
void barrier() { executor.barrier(); }
void warp_barrier() { executor.meet_warp(nullptr, nullptr, 0); }
void exchange(const void* mine, void* all, size_t bytes) { executor.meet_warp(mine, all, bytes); }
void* take_shared(size_t index, size_t bytes) { return executor.take_shared(index, bytes); }

namespace {
std::atomic<int64_t> conflicts = 0;  // fibers are threads to ThreadSanitizer
}
int64_t bank_conflicts() { return conflicts.load(std::memory_order_relaxed); }
void count_bank_conflicts(int64_t more) { conflicts.fetch_add(more, std::memory_order_relaxed); }

}  // namespace regolith::host
