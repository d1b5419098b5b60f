// The checked host executor: the true block size, one fiber per CUDA thread, in an order drawn from a printed seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace regolith {
struct Dim3;
}

namespace regolith::host {

// Of the fiber that runs now; set at every switch.
extern thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

// Runs the grid, block after block. Throws KernelError for a barrier that only some threads reach, for shared memory
// taken beyond `shared_bytes` or taken differently by two threads, and for a write to a guard.
void run_grid(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Seed of the fiber order of the following grids; printed when a grid fails.
void set_seed(uint64_t seed);

// All threads of the block.
void barrier();

// All 32 lanes of the warp (fewer in the last): publishes `bytes` of this lane, waits, gives the lanes' values back in
// `all` (32 * bytes; lanes that do not exist are zero).
void exchange(const void* mine, void* all, size_t bytes);

// The `index`-th piece of shared memory of this block: every thread takes the same sizes in the same order. Poisoned
// with NaN before the first write, guarded on both ends. 16-byte aligned.
void* take_shared(size_t index, size_t bytes);

}  // namespace regolith::host
