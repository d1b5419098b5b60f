// Images and masks in host memory, before they go to a device as bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace regolith {

// One grey or colour image per sample, all of one size; a mask gives the class of each pixel.
struct Dataset {
  int64_t count = 0;
  int height = 0, width = 0, channels = 1;
  std::vector<uint8_t> images;  // (count, height, width, channels), 0..255
  std::vector<uint8_t> masks;   // (count, height, width), class ids; empty where there are none
  std::vector<int64_t> source;  // (count): the row in the file that each sample came from, for reports
  std::string origin;           // "mars.npz", "synthetic terrain, seed 42"

  int64_t image_bytes() const { return static_cast<int64_t>(height) * width * channels; }
  int64_t mask_bytes() const { return static_cast<int64_t>(height) * width; }
  const uint8_t* image(int64_t i) const { return images.data() + i * image_bytes(); }
  const uint8_t* mask(int64_t i) const { return masks.data() + i * mask_bytes(); }
};

}  // namespace regolith
