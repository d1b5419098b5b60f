// Finds images that were cut from one picture: they share pixels, or lie edge to edge. A random split puts such
// neighbours into different parts, and the scores of what was half seen in training are too good.
#pragma once

#include "data/dataset.h"

namespace regolith {

// Joined are images of which either holds:
// - They share pixels: laid over each other at some offset, of the pixels that differ from a neighbour at least half,
//   and 32, are equal. Flat areas never count. Found by the hashes of straight lines of 24 pixels (half a side of small
//   images), of which winnowing (Schleimer, Wilkerson, Aiken, "Winnowing", 2003) keeps the least of every 16 places: a
//   common strip as narrow as one row or column is found if 39 pixels of it run on without a flat stretch. Beyond 2^25
//   pixels of data only a part of the lines is kept, and strips must be larger.
// - An edge of at least 32 pixels of one continues in the other without a seam. Both edges, continued by a quarter of
//   their slope, differ by less than half of their variance, and by less than twice what neighbouring lines of these
//   images do; each is the other's best, and the second best is at least 5/3 times as far (best buddies of Pomeranz,
//   Shemesh, Ben-Shahar, "A fully automated greedy square jigsaw puzzle solver", 2011). Edges without structure,
//   as of sand or sky, tell nothing, and are not joined.
struct Overlaps {
  std::vector<int64_t> group;         // (count), numbered from 0 on in the order of their first images
  int64_t sharing = 0, abutting = 0;  // joins by pixels, by edges
  std::string summary;                // a line
};
// Its time grows with the pixels, and with the square of the number of images (edges against edges).
Overlaps find_overlaps(const Dataset& data);

}  // namespace regolith
