#include "losses/loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "engine/base/error.h"

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

// The next free place among the kernel's terms of one kind.
template <class T>
T& next(T (&terms)[kernels::kMaxLossTerms], int& used, const std::string& kind) {
  require(used < kernels::kMaxLossTerms, "combined",
          "has more than " + std::to_string(kernels::kMaxLossTerms) + " " + kind + " terms");
  return terms[used++];
}

int count(const std::vector<double>& kept) { return static_cast<int>(std::count(kept.begin(), kept.end(), 1.)); }

void write(float (&to)[kernels::kMaxClasses], const std::vector<double>& from, double factor) {
  for (size_t c = 0; c < from.size(); ++c) to[c] = static_cast<float>(from[c] * factor);
}

}  // namespace

std::vector<LossTerm> LossSpec::terms() const {
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

template <class Is>
bool any_dice(const std::vector<LossTerm>& terms, Is is) {
  return std::any_of(terms.begin(), terms.end(), [&](const LossTerm& t) {
    const auto* dice = std::get_if<Dice>(&t.kind);
    return dice != nullptr && is(*dice);
  });
}

}  // namespace

bool LossSpec::needs_frequencies() const {
  return any_dice(terms(), [](const Dice& dice) { return dice.weights.inverse_frequency; });
}
bool LossSpec::couples_images() const {
  return any_dice(terms(), [](const Dice& dice) { return dice.sums == Dice::Sums::batch; });
}

std::vector<int> LossSpec::unlearnt(int classes) const {
  const auto counts = [](const auto& loss, int c) {
    const auto weights = [&]() -> const std::vector<double>& {
      if constexpr (std::is_same_v<decltype(loss), const Dice&>)
        return loss.weights.values;
      else
        return loss.class_weights();
    }();
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

template <class PixelLoss>
void Loss::add(const PixelLoss& loss, double weight, const std::string& key, std::span<const double>) {
  auto& to = next(terms_.pixel, terms_.pixel_terms, "cross-entropy and focal");
  loss.check([&](bool ok, const char* field, const char* what) { require(ok, key + "." + field, what); });
  const auto kept = kept_classes(key, loss.exclude, classes_);
  to = loss.term();
  write(to.class_weight, weights(key + "." + PixelLoss::kWeightsKey, loss.class_weights(), kept), weight);
  scales_.push_back({loss.reduction, count(kept)});
}

template <>
void Loss::add(const Dice& loss, double weight, const std::string& key, std::span<const double> frequencies) {
  auto& to = next(terms_.dice, terms_.dice_terms, "Dice");
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
  to.per_image = loss.sums == Dice::Sums::per_image;
  to.smooth = static_cast<float>(loss.smooth);
  write(to.class_weight, w, weight / std::accumulate(w.begin(), w.end(), 0.0));
  couples_images_ = couples_images_ || !to.per_image;
}

Loss::Loss(const LossSpec& spec, int classes, std::span<const double> frequencies) : classes_(classes) {
  require(classes >= 1 && classes <= kernels::kMaxClasses, "",
          "takes 1 to " + std::to_string(kernels::kMaxClasses) + " classes, not " + std::to_string(classes));
  require(spec.ignore >= -1 && spec.ignore <= 255, "ignore", "must be a value of the mask, 0 to 255, or -1 for none");
  terms_.ignore = spec.ignore;
  const std::vector<LossTerm> terms = spec.terms();
  const bool combined = std::holds_alternative<std::vector<LossTerm>>(spec.kind);
  require(!terms.empty(), "combined", "has no terms; name cross_entropy, focal or dice");
  for (size_t i = 0; i < terms.size(); ++i) {
    const LossTerm& t = terms[i];
    const std::string at = combined ? "combined." + std::to_string(i) + "." : "";
    require(std::isfinite(t.weight) && t.weight >= 0, at + "weight", "must be a finite number of at least 0");
    const std::string key = at + loss_names()[t.kind.index()].key;
    std::visit([&](const auto& loss) { add(loss, t.weight, key, frequencies); }, t.kind);
  }
}

size_t Loss::workspace_bytes(int N, int H, int W) const {
  return kernels::softmax_loss_workspace(N, H, W, classes_, terms_);
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
  for (int i = 0; i < terms_.dice_terms; ++i) {
    auto& dice = call.terms.dice[i];
    divide(dice.class_weight, dice.per_image ? static_cast<double>(images) : static_cast<double>(images) / x.N);
  }
  kernels::softmax_loss(stream, call);
}

}  // namespace regolith
