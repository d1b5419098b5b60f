// Softmax, loss, gradient, argmax and confusion matrix of a batch in one read of the logits; twice read where a Dice
// term's sums over whole images must be known before any gradient.
//
// With p = softmax(x) over the K classes of a pixel, t its true class and weights that carry the divisor (losses/loss.h
// makes them), the loss is the sum over the pixels of the pixel terms (loss_terms.h)
// plus the sum over images and classes of the Dice terms (Milletari et al., "V-Net", 2016, with sums of p, not p^2),
//   class_weight[c] * (1 - (2 I + smooth) / (P + T + smooth)),  I = sum p_c [t = c], P = sum p_c, T = sum [t = c]
// A pixel whose mask is `ignore`, or no class, is in no term and not in the confusion matrix; its gradient is zero.
//
// Occupancy: at least 50% (256 threads).
// The shared memory of these two kernels is what they take for 5 classes.
// Occupancy of dice_sums: at least 50% (256 threads, 6240 bytes of shared memory).
// Occupancy of pixel_loss: at least 50% (256 threads, 6656 bytes of shared memory).
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/loss_terms.h"

namespace regolith::kernels {

struct SoftmaxLoss {
  TensorView logits;              // (N, H, W, K <= 32)
  const uint8_t* mask = nullptr;  // (N, H, W) class ids; null: no pixel has a truth
  LossTerms terms;
  TensorView dlogits;                 // (N, H, W, K), the logits' type: loss_scale times the gradient; null: evaluation
  const float* loss_scale = nullptr;  // one value in device memory; null: 1
  double* loss = nullptr;             // one value in device memory, without the loss scale; null: not wanted
  bool accumulate_loss = false;       // add to what stands in loss
  int64_t* confusion = nullptr;       // (K, K) pixels by truth (row) and argmax (column), added to; null: not wanted
  uint8_t* prediction = nullptr;      // (N, H, W) argmax, the lower class on a tie; null: not wanted
  void* workspace = nullptr;          // softmax_loss_workspace bytes, 256-byte aligned
};
REGOLITH_KERNEL(softmax_loss, SoftmaxLoss);

// Pixels of an image that one block sums up: fixed, so that results do not depend on the machine's width.
inline constexpr int kLossBlockPixels = 1024;

// Bytes of workspace for logits of this shape.
inline size_t softmax_loss_workspace(int N, int H, int W, int K, const LossTerms& terms) {
  const size_t blocks =
      static_cast<size_t>(N) * ((static_cast<size_t>(H) * W + kLossBlockPixels - 1) / kLossBlockPixels);
  const size_t dice = blocks * 3 * K * sizeof(float) + static_cast<size_t>(N + 1) * 3 * K * sizeof(double) +
                      static_cast<size_t>(N) * 2 * K * sizeof(float);
  return sizeof(double) * (1 + blocks) + (terms.dice_terms > 0 ? dice : 0);
}

}  // namespace regolith::kernels
