// How well the boundaries between classes are found: the boundary F1 of Csurka, Larlus, Perronnin: "What is a good
// evaluation measure for semantic segmentation?" (BMVC 2013).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace regolith {

// A pixel is on the boundary of its class where one of its four neighbours is of another; the image's edge is none, nor
// is one to pixels without truth (kernels::kAbsentClass), which count as no pixels in either map. In an image,
// precision is the share of the predicted boundary of a class that has true boundary of it within the tolerance
// (Euclidean distance between pixels, at most), recall the share of the true one that has predicted boundary, and F1
// their harmonic mean: 0 where no boundary of it is predicted. The score of a class is the mean of F1 over the images
// whose truth has a boundary of it, NaN where none has: an image without one has nothing to find.
class BoundaryF1 {
 public:
  explicit BoundaryF1(int classes, int tolerance = 2);                                                   // in pixels
  void add(std::span<const uint8_t> truth, std::span<const uint8_t> prediction, int height, int width);  // (H, W) each
  std::vector<double> values() const;                                                                    // by class

 private:
  struct Offset {
    int y, x;
  };
  std::vector<Offset> near_;  // within the tolerance
  std::vector<double> sums_;
  std::vector<int64_t> images_;
};

}  // namespace regolith
