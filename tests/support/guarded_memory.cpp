#include "tests/support/guarded_memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "engine/base/error.h"

namespace regolith {
namespace {

constexpr size_t kMostRanges = 4096;  // of the process

struct Range {
  std::atomic<uintptr_t> begin{0}, end{0};  // 0: free
};
Range ranges[kMostRanges];  // read by the signal handler
std::atomic<const char*> running_work{nullptr};
struct sigaction previous_handler;

void say(const char* text) { (void)!write(STDERR_FILENO, text, std::strlen(text)); }

// Says what happened, then lets the fault happen again under the handler that was there before.
void on_fault(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  const bool device = std::any_of(std::begin(ranges), std::end(ranges),
                                  [&](const Range& r) { return r.begin <= address && address < r.end; });
  if (device) {
    char text[] = "0x0000000000000000\n";
    for (int i = 17, digit = 0; i > 1; --i, ++digit) text[i] = "0123456789abcdef"[address >> (4 * digit) & 15];
    if (const char* work = running_work; work != nullptr) {
      say("simulated device: ");
      say(work);
      say(" touched device memory that is released, or beyond the end of an allocation, at ");
    } else {
      say("simulated device: host code touched device memory at ");
    }
    say(text);
  }
  sigaction(SIGSEGV, &previous_handler, nullptr);
}

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

GuardedMemory::GuardedMemory() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &previous_handler);
  });
}

GuardedMemory::~GuardedMemory() {
  for (const auto& [begin, block] : live_) drop(block);
  for (const Block& block : released_) drop(block);
}

void* GuardedMemory::allocate(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t usable = round_up(std::max<size_t>(bytes, 1), 256), mapped = round_up(usable, page);
  auto* slot = static_cast<Range*>(free_slot());
  void* base = slot == nullptr
                   ? MAP_FAILED
                   : mmap(nullptr, mapped + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    if (slot != nullptr) slot->begin = 0;
    throw DeviceError("simulated device: no memory for " + std::to_string(bytes) + " bytes");
  }
  const auto start = reinterpret_cast<uintptr_t>(base), begin = start + mapped - usable;
  slot->begin = start;
  slot->end = start + mapped + page;
  const Block block{base, mapped, page, usable, slot};
  live_[begin] = block;
  if (unlocked_ > 0) protect(block, PROT_READ | PROT_WRITE);
  return reinterpret_cast<void*>(begin);
}

void GuardedMemory::release(void* memory) noexcept {
  const auto it = live_.find(reinterpret_cast<uintptr_t>(memory));
  if (it == live_.end()) {
    say("simulated device: release of what was never allocated, or twice\n");
    std::abort();
  }
  protect(it->second, PROT_NONE);
  madvise(it->second.base, it->second.mapped, MADV_DONTNEED);
  released_.push_back(it->second);
  live_.erase(it);
}

bool GuardedMemory::contains(const void* memory, size_t bytes) const {
  const auto p = reinterpret_cast<uintptr_t>(memory);
  const auto after = live_.upper_bound(p);
  return after != live_.begin() && p + bytes <= std::prev(after)->first + std::prev(after)->second.usable;
}

GuardedMemory::Unlock::Unlock(GuardedMemory& memory) : memory_(memory) {
  if (memory_.unlocked_++ == 0) memory_.protect_all(PROT_READ | PROT_WRITE);
}
GuardedMemory::Unlock::~Unlock() {
  if (--memory_.unlocked_ == 0) memory_.protect_all(PROT_NONE);
}

void GuardedMemory::name_work(const char* name) { running_work = name; }

void GuardedMemory::protect(const Block& b, int how) {
  if (mprotect(b.base, b.mapped, how) != 0) {
    say("simulated device: mprotect failed\n");
    std::abort();
  }
}

void GuardedMemory::protect_all(int how) {
  for (const auto& [begin, block] : live_) protect(block, how);
}

void GuardedMemory::drop(const Block& b) {
  auto* slot = static_cast<Range*>(b.slot);
  slot->end = 0;
  slot->begin = 0;
  munmap(b.base, b.mapped + b.guard);
}

void* GuardedMemory::free_slot() {
  for (int pass = 0; pass < 2; ++pass) {
    for (Range& r : ranges) {
      uintptr_t none = 0;
      if (r.begin.compare_exchange_strong(none, ~uintptr_t{0})) return &r;
    }
    if (released_.empty()) break;
    drop(released_.front());
    released_.pop_front();
  }
  return nullptr;
}

}  // namespace regolith
