// Sums of vectors, as of the gradients that several devices computed: one addition after the other in a given order, so
// that the bits do not depend on who computed what.
//
//   out[k] = ((rows[order[0]][k] + rows[order[1]][k]) + rows[order[2]][k]) + ...
//
// Occupancy: at least 50% (256 threads).
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct SumRows {
  const void* rows = nullptr;  // (most, count) of fp32 or bf16
  DType type = DType::f32;
  const int32_t* order = nullptr;  // (terms) in device memory; null: 0, 1, 2 ...
  int terms = 0;                   // at least 1
  int64_t count = 0;               // a multiple of 8
  bool mean = false;               // the mean in place of the sum, by way of double: that of equal values is exact
  float* out = nullptr;            // (count), apart from rows
};
REGOLITH_KERNEL(sum_rows, SumRows);

}  // namespace regolith::kernels
