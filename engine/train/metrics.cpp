#include "engine/train/metrics.h"

#include <limits>

#include "engine/base/error.h"

namespace regolith {
namespace {

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : std::numeric_limits<double>::quiet_NaN();
}

struct Mean {
  double sum = 0;
  int count = 0;
  void add(int64_t part, int64_t whole) {
    if (whole == 0) return;
    sum += ratio(part, whole);
    ++count;
  }
  double value() const { return count > 0 ? sum / count : std::numeric_limits<double>::quiet_NaN(); }
};

}  // namespace

Scores score(std::span<const int64_t> confusion, int classes) {
  const auto K = static_cast<size_t>(classes);
  if (confusion.size() != K * K) throw TrainError("metrics: the confusion matrix is not classes x classes");
  Scores s;
  Mean all, foreground, keras;
  int64_t right = 0, pixels = 0;
  for (size_t c = 0; c < K; ++c) {
    int64_t truth = 0, predicted = 0;
    for (size_t j = 0; j < K; ++j) {
      truth += confusion[c * K + j];
      predicted += confusion[j * K + c];
    }
    const int64_t hit = confusion[c * K + c], either = truth + predicted - hit;
    right += hit;
    pixels += truth;
    s.iou.push_back(ratio(hit, either));
    s.precision.push_back(ratio(hit, predicted));
    s.recall.push_back(ratio(hit, truth));
    all.add(hit, either);
    // With the first row gone, class 0 is never true, and the others lose the predictions that fell on it.
    const int64_t rest = c == 0 ? predicted - hit : either - confusion[c];
    if (c > 0) foreground.add(hit, rest);
    keras.add(c == 0 ? 0 : hit, rest);
  }
  s.miou = all.value();
  s.miou_foreground = foreground.value();
  s.miou_keras_ignore0 = keras.value();
  s.accuracy = ratio(right, pixels);
  return s;
}

std::vector<Metric> metrics(std::span<const int64_t> confusion, int classes, double loss) {
  const Scores s = score(confusion, classes);
  return {{"loss", loss, false},
          {"miou", s.miou},
          {"miou_foreground", s.miou_foreground},
          {"miou_keras_ignore0", s.miou_keras_ignore0}};
}

}  // namespace regolith
