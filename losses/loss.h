// What a network is trained on, as a checked description, and the one fused kernel that computes any of it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
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

// A loss is a struct with its options and their fields(); what LossSpec asks of all of them, class_weights(), exclude,
// needs_frequencies() and couples_images(); and its place in AnyLoss. One that is a sum over pixels has its weights
// under kWeightsKey; term(), the kernel's term but for its weights; and check(), what ranges cannot say.

// Pixels near one of another class weigh more (kernels/pixel_weights.h).
struct Boundary {
  double weight = 10, sigma = 5;
};
template <class V>
void fields(V& v, Boundary& s) {
  v("weight", s.weight,
    {.doc = "w0 of the pixel's weight 1 + w0 exp(-d^2 / (2 sigma^2)), d to the nearest pixel of another class",
     .min = 0,
     .max = 1e6});
  v("sigma", s.sigma, {.doc = "pixels; the weight is 1 from 4 sigma on", .min = .1, .max = 60});
}

// Only the pixels that are hardest to get right count (kernels/pixel_weights.h).
struct HardPixels {
  double threshold = .7, min_kept = .1;
};
template <class V>
void fields(V& v, HardPixels& s) {
  v("threshold", s.threshold,
    {.doc = "pixels whose true class has a smaller probability are kept; the divisor counts the kept ones alone",
     .min = 0,
     .max = 1});
  v("min_kept", s.min_kept,
    {.doc = "share of an image's pixels that is kept at least, the hardest; of those with a truth whose class counts",
     .min = 0,
     .max = 1});
}

// -weight[t] * sum_k q_k log p_k, q the truth smoothed over all classes; times the weight of the pixel.
struct CrossEntropy {
  double label_smoothing = 0;
  ClassWeights weights = {};  // by the true class t
  std::vector<int> exclude = {};
  Reduction reduction = Reduction::mean_pixels;
  std::optional<Boundary> boundary = {};
  std::optional<HardPixels> hard = {};

  static constexpr const char* kWeightsKey = "weights";
  const std::vector<double>& class_weights() const { return weights.values; }
  bool needs_frequencies() const { return false; }
  bool couples_images() const { return false; }
  kernels::LossTerms::Pixel term() const;
  template <class F>
  void check(F&& require) const {
    require(label_smoothing >= 0 && label_smoothing < 1, "label_smoothing", "must be in [0, 1)");
    if (boundary)
      require(boundary->sigma >= .1 && boundary->sigma <= 60 && boundary->weight >= 0, "boundary",
              "needs a sigma from 0.1 to 60 and a weight of at least 0");
    if (hard)
      require(hard->threshold >= 0 && hard->threshold <= 1 && hard->min_kept >= 0 && hard->min_kept <= 1 &&
                  hard->threshold + hard->min_kept > 0,
              "hard", "needs threshold and min_kept from 0 to 1, not both 0: no pixel would be kept");
  }
};
template <class V>
void fields(V& v, CrossEntropy& s) {
  v("label_smoothing", s.label_smoothing, {.doc = "share of the truth spread over all classes", .min = 0, .max = 0.99});
  v("weights", s.weights, {.doc = "factor of each class; []: 1 each", .min = 0});
  v("exclude", s.exclude, {.doc = kExcludeDoc, .min = 0, .max = 255});
  v("reduction", s.reduction, {.doc = kReductionDoc});
  v("boundary", s.boundary, {.doc = "pixels near one of another class weigh more"});
  v("hard", s.hard, {.doc = "hard pixel mining: easy pixels are left out"});
}

// -alpha * (1 - p)^gamma * log p, with p of the true class clipped to [1e-7, 1 - 1e-7]; the gradient as if it were not.
struct Focal {
  double gamma = 2;
  std::vector<double> alpha{.25};  // one for all classes, or one by true class
  std::vector<int> exclude = {};
  Reduction reduction = Reduction::mean_elements;

  static constexpr const char* kWeightsKey = "alpha";
  const std::vector<double>& class_weights() const { return alpha; }
  bool needs_frequencies() const { return false; }
  bool couples_images() const { return false; }
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

// The losses of overlap: I, P and T are sums of p_c in the pixels of class c, of p_c, and of the pixels of class c.
enum class OverlapSums { per_image, batch };  // per_image: the mean over the images of each one's loss
constexpr std::array<const char*, 2> names_of(OverlapSums) { return {"per_image", "batch"}; }
inline constexpr const char* kOverlapExcludeDoc = "class ids that are left out";

// Mean over the kept classes, by weight, of 1 - (2 I + smooth) / (P + T + smooth).
struct Dice {
  using Sums = OverlapSums;
  double smooth = 1;
  Sums sums = Sums::per_image;
  ClassWeights weights = {};  // inverse_frequency: 1 / share of the class in the training set, 0 for one that is absent
  std::vector<int> exclude = {};

  const std::vector<double>& class_weights() const { return weights.values; }
  bool needs_frequencies() const { return weights.inverse_frequency; }
  bool couples_images() const { return sums == Sums::batch; }
};
// The keys of Dice that every loss of overlap has.
template <class V, class Overlap>
void overlap_fields(V& v, Overlap& s) {
  v("smooth", s.smooth, {.doc = "added above and below the fraction line", .min = 0});
  v("sums", s.sums, {.doc = "over each image, or over the batch"});
  v("weights", s.weights,
    {.doc = "of the classes; inverse_frequency: from the pixels of the training set; []: equal",
     .min = 0,
     .word = "inverse_frequency"});
  v("exclude", s.exclude, {.doc = kOverlapExcludeDoc, .min = 0, .max = 255});
}
template <class V>
void fields(V& v, Dice& s) {
  overlap_fields(v, s);
}

// Mean over the kept classes, by weight, of (1 - (I + smooth) / (I + alpha FP + beta FN + smooth))^(1 / gamma), with
// FP = P - I and FN = T - I. With alpha = beta = 1/2 and gamma = 1 it is Dice with twice the smooth.
struct Tversky {
  using Sums = OverlapSums;
  double alpha = .3, beta = .7, gamma = 1, smooth = 1;
  Sums sums = Sums::per_image;
  ClassWeights weights = {};
  std::vector<int> exclude = {};

  const std::vector<double>& class_weights() const { return weights.values; }
  bool needs_frequencies() const { return weights.inverse_frequency; }
  bool couples_images() const { return sums == Sums::batch; }
};
template <class V>
void fields(V& v, Tversky& s) {
  v("alpha", s.alpha, {.doc = "weight of false positives", .min = 0, .max = 1000});
  v("beta", s.beta,
    {.doc = "weight of false negatives; above alpha: a rare class is rather found than missed", .min = 0, .max = 1000});
  v("gamma", s.gamma,
    {.doc = "focal Tversky: the loss of a class to the power of 1 / gamma; 4/3 in its paper", .min = .1, .max = 10});
  overlap_fields(v, s);
}

// Mean over the classes of the Lovasz extension of the Jaccard loss (kernels/lovasz.h).
struct LovaszSoftmax {
  enum class Classes { present, all };
  Classes classes = Classes::present;
  bool per_image = false;
  std::vector<int> exclude = {};

  const std::vector<double>& class_weights() const {
    static const std::vector<double> equal;
    return equal;
  }
  bool needs_frequencies() const { return false; }
  bool couples_images() const { return !per_image; }
};
constexpr std::array<const char*, 2> names_of(LovaszSoftmax::Classes) { return {"present", "all"}; }
template <class V>
void fields(V& v, LovaszSoftmax& s) {
  v("classes", s.classes, {.doc = "in the mean: those that the batch (or image) holds, or all"});
  v("per_image", s.per_image, {.doc = "of each image, and the mean over them; else of the batch as a whole"});
  v("exclude", s.exclude, {.doc = kOverlapExcludeDoc, .min = 0, .max = 255});
}

// The list of losses: a new one adds its type and its name.
template <class... More>
using AnyLoss = std::variant<CrossEntropy, Focal, Dice, Tversky, LovaszSoftmax, More...>;
inline Alternatives loss_names() {
  return {{"cross_entropy", {.doc = "softmax cross-entropy"}},
          {"focal", {.doc = "softmax focal loss"}},
          {"dice", {.doc = "soft Dice loss"}},
          {"tversky", {.doc = "Tversky and focal Tversky loss: Dice with two kinds of errors told apart"}},
          {"lovasz", {.doc = "Lovasz-Softmax: the intersection over union of each class, by its convex extension"}}};
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

using LossKind = AnyLoss<std::vector<LossTerm>>;  // one loss, or the weighted sum of several
inline Alternatives loss_kinds() {
  Alternatives names = loss_names();
  names.push_back({"combined", {.doc = "weighted sum"}});
  return names;
}
std::vector<LossTerm> terms_of(const LossKind& kind);  // of any kind, as a weighted sum

struct HeadLoss {
  LossKind kind;
};
template <class V>
void fields(V& v, HeadLoss& s) {
  v.one_of(s.kind, loss_kinds(), {.doc = "the loss of this head, with the keys above", .names = {"loss"}});
}

struct LossSpec {
  LossKind kind;
  int ignore = -1;  // a value of the mask whose pixels are left out of every term and metric; -1: none
  // Of heads of the model other than its output, by their nodes. Those that are not named take the loss above.
  std::map<std::string, HeadLoss> heads = {};

  std::vector<LossTerm> terms() const { return terms_of(kind); }
  bool needs_frequencies() const;  // a term weighs by inverse frequency
  bool couples_images() const;     // a term is of the batch as a whole
  bool sorts_batch() const;        // that is Lovasz's: its parts cannot be added up
  // Classes that no term counts: nothing tells a network when they are right, so that it must not predict them.
  std::vector<int> unlearnt(int classes) const;
};
template <class V>
void fields(V& v, LossSpec& s) {
  v.one_of(s.kind, loss_kinds(), {.doc = "default: cross_entropy"});
  v("ignore", s.ignore,
    {.doc = "value of mask pixels that have no truth", .min = 0, .max = 255, .word = "none", .word_value = -1});
  v("heads", s.heads,
    {.doc = "losses of heads of the model (model.heads) other than its output, by node: {NODE: {focal: {}}}"});
}

class Loss : public LossFunction {
 public:
  // frequencies: the share of each class in the pixels of the training set, where the spec needs them. Throws
  // OptionError, with the key, for a spec that does not fit the number of classes, or that excludes all of them.
  Loss(const LossSpec& spec, int classes, std::span<const double> frequencies = {});

  bool couples_images() const override { return couples_images_; }
  size_t workspace_bytes(int N, int H, int W) const override;
  const LossFunction& of_head(const std::string& node) const override;
  void forward_backward(Stream& stream, kernels::SoftmaxLoss call, int64_t images, double weight) const override;

 private:
  struct Scale {  // of one pixel term
    Reduction reduction;
    int kept;
  };
  // A sum of terms, named as "loss.AT..." in errors.
  Loss(const LossKind& kind, int ignore, int classes, std::span<const double> frequencies, const std::string& at);
  // Adds a term of one kind. Throws OptionError by its key.
  void add(const auto& pixel_loss, double weight, const std::string& key, std::span<const double> frequencies);
  void add(const Dice& loss, double weight, const std::string& key, std::span<const double> frequencies);
  void add(const Tversky& loss, double weight, const std::string& key, std::span<const double> frequencies);
  void add(const LovaszSoftmax& loss, double weight, const std::string& key, std::span<const double> frequencies);
  kernels::LossTerms::Dice& add_overlap(const auto& loss, double weight, const std::string& key,
                                        std::span<const double> frequencies);

  int classes_;
  bool couples_images_ = false;
  kernels::LossTerms terms_;  // undivided
  std::vector<Scale> scales_;
  std::map<std::string, Loss> heads_;
};

}  // namespace regolith
