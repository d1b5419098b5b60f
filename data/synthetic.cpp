#include "data/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "engine/base/error.h"
#include "kernels/core/random.h"

namespace regolith {
namespace {

constexpr uint32_t kTerrainStream = 0x54455252;
constexpr float kTau = 2 * std::numbers::pi_v<float>;
enum Class : uint8_t { kNone, kSoil, kBedrock, kSand, kRock };

// The numbers of one picture, in the order in which they are asked for.
class Draws {
 public:
  Draws(uint64_t seed, int64_t picture) : seed_(seed), picture_(static_cast<uint64_t>(picture)) {}
  uint32_t bits() {
    const auto low = static_cast<uint32_t>(picture_), high = static_cast<uint32_t>(picture_ >> 32);
    return philox(seed_, next_++, low, high, kTerrainStream).v[0];
  }
  float operator()(float from, float to) { return from + uniform(bits()) * (to - from); }
  bool chance(float p) { return uniform(bits()) < p; }

 private:
  uint64_t seed_, picture_;
  uint32_t next_ = 0;
};

// A lattice point's value in [0, 1): noise has to be looked up by place, and often, so this is a plain integer hash.
float lattice(int x, int y, uint32_t seed) {
  uint32_t h = seed ^ static_cast<uint32_t>(x) * 0x8DA6B343u ^ static_cast<uint32_t>(y) * 0xD8163841u;
  h = (h ^ h >> 15) * 0x2C1B3C6Du;
  h = (h ^ h >> 12) * 0x297A2D39u;
  return uniform(h ^ h >> 15);
}

// Value noise in [-1, 1] with features of size 1.
float noise(float x, float y, uint32_t seed) {
  const float fx = std::floor(x), fy = std::floor(y);
  const int ix = static_cast<int>(fx), iy = static_cast<int>(fy);
  const auto smooth = [](float t) { return t * t * (3 - 2 * t); };
  const float u = smooth(x - fx), v = smooth(y - fy);
  const float top = std::lerp(lattice(ix, iy, seed), lattice(ix + 1, iy, seed), u);
  const float bottom = std::lerp(lattice(ix, iy + 1, seed), lattice(ix + 1, iy + 1, seed), u);
  return 2 * std::lerp(top, bottom, v) - 1;
}

float fractal(float x, float y, uint32_t seed, int octaves) {
  float sum = 0, weight = 1, total = 0;
  for (int o = 0; o < octaves; ++o) {
    sum += weight * noise(x, y, seed + static_cast<uint32_t>(o) * 101);
    total += weight;
    weight *= 0.55f;
    x = 2.03f * x + 17.3f;
    y = 2.03f * y - 9.1f;
  }
  return sum / total;
}

struct Cell {
  float distance, gap;  // to the nearest of the scattered points; to the second nearest, beyond that
  float dx, dy;         // from the nearest point
  uint32_t id;
};
// One point scattered in each unit square (Worley, "A cellular texture basis function", SIGGRAPH 1996).
Cell cells(float x, float y, uint32_t seed) {
  const int ix = static_cast<int>(std::floor(x)), iy = static_cast<int>(std::floor(y));
  Cell best{9, 9, 0, 0, 0};
  float second = 9;
  for (int j = -1; j <= 1; ++j) {
    for (int i = -1; i <= 1; ++i) {
      const int cx = ix + i, cy = iy + j;
      const float dx = x - (static_cast<float>(cx) + lattice(cx, cy, seed));
      const float dy = y - (static_cast<float>(cy) + lattice(cx, cy, seed + 7));
      const float d = std::sqrt(dx * dx + dy * dy);
      if (d < best.distance) {
        second = best.distance;
        best = {d, 0, dx, dy, static_cast<uint32_t>(lattice(cx, cy, seed + 13) * 65536)};
      } else {
        second = std::min(second, d);
      }
    }
  }
  best.gap = second - best.distance;
  return best;
}

struct Rock {
  float x, y, rx, ry, tilt;
  uint32_t seed;
};

// One picture: what stands where, how it is lit, and which of it somebody labelled.
class Scene {
 public:
  Scene(const Terrain& t, int64_t picture, float rock_pixels)
      : H_(t.height),
        W_(t.width),
        scale_(64.0f / static_cast<float>(t.height)),
        draw_(static_cast<uint64_t>(t.seed), picture) {
    for (uint32_t& s : seeds_) s = draw_.bits();
    near_ = draw_(0.75f, 1.25f);
    recede_ = draw_(0.1f, 0.9f);
    sun_ = draw_.chance(0.5f) ? 1.0f : -1.0f;
    ripple_angle_ = draw_(-0.5f, 0.5f);
    ripple_ = draw_(0.9f, 1.4f);
    strata_angle_ = draw_(-0.35f, 0.35f);
    crack_ = draw_(0.25f, 1.0f);
    slab_ = draw_(0.6f, 1.3f);
    choose_ground();
    if (draw_.chance(0.1f)) horizon_ = draw_(0.12f, 0.3f) * static_cast<float>(H_);
    if (rock_pixels > 0) place_rocks(rock_pixels);
    exposure_ = draw_(0.7f, 1.15f);
    level_ = draw_(-8, 10);
    margin_ = {draw_.chance(0.5f) ? 1 : 0, draw_.chance(0.3f) ? 1 : 0, draw_.chance(0.5f) ? 1 : 0,
               draw_.chance(0.4f) ? 1 : 0};
    patch_ = draw_.chance(0.6f) ? draw_(-0.75f, -0.25f) : -9;
  }

  void paint(uint8_t* image, uint8_t* mask) const {  // (H, W) each
    for (int y = 0; y < H_; ++y) {
      for (int x = 0; x < W_; ++x) {
        uint8_t label = kNone;
        const float grain = 2.5f * (lattice(x, y, seeds_[9]) + lattice(x, y, seeds_[10]) - 1);
        const float light = shade(static_cast<float>(x), static_cast<float>(y), label);
        image[y * W_ + x] = static_cast<uint8_t>(std::clamp(light * exposure_ + level_ + grain, 0.0f, 255.0f));
        mask[y * W_ + x] = labelled(x, y) || label == kRock ? label : static_cast<uint8_t>(kNone);
      }
    }
  }

 private:
  void choose_ground() {
    const auto one = [&] {
      const float u = draw_(0, 1);
      return u < 0.36f ? kSoil : u < 0.80f ? kBedrock : kSand;
    };
    ground_[0] = one();
    ground_[1] = draw_.chance(0.35f) ? ground_[0] : one();
    border_ = draw_(-0.25f, 0.25f);
    slope_ = draw_(-0.5f, 0.5f);
  }

  void place_rocks(float pixels) {
    const int rocks = draw_.chance(0.35f) ? 2 : 1;
    for (int i = 0; i < rocks; ++i) {
      const float area = pixels / static_cast<float>(rocks) * draw_(0.8f, 1.25f), aspect = draw_(0.65f, 0.95f);
      const float rx = std::sqrt(area / (std::numbers::pi_v<float> * aspect)), ry = rx * aspect;
      const float low = std::max(horizon_ + 1.2f * ry, 1.2f * ry), high = static_cast<float>(H_) - 1.3f * ry;
      rocks_.push_back({draw_(1.1f * rx, static_cast<float>(W_) - 1.1f * rx), draw_(std::min(low, high), high), rx, ry,
                        draw_(-0.4f, 0.4f), draw_.bits()});
    }
  }

  // Distance from the outline in units of the rock's size: below 1 inside.
  static float within(const Rock& r, float x, float y) {
    const float dx = x - r.x, dy = y - r.y, c = std::cos(r.tilt), s = std::sin(r.tilt);
    const float u = (c * dx + s * dy) / r.rx, v = (c * dy - s * dx) / r.ry;
    const float angle = std::atan2(v, u);
    return std::sqrt(u * u + v * v) /
           (1 + 0.16f * noise(1.3f * std::cos(angle) + 5, 1.3f * std::sin(angle) + 5, r.seed));
  }

  float shade(float x, float y, uint8_t& label) const {
    for (const Rock& r : rocks_) {
      const float d = within(r, x, y);
      if (d < 1) {
        label = kRock;
        return shade_rock(r, x, y);
      }
    }
    float light;
    if (y < horizon_ + 2 * noise(x * 0.06f * scale_, 3, seeds_[0])) {
      label = kNone;
      light = 128 + 18 * y / static_cast<float>(H_);  // dust in the air: smooth, brighter towards the ground
    } else {
      light = shade_ground(x, y, label);
    }
    for (const Rock& r : rocks_) {  // a soft shadow, away from the sun and down
      const float d = within(r, x + 0.65f * sun_ * r.rx, y - 0.45f * r.ry);
      const float foot = within(r, x, y - 0.15f * r.ry);
      const float dark =
          std::max(std::clamp(3.0f * (1.08f - d), 0.0f, 1.0f), std::clamp(4 * (1.05f - foot), 0.0f, 1.0f));
      light *= 1 - 0.72f * dark;
      if (dark > 0.4f) label = kNone;
    }
    return light;
  }

  float shade_rock(const Rock& r, float x, float y) const {
    const float u = (x - r.x) / r.rx, v = (y - r.y) / r.ry;
    // Facets: the normal of the nearest cell, so that the lit top breaks off into the dark side along edges.
    const Cell facet = cells(2.2f * u + 9, 2.2f * v + 9, r.seed);
    const float bend = 0.35f * (static_cast<float>(facet.id & 255) / 255 - 0.5f);
    const float lit =
        -0.85f * v + 0.45f * sun_ * u + bend + 0.12f * fractal(0.35f * x * scale_, 0.35f * y * scale_, r.seed, 3);
    return 118 + 95 * std::clamp(1.6f * lit, -0.85f, 1.0f);
  }

  float shade_ground(float x, float y, uint8_t& label) const {
    // Where the eye's ray meets the plain: steps grow towards the top.
    const float up = 1 - y / static_cast<float>(H_), far = near_ * (1 + recede_ * up) * scale_;
    const float u = (x - 0.5f * static_cast<float>(W_)) * far,
                v = -static_cast<float>(H_) * scale_ * near_ * up * (1 + 0.9f * recede_ * up);
    const float region =
        fractal(0.016f * u, 0.024f * v, seeds_[1], 3) + border_ + slope_ * (x / static_cast<float>(W_) - 0.5f);
    const Class here = region < 0 ? ground_[0] : ground_[1];
    const float seam = ground_[0] == ground_[1] ? 1 : std::abs(region) / 0.05f;
    const float relief = 10 * fractal(0.03f * u, 0.05f * v, seeds_[2], 3);
    label = seam < 1 ? kNone : here;
    if (seam >= 1) return relief + texture(here, u, v);
    const float mix = 0.5f + 0.5f * region / 0.05f;  // from one texture into the other
    return relief + std::lerp(texture(ground_[0], u, v), texture(ground_[1], u, v), mix);
  }

  float texture(Class c, float u, float v) const {
    if (c == kSoil) return soil(u, v);
    return c == kBedrock ? bedrock(u, v) : sand(u, v);
  }

  float soil(float u, float v) const {
    const float grain = 17 * fractal(0.45f * u, 0.45f * v, seeds_[3], 3);
    const Cell pebble = cells(0.16f * u, 0.2f * v, seeds_[4]);  // some of the scattered points are pebbles
    const float size = 0.10f + 0.16f * static_cast<float>(pebble.id >> 8) / 255;
    float light = 92 + grain;
    if ((pebble.id & 255) < 130 && pebble.distance < 1.9f * size) {
      const float d = pebble.distance / size;
      if (d < 1)
        light = 112 + 30 * (-pebble.dy + 0.6f * sun_ * pebble.dx) / size;
      else if (pebble.dy > 0 || sun_ * pebble.dx < 0)
        light -= 38 * (1.9f - d) / 0.9f * (pebble.dy > -0.3f * size ? 1 : 0);
    }
    return light;
  }

  float bedrock(float u, float v) const {
    const float c = std::cos(strata_angle_), s = std::sin(strata_angle_);
    const float warp = 5 * fractal(0.05f * u, 0.05f * v, seeds_[5], 3);
    const float along = c * u + s * v, across = c * v - s * u + warp;
    const float layers =
        noise(0.02f * along, 0.28f * across, seeds_[6]) + 0.5f * noise(0.05f * along, 0.7f * across, seeds_[6] + 1);
    const Cell slab = cells(slab_ * (0.055f * along + 0.02f * warp), slab_ * 0.11f * across, seeds_[7]);
    const float crack = std::clamp(1 - slab.gap / 0.09f, 0.0f, 1.0f),
                edge = std::clamp(1 - std::abs(slab.gap - 0.14f) / 0.06f, 0.0f, 1.0f);
    return 118 + 19 * layers + 16 * (static_cast<float>(slab.id & 255) / 255 - 0.5f) +
           7 * fractal(0.3f * u, 0.3f * v, seeds_[8], 2) - crack_ * (62 * crack - 14 * edge);
  }

  float sand(float u, float v) const {
    const float c = std::cos(ripple_angle_), s = std::sin(ripple_angle_);
    const float bend = 7 * fractal(0.035f * u, 0.035f * v, seeds_[11], 2);
    const float phase = ripple_ * (c * v + s * u + bend),
                crest = std::sin(phase) + 0.35f * std::sin(2 * phase + 1.1f * sun_);
    const float strength = 0.55f + 0.45f * noise(0.04f * u, 0.05f * v, seeds_[12]);
    const float dune = 16 * std::sin(0.07f * (v + 0.4f * u) + 3 * noise(0.015f * u, 0.02f * v, seeds_[13]));
    return 104 + dune + 10 * strength * crest;
  }

  bool labelled(int x, int y) const {
    if (y < margin_[0] || y >= H_ - margin_[1] || x < margin_[2] || x >= W_ - margin_[3]) return false;
    return fractal(0.03f * scale_ * static_cast<float>(x), 0.03f * scale_ * static_cast<float>(y), seeds_[14], 3) >
           patch_ + 0.3f;
  }

  int H_, W_;
  float scale_;  // pixels of a picture 64 high per pixel
  Draws draw_;
  std::array<uint32_t, 15> seeds_;
  float near_, recede_, sun_, ripple_angle_, ripple_, strata_angle_, crack_, slab_, border_ = 0, slope_ = 0,
                                                                                    horizon_ = -99;
  float exposure_, level_, patch_;
  std::array<Class, 2> ground_{};
  std::array<int, 4> margin_;  // unlabelled rows and columns: top, bottom, left, right
  std::vector<Rock> rocks_;
};

// The figure of the outliers: a flat drawing over the picture, labelled as soil, and nothing else labelled.
void draw_over(uint8_t* image, uint8_t* mask, int H, int W, float brightness) {
  const float cx = 0.7f * static_cast<float>(W), cy = 0.42f * static_cast<float>(H), r = 0.3f * static_cast<float>(H);
  for (int y = 0; y < H; ++y) {
    for (int x = 0; x < W; ++x) {
      const float u = (static_cast<float>(x) - cx) / r, v = (static_cast<float>(y) - cy) / r;
      const float star = 0.72f + 0.28f * std::cos(5 * std::atan2(u, -v));
      const bool body = u * u + v * v < star * star, pole = std::abs(u) < 0.12f && v > 0.3f && v < 1.7f;
      mask[y * W + x] = body || pole ? kSoil : kNone;
      if (body || pole) image[y * W + x] = static_cast<uint8_t>(u * u + v * v < 0.06f ? 15 : brightness);
    }
  }
}

// `part` of `count` at even distances: whether the i-th is one of them.
bool chosen(int64_t i, int64_t count, int64_t part) { return (i + 1) * part / count > i * part / count; }

}  // namespace

Dataset make_synthetic(Terrain t) {
  if (t.count < 1 || t.height < 16 || t.width < 16 || t.height > 4096 || t.width > 4096 ||
      !(t.outliers >= 0 && t.outliers <= 1) || !(t.big_rock >= 0 && t.big_rock <= 0.05)) {
    throw DataError(
        "synthetic terrain: expected a count from 1, a height and width of 16 to 4096, outliers of 0 to 1 and "
        "big rocks in 0 to 0.05 of the pixels");
  }
  if (t.seed < 0) t.seed = 42;
  Dataset d;
  d.count = t.count;
  d.height = t.height;
  d.width = t.width;
  d.origin = "synthetic terrain, seed " + std::to_string(t.seed);
  const int64_t pixels = d.mask_bytes();
  d.images.resize(static_cast<size_t>(t.count * pixels));
  d.masks.resize(static_cast<size_t>(t.count * pixels));
  d.source = d.labelled_samples();
  // Which pictures have rocks and which are outliers: even shares of a shuffled list, so that small sets have them too.
  std::vector<int64_t> order = d.source;
  Draws shuffle(static_cast<uint64_t>(t.seed), -1);
  for (int64_t i = t.count - 1; i > 0; --i) std::swap(order[i], order[uint64_t{shuffle.bits()} * (i + 1) >> 32]);
  const auto count = static_cast<double>(t.count);
  const auto outliers = std::llround(t.outliers * count);
  const double share = std::min(1.0, t.big_rock / 0.0165);  // of pictures: a rock is about 1/60 of one
  const auto with_rocks = std::llround(share * count);
  const float rock_pixels =
      with_rocks > 0
          ? static_cast<float>(t.big_rock * static_cast<double>(pixels * t.count) / static_cast<double>(with_rocks))
          : 0;
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < t.count; ++i) {
    const int64_t place = order[i];
    uint8_t *image = d.images.data() + i * pixels, *mask = d.masks.data() + i * pixels;
    const bool outlier = place < outliers;
    const bool rocks =
        !outlier && chosen(place - outliers, t.count - outliers, std::min<int64_t>(with_rocks, t.count - outliers));
    Scene(t, i, rocks ? rock_pixels : 0).paint(image, mask);
    if (outlier) draw_over(image, mask, t.height, t.width, 120 + 20 * static_cast<float>(i % 6));
  }
  return d;
}

}  // namespace regolith
