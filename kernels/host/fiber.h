// A thread of control with a stack of its own, on the operating system's thread that resumes it. Its switches are
// announced to AddressSanitizer and, without any ordering of memory, to ThreadSanitizer.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace regolith::host {

class Fiber {
 public:
  // `entry` runs at the first resume and never returns: it suspends when it has nothing to do. Throws std::bad_alloc.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume();   // from outside: runs the fiber until it suspends
  void suspend();  // from inside: goes back to where it was resumed

 private:
  static void start(Fiber* self);

  void (*entry_)(void*);
  void* argument_;
  unsigned char* memory_;  // a page that nobody may touch, then the stack
#if defined(__x86_64__)
  void *sp_ = nullptr, *outside_sp_ = nullptr;
#else
  ucontext_t context_, outside_context_;
#endif
  const void* outside_stack_ = nullptr;  // for AddressSanitizer
  size_t outside_size_ = 0;
  void *own_race_state_ = nullptr, *outside_race_state_ = nullptr;  // for ThreadSanitizer
};

}  // namespace regolith::host
