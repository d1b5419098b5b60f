// The data set of a run in host memory, as bytes. It is read once; training, validation, test and the samples without a
// mask are lists of indices into it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/train/data_view.h"

namespace regolith {

// One grey or colour image per sample, all of one size; a mask gives the class of each pixel.
struct Dataset {
  int64_t count = 0;
  int height = 0, width = 0, channels = 1;
  std::vector<uint8_t> images;  // (count, height, width, channels), 0..255
  std::vector<uint8_t> masks;   // (count, height, width), class ids; empty: no sample has a mask
  int64_t unlabelled = 0;       // the last so many samples have no mask: kernels::kAbsentClass in all pixels
  std::vector<int64_t> source;  // (count): the row in the file that each sample came from, for reports
  std::string origin;           // "mars.npz", "synthetic terrain, seed 42"

  int64_t image_bytes() const { return static_cast<int64_t>(height) * width * channels; }
  int64_t mask_bytes() const { return static_cast<int64_t>(height) * width; }
  const uint8_t* image(int64_t i) const { return images.data() + i * image_bytes(); }
  const uint8_t* mask(int64_t i) const { return masks.data() + i * mask_bytes(); }
  DataView view() const {
    return {images.data(), masks.empty() ? nullptr : masks.data(), count, height, width, channels};
  }
  std::vector<int64_t> labelled_samples() const { return range(0, count - unlabelled); }
  std::vector<int64_t> unlabelled_samples() const { return range(count - unlabelled, count); }

 private:
  static std::vector<int64_t> range(int64_t begin, int64_t end) {
    std::vector<int64_t> indices;
    for (int64_t i = begin; i < end; ++i) indices.push_back(i);
    return indices;
  }
};

}  // namespace regolith
