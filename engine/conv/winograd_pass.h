// One direction of a convolution of R x R and stride 1 by the algorithm F(M x M, R x R): see winograd.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/conv/winograd_products.h"
#include "kernels/core/dtype.h"

namespace regolith::winograd {

struct Range {
  int begin, end;
  int size() const { return end - begin; }
  Range part(int i, int parts) const {
    const auto at = [&](int j) { return begin + static_cast<int>(static_cast<int64_t>(size()) * j / parts); };
    return {at(i), at(i + 1)};
  }
  Range times(int n) const { return {begin * n, end * n}; }
};

// What is read: (N, H, W, C), pixels `pitch` elements apart; as x * scale + shift, of (N, 2, C), then ReLU, where there
// are such.
template <class T>
struct Source {
  const T* data;
  int64_t pitch;
  const float* affine = nullptr;
  bool relu = false;
};

// What is written: (N, P, Q, K). The rest may be null.
template <class T>
struct Target {
  T* data;
  int64_t pitch;
  const float* bias = nullptr;  // (K)
  const T* residual = nullptr;  // (N, P, Q, K), added; may be `data`
  int64_t residual_pitch = 0;
  bool relu = false;
  float* sums = nullptr;  // (N, 2, K): of the output and its squares, over P and Q
};

struct PassShape {
  int N, H, W, C, P, Q, K, top, left;  // in (N, H, W, C) -> out (N, P, Q, K); zeros above and on the left
};

// C and K are multiples of the vector width. Results do not depend on the number of threads.
template <class T, int M, int R>
class Pass {
 public:
  static constexpr int kEdge = M + R - 1, kPlanes = kEdge * kEdge;
  struct Layout {  // floats from one plane, panel of channels and tile to the next
    size_t plane, panel, tile;
  };
  struct Tile {  // where it lies
    int n, p, q;
  };

  Pass(const PassShape& shape, int threads);
  const PassShape& shape() const { return shape_; }
  int rows() const { return (shape_.P + M - 1) / M; }
  int columns() const { return (shape_.Q + M - 1) / M; }
  int tiles() const { return shape_.N * rows() * columns(); }
  Tile tile(int index) const {
    return {index / (rows() * columns()), index / columns() % rows() * M, index % columns() * M};
  }

  size_t packed_floats() const { return static_cast<size_t>(shape_.C) * shape_.K * kPlanes; }
  // u (planes, panels of K, C, panel) of the weights (K, R, R, C); or of (C, R, R, K), turned by half a turn.
  void pack(const T* w, bool turned, float* u) const;

  // Without sums in the target it takes less.
  size_t workspace_floats(bool sums) const {
    return (shared_ ? 1 : threads_) * thread_floats() + (sums ? size_t{2} * shape_.N * rows() * shape_.K : 0);
  }
  void run(const Source<T>& in, const float* u, const Target<T>& out, float* workspace) const;

  // v = B^T d B of the inputs of each tile: planes of tiles, a tile's channels in panels
  void read_tiles(const Source<T>& in, Range channels, Range tiles, const Layout& to, float* v) const;

  static constexpr size_t kSkew = 16;  // floats between planes: else their distance is often a multiple of 4 KiB, and
                                       // the lines of a tile fall into one set of the first-level cache
 private:
  // A group of tiles, the rows of a register tile, lies together: (planes, kRows, channels).
  static size_t plane_of(int channels) { return static_cast<size_t>(kRows) * channels + kSkew; }
  static size_t group_of(int channels) { return kPlanes * plane_of(channels); }
  size_t thread_floats() const { return block_ / kRows * (group_of(shape_.C) + group_of(shape_.K)); }
  template <bool Affine>
  void read(const Source<T>& in, Range channels, Range tiles, const Layout& to, float* v) const;
  void write_tile(const Tile& tile, Range channels, const float* m, const Target<T>& out, float* sums) const;

  PassShape shape_;
  int threads_;
  bool shared_;           // by all threads, one block of all tiles; else each has blocks of its own
  int block_;             // tiles at a time
  std::vector<T> zeros_;  // a pixel outside the map
};

extern template class Pass<float, 2, 3>;
extern template class Pass<float, 4, 3>;
extern template class Pass<float, 5, 2>;
extern template class Pass<bf16, 4, 3>;
extern template class Pass<bf16, 5, 2>;

}  // namespace regolith::winograd
