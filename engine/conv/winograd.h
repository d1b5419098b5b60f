// 3x3 and 2x2 convolutions of stride 1 on the CPU with fewer multiplications: the algorithm F(m x m, r x r) of Lavin
// and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), and its adjoint for the weight gradients.
// Maps and weights are read in their own type, everything between is fp32.
//
// Tiles are of 6x6 inputs: F(4x4, 3x3), 4 times fewer multiplications, and F(5x5, 2x2), 2.8 times. At the points of
// winograd_transforms.h their rounding is two to three times that of the direct sum in fp32. Even where the processor
// multiplies pairs of bf16 at twice the rate of fp32, four times fewer products of fp32 are faster, and more exact.
//
// Inference in fp32 takes maps of few tiles by F(2x2, 3x3), whose transformed weights are smaller.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/conv/provider.h"
#include "engine/conv/winograd_pass.h"
#include "kernels/core/dtype.h"

namespace regolith::winograd {

// Of one shape and type of maps and weights; C and K are multiples of the vector width.
template <class T, int R>
class Winograd {
 public:
  static constexpr int kEdge = 6, kPlanes = kEdge * kEdge;
  static constexpr int M = kEdge - R + 1;  // outputs of a tile along an axis

  Winograd(const ConvShape& shape, int threads);
  using Direction = Pass<T, M, R>;
  const Direction& forward() const { return forward_; }
  const Direction& dgrad() const { return dgrad_; }
  size_t wgrad_workspace() const { return threads_ * wgrad_floats() * sizeof(float); }
  // dw (K,R,R,C) and, unless null, db (K): written, or added to. Partial sums are added in a fixed order.
  void wgrad(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const;

 private:
  int c_chunks() const { return (shape_.C + c_chunk_ - 1) / c_chunk_; }
  int chunks() const { return c_chunks() * ((shape_.K + k_chunk_ - 1) / k_chunk_); }
  static Range chunk(int channels, int size, int i) { return {i * size, std::min(channels, (i + 1) * size)}; }
  size_t wgrad_sums() const { return static_cast<size_t>(kPlanes) * c_chunk_ * k_chunk_; }
  size_t wgrad_floats() const;  // of a thread

  void spread_tiles(const T* dy, Range channels, int first, int count, const typename Direction::Layout& to, float* d,
                    float* total) const;
  void wgrad_part(const T* x, const T* dy, Range c, Range k, Range tiles, float* workspace) const;
  void wgrad_finish(Range c, Range k, int row, const float* workspace, float* dw, float* db, bool accumulate) const;

  static constexpr size_t kSkew = Direction::kSkew;
  static constexpr int kWgradBlock = 48;  // tiles: fewer would read and write the sums more often

  ConvShape shape_;
  int threads_;
  Direction forward_, dgrad_;
  int c_chunk_, k_chunk_;  // channels of x and of dy whose weight gradients are summed at a time
  int parts_;              // ranges of tiles that the weight gradients of a chunk are split into: one, or the threads
  std::vector<T> zeros_;   // a pixel of dy outside the map
};

extern template class Winograd<float, 2>;
extern template class Winograd<float, 3>;
extern template class Winograd<bf16, 2>;
extern template class Winograd<bf16, 3>;

}  // namespace regolith::winograd
