// The data set of a run in host memory, as bytes. It is read once; training, validation and test are lists of
// indices into it.
#pragma once

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "engine/train/data_view.h"

namespace regolith {

enum class Part : uint8_t { train, validation, test, none };

// One grey or colour image per sample, all of one size; a mask gives the class of each pixel.
struct Dataset {
  int64_t count = 0, unlabelled = 0;  // the last ones have no truth of their own (data.pseudo)
  int height = 0, width = 0, channels = 1;
  std::vector<uint8_t> images;     // (count, height, width, channels), 0..255
  std::vector<uint8_t> masks;      // (count, height, width): class ids; kernels::kAbsentClass where there is no truth
  std::vector<int64_t> source;     // (count): the row in the file that each sample came from, for reports
  std::vector<std::string> names;  // (count): of the image files; empty: samples are known by their row
  std::vector<Part> part;          // (count), where the parts were given; else empty
  std::vector<int64_t> group;      // (count): samples of one group stay in one part; empty: each by itself
  std::string origin;              // "mars.npz", "synthetic terrain, seed 42"
  std::string notes;               // lines on what was left out, turned, clipped as it was read

  int64_t image_bytes() const { return static_cast<int64_t>(height) * width * channels; }
  int64_t mask_bytes() const { return static_cast<int64_t>(height) * width; }
  const uint8_t* image(int64_t i) const { return images.data() + i * image_bytes(); }
  const uint8_t* mask(int64_t i) const { return masks.data() + i * mask_bytes(); }
  DataView view() const {
    return {images.data(), masks.empty() ? nullptr : masks.data(), count, height, width, channels};
  }
  std::string name(int64_t i) const {
    if (!names.empty()) return names[i];
    return (i < count - unlabelled ? "sample " : "unlabelled sample ") + std::to_string(source[i]);
  }
  std::vector<int64_t> labelled_samples() const {
    std::vector<int64_t> all(static_cast<size_t>(count - unlabelled));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
};

}  // namespace regolith
