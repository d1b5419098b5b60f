#include "engine/train/metrics.h"

#include <limits>

#include "engine/base/error.h"
#include "kernels/augment_options.h"

namespace regolith {
namespace {

struct Counts {  // pixels of one class
  int64_t hit = 0, truth = 0, predicted = 0;
  int64_t unlabelled = 0;  // predicted as this class, but of class 0
  int64_t either() const { return truth + predicted - hit; }
};

std::vector<Counts> count(std::span<const int64_t> confusion, int classes) {
  const auto K = static_cast<size_t>(classes);
  if (confusion.size() != K * K) throw TrainError("metrics: the confusion matrix is not classes x classes");
  std::vector<Counts> counts(K);
  for (size_t truth = 0; truth < K; ++truth) {
    for (size_t predicted = 0; predicted < K; ++predicted) {
      const int64_t pixels = confusion[truth * K + predicted];
      counts[truth].truth += pixels;
      counts[predicted].predicted += pixels;
      if (truth == predicted) counts[truth].hit = pixels;
      if (truth == 0) counts[predicted].unlabelled = pixels;
    }
  }
  return counts;
}

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : std::numeric_limits<double>::quiet_NaN();
}

class Mean {
 public:
  void add(int64_t part, int64_t whole) {
    if (whole == 0) return;
    sum_ += ratio(part, whole);
    ++count_;
  }
  double value() const { return count_ > 0 ? sum_ / count_ : std::numeric_limits<double>::quiet_NaN(); }

 private:
  double sum_ = 0;
  int count_ = 0;
};

double miou(std::span<const Counts> classes) {
  Mean mean;
  for (const Counts& c : classes) mean.add(c.hit, c.either());
  return mean.value();
}

// Without the pixels of class 0 it is never true, and the others lose the predictions that fell on it.
void add_foreground(Mean& mean, std::span<const Counts> classes) {
  for (size_t c = 1; c < classes.size(); ++c) mean.add(classes[c].hit, classes[c].either() - classes[c].unlabelled);
}

double miou_foreground(std::span<const Counts> classes) {
  Mean mean;
  add_foreground(mean, classes);
  return mean.value();
}

double miou_keras_ignore0(std::span<const Counts> classes) {
  Mean mean;
  if (!classes.empty()) mean.add(0, classes[0].predicted - classes[0].hit);
  add_foreground(mean, classes);
  return mean.value();
}

}  // namespace

void add_pixels(std::span<int64_t> confusion, int classes, std::span<const uint8_t> truth,
                std::span<const uint8_t> prediction) {
  const auto K = static_cast<size_t>(classes);
  for (size_t i = 0; i < truth.size(); ++i)
    if (truth[i] != kernels::kAbsentClass) ++confusion[truth[i] * K + prediction[i]];
}

std::string_view metric_of_images(std::span<const int> never_predicted) {
  return !never_predicted.empty() && never_predicted[0] == 0 ? "miou_foreground" : "miou";
}

Scores score(std::span<const int64_t> confusion, int classes) {
  Scores s;
  for (const Counts& c : count(confusion, classes)) {
    s.iou.push_back(ratio(c.hit, c.either()));
    s.precision.push_back(ratio(c.hit, c.predicted));
    s.recall.push_back(ratio(c.hit, c.truth));
  }
  return s;
}

std::vector<Metric> metrics(std::span<const int64_t> confusion, int classes, double loss) {
  const std::vector<Counts> counts = count(confusion, classes);
  return {{"loss", loss, false},
          {"miou", miou(counts)},
          {"miou_foreground", miou_foreground(counts)},
          {"miou_keras_ignore0", miou_keras_ignore0(counts)}};
}

double value_of(std::span<const Metric> metrics, std::string_view name) {
  for (const Metric& m : metrics)
    if (m.name == name) return m.value;
  throw TrainError("metrics: there is none of the name " + std::string(name));
}

}  // namespace regolith
