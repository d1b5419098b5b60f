// The checked host executor: the true block size, one fiber per CUDA thread, in an order drawn from a printed seed.
//
// Everything runs on the calling thread, block after block. ThreadSanitizer sees each fiber as a thread of its own, and
// barrier() and warp_barrier() as all that orders them: a missing barrier is a data race in its report, and so are two
// neighbouring blocks that touch the same bytes. AddressSanitizer sees the ends of every piece of shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace regolith {
struct Dim3;
}

namespace regolith::host {

// Of the fiber that runs now; set at every switch.
extern constinit thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

// Runs the grid. Throws KernelError (kernel, block, seed) for a grid that no GPU would launch, for a barrier or a warp
// exchange that only some threads reach, for shared memory taken beyond `shared_bytes` or taken differently by two
// threads, and for a write to a guard. What the body throws is thrown here. The remaining threads are unwound.
void run_grid(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Seed of the fiber order of the next grid; each later grid takes the next number. The first grid of a program takes
// the environment's REGOLITH_CHECKED_SEED, or 1. An error names the seed of its grid.
void set_seed(uint64_t seed);

// All threads of the block; orders memory.
void barrier();

// All lanes of the warp (fewer than 32 in the last); orders memory.
void warp_barrier();

// All lanes of the warp: publishes `bytes` (at most kMostExchanged) of this lane, waits, gives the lanes' values back
// in `all` (32 * bytes; lanes that do not exist are zero). Like a shuffle, it does not order memory.
inline constexpr size_t kMostExchanged = 64;
void exchange(const void* mine, void* all, size_t bytes);

// Times that the loads of tensor-core fragments (mma.h) would have had to wait for a bank of shared memory, in this
// process so far.
int64_t bank_conflicts();
void count_bank_conflicts(int64_t more);

// The `index`-th piece of shared memory of this block: every thread takes the same sizes in the same order. Poisoned
// with NaN before the first write, guarded on both ends. 16-byte aligned.
void* take_shared(size_t index, size_t bytes);

}  // namespace regolith::host
