// What an augmentation makes of a picture, in double, pixel by pixel: the layers one after the other, out of what was
// drawn (kernels/augment.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <vector>

#include "kernels/augment.h"
#include "kernels/sample.h"
#include "tests/support/cases.h"

namespace regolith::testing {

inline int extended(int i, int n, kernels::Fill fill) {  // by walking, one pixel after the other
  if (i >= 0 && i < n) return i;
  if (fill == kernels::Fill::constant) return -1;
  if (fill == kernels::Fill::nearest) return std::clamp(i, 0, n - 1);
  if (fill == kernels::Fill::wrap) return extended(i < 0 ? i + n : i - n, n, fill);
  return extended(i < 0 ? -1 - i : 2 * n - 1 - i, n, fill);
}

struct Place {
  double x, y;
};
// The layers of Keras one after the other, from the output back to the input.
inline Place input_place(const kernels::Moves& m, Place p, int H, int W) {
  p = {m.crop * (p.x + 0.5) - 0.5 + m.crop_x, m.crop * (p.y + 0.5) - 0.5 + m.crop_y};
  p = {p.x + m.shear_x * p.y, p.y + m.shear_y * p.x};
  const double angle = 2 * std::numbers::pi * m.turns, c = std::cos(angle), s = std::sin(angle);
  p = {c * p.x - s * p.y + ((W - 1) - (c * (W - 1) - s * (H - 1))) / 2,
       s * p.x + c * p.y + ((H - 1) - (s * (W - 1) + c * (H - 1))) / 2};
  p = {p.x - m.shift_x, p.y - m.shift_y};
  p = {m.zoom * p.x + (W - 1) / 2.0 * (1 - m.zoom), m.zoom * p.y + (H - 1) / 2.0 * (1 - m.zoom)};
  return {m.flip_x ? W - 1 - p.x : p.x, m.flip_y ? H - 1 - p.y : p.y};
}

// Two normal numbers of two words.
inline std::pair<double, double> normal_pair(uint32_t a, uint32_t b) {
  const double length = std::sqrt(-2 * std::log(1 - (a >> 8) * 0x1p-24)),
               angle = 2 * std::numbers::pi * (b >> 8) * 0x1p-24;
  return {length * std::cos(angle), length * std::sin(angle)};
}

inline double spline(double t) {  // the cubic B-spline about 0
  t = std::abs(t);
  return t >= 2 ? 0 : t >= 1 ? std::pow(2 - t, 3) / 6 : 2.0 / 3 - t * t + t * t * t / 2;
}
inline Place displacement(const kernels::Elastic& e, const kernels::SampleKey& key, int x, int y, int W) {
  const int spacing = std::max(2, static_cast<int>(std::lround(std::sqrt(3.0) * e.sigma)));
  const int nodes = (W - 1) / spacing + 4;
  const double deviation = e.alpha / std::sqrt(4 * std::numbers::pi) / (151.0 / 315);
  Place d{0, 0};
  for (int i = y / spacing; i < y / spacing + 4; ++i) {
    for (int j = x / spacing; j < x / spacing + 4; ++j) {
      const Philox p =
          philox(key.seed, key.epoch, key.position, static_cast<uint32_t>(i * nodes + j), kernels::kElasticStream);
      const auto [a, b] = normal_pair(p.v[0], p.v[1]);
      const double weight = deviation * spline(static_cast<double>(x) / spacing - (j - 1)) *
                            spline(static_cast<double>(y) / spacing - (i - 1));
      d.x += weight * a, d.y += weight * b;
    }
  }
  return d;
}

inline double grain(const kernels::SampleKey& key, int value, int y, int row_values) {  // `value` of row y
  const int each = (row_values + 63) / 64 * 16, counter = each * y + value / 64 * 16 + value % 16,
            word = value % 64 / 16;
  const Philox p = philox(key.seed, key.epoch, key.position, static_cast<uint32_t>(counter), kernels::kNoiseStream, 7);
  const auto [a, b] = word < 2 ? normal_pair(p.v[0], p.v[1]) : normal_pair(p.v[2], p.v[3]);
  return word % 2 == 0 ? a : b;
}

struct Stored {         // a picture as it lies in the data
  const double* image;  // (H, W, C)
  const double* mask;   // (H, W), or null
};
struct Augmented {
  Values grey, labels;         // (H, W, C), (H, W)
  std::vector<char> doubtful;  // (H, W): fp32 may decide otherwise which pixel is the nearest; 2: and show another one
};

// pictures: the sample's own, those of its partners of cutmix and copy_paste.
inline Augmented augmented(const kernels::Augment& a, const kernels::AugmentDraw& d, const kernels::SampleKey& key,
                           const Stored (&pictures)[3], int H, int W, int C) {
  Augmented r{Values(H * W * C), Values(H * W, kernels::kAbsentClass), std::vector<char>(H * W)};
  const auto inside = [](const kernels::Box& b, int x, int y) {
    return x >= b.x0 && x < b.x1 && y >= b.y0 && y < b.y1;
  };
  const kernels::Moves* moves[] = {&d.moves, &d.cutmix_moves, &d.paste_moves};
  Values means(C, 0);
  for (int i = 0; i < H * W * C; ++i) means[i % C] += pictures[0].image[i] / (H * W);
  const bool ignore = a.mask_fill == kernels::MaskFill::ignore;
  const kernels::Fill mask_fill = ignore ? kernels::Fill::constant : static_cast<kernels::Fill>(a.mask_fill);
  for (int y = 0; y < H; ++y) {
    for (int x = 0; x < W; ++x) {
      Place at{static_cast<double>(x), static_cast<double>(y)};
      if (d.elastic) {
        const Place more = displacement(a.elastic, key, x, y, W);
        at = {at.x + more.x, at.y + more.y};
      }
      char doubtful = 0;
      const auto class_of = [&](int picture, const Place& from) -> double {
        const auto tie = [](double v) { return std::abs(v - std::floor(v) - 0.5) < 1e-3; };
        if (tie(from.x) || tie(from.y)) doubtful = std::max<char>(doubtful, picture == 2 ? 2 : 1);
        const int sx = extended(static_cast<int>(std::round(from.x)), W, mask_fill);
        const int sy = extended(static_cast<int>(std::round(from.y)), H, mask_fill);
        if (sx < 0 || sy < 0) return ignore ? kernels::kAbsentClass : a.mask_fill_value;
        return pictures[picture].mask[sy * W + sx];
      };
      int picture = d.partners.cutmix && inside(d.cutmix_box, x, y) ? 1 : 0;
      Place from = input_place(*moves[picture], at, H, W);
      double label = pictures[0].mask != nullptr ? class_of(picture, from) : kernels::kAbsentClass;
      if (d.partners.paste && pictures[2].mask != nullptr) {
        const Place other = input_place(d.paste_moves, at, H, W);
        if (class_of(2, other) == a.copy_paste.class_id) picture = 2, from = other, label = a.copy_paste.class_id;
      }
      if (d.cutout && inside(d.hole, x, y) && a.cutout.mask == kernels::Cutout::MaskRule::ignore)
        label = kernels::kAbsentClass;
      r.labels[y * W + x] = label;
      r.doubtful[y * W + x] = doubtful;
      const int left = static_cast<int>(std::floor(from.x)), top = static_cast<int>(std::floor(from.y));
      for (int c = 0; c < C; ++c) {
        double sum = 0;
        for (int corner = 0; corner < 4; ++corner) {
          const int dx = corner % 2, dy = corner / 2;
          const int sx = extended(left + dx, W, a.fill), sy = extended(top + dy, H, a.fill);
          const double weight = (1 - std::abs(from.x - left - dx)) * (1 - std::abs(from.y - top - dy));
          sum += weight * (sx < 0 || sy < 0 ? a.fill_value : pictures[picture].image[(sy * W + sx) * C + c]);
        }
        double& grey = r.grey[(y * W + x) * C + c];
        grey = sum;
        if (d.brightness != 0) grey = std::clamp(grey + d.brightness, 0., 255.);
        if (d.contrast != 1) {
          const double about = std::clamp(means[c] + d.brightness, 0., 255.);
          grey = std::clamp((grey - about) * d.contrast + about, 0., 255.);
        }
        if (d.gamma != 1) grey = 255 * std::pow(std::max(grey, 0.) / 255, d.gamma);
        if (d.noise > 0) grey = std::clamp(grey + d.noise * grain(key, x * C + c, y, W * C), 0., 255.);
      }
    }
  }
  const Values sharp = r.grey;
  const std::vector<char> doubts = r.doubtful;
  const int reach = static_cast<int>(std::ceil(3 * d.blur));
  for (int y = 0; y < H; ++y) {
    for (int x = 0; x < W; ++x) {
      for (int c = 0; c < C; ++c) {
        double& grey = r.grey[(y * W + x) * C + c];
        double sum = 0, weights = 0;
        for (int dy = -reach; d.blur > 0 && dy <= reach; ++dy) {
          for (int dx = -reach; dx <= reach; ++dx) {
            const double weight = std::exp(-0.5 * (dx * dx + dy * dy) / (static_cast<double>(d.blur) * d.blur));
            const int from =
                extended(y + dy, H, kernels::Fill::reflect) * W + extended(x + dx, W, kernels::Fill::reflect);
            sum += weight * sharp[from * C + c];
            weights += weight;
            if (doubts[from] == 2) r.doubtful[y * W + x] = 2;
          }
        }
        if (d.blur > 0) grey = sum / weights;
        if (!d.cutout || !inside(d.hole, x, y)) continue;
        grey = a.cutout.value < 0 ? means[c] : a.cutout.value;
      }
    }
  }
  return r;
}

}  // namespace regolith::testing
