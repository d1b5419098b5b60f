// Softmax, loss, gradient, argmax and confusion matrix of a batch in one read of the logits; twice read where a Dice
// term's sums over whole images must be known before any gradient.
//
// With p = softmax(x) over the K classes of a pixel, t its true class and weights that carry the divisor (losses/loss.h
// makes them), the loss is the sum over the pixels of the pixel terms (loss_terms.h)
// plus the sum over images and classes of the Dice terms (Milletari et al., "V-Net", 2016, with sums of p, not p^2),
//   class_weight[c] * (1 - (2 I + smooth) / (P + T + smooth)),  I = sum p_c [t = c], P = sum p_c, T = sum [t = c]
// or, of a Tversky term (Salehi, Erdogmus, Gholipour, "Tversky loss function", 2017; its power is that of Abraham and
// Khan, "A novel focal Tversky loss function", 2019), with false positives P - I and false negatives T - I,
//   class_weight[c] * (1 - (I + smooth) / (I + alpha (P - I) + beta (T - I) + smooth))^power
// whose slope takes the base as at least 1e-7; plus the Lovasz term (lovasz.h). Pixel terms may weigh single pixels
// (pixel_weights.h). A pixel whose mask is `ignore`, or no class, is in no term and not in the confusion matrix; its
// gradient is zero.
//
// Occupancy: at least 50% (256 threads).
// The shared memory of these two kernels is what they take for 5 classes.
// Occupancy of dice_sums: at least 50% (256 threads, 6240 bytes of shared memory).
// Occupancy of pixel_loss: at least 50% (256 threads, 6656 bytes of shared memory).
#pragma once

#include "kernels/core/batch_ranks.h"
#include "kernels/core/kernel.h"
#include "kernels/loss_terms.h"
#include "kernels/lovasz.h"

namespace regolith::kernels {

struct SoftmaxLoss {
  TensorView logits;              // (N, H, W, K <= 32)
  const uint8_t* mask = nullptr;  // (N, H, W) class ids; null: no pixel has a truth
  LossTerms terms;
  TensorView dlogits;                 // (N, H, W, K), the logits' type: loss_scale times the gradient; null: evaluation
  const float* loss_scale = nullptr;  // one value in device memory; null: 1
  double* loss = nullptr;             // one value in device memory, without the loss scale; null: not wanted
  bool accumulate_loss = false;       // add to what stands in loss
  // (N) in device memory, without the loss scale: image_factor times what the terms give for each image. Of a term over
  // the batch each image has an equal part, so that the sum is image_factor times the loss. Null: not wanted.
  double* image_loss = nullptr;
  double image_factor = 1;
  bool accumulate_image_loss = false;
  int64_t* confusion = nullptr;   // (K, K) pixels by truth (row) and argmax (column), added to; null: not wanted
  uint8_t* prediction = nullptr;  // (N, H, W) argmax, the lower class on a tie; null: not wanted
  void* workspace = nullptr;      // softmax_loss_workspace bytes, 256-byte aligned
  // The images are a part of a batch, over which Dice terms sum that are not per image; null: they are all. A Lovasz
  // term over the batch is refused then.
  BatchRanks* ranks = nullptr;
};
REGOLITH_KERNEL(softmax_loss, SoftmaxLoss);

// Pixels of an image that one block sums up: fixed, so that results do not depend on the machine's width.
inline constexpr int kLossBlockPixels = 1024;

// Maps of a value for each pixel, that single terms have: weights, the Lovasz term's slopes. Each ends in room for a
// vector that begins in it.
constexpr size_t loss_map_bytes(int64_t values) {
  return (static_cast<size_t>(values) * sizeof(float) + 319) / 256 * 256;
}

inline size_t loss_maps_workspace(int N, int H, int W, int K, const LossTerms& terms) {
  size_t bytes = 0;
  for (int j = 0; j < terms.pixel_terms; ++j)
    if (terms.pixel[j].weighs_pixels()) bytes += loss_map_bytes(static_cast<int64_t>(N) * H * W);
  if (bytes > 0) bytes += loss_map_bytes(static_cast<int64_t>(N) * H * W);  // pixel_weights' own
  if (terms.has_lovasz) {
    const LovaszSegments s(N, H, W, K, terms.lovasz);
    bytes += loss_map_bytes(s.items()) + loss_map_bytes(2 * s.groups) + lovasz_workspace(N, H, W, K, terms.lovasz);
  }
  return bytes > 0 ? bytes + 256 : 0;
}

// Bytes of workspace for logits of this shape.
inline size_t softmax_loss_workspace(int N, int H, int W, int K, const LossTerms& terms) {
  const size_t blocks =
      static_cast<size_t>(N) * ((static_cast<size_t>(H) * W + kLossBlockPixels - 1) / kLossBlockPixels);
  const size_t dice = blocks * 3 * K * sizeof(float) + static_cast<size_t>(N + 1) * 3 * K * sizeof(double) +
                      static_cast<size_t>(N) * 2 * K * sizeof(float) + BatchRanks::kMost * 3 * K * sizeof(double);
  return sizeof(double) * (1 + blocks) + (terms.dice_terms > 0 ? dice : 0) + loss_maps_workspace(N, H, W, K, terms);
}

}  // namespace regolith::kernels
