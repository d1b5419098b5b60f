// What a network is trained on, as a checked description, and the one fused kernel that computes any of it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/config/fields.h"
#include "engine/train/loss_function.h"

namespace regolith {

// The divisor of a sum over pixels: the images; the pixels; the pixels times the classes that are kept. Pixels are all
// those of the batch, whether they count or not.
enum class Reduction { sum_per_image, mean_pixels, mean_elements };
constexpr std::array<const char*, 3> names_of(Reduction) { return {"sum_per_image", "mean_pixels", "mean_elements"}; }
inline constexpr const char* kReductionDoc =
    "divisor: images; pixels, as Keras's losses have it; or pixels x classes that are not excluded. All pixels are in "
    "it, "
    "those of excluded classes and of loss.ignore too";
inline constexpr const char* kExcludeDoc = "class ids whose pixels contribute nothing";

// A loss that is a sum over pixels is a struct with its options and their fields(); class_weights(), under kWeightsKey;
// term(), the kernel's term but for its weights; and check(), what ranges cannot say. It stands in AnyLoss.

// -weight[t] * sum_k q_k log p_k, q the truth smoothed over all classes.
struct CrossEntropy {
  double label_smoothing = 0;
  ClassWeights weights = {};  // by the true class t
  std::vector<int> exclude = {};
  Reduction reduction = Reduction::mean_pixels;

  static constexpr const char* kWeightsKey = "weights";
  const std::vector<double>& class_weights() const { return weights.values; }
  kernels::LossTerms::Pixel term() const {
    return {.kind = kernels::LossTerms::Kind::cross_entropy, .smoothing = static_cast<float>(label_smoothing)};
  }
  template <class F>
  void check(F&& require) const {
    require(label_smoothing >= 0 && label_smoothing < 1, "label_smoothing", "must be in [0, 1)");
  }
};
template <class V>
void fields(V& v, CrossEntropy& s) {
  v("label_smoothing", s.label_smoothing, {.doc = "share of the truth spread over all classes", .min = 0, .max = 0.99});
  v("weights", s.weights, {.doc = "factor of each class; []: 1 each", .min = 0});
  v("exclude", s.exclude, {.doc = kExcludeDoc, .min = 0, .max = 255});
  v("reduction", s.reduction, {.doc = kReductionDoc});
}

// -alpha * (1 - p)^gamma * log p, with p of the true class clipped to [1e-7, 1 - 1e-7]; the gradient as if it were not.
struct Focal {
  double gamma = 2;
  std::vector<double> alpha{.25};  // one for all classes, or one by true class
  std::vector<int> exclude = {};
  Reduction reduction = Reduction::mean_elements;

  static constexpr const char* kWeightsKey = "alpha";
  const std::vector<double>& class_weights() const { return alpha; }
  kernels::LossTerms::Pixel term() const {
    return {.kind = kernels::LossTerms::Kind::focal, .gamma = static_cast<float>(gamma)};
  }
  template <class F>
  void check(F&& require) const {
    require(gamma >= 0 && gamma <= 1e6, "gamma", "must be at least 0");
  }
};
template <class V>
void fields(V& v, Focal& s) {
  v("gamma", s.gamma, {.doc = "exponent of (1 - p)", .min = 0, .max = 20});
  v("alpha", s.alpha, {.doc = "factor: one, or one per class", .min = 0});
  v("exclude", s.exclude, {.doc = kExcludeDoc, .min = 0, .max = 255});
  v("reduction", s.reduction, {.doc = kReductionDoc});
}

// Mean over the kept classes, by weight, of 1 - (2 I + smooth) / (P + T + smooth).
struct Dice {
  enum class Sums { per_image, batch };  // per_image: the mean over the images of each one's loss
  double smooth = 1;
  Sums sums = Sums::per_image;
  ClassWeights weights = {};  // inverse_frequency: 1 / share of the class in the training set, 0 for one that is absent
  std::vector<int> exclude = {};
};
constexpr std::array<const char*, 2> names_of(Dice::Sums) { return {"per_image", "batch"}; }
template <class V>
void fields(V& v, Dice& s) {
  v("smooth", s.smooth, {.doc = "added above and below the fraction line", .min = 0});
  v("sums", s.sums, {.doc = "over each image, or over the batch"});
  v("weights", s.weights,
    {.doc = "of the classes; inverse_frequency: from the pixels of the training set; []: equal",
     .min = 0,
     .word = "inverse_frequency"});
  v("exclude", s.exclude, {.doc = "class ids that are left out", .min = 0, .max = 255});
}

// The list of losses: a new one adds its type and its name.
template <class... More>
using AnyLoss = std::variant<CrossEntropy, Focal, Dice, More...>;
inline Alternatives loss_names() {
  return {{"cross_entropy", {.doc = "softmax cross-entropy"}},
          {"focal", {.doc = "softmax focal loss"}},
          {"dice", {.doc = "soft Dice loss"}}};
}

struct LossTerm {
  double weight = 1;
  AnyLoss<> kind;
};
template <class V>
void fields(V& v, LossTerm& s) {
  v("weight", s.weight, {.doc = "factor of this term", .min = 0});
  v.one_of(s.kind, loss_names(), {.doc = "the loss of this term, with the keys above", .names = {"loss"}});
}

// One loss, or the weighted sum of several.
struct LossSpec {
  AnyLoss<std::vector<LossTerm>> kind;
  int ignore = -1;  // a value of the mask whose pixels are left out of every term and metric; -1: none

  std::vector<LossTerm> terms() const;  // of any kind, as a weighted sum
  bool needs_frequencies() const;       // a Dice term weighs by inverse frequency
  bool couples_images() const;          // a Dice term sums over the batch
  // Classes that no term counts: nothing tells a network when they are right, so that it must not predict them.
  std::vector<int> unlearnt(int classes) const;
};
template <class V>
void fields(V& v, LossSpec& s) {
  Alternatives names = loss_names();
  names.push_back({"combined", {.doc = "weighted sum"}});
  v.one_of(s.kind, names, {.doc = "default: cross_entropy"});
  v("ignore", s.ignore,
    {.doc = "value of mask pixels that have no truth", .min = 0, .max = 255, .word = "none", .word_value = -1});
}

class Loss : public LossFunction {
 public:
  // frequencies: the share of each class in the pixels of the training set, where the spec needs them. Throws
  // OptionError, with the key, for a spec that does not fit the number of classes, or that excludes all of them.
  Loss(const LossSpec& spec, int classes, std::span<const double> frequencies = {});

  bool couples_images() const override { return couples_images_; }  // of a Dice term over the batch
  size_t workspace_bytes(int N, int H, int W) const override;
  void forward_backward(Stream& stream, kernels::SoftmaxLoss call, int64_t images, double weight) const override;

 private:
  struct Scale {  // of one pixel term
    Reduction reduction;
    int kept;
  };
  template <class PixelLoss>
  void add(const PixelLoss& loss, double weight, const std::string& key, std::span<const double> frequencies);

  int classes_;
  bool couples_images_ = false;
  kernels::LossTerms terms_;  // undivided
  std::vector<Scale> scales_;
};

}  // namespace regolith
