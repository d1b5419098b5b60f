#include "deploy/canvas.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace regolith {

Canvas::Canvas(const ImageView& image, TileSize region, TileSize tile, int classes, double overlap)
    : image_(image),
      region_(region),
      tile_(tile),
      classes_(classes),
      rows_(image.height, region.height, overlap),
      columns_(image.width, region.width, overlap),
      row_in_(taps(region.height, tile.height)),
      column_in_(taps(region.width, tile.width)),
      row_out_(taps(tile.height, region.height)),
      column_out_(taps(tile.width, region.width)) {
  for (const float d : columns_.divisor) column_scale_.push_back(1 / d);
}

std::vector<Canvas::Tap> Canvas::taps(int from, int to) {
  std::vector<Tap> list;
  for (int i = 0; i < to; ++i) {
    const double at = std::clamp((i + 0.5) * from / to - 0.5, 0.0, from - 1.0);
    const int a = static_cast<int>(at);
    list.push_back({a, std::min(a + 1, from - 1), static_cast<float>(at - a)});
  }
  return list;
}

void Canvas::read(int r, int c, Turn turn, uint8_t* pixels) const {
  const int C = image_.channels, width = tile_.width, left = columns_.first[c], top = rows_.first[r];
  const auto row = [&](int y) {
    return image_.pixels + static_cast<size_t>(reflected(top + y, image_.height)) * image_.width * C;
  };
  const bool inside = left >= 0 && left + region_.width <= image_.width;
  const bool plain = region_.height == tile_.height && region_.width == tile_.width;
  std::vector<int> first(static_cast<size_t>(width)), second(first);  // bytes from the beginning of a row
  for (int x = 0; x < width; ++x) {
    const Tap& t = column_in_[turn.flip_columns ? width - 1 - x : x];
    first[x] = reflected(left + t.a, image_.width) * C;
    second[x] = reflected(left + t.b, image_.width) * C;
  }
  for (int y = 0; y < tile_.height; ++y) {
    const Tap& v = row_in_[turn.flip_rows ? tile_.height - 1 - y : y];
    uint8_t* const to = pixels + static_cast<size_t>(y) * width * C;
    const uint8_t *const above = row(v.a), *const below = row(v.b);
    if (plain && inside && !turn.flip_columns) {
      std::memcpy(to, above + left * C, static_cast<size_t>(width) * C);
      continue;
    }
    for (int x = 0; x < width; ++x) {
      const float u = column_in_[turn.flip_columns ? width - 1 - x : x].t;
      for (int k = 0; k < C; ++k) {
        const float high = above[first[x] + k] * (1 - u) + above[second[x] + k] * u;
        const float low = below[first[x] + k] * (1 - u) + below[second[x] + k] * u;
        to[x * C + k] = static_cast<uint8_t>(high * (1 - v.t) + low * v.t + 0.5f);
      }
    }
  }
}

void Canvas::add(int r, int c, Turn turn, const float* probabilities) {
  const int K = classes_, width = tile_.width;
  const int top = rows_.begin(r), bottom = rows_.end(r), left = columns_.begin(c), right = columns_.end(c);
  while (taken_ + std::ssize(sums_) < bottom) sums_.emplace_back(static_cast<size_t>(image_.width) * K, 0.f);
  const bool plain = region_.height == tile_.height && region_.width == tile_.width && !turn.flip_columns;
#pragma omp parallel for schedule(static)
  for (int y = top; y < bottom; ++y) {
    const Tap& v = row_out_[y - rows_.first[r]];
    const auto row = [&](int at) {
      return probabilities + static_cast<size_t>(turn.flip_rows ? tile_.height - 1 - at : at) * width * K;
    };
    const float *const above = row(v.a), *const below = row(v.b), weight = rows_.weight[y - rows_.first[r]];
    float* to = sums_[y - taken_].data() + static_cast<size_t>(left) * K;
    for (int x = left; x < right; ++x, to += K) {
      const float w = weight * columns_.weight[x - columns_.first[c]];
      if (plain) {
        const float* const from = above + static_cast<size_t>(x - columns_.first[c]) * K;
        for (int k = 0; k < K; ++k) to[k] += w * from[k];
        continue;
      }
      const Tap& u = column_out_[x - columns_.first[c]];
      const int a = (turn.flip_columns ? width - 1 - u.a : u.a) * K,
                b = (turn.flip_columns ? width - 1 - u.b : u.b) * K;
      for (int k = 0; k < K; ++k) {
        const float high = above[a + k] * (1 - u.t) + above[b + k] * u.t;
        const float low = below[a + k] * (1 - u.t) + below[b + k] * u.t;
        to[k] += w * (high * (1 - v.t) + low * v.t);
      }
    }
  }
}

void Canvas::take(int rows) {
  for (; taken_ < rows; ++taken_) sums_.pop_front();
}

void write_rows(const std::vector<Canvas>& canvases, int begin, int end, int repeats, Segmentation& to) {
  const int K = to.classes, W = to.width;
  const float share = 1.f / static_cast<float>(repeats * canvases.size());
#pragma omp parallel for schedule(static)
  for (int y = begin; y < end; ++y) {
    std::vector<float> p(static_cast<size_t>(K));
    for (int x = 0; x < W; ++x) {
      std::fill(p.begin(), p.end(), 0.f);
      for (const Canvas& canvas : canvases) {
        const float scale = share * canvas.scale(y) * canvas.column_scale()[x];
        const float* const sums = canvas.row(y) + static_cast<size_t>(x) * K;
        for (int k = 0; k < K; ++k) p[k] += scale * sums[k];
      }
      int best = 0;
      float most = p[0], next = 0;
      for (int k = 1; k < K; ++k) {
        if (p[k] > most) {
          next = most, most = p[k], best = k;
        } else {
          next = std::max(next, p[k]);
        }
      }
      const size_t at = static_cast<size_t>(y) * W + x;
      to.ids[at] = static_cast<uint8_t>(best);
      if (!to.confidence.empty()) to.confidence[at] = most - next;
      if (!to.probabilities.empty()) std::copy(p.begin(), p.end(), to.probabilities.begin() + at * K);
    }
  }
}

}  // namespace regolith
