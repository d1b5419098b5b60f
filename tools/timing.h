// Medians of launches, and what a machine can do at best: the floor under every kernel.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/tensor/device.h"
#include "kernels/core/dtype.h"

namespace regolith {

// In [-1, 1): a GPU multiplies zeros faster.
DeviceBuffer random_numbers(Device& device, DeviceStream& stream, int64_t n, DType type, uint32_t key);

double median(std::vector<double> values);  // of one or more

// Seconds of one call of `launch`, which enqueues on the stream: the median over rounds of so many calls that waiting
// for the device, which happens once a round, does not show. `calls`: a multiple of this in each round.
double median_seconds(DeviceStream& stream, const std::function<void()>& launch, double budget_seconds, int calls = 1);

struct MachineRates {
  double copy = 0;    // bytes per second, read and written, of maps too large for any cache, by our kernel
  double matrix = 0;  // floating-point operations per second of a large convolution, two to a multiplication
  std::string matrix_by;
  double floor_seconds(double bytes, double flops) const;
};
MachineRates measure_rates(Device& device, DType type, bool tf32 = false);
std::string to_string(const MachineRates& rates);  // "copy 40.1 GB/s, matrix 471 GFLOP/s (onednn)"

}  // namespace regolith
