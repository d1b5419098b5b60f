#include "kernels/host/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "kernels/host/sanitizers.h"

#if defined(__x86_64__)
// Keeps the registers that a function must preserve on the old stack, and takes those of the new one. swapcontext would
// do, but asks the kernel for the signal mask: 40 times slower.
extern "C" void regolith_switch_stack(void** save, void* take);
asm(R"(
.text
.globl regolith_switch_stack
.type regolith_switch_stack,@function
regolith_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size regolith_switch_stack,.-regolith_switch_stack

.globl regolith_first_entry
.type regolith_first_entry,@function
regolith_first_entry:
  movq %r12, %rdi
  callq *%r13
  ud2
.size regolith_first_entry,.-regolith_first_entry
)");
extern "C" void regolith_first_entry();
#endif

namespace regolith::host {

namespace {
constexpr size_t kPage = 4096, kStack = 256 * 1024;  // only touched pages cost memory; reports of sanitizers are deep
}

Fiber::Fiber(void (*entry)(void*), void* argument) : entry_(entry), argument_(argument) {
  void* m = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<unsigned char*>(m);
  mprotect(memory_, kPage, PROT_NONE);
#if defined(__x86_64__)
  // Stacks that began at equal offsets of their pages would fight for the same lines of the cache.
  const size_t shift = reinterpret_cast<uintptr_t>(memory_) / kPage % 64 * 64;
  void** top = reinterpret_cast<void**>(memory_ + kPage + kStack - shift);
  // In the order of the pops: r15, r14, r13, r12, rbx, rbp, return address; then the stack is aligned to 16.
  void* frame[] = {nullptr, nullptr, reinterpret_cast<void*>(&Fiber::start),        this,
                   nullptr, nullptr, reinterpret_cast<void*>(&regolith_first_entry)};
  constexpr int words = sizeof frame / sizeof *frame;
  void** sp = top - 2 - words;  // the entry finds rsp at top - 2 words: a multiple of 16, as before a call
  for (int i = 0; i < words; ++i) sp[i] = frame[i];
  sp_ = sp;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_ + kPage;
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  const auto bits = reinterpret_cast<uintptr_t>(this);  // makecontext passes ints
  makecontext(&context_,
              reinterpret_cast<void (*)()>(static_cast<void (*)(unsigned, unsigned)>([](unsigned high, unsigned low) {
                start(reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low));
              })),
              2, static_cast<unsigned>(static_cast<uint64_t>(bits) >> 32), static_cast<unsigned>(bits));
#endif
#if defined(REGOLITH_TSAN)
  own_race_state_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(REGOLITH_TSAN)
  __tsan_destroy_fiber(own_race_state_);
#endif
  allow(memory_ + kPage, kStack);
  munmap(memory_, kPage + kStack);
}

void Fiber::start(Fiber* self) {
#if defined(REGOLITH_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &self->outside_stack_, &self->outside_size_);
#endif
  self->entry_(self->argument_);
}

void Fiber::resume() {
#if defined(REGOLITH_ASAN)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, memory_ + kPage, kStack);
#elif defined(REGOLITH_TSAN)
  outside_race_state_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(own_race_state_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  regolith_switch_stack(&outside_sp_, sp_);
#else
  swapcontext(&outside_context_, &context_);
#endif
#if defined(REGOLITH_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(REGOLITH_ASAN)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, outside_stack_, outside_size_);
#elif defined(REGOLITH_TSAN)
  __tsan_switch_to_fiber(outside_race_state_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  regolith_switch_stack(&sp_, outside_sp_);
#else
  swapcontext(&context_, &outside_context_);
#endif
#if defined(REGOLITH_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, &outside_stack_, &outside_size_);
#endif
}

}  // namespace regolith::host
