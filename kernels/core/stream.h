// What a kernel launcher knows of the machine: a stream, which execution of the kernel sources it runs, how wide it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace regolith {

// out[i] = the sum of data[p * stride + i] over p < parts, or adds it, for i < n: what blocks left of it.
struct PartialSums {
  const float* data;
  int parts;
  int64_t stride, n;
  float* out;
  bool accumulate;
};

enum class Execution : int {
  gpu,      // compiled by nvcc, one CUDA thread per thread
  fast,     // host compiler, one thread per block, OpenMP over the blocks
  checked,  // host compiler, one fiber per CUDA thread, every barrier and shared byte watched
};

// Work is done in the order in which it is enqueued. A host stream takes closures; a CUDA stream takes launches.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual Execution execution() const = 0;
  // Multiprocessors of the GPU, or threads of the host: what a launcher sizes its grid by.
  virtual int processors() const = 0;
  // Where sum_partials() leaves what it was to launch, for pending_sums() to do at once (kernels/channel_sum.h); null:
  // it does it. Who sets this keeps the data until then.
  std::vector<PartialSums>* pending = nullptr;
  // The cudaStream_t of a CUDA stream, whose device is selected on this thread then; null elsewhere.
  virtual void* native() const { return nullptr; }
  // Host streams only: runs `work` now (CPU device) or later (simulated device). `name` must be a literal or outlive
  // it.
  virtual void enqueue(const char* name, std::function<void()> work) = 0;
  // Host streams only: called with each pointer, and with each struct, that a launch hands to its kernel. The simulated
  // device throws DeviceError for one that leads to memory that a GPU could not read.
  virtual void check_argument(const char* /*kernel*/, const void* /*argument*/, size_t /*bytes*/, bool /*pointer*/) {}
};

}  // namespace regolith
