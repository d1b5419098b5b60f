// Convolutions with a thin end, which libraries run at a tenth of the machine: few channels on one side, many on the
// other, stride 1, no dilation.
//
// All three products are of two kinds. A *spread* goes from the thin side to the wide one (forward of the first layer
// of a network; dgrad of a 1x1 convolution to the classes), a *gather* forms the gradient of its weights (wgrad of
// either). What is left is the *dot*, forward of a 1x1 convolution to the classes. Each reads the wide map once.
//
// fp32 arithmetic, sums in an order that depends on the shape alone. Maps may be slices. The launchers throw
// KernelError for shapes beyond the limits below.
//
// Occupancy of spread: at least 37% (256 threads, 8192 bytes of shared memory).
// Occupancy of gather: at least 25% (256 threads, 16384 bytes of shared memory).
// Occupancy of dot: at least 50% (128 threads, 12288 bytes of shared memory).
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kThinChannels = 8;         // of the thin side, at most
inline constexpr int kThinWide = 1024;          // channels of the wide side, at most
inline constexpr int kThinWeights = 12 * 1024;  // (R * S * C + 1) * K, at most: they stay in shared memory, like ...
inline constexpr int kThinPatch = 8 * 1024;     // ... the floats of a strip of the thin map

// The taps of a pixel of `wide` (N, P, Q, K) are the R*S pixels of `thin` (N, H, W, C) around it:
// thin[n, p - pad[0] + r, q - pad[1] + s, c], zero outside. Weights are (K, R, S, C), or (R, S, C, K) if `taps_first`.
struct ThinWindow {
  int R = 1, S = 1;
  int pad[2] = {0, 0};  // top, left
  bool taps_first = false;
};

// wide = weights * taps (+ bias) (ReLU)
struct ThinSpread {
  TensorView thin;
  const void* w = nullptr;      // of the maps' type
  const float* bias = nullptr;  // (K) or null
  TensorView wide;
  ThinWindow window;
  bool relu = false;
};
REGOLITH_KERNEL(thin_spread, ThinSpread);

// dw (+)= sum over the pixels of wide * taps; db (+)= sum of wide.
struct ThinGather {
  TensorView thin, wide;
  float* dw = nullptr;  // laid out like the weights, fp32
  float* db = nullptr;  // (K) or null
  ThinWindow window;
  bool accumulate = false;
  void* workspace = nullptr;  // thin_gather_workspace(wide, taps) bytes, 256-byte aligned
};
REGOLITH_KERNEL(thin_gather, ThinGather);

// thin[p, k] = sum_c w[k, c] * wide[p, c] (+ bias) (ReLU)
struct ThinDot {
  TensorView wide;              // (N, H, W, C)
  const void* w = nullptr;      // (K, C)
  const float* bias = nullptr;  // (K) or null
  TensorView thin;              // (N, H, W, K)
  bool relu = false;
};
REGOLITH_KERNEL(thin_dot, ThinDot);

// A block's share of the first two: some rows of one image.
struct ThinStrips {
  int rows, per_image, count;
  explicit ThinStrips(const TensorView& wide) {
    rows = std::clamp(1024 / std::max(wide.W, 1), 1, std::max(wide.H, 1));
    per_image = (wide.H + rows - 1) / rows;
    count = per_image * wide.N;
  }
  // Floats of the strip's part of the thin map, with its borders.
  REGOLITH_HOST_DEVICE int64_t patch(const TensorView& wide, int C, const ThinWindow& o) const {
    return static_cast<int64_t>(rows + o.R - 1) * (wide.W + o.S - 1) * C;
  }
};
inline size_t thin_gather_workspace(const TensorView& wide, int taps) {  // the map's data may be null
  return static_cast<size_t>(ThinStrips(wide).count) * (taps + 1) * wide.C * sizeof(float);
}

}  // namespace regolith::kernels
