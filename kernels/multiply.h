// y = a * b, where b is as large as a, or is repeated: over a's channels (an attention map, an image), or over its
// pixels (the scale of a channel). NumPy's broadcasting, as far as networks use it. Maps of one element type; they may
// be slices of channels.
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/core/pixel_parts.h"

namespace regolith::kernels {

struct MultiplyForward {
  TensorView a;  // (N, H, W, C)
  TensorView b;  // (N, H, W, C), (N, H, W, 1) or (N, 1, 1, C)
  TensorView y;  // (N, H, W, C)
};
REGOLITH_KERNEL(multiply_forward, MultiplyForward);

// Both gradients in one pass over dy; a null one is not computed, and what only it would need is not read. Where b was
// repeated its gradient is a sum, in fp32 and a fixed order.
struct MultiplyBackward {
  TensorView a, b;  // as in forward; a may be null where db is, b where da is
  TensorView dy;    // (N, H, W, C)
  TensorView da;    // like a, written or added to; may be dy
  TensorView db;    // like b, written or added to after da: the two may be one map, added to the second time
  bool accumulate_a = false, accumulate_b = false;
  void* workspace = nullptr;  // multiply_workspace(dy, db) bytes, 256-byte aligned
};
REGOLITH_KERNEL(multiply_backward, MultiplyBackward);

inline bool repeats_over_pixels(const TensorView& large, const TensorView& b) {
  return b.H == 1 && b.W == 1 && b.C == large.C && (large.H != 1 || large.W != 1);
}
inline size_t multiply_workspace(const TensorView& large, const TensorView& db) {  // their data may be null
  return repeats_over_pixels(large, db) ? image_sum_workspace(large) : 0;
}

}  // namespace regolith::kernels
