// 3x3 convolutions of stride 1 on the CPU with 2.25 times fewer multiplications: the algorithm F(2x2, 3x3) of Lavin and
// Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), and its adjoint for the weight gradients.
// Its transforms hold only 1 and 1/2: small integers stay exact, and rounding is that of the direct sum, nearly.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "engine/conv/direct_wgrad.h"
#include "engine/conv/provider.h"

namespace regolith {

class Winograd {
 public:
  // C and K are multiples of the vector width. `type`: of the maps and weights; the arithmetic is fp32.
  Winograd(const ConvShape& shape, DType type, int threads);

  size_t packed_weights() const;  // bytes: transformed weights of forward and of dgrad
  size_t forward_workspace() const { return threads_ * forward_.floats() * sizeof(float); }
  size_t dgrad_workspace() const { return threads_ * dgrad_.floats() * sizeof(float); }
  size_t wgrad_workspace() const;
  bool wgrad_is_direct() const { return direct_wgrad_.has_value(); }

  void pack(const void* w, float* packed) const;
  void forward(const void* x, const float* packed, const float* bias, bool relu, void* y, float* workspace) const;
  void dgrad(const void* dy, const float* packed, void* dx, float* workspace) const;
  void wgrad(const void* x, const void* dy, float* dw, float* db, bool accumulate, float* workspace) const;

 private:
  // Added to each of the 16 planes of a block: without it their distance is often a multiple of 4 KiB, and the lines of
  // a tile fall into one set of the first-level cache.
  static constexpr size_t kSkew = 16;

  // One product: in (N, H, W, C) -> out (N, P, Q, K), in tiles of 2x2 outputs, `block` tiles at a time.
  struct Product {
    int N, H, W, C, P, Q, K, top, left, block;
    int columns() const { return (Q + 1) / 2; }
    int tiles() const { return N * ((P + 1) / 2) * columns(); }
    int panels() const;  // of output channels
    int k_padded() const;
    size_t floats() const { return 16 * (static_cast<size_t>(block) * (C + k_padded()) + 2 * kSkew); }  // of a thread
  };
  static Product product(int N, int H, int W, int C, int P, int Q, int K, int top, int left);
  template <class T>
  void run(const Product& p, const T* in, const float* u, const float* bias, bool relu, T* out, float* workspace) const;
  template <class T>
  void run_wgrad(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const;
  struct Layout {  // floats from one of the 16 planes, panel of channels and tile to the next
    size_t plane, panel, tile;
  };
  template <class T>
  static void read_tiles(const Product& p, const T* in, const T* zeros, int first, int count, const Layout& to,
                         float* v);
  size_t wgrad_sums() const { return static_cast<size_t>(16) * shape_.C * forward_.k_padded(); }
  size_t wgrad_floats() const;  // of a thread

  ConvShape shape_;
  DType type_;
  int threads_;
  Product forward_, dgrad_;
  int wgrad_block_;                          // tiles
  std::optional<DirectWgrad> direct_wgrad_;  // where the sums of a thread outgrow its caches
  std::vector<float> zeros_;                 // a pixel outside the map
};

}  // namespace regolith
