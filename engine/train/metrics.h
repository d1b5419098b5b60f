// Scores of a segmentation, all from one confusion matrix over a whole split.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace regolith {

// One number that judges a network: "loss", "miou". Reports take lists of them and know no name.
struct Metric {
  std::string name;
  double value = 0;  // NaN: not measured
  bool higher_is_better = true;
};

// NaN where there is nothing to divide by: no pixel of the class, neither true nor predicted (iou), none predicted
// (precision), none true (recall).
struct Scores {
  std::vector<double> iou, precision, recall;  // by class, over all pixels
  double miou = 0;                             // mean of the IoUs that are defined
  // The pixels whose truth is class 0 dropped: the mean over the other classes that are then true or predicted.
  double miou_foreground = 0;
  // The same pixels dropped, but class 0 stays in the mean, with IoU 0, if it is ever predicted in the rest: what
  // MeanIoU(ignore_class=0) of Keras computes.
  double miou_keras_ignore0 = 0;
  double accuracy = 0;
};

// confusion: (classes, classes) pixels by truth (row) and prediction (column).
Scores score(std::span<const int64_t> confusion, int classes);

// `loss` and the mean IoUs by name, all of them whatever the matrix holds: an empty one gives the names.
std::vector<Metric> metrics(std::span<const int64_t> confusion, int classes, double loss);

}  // namespace regolith
