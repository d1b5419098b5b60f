// Terrain of a Mars-like desert, made from a seed, in the layout of the study: what runs where there is no download.
#pragma once

#include "data/dataset.h"
#include "data/sources.h"

namespace regolith {

// Classes, and what tells them apart: 0 unlabelled (margins, seams between classes, sky, patches that nobody drew),
// 1 soil (fine grain, gravel), 2 bedrock (layers, cracks), 3 sand (smooth, rippled), 4 big rock (lit from one side,
// dark below, with a shadow). Exposure, contrast and the distance of the ground differ from picture to picture.
constexpr int kTerrainClasses = 5;
struct Terrain {
  int64_t count = 600;
  int height = 64, width = 128;  // at least 16
  uint64_t seed = 42;
  double outliers = 0.04;    // share of samples with a drawn-over figure and all the same odd mask
  double big_rock = 0.0015;  // share of pixels, aimed at
  int64_t unlabelled = 0;    // further pictures, whose masks are not given, as the study's test set
};

// Deterministic whatever the number of threads. Throws DataError for a size or a share out of range.
Loaded make_synthetic(const Terrain& terrain);

}  // namespace regolith
