// Which sanitizer this translation unit is compiled with, and what the host executors tell it.
#pragma once

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define REGOLITH_ASAN 1
#elif __has_feature(thread_sanitizer)
#define REGOLITH_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(REGOLITH_ASAN)
#define REGOLITH_ASAN 1
#elif defined(__SANITIZE_THREAD__) && !defined(REGOLITH_TSAN)
#define REGOLITH_TSAN 1
#endif

#if defined(REGOLITH_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(REGOLITH_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#endif

namespace regolith::host {

#if defined(REGOLITH_TSAN)
// While one lives, ThreadSanitizer does not watch the reads and writes of the fiber that made it: the executor's own.
struct Unwatched {
  Unwatched() { __tsan_ignore_thread_begin(); }
  ~Unwatched() { __tsan_ignore_thread_end(); }
  Unwatched(const Unwatched&) = delete;
};
inline constexpr bool kWatchesRaces = true;
inline void release(void* tag) { __tsan_release(tag); }
inline void acquire(void* tag) { __tsan_acquire(tag); }
#else
struct Unwatched {
  Unwatched() {}
  ~Unwatched() {}
};
inline constexpr bool kWatchesRaces = false;
inline void release(void*) {}
inline void acquire(void*) {}
#endif

#if defined(REGOLITH_ASAN)
inline void forbid(void* p, unsigned long bytes) { __asan_poison_memory_region(p, bytes); }
inline void allow(void* p, unsigned long bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void forbid(void*, unsigned long) {}
inline void allow(void*, unsigned long) {}
#endif

}  // namespace regolith::host
