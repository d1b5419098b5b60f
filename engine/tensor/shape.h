// The shape of a batch of feature maps, NHWC.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/text.h"

namespace regolith {

struct Shape {
  int N = 0, H = 0, W = 0, C = 0;
  int64_t pixels() const { return static_cast<int64_t>(N) * H * W; }
  int64_t elements() const { return pixels() * C; }
  bool operator==(const Shape&) const = default;
};

// "32x64x128x1"
inline std::string to_string(const Shape& s) { return size_text({s.N, s.H, s.W, s.C}); }

}  // namespace regolith
