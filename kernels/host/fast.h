// The fast host executor: OpenMP over the blocks, one thread per block.
#pragma once

#include <cstddef>
#include <functional>

namespace regolith {
struct Dim3;
}

namespace regolith::host_fast {

extern constinit thread_local Dim3 blockIdx, gridDim;

// Shared memory of the block that this thread runs: at least `bytes`, 64-byte aligned, contents undefined.
unsigned char* shared_memory();

// Runs `body` once per block of the grid.
void run_blocks(Dim3 grid, size_t shared_bytes, const std::function<void()>& body);

}  // namespace regolith::host_fast
