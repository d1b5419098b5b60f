// The masks that trained networks doubt most: where labels may be wrong. Each image is judged by those runs alone that
// did not train on it, as in "Confident learning" (Northcutt, Jiang, Chuang, 2021), so that none has learnt the fault.
#pragma once

#include <string>
#include <vector>

#include "deploy/segmenter.h"

namespace regolith {

struct SuspectsOptions {
  std::vector<std::string> runs;    // run folders on the same images; other data.split.seed, other images held out
  std::string output = "suspects";  // a folder
  int count = 20;                   // rows of the sheet
  bool force = false;               // write over what is there
  SegmenterOptions segmenter;
};

struct Suspect {
  int64_t sample = 0;  // of the data
  int judges = 0;
  double loss = 0;          // mean cross-entropy of the pixels with a truth that may be predicted, over its judges
  double contradicted = 0;  // share of them of another class with at least kConfident
  std::vector<double> class_loss;  // of the pixels of each class; NaN: none
};
inline constexpr double kConfident = 0.9;

// Writes OUTPUT/suspects.csv, all images that a run could judge, the most doubted first, and OUTPUT/suspects.png:
// image, mask, prediction and doubt of the first of them. Throws IoError where OUTPUT is there already, DataError where
// the runs are of different images, or no image was held out by any, and what Segmenter throws.
std::vector<Suspect> find_suspects(const SuspectsOptions& options);

}  // namespace regolith
