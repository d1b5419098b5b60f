// Many small copies in one launch: pieces of weights that are gathered into one tensor, and their gradients scattered.
//
//   to[i * to_pitch + j] (+)= from[i * from_pitch + j]   for i < rows, j < columns; zeros where `from` is null
//
// No copy may write what another one reads or writes.
#pragma once

#include <vector>

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct MatrixCopy {
  const void* from = nullptr;
  void* to = nullptr;
  int rows = 0, columns = 0;
  int from_pitch = 0, to_pitch = 0;  // elements from row to row
};

struct CopyMatrices {
  std::vector<MatrixCopy> copies;
  DType type = DType::f32;
  bool accumulate = false;
};
REGOLITH_KERNEL(copy_matrices, CopyMatrices);

}  // namespace regolith::kernels
