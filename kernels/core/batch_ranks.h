// Devices that compute parts of one batch at the same time, for kernels whose result depends on the whole of it: a
// batch norm, a loss that sums over the batch. Each device launches the same kernels in the same order.
#pragma once

#include <cstddef>

#include "kernels/core/stream.h"

namespace regolith::kernels {

class BatchRanks {
 public:
  static constexpr int kMost = 256;  // that a norm's workspace has room for

  virtual ~BatchRanks() = default;
  virtual int size() const = 0;
  int images() const { return images_; }  // of the batch, on all devices together
  void begin_batch(int images) { images_ = images; }
  // In device memory, in the order of the stream: `bytes` bytes of each rank, to all of them. all: (size, bytes).
  virtual void gather(Stream& stream, const void* mine, size_t bytes, void* all) = 0;

 private:
  int images_ = 0;
};

}  // namespace regolith::kernels
