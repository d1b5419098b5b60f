// The parameters of an augmentation, drawn per sample, and the geometry they make. For the kernel and for its test.
#pragma once

#include <cmath>

#include "kernels/core/random.h"
#include "kernels/sample.h"

namespace regolith::kernels {

struct AugmentDraw {
  bool flip_x, flip_y;
  float zoom, shift_y, shift_x, turns;  // scale, pixels, pixels, turns
};

inline constexpr uint32_t kAugmentStream = 0x41554721;  // keeps these numbers apart from other users of one seed

REGOLITH_HOST_DEVICE inline AugmentDraw draw_augment(const Augment& a, int H, int W, uint64_t seed, uint64_t step,
                                                     uint32_t slot) {
  const uint32_t low = static_cast<uint32_t>(step), high = static_cast<uint32_t>(step >> 32);
  const Philox p = philox(seed, low, high, slot * 2, kAugmentStream);
  const Philox q = philox(seed, low, high, slot * 2 + 1, kAugmentStream);
  AugmentDraw d;
  d.flip_x = (a.flip == Flip::horizontal || a.flip == Flip::both) && (p.v[0] >> 31) != 0;
  d.flip_y = (a.flip == Flip::vertical || a.flip == Flip::both) && (p.v[0] >> 30 & 1) != 0;
  d.zoom = 1 + a.zoom.low + uniform(p.v[1]) * (a.zoom.high - a.zoom.low);
  d.shift_y = (2 * uniform(p.v[2]) - 1) * a.translation.height * static_cast<float>(H);
  d.shift_x = (2 * uniform(p.v[3]) - 1) * a.translation.width * static_cast<float>(W);
  d.turns = a.rotation.low + uniform(q.v[0]) * (a.rotation.high - a.rotation.low);
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
  const float c = d.zoom * cosine, s = d.zoom * sine, tx = d.zoom * d.shift_x, ty = d.zoom * d.shift_y;
  const float fx = d.flip_x ? -1.0f : 1.0f, fy = d.flip_y ? -1.0f : 1.0f;
  return {fx * c, fx * -s, cx + fx * (-c * cx + s * cy - tx), fy * s, fy * c, cy + fy * (-s * cx - c * cy - ty)};
}

}  // namespace regolith::kernels
