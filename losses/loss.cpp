#include "losses/loss.h"

#include <algorithm>
#include <cmath>

#include "engine/base/error.h"

namespace regolith {
namespace {

[[noreturn]] void fail(const std::string& what) { throw TrainError("loss: " + what); }

void require(bool ok, const std::string& what) {
  if (!ok) fail(what);
}

// 1 for the classes that are kept, 0 for the excluded.
std::vector<double> kept_classes(const std::string& name, const std::vector<int>& exclude, int classes) {
  std::vector<double> kept(static_cast<size_t>(classes), 1);
  for (const int c : exclude) {
    require(c >= 0 && c < classes,
            name + ".exclude: class " + std::to_string(c) + " is not one of 0.." + std::to_string(classes - 1));
    kept[static_cast<size_t>(c)] = 0;
  }
  require(std::count(kept.begin(), kept.end(), 0.) < classes,
          name + ".exclude: excludes all " + std::to_string(classes) + " classes; leave at least one to learn from");
  return kept;
}

// `given` (one value, or one per class; empty: 1) times the kept classes.
std::vector<double> weights(const std::string& name, const std::vector<double>& given, std::vector<double> kept) {
  require(given.size() <= 1 || given.size() == kept.size(), name + ": has " + std::to_string(given.size()) +
                                                                " values; give one per class (" +
                                                                std::to_string(kept.size()) + ") or one for all");
  for (size_t c = 0; c < kept.size(); ++c) {
    const double w = given.empty() ? 1 : given[given.size() == 1 ? 0 : c];
    require(std::isfinite(w) && w >= 0, name + ": a weight must be a finite number of at least 0");
    kept[c] *= w;
  }
  require(std::any_of(kept.begin(), kept.end(), [](double w) { return w > 0; }),
          name + ": is 0 for every class that is not excluded; leave at least one to learn from");
  return kept;
}

int count(const std::vector<double>& kept) { return static_cast<int>(std::count(kept.begin(), kept.end(), 1.)); }

void write(float (&to)[kernels::kMaxClasses], const std::vector<double>& from, double factor) {
  for (size_t c = 0; c < from.size(); ++c) to[c] = static_cast<float>(from[c] * factor);
}

}  // namespace

bool LossSpec::needs_frequencies() const {
  return std::any_of(terms.begin(), terms.end(), [](const LossTerm& t) {
    const auto* dice = std::get_if<DiceSpec>(&t.term);
    return dice != nullptr && dice->inverse_frequency;
  });
}

Loss::Loss(const LossSpec& spec, int classes, std::span<const double> frequencies) : classes_(classes) {
  require(classes >= 1 && classes <= kernels::kMaxClasses,
          "takes 1 to " + std::to_string(kernels::kMaxClasses) + " classes, not " + std::to_string(classes));
  require(!spec.terms.empty(), "has no terms; name cross_entropy, focal or dice");
  require(spec.ignore_index >= -1 && spec.ignore_index <= 255,
          "ignore_index must be a value of the mask, 0 to 255, or -1 for none");
  terms_.ignore = spec.ignore_index;
  const auto room = [](int& used, const std::string& kind) {
    require(used < kernels::kMaxLossTerms,
            "has more than " + std::to_string(kernels::kMaxLossTerms) + " " + kind + " terms");
    return used++;
  };
  for (const LossTerm& t : spec.terms) {
    require(std::isfinite(t.weight) && t.weight >= 0, "the weight of a term must be a finite number of at least 0");
    if (const auto* ce = std::get_if<CrossEntropySpec>(&t.term)) {
      auto& to = terms_.pixel[room(terms_.pixel_terms, "cross-entropy and focal")];
      require(ce->label_smoothing >= 0 && ce->label_smoothing < 1, "cross_entropy.label_smoothing must be in [0, 1)");
      const auto kept = kept_classes("cross_entropy", ce->exclude, classes);
      to.kind = kernels::LossTerms::Kind::cross_entropy;
      to.smoothing = static_cast<float>(ce->label_smoothing);
      write(to.class_weight, weights("cross_entropy.class_weights", ce->class_weights, kept), t.weight);
      scales_.push_back({ce->reduction, count(kept)});
    } else if (const auto* focal = std::get_if<FocalSpec>(&t.term)) {
      auto& to = terms_.pixel[room(terms_.pixel_terms, "cross-entropy and focal")];
      require(std::isfinite(focal->gamma) && focal->gamma >= 0, "focal.gamma must be at least 0");
      const auto kept = kept_classes("focal", focal->exclude, classes);
      to.kind = kernels::LossTerms::Kind::focal;
      to.gamma = static_cast<float>(focal->gamma);
      write(to.class_weight, weights("focal.alpha", focal->alpha, kept), t.weight);
      scales_.push_back({focal->reduction, count(kept)});
    } else {
      const DiceSpec& dice = std::get<DiceSpec>(t.term);
      auto& to = terms_.dice[room(terms_.dice_terms, "Dice")];
      require(std::isfinite(dice.smooth) && dice.smooth >= 0, "dice.smooth must be at least 0");
      require(!dice.inverse_frequency || dice.class_weights.empty(),
              "dice: takes class weights or inverse_frequency, not both");
      std::vector<double> given = dice.class_weights;
      if (dice.inverse_frequency) {
        require(frequencies.size() == static_cast<size_t>(classes),
                "dice: inverse_frequency needs the share of each of the " + std::to_string(classes) +
                    " classes in the training set");
        for (const double f : frequencies) given.push_back(f > 0 ? 1 / f : 0);
      }
      const auto w = weights("dice.class_weights", given, kept_classes("dice", dice.exclude, classes));
      double sum = 0;
      for (const double x : w) sum += x;
      to.per_image = dice.sums == DiceSpec::Sums::per_image;
      to.smooth = static_cast<float>(dice.smooth);
      write(to.class_weight, w, t.weight / sum);
      couples_images_ = couples_images_ || !to.per_image;
    }
  }
}

size_t Loss::workspace_bytes(int N, int H, int W) const {
  return kernels::softmax_loss_workspace(N, H, W, classes_, terms_);
}

void Loss::forward_backward(Stream& stream, kernels::SoftmaxLoss call, int64_t images) const {
  const TensorView& x = call.logits;
  require(x.C == classes_,
          "is of " + std::to_string(classes_) + " classes, but the logits have " + std::to_string(x.C) + " channels");
  call.terms = terms_;
  const auto divide = [](float(&w)[kernels::kMaxClasses], double by) {
    for (float& x : w) x = static_cast<float>(x / by);
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
