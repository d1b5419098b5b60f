// What a loss is made of: terms that are sums over pixels, with value and slope; terms of the overlap of each class
// (Dice, Tversky); and a Lovasz-Softmax term. To add a pixel term, name its Kind and write its branch in pixel_term();
// softmax_loss.cu walks over the pixels.
#pragma once

#include "kernels/core/execution.h"

namespace regolith::kernels {

inline constexpr int kMaxClasses = 32;
inline constexpr int kMaxLossTerms = 4;  // pixel terms; and as many of overlap

struct LossTerms {
  enum class Kind : int { cross_entropy, focal };
  struct Pixel {
    Kind kind = Kind::cross_entropy;
    float gamma = 2, smoothing = 0;
    float class_weight[kMaxClasses] = {};  // by the true class; 0: pixels of this class contribute nothing
    // Weights of single pixels (pixel_weights.h).
    float boundary_weight = 0, boundary_sigma = 5;  // near another class; weight 0: none
    float hard_threshold = 0, hard_share = 0;       // the hard pixels of each image alone; both 0: all pixels
    bool hard_mean = true;                          // the sum over them is divided by their number, not the image's
    bool boundary() const { return boundary_weight > 0; }
    bool hard() const { return hard_threshold > 0 || hard_share > 0; }
    bool weighs_pixels() const { return boundary() || hard(); }
  };
  struct Dice {
    bool per_image = true;  // sums over each image; otherwise over the batch that the call sees
    float smooth = 1;
    float class_weight[kMaxClasses] = {};  // of each image's loss (per_image), or of the batch's
    bool tversky = false;                  // with the three numbers below
    float alpha = .5f, beta = .5f, power = 1;
  };
  struct Lovasz {
    bool per_image = false;                // of each image; otherwise of the batch that the call sees
    bool present = true;                   // the mean over the classes that are there, not over all that have a weight
    float class_weight[kMaxClasses] = {};  // of each image's loss (per_image), or of the batch's, times 0 or 1
  };
  int pixel_terms = 0, dice_terms = 0, ignore = -1;
  bool has_lovasz = false;
  Pixel pixel[kMaxLossTerms];
  Dice dice[kMaxLossTerms];
  Lovasz lovasz;
};

// A pixel's gradient as p_k * of_p + constant + (at the true class) of_t.
template <class V>
struct PixelGradient {
  V of_p, of_t, constant;
};

// The value of a term in pixels (a vector V of them) whose true class has probability p and log-probability log_p;
// mean_log_p: over the K classes; w: the class weight. Adds the term's gradient to g.
//   cross-entropy  -w * sum_k q_k log p_k,  q = (1 - smoothing) * onehot(t) + smoothing / K
//   focal          -w * (1 - p)^gamma * log p,  p = clip(p_t, 1e-7, 1 - 1e-7)
//                  (Lin et al., "Focal loss for dense object detection", 2017; CategoricalFocalCrossentropy of Keras).
//                  The gradient is that of the loss without the clip, from log_p: it is there however small p is, and
//                  with gamma 0 it is cross-entropy's. Keras has none where it clips.
template <class V>
__device__ __forceinline__ V pixel_term(const LossTerms::Pixel& term, const V& w, int K, const V& p, const V& log_p,
                                        const V& mean_log_p, PixelGradient<V>& g) {
  constexpr float kLow = 1e-7f, kHigh = 1 - 1e-7f;
  if (term.kind == LossTerms::Kind::cross_entropy) {
    const V kept(1 - term.smoothing), spread(term.smoothing);
    g.of_p += w;
    g.of_t += V(0) - w * kept;
    g.constant += V(0) - w * spread * V(1.f / static_cast<float>(K));
    return w * (V(0) - kept * log_p - spread * mean_log_p);
  }
  const V clipped = min(V(kHigh), max(V(kLow), p)), q = V(1) - clipped, log_c = log(clipped);
  V power = q;  // q^(gamma - 1)
  if (term.gamma != 2) power = exp(V(term.gamma - 1) * log(q));
  const V slope = w * power * (V(term.gamma) * p * log_p - q);
  g.of_t += slope;
  g.of_p += V(0) - slope;
  return V(0) - w * q * power * log_c;
}

}  // namespace regolith::kernels
