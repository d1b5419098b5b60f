#include "engine/train/metrics.h"

#include <limits>

#include "engine/base/error.h"

namespace regolith {
namespace {

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : std::numeric_limits<double>::quiet_NaN();
}

// Counts of pixels.
class Confusion {
 public:
  Confusion(std::span<const int64_t> pixels, int classes) : classes(static_cast<size_t>(classes)), pixels_(pixels) {
    if (pixels.size() != this->classes * this->classes)
      throw TrainError("metrics: the confusion matrix is not classes x classes");
  }
  int64_t at(size_t truth, size_t predicted) const { return pixels_[truth * classes + predicted]; }
  int64_t hit(size_t c) const { return at(c, c); }
  int64_t truth(size_t c) const {
    int64_t n = 0;
    for (size_t j = 0; j < classes; ++j) n += at(c, j);
    return n;
  }
  int64_t predicted(size_t c) const {
    int64_t n = 0;
    for (size_t j = 0; j < classes; ++j) n += at(j, c);
    return n;
  }
  int64_t either(size_t c) const { return truth(c) + predicted(c) - hit(c); }

  const size_t classes;

 private:
  std::span<const int64_t> pixels_;
};

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

double miou(const Confusion& m) {
  Mean mean;
  for (size_t c = 0; c < m.classes; ++c) mean.add(m.hit(c), m.either(c));
  return mean.value();
}

// Without the first row class 0 is never true, and the others lose the predictions that fell on it.
double miou_foreground(const Confusion& m) {
  Mean mean;
  for (size_t c = 1; c < m.classes; ++c) mean.add(m.hit(c), m.either(c) - m.at(0, c));
  return mean.value();
}

double miou_keras_ignore0(const Confusion& m) {
  Mean mean;
  for (size_t c = 0; c < m.classes; ++c) {
    if (c == 0) mean.add(0, m.predicted(0) - m.hit(0));
    if (c > 0) mean.add(m.hit(c), m.either(c) - m.at(0, c));
  }
  return mean.value();
}

struct NamedMetric {
  const char* name;
  double (*value)(const Confusion&);
  bool higher_is_better;
};
constexpr NamedMetric kMetrics[] = {
    {"miou", miou, true},
    {"miou_foreground", miou_foreground, true},
    {"miou_keras_ignore0", miou_keras_ignore0, true},
};

}  // namespace

Scores score(std::span<const int64_t> confusion, int classes) {
  const Confusion m(confusion, classes);
  Scores s;
  for (size_t c = 0; c < m.classes; ++c) {
    s.iou.push_back(ratio(m.hit(c), m.either(c)));
    s.precision.push_back(ratio(m.hit(c), m.predicted(c)));
    s.recall.push_back(ratio(m.hit(c), m.truth(c)));
  }
  return s;
}

std::vector<Metric> metrics(std::span<const int64_t> confusion, int classes, double loss) {
  const Confusion m(confusion, classes);
  std::vector<Metric> all{{"loss", loss, false}};
  for (const NamedMetric& metric : kMetrics) all.push_back({metric.name, metric.value(m), metric.higher_is_better});
  return all;
}

double value_of(std::span<const Metric> metrics, std::string_view name) {
  for (const Metric& m : metrics)
    if (m.name == name) return m.value;
  throw TrainError("metrics: there is none of the name " + std::string(name));
}

}  // namespace regolith
