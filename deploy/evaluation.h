// engine_eval's work: the scores of trained networks on labelled images.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/images.h"
#include "deploy/segmenter.h"
#include "engine/io/image.h"

namespace regolith {

struct ImageScores {
  std::string name;
  double miou = 0, accuracy = 0;  // accuracy: share of the pixels that are right; NaN: without truth
  std::vector<double> iou;        // by class, NaN where the image has none of it, true or predicted
};

// An image to be shown, shrunk to at most 512 pixels to a side.
struct ShownImage {
  std::string caption;
  int height = 0, width = 0, channels = 1;
  std::vector<uint8_t> pixels, truth, prediction;  // (height, width, channels), (height, width) twice
};

// Of one network over images with truth.
struct Evaluated {
  std::string title;                 // "test"
  std::vector<std::string> classes;  // their names
  std::vector<int> never_predicted;  // classes
  std::vector<int64_t> confusion;    // (K, K) pixels, truth by row
  std::vector<double> boundary_f1;   // by class: engine/train/boundary.h, of pixels whose class may be predicted
  std::vector<ImageScores> images;   // the lowest mIoU first, then those without truth
  std::vector<ShownImage> worst;     // the ten first of them
};
inline constexpr int kWorstImages = 10;

// The mIoU of an image is miou_foreground where class 0 is never predicted, else miou (engine/train/metrics.h). Throws
// DataError for an image or a mask that cannot be read: a score without it would be another one.
Evaluated evaluate(Segmenter& segmenter, ImageSource& images, const std::string& title);

struct EvaluationOptions {
  std::vector<std::string> runs;
  std::string input, images, masks;  // as open_labelled() takes them; input empty: a part of each run's own data
  std::string split;                 // test, validation or train; empty: test, else validation, else train
  std::string output;                // a folder; empty: eval-SPLIT or eval-INPUT in that of the run
  SegmenterOptions segmenter;
  bool force = false;  // write over a folder that is there
};

// Scores the runs one after the other and prints their tables; of several, they stand beside each other, and in
// OUTPUT/RUN. Throws UsageError for options that do not go together, IoError, and what the parts throw.
void evaluate(const EvaluationOptions& options);

}  // namespace regolith
