// Terrain of a Mars-like desert, made from a seed, in the layout of the study: what runs where there is no download.
#pragma once

#include "data/dataset.h"

namespace regolith {

// Classes, and what tells them apart: 0 unlabelled (margins, seams between classes, sky, patches that nobody drew),
// 1 soil (fine grain, gravel), 2 bedrock (layers, cracks), 3 sand (smooth, rippled), 4 big rock (lit from one side,
// dark below, with a shadow). Exposure, contrast and the distance of the ground differ from picture to picture.
constexpr int kTerrainClasses = 5;
struct Terrain {
  int64_t count = 600;
  int height = 64, width = 128;  // at least 16
  int64_t seed = -1;             // -1: auto, the run's (42 where there is none)
  double outliers = 0.04;        // share of samples with a drawn-over figure and all the same odd mask
  double big_rock = 0.0015;      // share of pixels, aimed at
};

template <class V>
void fields(V& v, Terrain& s) {
  v("count", s.count, {.doc = "images", .min = 1, .max = 1'000'000});
  v("height", s.height, {.doc = "pixels", .min = 16, .max = 8192});
  v("width", s.width, {.doc = "pixels", .min = 16, .max = 8192});
  v("seed", s.seed, {.doc = "of the terrain; auto: run.seed", .min = 0, .word = "auto", .word_value = -1});
  v("outliers", s.outliers, {.doc = "share of images that carry one and the same wrong mask", .min = 0, .max = 0.5});
}

// Deterministic whatever the number of threads. Throws DataError for a size or a share out of range.
Dataset make_synthetic(Terrain terrain);

}  // namespace regolith
