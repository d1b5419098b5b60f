#include "losses/loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace {

void require(bool ok, const std::string& key, const std::string& what) {
  if (!ok) throw OptionError("loss", key, what);
}

// 1 for the classes that are kept, 0 for the excluded.
std::vector<double> kept_classes(const std::string& key, const std::vector<int>& exclude, int classes) {
  std::vector<double> kept(static_cast<size_t>(classes), 1);
  for (const int c : exclude) {
    require(c >= 0 && c < classes, key + ".exclude",
            "class " + std::to_string(c) + " is not one of 0.." + std::to_string(classes - 1));
    kept[static_cast<size_t>(c)] = 0;
  }
  require(std::count(kept.begin(), kept.end(), 0.) < classes, key + ".exclude",
          "excludes all " + std::to_string(classes) + " classes; leave at least one to learn from");
  return kept;
}

// `given` (one value, or one per class; empty: 1) times the kept classes.
std::vector<double> weights(const std::string& key, const std::vector<double>& given, std::vector<double> kept) {
  require(given.size() <= 1 || given.size() == kept.size(), key,
          "has " + std::to_string(given.size()) + " values; give one per class (" + std::to_string(kept.size()) +
              ") or one for all");
  for (size_t c = 0; c < kept.size(); ++c) {
    const double w = given.empty() ? 1 : given[given.size() == 1 ? 0 : c];
    require(std::isfinite(w) && w >= 0, key, "a weight must be a finite number of at least 0");
    kept[c] *= w;
  }
  require(std::any_of(kept.begin(), kept.end(), [](double w) { return w > 0; }), key,
          "is 0 for every class that is not excluded; leave at least one to learn from");
  return kept;
}

std::string all_losses() {
  std::vector<std::string> names;
  for (const Alternative& loss : loss_names()) names.push_back(loss.key);
  return join(names);
}

// The next free place among the kernel's terms of one kind.
template <class T>
T& next(T (&terms)[kernels::kMaxLossTerms], int& used, const std::string& key, const std::string& kind) {
  require(used < kernels::kMaxLossTerms, key,
          "is one too many: there can be " + std::to_string(kernels::kMaxLossTerms) + " " + kind + " terms");
  return terms[used++];
}

int count(const std::vector<double>& kept) { return static_cast<int>(std::count(kept.begin(), kept.end(), 1.)); }

void write(float (&to)[kernels::kMaxClasses], const std::vector<double>& from, double factor) {
  for (size_t c = 0; c < from.size(); ++c) to[c] = static_cast<float>(from[c] * factor);
}

}  // namespace

kernels::LossTerms::Pixel CrossEntropy::term() const {
  kernels::LossTerms::Pixel t{.kind = kernels::LossTerms::Kind::cross_entropy,
                              .smoothing = static_cast<float>(label_smoothing)};
  if (boundary) {
    t.boundary_weight = static_cast<float>(boundary->weight);
    t.boundary_sigma = static_cast<float>(boundary->sigma);
  }
  if (hard) {
    t.hard_threshold = static_cast<float>(hard->threshold);
    t.hard_share = static_cast<float>(hard->min_kept);
    t.hard_mean = reduction != Reduction::sum_per_image;
  }
  return t;
}

std::vector<LossTerm> terms_of(const LossKind& kind) {
  return std::visit(
      []<class T>(const T& loss) -> std::vector<LossTerm> {
        if constexpr (std::is_same_v<T, std::vector<LossTerm>>)
          return loss;
        else
          return {{1, loss}};
      },
      kind);
}

namespace {

// Whether that is so of any loss of any head.
template <class Is>
bool any_loss(const LossSpec& spec, Is is) {
  const auto of = [&](const LossKind& kind) {
    const std::vector<LossTerm> terms = terms_of(kind);
    return std::any_of(terms.begin(), terms.end(), [&](const LossTerm& t) { return std::visit(is, t.kind); });
  };
  return of(spec.kind) ||
         std::any_of(spec.heads.begin(), spec.heads.end(), [&](const auto& head) { return of(head.second.kind); });
}

}  // namespace

bool LossSpec::needs_frequencies() const {
  return any_loss(*this, [](const auto& loss) { return loss.needs_frequencies(); });
}
bool LossSpec::sorts_batch() const {
  return any_loss(*this, [](const auto& loss) {
    return std::is_same_v<std::decay_t<decltype(loss)>, LovaszSoftmax> && loss.couples_images();
  });
}

bool LossSpec::couples_images() const {
  return any_loss(*this, [](const auto& loss) { return loss.couples_images(); });
}

std::vector<int> LossSpec::unlearnt(int classes) const {
  const auto counts = [](const auto& loss, int c) {
    const std::vector<double>& weights = loss.class_weights();
    const bool weighted = weights.empty() || weights[weights.size() == 1 ? 0 : c] > 0;
    return weighted && std::find(loss.exclude.begin(), loss.exclude.end(), c) == loss.exclude.end();
  };
  std::vector<int> list;
  for (int c = 0; c < classes; ++c) {
    const std::vector<LossTerm> all = terms();
    const auto learns = [&](const LossTerm& t) {
      return t.weight > 0 && std::visit([&](const auto& loss) { return counts(loss, c); }, t.kind);
    };
    if (std::none_of(all.begin(), all.end(), learns)) list.push_back(c);
  }
  return list;
}

void Loss::add(const auto& loss, double weight, const std::string& key, std::span<const double>) {
  auto& to = next(terms_.pixel, terms_.pixel_terms, key, "cross-entropy and focal");
  loss.check([&](bool ok, const char* field, const char* what) { require(ok, key + "." + field, what); });
  const auto kept = kept_classes(key, loss.exclude, classes_);
  to = loss.term();
  write(to.class_weight, weights(key + "." + loss.kWeightsKey, loss.class_weights(), kept), weight);
  scales_.push_back({loss.reduction, count(kept)});
}

kernels::LossTerms::Dice& Loss::add_overlap(const auto& loss, double weight, const std::string& key,
                                            std::span<const double> frequencies) {
  auto& to = next(terms_.dice, terms_.dice_terms, key, "Dice and Tversky");
  require(std::isfinite(loss.smooth) && loss.smooth >= 0, key + ".smooth", "must be at least 0");
  std::vector<double> given = loss.weights.values;
  if (loss.weights.inverse_frequency) {
    require(given.empty(), key + ".weights", "takes a list or inverse_frequency, not both");
    require(frequencies.size() == static_cast<size_t>(classes_), key + ".weights",
            "inverse_frequency needs the share of each of the " + std::to_string(classes_) +
                " classes in the training set");
    for (const double f : frequencies) given.push_back(f > 0 ? 1 / f : 0);
  }
  const auto w = weights(key + ".weights", given, kept_classes(key, loss.exclude, classes_));
  to.per_image = loss.sums == OverlapSums::per_image;
  to.smooth = static_cast<float>(loss.smooth);
  write(to.class_weight, w, weight / std::accumulate(w.begin(), w.end(), 0.0));
  return to;
}

void Loss::add(const Dice& loss, double weight, const std::string& key, std::span<const double> frequencies) {
  add_overlap(loss, weight, key, frequencies);
}

void Loss::add(const Tversky& loss, double weight, const std::string& key, std::span<const double> frequencies) {
  require(loss.alpha >= 0 && loss.beta >= 0 && loss.alpha + loss.beta > 0, key + ".alpha",
          "and beta must be at least 0, and not both 0: no error would cost anything");
  require(loss.gamma >= .1 && loss.gamma <= 10, key + ".gamma", "must be from 0.1 to 10");
  auto& to = add_overlap(loss, weight, key, frequencies);
  to.tversky = true;
  to.alpha = static_cast<float>(loss.alpha);
  to.beta = static_cast<float>(loss.beta);
  to.power = static_cast<float>(1 / loss.gamma);
}

void Loss::add(const LovaszSoftmax& loss, double weight, const std::string& key, std::span<const double>) {
  require(!std::exchange(terms_.has_lovasz, true), key, "is one too many: there can be one Lovasz term");
  terms_.lovasz.per_image = loss.per_image;
  terms_.lovasz.present = loss.classes == LovaszSoftmax::Classes::present;
  write(terms_.lovasz.class_weight, kept_classes(key, loss.exclude, classes_), weight);
  terms_.has_lovasz = weight > 0;
}

Loss::Loss(const LossSpec& spec, int classes, std::span<const double> frequencies)
    : Loss(spec.kind, spec.ignore, classes, frequencies, "") {
  for (const auto& [node, head] : spec.heads)
    heads_.emplace(node, Loss(head.kind, spec.ignore, classes, frequencies, "heads." + node + "."));
  couples_images_ = spec.couples_images();
}

Loss::Loss(const LossKind& kind, int ignore, int classes, std::span<const double> frequencies, const std::string& at)
    : classes_(classes) {
  require(classes >= 1 && classes <= kernels::kMaxClasses, "",
          "takes 1 to " + std::to_string(kernels::kMaxClasses) + " classes, not " + std::to_string(classes));
  require(ignore >= -1 && ignore <= 255, "ignore", "must be a value of the mask, 0 to 255, or -1 for none");
  terms_.ignore = ignore;
  const std::vector<LossTerm> terms = terms_of(kind);
  const bool combined = std::holds_alternative<std::vector<LossTerm>>(kind);
  require(!terms.empty(), at + "combined", "has no terms; name one of " + all_losses());
  for (size_t i = 0; i < terms.size(); ++i) {
    const LossTerm& t = terms[i];
    const std::string term = at + (combined ? "combined." + std::to_string(i) + "." : "");
    require(std::isfinite(t.weight) && t.weight >= 0, term + "weight", "must be a finite number of at least 0");
    const std::string key = term + loss_names()[t.kind.index()].key;
    std::visit([&](const auto& loss) { add(loss, t.weight, key, frequencies); }, t.kind);
  }
}

size_t Loss::workspace_bytes(int N, int H, int W) const {
  size_t bytes = kernels::softmax_loss_workspace(N, H, W, classes_, terms_);
  for (const auto& [node, head] : heads_) bytes = std::max(bytes, head.workspace_bytes(N, H, W));
  return bytes;
}

const LossFunction& Loss::of_head(const std::string& node) const {
  const auto own = heads_.find(node);
  return own == heads_.end() ? *this : own->second;
}

void Loss::forward_backward(Stream& stream, kernels::SoftmaxLoss call, int64_t images, double weight) const {
  const TensorView& x = call.logits;
  if (x.C != classes_)
    throw TrainError("loss: is of " + std::to_string(classes_) + " classes, but the logits have " +
                     std::to_string(x.C) + " channels");
  call.terms = terms_;
  const auto divide = [weight](float(&w)[kernels::kMaxClasses], double by) {
    for (float& x : w) x = static_cast<float>(x * weight / by);
  };
  for (size_t i = 0; i < scales_.size(); ++i) {
    const double pixels = scales_[i].reduction == Reduction::sum_per_image ? 1 : static_cast<double>(x.H) * x.W;
    divide(call.terms.pixel[i].class_weight,
           static_cast<double>(images) * pixels *
               (scales_[i].reduction == Reduction::mean_elements ? scales_[i].kept : 1));
  }
  const double of_image = static_cast<double>(images);
  const double of_batch = of_image / (call.ranks == nullptr ? x.N : call.ranks->images());
  for (int i = 0; i < terms_.dice_terms; ++i) {
    auto& dice = call.terms.dice[i];
    divide(dice.class_weight, dice.per_image ? of_image : of_batch);
  }
  divide(call.terms.lovasz.class_weight, terms_.lovasz.per_image ? of_image : of_batch);
  call.terms.has_lovasz = terms_.has_lovasz && weight > 0;
  call.image_factor = of_image;
  kernels::softmax_loss(stream, call);
}

}  // namespace regolith
