// The GPU path without a GPU: a device whose work runs later than it was enqueued.
#pragma once

#include "engine/tensor/device.h"

namespace regolith {

// Runs work later than it was enqueued, in an order drawn from `seed` among those that streams and events allow. Its
// memory is unreadable to host code but for copies and kernels.
std::unique_ptr<Device> make_simulated_device(uint64_t seed, Execution execution = Execution::fast);

}  // namespace regolith
