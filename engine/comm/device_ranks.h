// What ranks exchange of their devices' memory, in stream order: gradients, statistics, a loss's sums.
#pragma once

#include <memory>
#include <string>

#include "engine/comm/communicator.h"
#include "engine/tensor/device.h"
#include "kernels/core/batch_ranks.h"

namespace regolith {

class DeviceRanks : public kernels::BatchRanks {
 public:
  // In place. Each value is added in an order of the library's, the same on all ranks.
  virtual void sum(DeviceStream& stream, float* values, int64_t count) = 0;
  virtual void broadcast(DeviceStream& stream, void* data, size_t bytes, int from) = 0;
  // Whether no exchange waits for the host: a step that holds some can be captured, and they run beside other streams.
  virtual bool asynchronous() const { return false; }
  virtual std::string name() const = 0;  // "through the host", "NCCL 2.29.2"
};

// By NCCL between CUDA devices, where all ranks have it and a GPU of their own; else by way of the host's memory. Both
// must outlive it.
std::unique_ptr<DeviceRanks> make_device_ranks(Communicator& ranks, Device& device);

}  // namespace regolith
