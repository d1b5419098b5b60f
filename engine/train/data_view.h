// Images and masks in host memory, as the engine sees them: whoever owns the memory keeps it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace regolith {

struct DataView {
  const uint8_t* images = nullptr;  // (count, H, W, C)
  const uint8_t* masks = nullptr;   // (count, H, W) class ids; null: no sample has a mask
  int64_t count = 0;
  int H = 0, W = 0, C = 1;

  size_t image_bytes() const { return static_cast<size_t>(H) * W * C; }
  size_t mask_bytes() const { return masks == nullptr ? 0 : static_cast<size_t>(H) * W; }
  size_t bytes() const { return count * (image_bytes() + mask_bytes()); }
};

}  // namespace regolith
