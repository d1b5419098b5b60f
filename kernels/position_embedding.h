// A learned vector for every position of a map, added to it (Vaswani et al. 2017; learned, as in Dosovitskiy et al.
// 2021): y[n, h, w, c] = x[n, h, w, c] + embedding[h, w, c]. The gradient of the embedding is the sum over the images,
// in their order, in fp32. Maps are (N, H, W, C) of one element type and may be slices of channels.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct PositionEmbeddingForward {
  TensorView x;
  const float* embedding;  // (H, W, C)
  TensorView y;            // may be x
};
REGOLITH_KERNEL(position_embedding_forward, PositionEmbeddingForward);

struct PositionEmbeddingBackward {  // the gradient of x is dy itself
  TensorView dy;
  float* dembedding;  // (H, W, C); written, or added to
  bool accumulate = false;
};
REGOLITH_KERNEL(position_embedding_backward, PositionEmbeddingBackward);

}  // namespace regolith::kernels
