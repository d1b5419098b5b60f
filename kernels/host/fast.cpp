#include "kernels/host/fast.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#include "kernels/core/execution.h"
#include "kernels/host/sanitizers.h"

namespace regolith::host_fast {

constinit thread_local Dim3 blockIdx, gridDim;

namespace {

struct Scratch {  // one per OpenMP thread; grows, and is kept
  unsigned char* data = nullptr;
  size_t size = 0;
  void reserve(size_t bytes) {
    if (bytes <= size) return;
    release();
    data = static_cast<unsigned char*>(::operator new(bytes, std::align_val_t(64)));
    size = bytes;
  }
  void release() {
    if (data != nullptr) ::operator delete(data, std::align_val_t(64));
    data = nullptr;
    size = 0;
  }
  ~Scratch() { release(); }
};
thread_local Scratch scratch;

}  // namespace

unsigned char* shared_memory() { return scratch.data; }

void run_blocks(Dim3 grid, size_t shared_bytes, const std::function<void()>& body) {
  const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
#if !defined(REGOLITH_TSAN)  // libgomp's own synchronisation is invisible to ThreadSanitizer: one thread there
#pragma omp parallel if (blocks > 1)
#endif
  {
    scratch.reserve(shared_bytes);
    gridDim = grid;
#if !defined(REGOLITH_TSAN)
#pragma omp for schedule(static)
#endif
    for (int64_t b = 0; b < blocks; ++b) {
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      body();
    }
  }
}

}  // namespace regolith::host_fast
