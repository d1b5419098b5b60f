// Scores of a segmentation, all from one confusion matrix over a whole split: (classes, classes) pixels by truth (row)
// and prediction (column). A value is NaN where there is nothing to divide by.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace regolith {

// By class, over all pixels. NaN: no pixel of the class is true or predicted (iou), predicted (precision), true
// (recall).
struct Scores {
  std::vector<double> iou, precision, recall;
};
Scores score(std::span<const int64_t> confusion, int classes);

// Adds an image to a confusion matrix; pixels without truth (kernels::kAbsentClass) are left out.
void add_pixels(std::span<int64_t> confusion, int classes, std::span<const uint8_t> truth,
                std::span<const uint8_t> prediction);

// One number for a whole split, by which runs and epochs are compared.
struct Metric {
  std::string name;
  double value = 0;
  bool higher_is_better = true;
};

// `loss`, and from the confusion matrix:
// miou                the mean of the IoUs that are defined
// miou_foreground     without the pixels whose truth is class 0: the mean over the other classes that are then true or
//                     predicted
// miou_keras_ignore0  without the same pixels, but class 0 is in the mean, with IoU 0, where it is ever predicted: what
//                     MeanIoU(ignore_class=0) of Keras computes
// All of them, in this order, whatever the matrix holds: an empty one gives the names.
std::vector<Metric> metrics(std::span<const int64_t> confusion, int classes, double loss);

// By which images are ranked: miou_foreground where class 0 is never predicted, else miou.
std::string_view metric_of_images(std::span<const int> never_predicted);

double value_of(std::span<const Metric> metrics, std::string_view name);  // throws TrainError for a name not among them

}  // namespace regolith
