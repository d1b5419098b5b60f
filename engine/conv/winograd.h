// 3x3 convolutions of stride 1 on the CPU with fewer multiplications: the algorithm F(m x m, 3x3) of Lavin and Gray,
// "Fast algorithms for convolutional neural networks" (CVPR 2016), and its adjoint for the weight gradients. Maps and
// weights are read in their own type, everything between is fp32.
//
// fp32 maps use tiles of 2x2 outputs, 2.25 times fewer multiplications: those transforms hold only 1 and 1/2, and
// rounding is nearly that of the direct sum. Maps of bf16 use tiles of 4x4, 4 times fewer: their transforms cost a
// digit of fp32, far below the 8 bits that are kept. Even where the processor multiplies pairs of bf16 at twice
// the rate of fp32, four times fewer products of fp32 are sooner done, and more exact.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "engine/conv/provider.h"
#include "kernels/core/dtype.h"

namespace regolith::winograd {

struct Epilogue {
  const float* bias = nullptr;  // per output channel
  bool relu = false;
  bool accumulate = false;  // onto what stands in the output
};

// Of one shape and type of maps and weights; C and K are multiples of the vector width.
template <class T>
class Winograd {
 public:
  static constexpr int M = std::is_same_v<T, float> ? 2 : 4;  // outputs of a tile along an axis
  static constexpr int kEdge = M + 2, kPlanes = kEdge * kEdge;

  Winograd(const ConvShape& shape, int threads);
  int tiles() const { return forward_.tiles(); }

  size_t prepacked_bytes() const { return sizeof(float) * plane_of_weights() * kPlanes; }  // of a direction
  size_t forward_workspace() const { return threads_ * forward_.floats() * sizeof(float); }
  size_t dgrad_workspace() const { return threads_ * dgrad_.floats() * sizeof(float); }
  size_t wgrad_workspace() const { return threads_ * wgrad_floats() * sizeof(float); }

  void pack_forward(const T* w, float* packed) const;
  void pack_dgrad(const T* w, float* packed) const;
  void forward(const T* x, const float* packed, const Epilogue& e, T* y, float* workspace) const {
    run(forward_, x, packed, e, y, workspace);
  }
  void dgrad(const T* dy, const float* packed, const Epilogue& e, T* dx, float* workspace) const {
    run(dgrad_, dy, packed, e, dx, workspace);
  }
  // dw (K,3,3,C) and, unless null, db (K): written, or added to. Partial sums are added in a fixed order.
  void wgrad(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const;

 private:
  struct Range {
    int begin, end;
    int size() const { return end - begin; }
  };
  // One direction: in (N, H, W, C) -> out (N, P, Q, K), `block` tiles at a time.
  struct Pass {
    int N, H, W, C, P, Q, K, top, left, block;
    int rows() const { return (P + M - 1) / M; }
    int columns() const { return (Q + M - 1) / M; }
    int tiles() const { return N * rows() * columns(); }
    Range part(int i, int parts) const {  // of the tiles
      const auto at = [&](int j) { return static_cast<int>(static_cast<int64_t>(tiles()) * j / parts); };
      return {at(i), at(i + 1)};
    }
    size_t floats() const { return kPlanes * (static_cast<size_t>(block) * (C + K) + 2 * kSkew); }  // of a thread
  };
  struct Tile {  // where it lies
    int n, p, q;
    Tile(const Pass& r, int index)
        : n(index / (r.rows() * r.columns())), p(index / r.columns() % r.rows() * M), q(index % r.columns() * M) {}
  };
  // Elements of the output before those of a tile.
  static int64_t output_at(const Pass& r, const Tile& t) {
    return ((static_cast<int64_t>(t.n) * r.P + t.p) * r.Q + t.q) * r.K;
  }
  struct Layout {  // floats from one plane, panel of channels and tile to the next
    size_t plane, panel, tile;
  };

  static Pass pass_of(int N, int H, int W, int C, int P, int Q, int K, int top, int left);
  int c_chunks() const { return (shape_.C + c_chunk_ - 1) / c_chunk_; }
  int chunks() const { return c_chunks() * ((shape_.K + k_chunk_ - 1) / k_chunk_); }
  static Range chunk(int channels, int size, int i) { return {i * size, std::min(channels, (i + 1) * size)}; }
  size_t plane_of_weights() const { return static_cast<size_t>(shape_.C) * shape_.K; }
  size_t wgrad_sums() const { return static_cast<size_t>(kPlanes) * c_chunk_ * k_chunk_; }
  size_t wgrad_floats() const;  // of a thread

  void read_tiles(const Pass& p, const T* in, Range channels, int first, int count, const Layout& to, float* v) const;
  void run(const Pass& p, const T* in, const float* u, const Epilogue& e, T* out, float* workspace) const;
  void write_tile(const Pass& p, const Tile& tile, const float* m, size_t plane, const Epilogue& e, T* out) const;
  void spread_tiles(const T* dy, Range channels, int first, int count, const Layout& to, float* d, float* total) const;
  void wgrad_part(const T* x, const T* dy, Range c, Range k, Range tiles, float* workspace) const;
  void wgrad_finish(Range c, Range k, int row, const float* workspace, float* dw, float* db, bool accumulate) const;

  static constexpr size_t kSkew = 16;  // floats between planes: else their distance is often a multiple of 4 KiB, and
                                       // the lines of a tile fall into one set of the first-level cache
  static constexpr int kWgradBlock = 48;  // tiles: fewer would read and write the sums more often

  ConvShape shape_;
  int threads_;
  Pass forward_, dgrad_;
  int c_chunk_, k_chunk_;  // channels of x and of dy whose weight gradients are summed at a time
  int parts_;              // ranges of tiles that the weight gradients of a chunk are split into: one, or the threads
  std::vector<T> zeros_;   // a pixel outside the map
};

extern template class Winograd<float>;
extern template class Winograd<bf16>;

}  // namespace regolith::winograd
