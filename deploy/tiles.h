// How tiles of one size cover an image of any size, and how much each of them counts at a pixel.
#pragma once

#include <cstdint>
#include <vector>

namespace regolith {

// One axis. Tiles lie evenly, neighbours share at least `overlap` of a tile, and the first and last end with the image.
// A pixel of a tile counts by a Gaussian about its centre with a sigma of an eighth of the tile: the steps and weights
// of nnU-Net's sliding window (Isensee et al. 2021, "nnU-Net"). An image smaller than a tile lies in the middle of one,
// continued by reflection about its edge pixels.
struct TileAxis {
  TileAxis(int size, int tile, double overlap);

  int size, tile;
  std::vector<int> first;      // (tiles) pixel of the image at which each begins; negative where it is larger
  std::vector<float> weight;   // (tile)
  std::vector<float> divisor;  // (size): the sum of the weights of all tiles at a pixel

  int tiles() const { return static_cast<int>(first.size()); }
  // Pixels of the image that tile t holds: [begin(t), end(t)).
  int begin(int t) const { return first[t] < 0 ? 0 : first[t]; }
  int end(int t) const { return first[t] + tile < size ? first[t] + tile : size; }
  // Pixels before this one are complete once the tiles up to t are.
  int complete(int t) const { return t + 1 < tiles() ? first[t + 1] : size; }
};

// The pixel of an image that continues it at i: ... 2 1 | 0 1 2 ... n-1 | n-2 n-3 ...
int reflected(int i, int size);

}  // namespace regolith
