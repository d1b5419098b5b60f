// The parameters of an augmentation, drawn per sample, and the geometry they make. For the kernel and for its test.
#pragma once

#include <cmath>

#include "kernels/core/random.h"
#include "kernels/sample.h"

namespace regolith::kernels {

struct AugmentDraw {
  bool flip;
  float zoom, shift_y, shift_x, turns;  // scale, pixels, pixels, turns
};

inline constexpr uint32_t kAugmentStream = 0x41554721;  // keeps these numbers apart from other users of one seed

REGOLITH_HOST_DEVICE inline AugmentDraw draw_augment(const Augment& a, int H, int W, uint64_t seed, uint64_t step,
                                                     uint32_t slot) {
  const uint32_t low = static_cast<uint32_t>(step), high = static_cast<uint32_t>(step >> 32);
  const Philox p = philox(seed, low, high, slot * 2, kAugmentStream);
  const Philox q = philox(seed, low, high, slot * 2 + 1, kAugmentStream);
  AugmentDraw d;
  d.flip = a.flip && (p.v[0] >> 31) != 0;
  d.zoom = 1 + a.zoom_low + uniform(p.v[1]) * (a.zoom_high - a.zoom_low);
  d.shift_y = (2 * uniform(p.v[2]) - 1) * a.shift_y * static_cast<float>(H);
  d.shift_x = (2 * uniform(p.v[3]) - 1) * a.shift_x * static_cast<float>(W);
  d.turns = (2 * uniform(q.v[0]) - 1) * a.rotation;
  return d;
}

// Out of the output: turned back, moved back, scaled, and flipped.
REGOLITH_HOST_DEVICE inline Affine affine_of(const AugmentDraw& d, int H, int W) {
  const float cx = 0.5f * static_cast<float>(W - 1), cy = 0.5f * static_cast<float>(H - 1);
#if defined(__CUDA_ARCH__)
  const float cosine = cospif(2 * d.turns), sine = sinpif(2 * d.turns);  // in registers; cosf takes a stack
#else
  const float cosine = std::cos(6.283185307f * d.turns), sine = std::sin(6.283185307f * d.turns);
#endif
  const float c = d.zoom * cosine, s = d.zoom * sine, side = d.flip ? -1.0f : 1.0f;
  const float tx = d.zoom * d.shift_x, ty = d.zoom * d.shift_y;
  return {side * c, side * -s, cx + side * (-c * cx + s * cy - tx), s, c, cy - s * cx - c * cy - ty};
}

}  // namespace regolith::kernels
