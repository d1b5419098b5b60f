// The parameters of an augmentation, drawn per sample, and the geometry they make. For the kernel, for the host that
// stages partners, and for the tests.
#pragma once

#include <cmath>

#include "kernels/augment_options.h"
#include "kernels/core/random.h"

namespace regolith::kernels {

// input = (xx * x + xy * y + x0, yx * x + yy * y + y0) of an output pixel (x, y).
struct Affine {
  float xx, xy, x0, yx, yy, y0;
};

// Whose random numbers: those of a place in an epoch of a run.
struct SampleKey {
  uint64_t seed;
  uint32_t epoch, position;
};

// What numbers are for. Each operation has its own, so that switching one off leaves those of the others as they were.
enum class DrawOf : uint32_t {
  flip,
  zoom,
  translation,
  rotation,
  shear,
  crop,  // of a picture
  brightness,
  contrast,
  gamma,
  noise,
  blur,
  cutout,
  cutout_place,
  cutmix,
  cutmix_partner,
  copy_paste,
  elastic
};
// The streams of a sample: three pictures (its own, the partners of cutmix and copy_paste), the grain, the field.
inline constexpr uint32_t kAugmentStream = 0x41554721;  // keeps these numbers apart from other users of one seed
inline constexpr uint32_t kNoiseStream = kAugmentStream + 3, kElasticStream = kAugmentStream + 4;

REGOLITH_HOST_DEVICE inline Philox draws_of(const SampleKey& key, DrawOf what, uint32_t picture = 0) {
  return philox(key.seed, key.epoch, key.position, static_cast<uint32_t>(what), kAugmentStream + picture);
}
REGOLITH_HOST_DEVICE inline float between(float low, float high, uint32_t word) {
  return low + uniform(word) * (high - low);
}

// How a picture is moved; as it starts, not at all.
struct Moves {
  bool flip_x = false, flip_y = false;
  float zoom = 1, shift_y = 0, shift_x = 0, turns = 0;  // scale, pixels, pixels, turns
  float shear_y = 0, shear_x = 0;                       // y per x, x per y
  float crop = 1, crop_y = 0, crop_x = 0;               // scale, pixels, pixels: the part that is left

  REGOLITH_HOST_DEVICE bool any() const {
    return flip_x || flip_y || zoom != 1 || shift_y != 0 || shift_x != 0 || turns != 0 || shear_y != 0 ||
           shear_x != 0 || crop != 1;
  }
};
REGOLITH_HOST_DEVICE inline Moves draw_moves(const Augment& a, int H, int W, const SampleKey& key, uint32_t picture) {
  const float h = static_cast<float>(H), w = static_cast<float>(W);
  const Probabilities& often = a.probability;
  Moves m;
  Philox p;
  const auto drawn = [&](DrawOf what, float probability) {
    p = draws_of(key, what, picture);
    return uniform(p.v[0]) < probability;
  };
  if (a.flip != Flip::none) {
    p = draws_of(key, DrawOf::flip, picture);
    m.flip_x = a.flip != Flip::vertical && uniform(p.v[0]) < often.flip;
    m.flip_y = a.flip != Flip::horizontal && uniform(p.v[1]) < often.flip;
  }
  if ((a.zoom.low != 0 || a.zoom.high != 0) && drawn(DrawOf::zoom, often.zoom))
    m.zoom = between(1 + a.zoom.low, 1 + a.zoom.high, p.v[1]);
  if ((a.translation.height != 0 || a.translation.width != 0) && drawn(DrawOf::translation, often.translation)) {
    m.shift_y = between(-a.translation.height, a.translation.height, p.v[1]) * h;
    m.shift_x = between(-a.translation.width, a.translation.width, p.v[2]) * w;
  }
  if ((a.rotation.low != 0 || a.rotation.high != 0) && drawn(DrawOf::rotation, often.rotation))
    m.turns = between(a.rotation.low, a.rotation.high, p.v[1]);
  if ((a.shear.height != 0 || a.shear.width != 0) && drawn(DrawOf::shear, often.shear)) {
    m.shear_y = between(-a.shear.height, a.shear.height, p.v[1]);
    m.shear_x = between(-a.shear.width, a.shear.width, p.v[2]);
  }
  if (a.crop.on && drawn(DrawOf::crop, a.crop.probability)) {
    m.crop = between(a.crop.size.low, a.crop.size.high, p.v[1]);
    m.crop_y = uniform(p.v[2]) * (h - m.crop * h);
    m.crop_x = uniform(p.v[3]) * (w - m.crop * w);
  }
  return m;
}

// Out of the output: back from the part that was enlarged, sheared, turned back, moved back, scaled, and flipped.
REGOLITH_HOST_DEVICE inline Affine affine_of(const Moves& m, int H, int W) {
  const float cx = 0.5f * static_cast<float>(W - 1), cy = 0.5f * static_cast<float>(H - 1);
#if defined(__CUDA_ARCH__)
  const float cosine = cospif(2 * m.turns), sine = sinpif(2 * m.turns);  // in registers; cosf takes a stack
#else
  const float cosine = std::cos(6.283185307f * m.turns), sine = std::sin(6.283185307f * m.turns);
#endif
  const float c = m.zoom * cosine, s = m.zoom * sine, tx = m.zoom * m.shift_x, ty = m.zoom * m.shift_y;
  const float fx = m.flip_x ? -1.0f : 1.0f, fy = m.flip_y ? -1.0f : 1.0f;
  const Affine a{fx * c, fx * -s, cx + fx * (-c * cx + s * cy - tx), fy * s, fy * c, cy + fy * (-s * cx - c * cy - ty)};
  // A pixel is a square about its place: those of the part are crop times as large.
  const float ox = m.crop_x + 0.5f * (m.crop - 1), oy = m.crop_y + 0.5f * (m.crop - 1);
  const Affine b{m.crop, m.shear_x * m.crop, ox + m.shear_x * oy, m.shear_y * m.crop, m.crop, m.shear_y * ox + oy};
  return {a.xx * b.xx + a.xy * b.yx, a.xx * b.xy + a.xy * b.yy, a.xx * b.x0 + a.xy * b.y0 + a.x0,
          a.yx * b.xx + a.yy * b.yx, a.yx * b.xy + a.yy * b.yy, a.yx * b.x0 + a.yy * b.y0 + a.y0};
}

// Pixels x with x0 <= x < x1, and y alike.
struct Box {
  float x0 = 0, x1 = 0, y0 = 0, y1 = 0;
};
REGOLITH_HOST_DEVICE inline Box box_of(float height, float width, int H, int W, uint32_t y_word, uint32_t x_word) {
  const float h = height * static_cast<float>(H), w = width * static_cast<float>(W);
  const float x = uniform(x_word) * (static_cast<float>(W) - w), y = uniform(y_word) * (static_cast<float>(H) - h);
  return {x, x + w, y, y + h};
}

// Which rows a sample's partners come from: word * count / 2^32 of the order, and of the rows to be pasted.
struct PartnerDraw {
  bool cutmix = false, paste = false;
  uint32_t cutmix_word = 0, paste_word = 0;
};
REGOLITH_HOST_DEVICE inline uint32_t chosen(uint32_t word, int count) {
  return static_cast<uint32_t>((uint64_t{word} * static_cast<uint32_t>(count)) >> 32);
}
REGOLITH_HOST_DEVICE inline PartnerDraw draw_partners(const Augment& a, const SampleKey& key) {
  PartnerDraw d;
  if (a.cutmix.on) {
    d.cutmix = uniform(draws_of(key, DrawOf::cutmix).v[0]) < a.cutmix.probability;
    d.cutmix_word = draws_of(key, DrawOf::cutmix_partner).v[0];
  }
  if (a.copy_paste.on && a.copy_paste.class_id >= 0) {
    const Philox p = draws_of(key, DrawOf::copy_paste);
    d.paste = uniform(p.v[0]) < a.copy_paste.probability;
    d.paste_word = p.v[1];
  }
  return d;
}

struct AugmentDraw {
  Moves moves = {}, cutmix_moves = {}, paste_moves = {};
  bool elastic = false, cutout = false;
  PartnerDraw partners = {};
  Box cutmix_box = {}, hole = {};
  float brightness = 0, contrast = 1, gamma = 1, noise = 0;  // grey levels, factor, exponent, deviation in grey levels
  float blur = 0;                                            // sigma; 0: none

  REGOLITH_HOST_DEVICE bool tones() const { return brightness != 0 || contrast != 1 || gamma != 1; }
  REGOLITH_HOST_DEVICE bool any() const {
    return moves.any() || elastic || cutout || partners.cutmix || partners.paste || tones() || noise > 0 || blur > 0;
  }
};
REGOLITH_HOST_DEVICE inline AugmentDraw draw_augment(const Augment& a, int H, int W, const SampleKey& key) {
  AugmentDraw d;
  Philox p;
  const auto drawn = [&](DrawOf what, float probability) {
    p = draws_of(key, what);
    return uniform(p.v[0]) < probability;
  };
  d.moves = draw_moves(a, H, W, key, 0);
  d.elastic = a.elastic.on && a.elastic.alpha > 0 && drawn(DrawOf::elastic, a.elastic.probability);
  d.partners = draw_partners(a, key);
  if (d.partners.cutmix) {
    p = draws_of(key, DrawOf::cutmix);
    const float side = sqrtf(between(a.cutmix.area.low, a.cutmix.area.high, p.v[1]));
    d.cutmix_box = box_of(side, side, H, W, p.v[2], p.v[3]);
    d.cutmix_moves = draw_moves(a, H, W, key, 1);
  }
  if (d.partners.paste) d.paste_moves = draw_moves(a, H, W, key, 2);
  if ((a.brightness.low != 0 || a.brightness.high != 0) && drawn(DrawOf::brightness, a.probability.brightness))
    d.brightness = 255 * between(a.brightness.low, a.brightness.high, p.v[1]);
  if ((a.contrast.low != 0 || a.contrast.high != 0) && drawn(DrawOf::contrast, a.probability.contrast))
    d.contrast = between(1 + a.contrast.low, 1 + a.contrast.high, p.v[1]);
  if ((a.gamma.low != 1 || a.gamma.high != 1) && drawn(DrawOf::gamma, a.probability.gamma))
    d.gamma = between(a.gamma.low, a.gamma.high, p.v[1]);
  if (a.noise.on && drawn(DrawOf::noise, a.noise.probability)) d.noise = 255 * between(0, a.noise.std, p.v[1]);
  if (a.blur.on && drawn(DrawOf::blur, a.blur.probability)) d.blur = between(0, a.blur.sigma, p.v[1]);
  if (a.cutout.on && drawn(DrawOf::cutout, a.cutout.probability)) {
    const float height = sqrtf(between(a.cutout.scale.low, a.cutout.scale.high, p.v[1]));
    const float width = sqrtf(between(a.cutout.scale.low, a.cutout.scale.high, p.v[2]));
    p = draws_of(key, DrawOf::cutout_place);
    d.hole = box_of(height, width, H, W, p.v[0], p.v[1]);
    d.cutout = true;
  }
  return d;
}

// The elastic field: displacements (x, y) of deviation strength() on average over an infinite plane are cubic B-splines
// over nodes every spacing() pixels. Node (i, j) stands at pixel ((j - 1) spacing, (i - 1) spacing), and has two normal
// numbers of deviation node_deviation().
REGOLITH_HOST_DEVICE inline int elastic_spacing(const Elastic& e) {
  const int spacing = static_cast<int>(1.7320508f * e.sigma + 0.5f);
  return spacing > 2 ? spacing : 2;
}
REGOLITH_HOST_DEVICE inline float elastic_node_deviation(const Elastic& e) {
  // A value of the spline sums up 16 nodes, with squared weights of (151 / 315)^2 on average.
  return e.alpha * (0.28209479f * 315.0f / 151.0f);
}

}  // namespace regolith::kernels
