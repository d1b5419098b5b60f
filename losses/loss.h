// What a network is trained on, as a checked description, and the one fused kernel that computes any of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "kernels/softmax_loss.h"

namespace regolith {

// The divisor of a sum over pixels: the images; the pixels; the pixels times the classes that are kept. Pixels are all
// those of the batch, whether they count or not.
enum class Reduction { sum_per_image, mean_pixels, mean_elements };

// -alpha * sum_k q_k log p_k, q the truth smoothed over all classes.
struct CrossEntropySpec {
  double label_smoothing = 0;         // in [0, 1)
  std::vector<double> class_weights;  // alpha by true class; empty: 1
  std::vector<int> exclude;           // true classes that contribute nothing
  Reduction reduction = Reduction::mean_pixels;
};

// -alpha * (1 - p)^gamma * log p, with p of the true class clipped to [1e-7, 1 - 1e-7].
struct FocalSpec {
  double gamma = 2;
  std::vector<double> alpha = {.25};  // one for all classes, or one by true class
  std::vector<int> exclude;
  Reduction reduction = Reduction::mean_pixels;
};

// Mean over the kept classes, by weight, of 1 - (2 I + smooth) / (P + T + smooth).
struct DiceSpec {
  enum class Sums { per_image, batch };  // per_image: the mean over the images of each one's loss
  Sums sums = Sums::per_image;
  double smooth = 1;
  std::vector<double> class_weights;  // empty: equal
  bool inverse_frequency = false;     // instead: 1 / share of the class in the training set (0 for one that is absent)
  std::vector<int> exclude;
};

struct LossTerm {
  double weight = 1;
  std::variant<CrossEntropySpec, FocalSpec, DiceSpec> term;
};

// The weighted sum of its terms.
struct LossSpec {
  std::vector<LossTerm> terms;
  int ignore_index = -1;  // a value of the mask whose pixels are left out of every term and metric; -1: none

  bool needs_frequencies() const;  // a Dice term weighs by inverse frequency
};

class Loss {
 public:
  // frequencies: the share of each class in the pixels of the training set, where the spec needs them. Throws
  // TrainError for a spec that does not fit the number of classes, or that excludes all of them.
  Loss(const LossSpec& spec, int classes, std::span<const double> frequencies = {});

  // A step must see its whole batch at once: a Dice term sums over the batch.
  bool couples_images() const { return couples_images_; }
  size_t workspace_bytes(int N, int H, int W) const;

  // Runs the kernel with this loss; call.terms is filled in here. `images` is the divisor: how many there are in the
  // whole batch, or in the whole split over which the loss is accumulated, where the call sees only a part of them.
  void forward_backward(Stream& stream, kernels::SoftmaxLoss call, int64_t images) const;

 private:
  struct Scale {  // of one pixel term
    Reduction reduction;
    int kept;
  };
  int classes_;
  bool couples_images_ = false;
  kernels::LossTerms terms_;  // undivided
  std::vector<Scale> scales_;
};

}  // namespace regolith
