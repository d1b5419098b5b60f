// What becomes of predictions: pictures in a folder, arrays, or a table.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "deploy/segmenter.h"

namespace regolith {

struct OutputOptions {
  bool overlay = false, probabilities = false, confidence = false, force = false, go_on = false;
  bool numbered = false;  // the images are rows of an array: a table names them by their number
};

// One writer, whose write() is called from one thread, in the order of the images.
class Outputs {
 public:
  virtual ~Outputs() = default;
  struct Item {
    int64_t index;  // in the input
    std::string name;
    ImageView image;
  };
  virtual void write(const Item& item, const Segmentation& result) = 0;  // throws IoError
  virtual bool has(const std::string& /*name*/) const { return false; }  // an earlier call wrote it whole
  virtual void finish() {}                                               // after the last one
  virtual std::string note() const = 0;                                  // what was written where
};

// By the name: NAME.npz, NAME.csv, or a folder. `names`: of all images to come, in order. Throws UsageError for options
// that such an output does not take, IoError where it cannot be written, or is there already and may not be replaced.
std::unique_ptr<Outputs> open_outputs(const std::string& path, const OutputOptions& options,
                                      const std::vector<std::string>& names, const Segmenter& segmenter);

}  // namespace regolith
