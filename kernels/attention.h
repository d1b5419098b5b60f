// Multi-head self-attention over the positions of a map (Vaswani et al. 2017), fused as in FlashAttention (Dao et al.
// 2022; the order of the loops is that of Dao 2023): the matrix of scores is never written.
//
//   per image and head:  S = q k^T / sqrt(d),  P = softmax of the rows of S,  y = P v,  lse = log(sum(exp(S)))
//
// The channels of qkv are [q | k | v], the heads side by side in each, as PyTorch's MultiheadAttention projects them:
// head h of q is channels h * d to (h + 1) * d, of k the same after C, of v after 2 C. Softmax runs over blocks of keys
// with a maximum that is corrected as it grows. Backward computes P anew from lse, in two kernels that each own what
// they write: dq by queries, dk and dv by keys (one kernel for all three on the fast host, where a block owns a head).
//
//   D = sum(dy * y),  dS = P * (dy v^T - D),  dq = dS k / sqrt(d),  dk = dS^T q / sqrt(d),  dv = P^T dy
//
// bf16 and fp16 go through tensor cores, bf16 on the fast host through the processor's products of pairs where it has
// them, with P and dS rounded to the maps' type between the products; all else through fp32 vectors. Sums in fp32, in
// an order that depends on the shape alone. Maps may be slices of channels, at pitches and addresses of 8 elements.
// Throws KernelError for more than kAttentionPositions positions, for heads that do not divide C, and for a d beyond
// 128 or no multiple of 8.
//
// Shared memory below is that of 128 channels a head for tensor cores, of 32 for vectors.
// Occupancy: at least 12% (128 threads, 53248 bytes of shared memory).
// Occupancy of attend: at least 15% (64 threads, 26000 bytes of shared memory).
// Occupancy of gradient: at least 9% (64 threads, 44000 bytes of shared memory).
// Occupancy of row_products: at least 50% (256 threads).
#pragma once

#include <cstddef>

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kAttentionPositions = 1024;  // H * W, at most
inline constexpr int kAttentionHead = 128;        // channels of a head, at most

struct AttentionForward {
  TensorView qkv;  // (N, H, W, 3 C)
  TensorView y;    // (N, H, W, C)
  float* lse;      // (N, heads, H * W), kept for backward
  int heads = 1;
};
REGOLITH_KERNEL(attention_forward, AttentionForward);

struct AttentionBackward {
  TensorView qkv;    // (N, H, W, 3 C)
  TensorView y, dy;  // (N, H, W, C)
  TensorView dqkv;   // (N, H, W, 3 C), written
  const float* lse;  // (N, heads, H * W)
  int heads = 1;
  void* workspace;  // attention_workspace() bytes, 256-byte aligned
};
REGOLITH_KERNEL(attention_backward, AttentionBackward);

// For D, (N, heads, H * W).
inline size_t attention_workspace(int N, int heads, int positions) {
  return static_cast<size_t>(N) * heads * positions * sizeof(float);
}

}  // namespace regolith::kernels
