#include "engine/train/boundary.h"

#include <algorithm>
#include <limits>

#include "kernels/sample.h"

namespace regolith {
namespace {

using kernels::kAbsentClass;

// (H, W): the class of every pixel that is on the boundary of its class, else kAbsentClass.
std::vector<uint8_t> boundary_of(std::span<const uint8_t> map, std::span<const uint8_t> truth, int height, int width) {
  std::vector<uint8_t> boundary(map.size(), kAbsentClass);
  const auto compare = [&](size_t a, size_t b) {
    if (map[a] == map[b] || truth[a] == kAbsentClass || truth[b] == kAbsentClass) return;
    boundary[a] = map[a], boundary[b] = map[b];
  };
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const size_t at = static_cast<size_t>(y) * width + x;
      if (x + 1 < width) compare(at, at + 1);
      if (y + 1 < height) compare(at, at + width);
    }
  }
  return boundary;
}

}  // namespace

BoundaryF1::BoundaryF1(int classes, int tolerance) : sums_(classes, 0), images_(classes, 0) {
  for (int y = -tolerance; y <= tolerance; ++y)
    for (int x = -tolerance; x <= tolerance; ++x)
      if (x * x + y * y <= tolerance * tolerance) near_.push_back({y, x});
}

void BoundaryF1::add(std::span<const uint8_t> truth, std::span<const uint8_t> prediction, int height, int width) {
  struct Count {
    int64_t pixels = 0, near = 0;
    double share() const { return pixels > 0 ? static_cast<double>(near) / static_cast<double>(pixels) : 0; }
  };
  const std::vector<uint8_t> maps[] = {boundary_of(truth, truth, height, width),
                                       boundary_of(prediction, truth, height, width)};
  std::vector<Count> counts[] = {std::vector<Count>(sums_.size()), std::vector<Count>(sums_.size())};
  for (const int of : {0, 1}) {
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        const uint8_t cls = maps[of][static_cast<size_t>(y) * width + x];
        if (cls >= sums_.size()) continue;
        Count& count = counts[of][cls];
        ++count.pixels;
        count.near += std::any_of(near_.begin(), near_.end(), [&](const Offset& o) {
          const int v = y + o.y, u = x + o.x;
          return v >= 0 && v < height && u >= 0 && u < width && maps[1 - of][static_cast<size_t>(v) * width + u] == cls;
        });
      }
    }
  }
  for (size_t c = 0; c < sums_.size(); ++c) {
    if (counts[0][c].pixels == 0) continue;
    const double recall = counts[0][c].share(), precision = counts[1][c].share();
    ++images_[c];
    if (recall + precision > 0) sums_[c] += 2 * precision * recall / (precision + recall);
  }
}

std::vector<double> BoundaryF1::values() const {
  std::vector<double> values;
  for (size_t c = 0; c < sums_.size(); ++c)
    values.push_back(images_[c] > 0 ? sums_[c] / static_cast<double>(images_[c])
                                    : std::numeric_limits<double>::quiet_NaN());
  return values;
}

}  // namespace regolith
