#include "deploy/tiles.h"

#include <cmath>

namespace regolith {

TileAxis::TileAxis(int size_, int tile_, double overlap) : size(size_), tile(tile_), weight(tile_, 1.f) {
  if (size <= tile) {
    first.push_back(-(tile - size) / 2);
    divisor.assign(static_cast<size_t>(size), 1.f);
    return;
  }
  const int steps = static_cast<int>(std::ceil((size - tile) / (tile * (1 - overlap))));
  for (int i = 0; i <= steps; ++i)
    first.push_back(static_cast<int>(std::lround(static_cast<double>(i) * (size - tile) / steps)));
  const double sigma = tile / 8.0, centre = (tile - 1) / 2.0;
  for (int i = 0; i < tile; ++i) weight[i] = static_cast<float>(std::exp(-0.5 * std::pow((i - centre) / sigma, 2)));
  std::vector<double> sums(static_cast<size_t>(size));
  for (const int at : first)
    for (int i = 0; i < tile; ++i) sums[at + i] += weight[i];
  divisor.assign(sums.begin(), sums.end());
}

int reflected(int i, int size) {
  if (size == 1) return 0;
  const int period = 2 * (size - 1), at = ((i % period) + period) % period;
  return at < size ? at : period - at;
}

}  // namespace regolith
