// A sum of projected branches: atrous spatial pyramid pooling of Chen et al., "Rethinking Atrous Convolution for
// Semantic Image Segmentation" (2017), section 3.3, without norms and activations.
//
//   z_g = conv(x, w_g) + b_g                      a dilated convolution of stride 1 whose output is as large as its
//   input y   = sum over g of z_g * project_g^T + bias + image
//
// A branch has 1 or 3 taps down and 1 or 3 across, `rate` pixels apart about the centre: the caller leaves out taps
// that see nothing but padding. `image` has one pixel per image. The same kernels with one branch of one tap on maps of
// 1x1 pixels are the pooled branch, whose y is that `image`.
//
// Forward is one kernel: z of a few pixels goes from the registers to memory, for backward, and through shared memory
// into y. bf16 and fp16 by tensor cores, fp32 by multiply-adds; sums in fp32, z rounded to the maps' type before it is
// projected. Channels and filters are multiples of 16. Maps may be slices at multiples of 16 bytes.
//
// Occupancy of forward: at least 12% (256 threads, 99328 bytes of shared memory).
// Occupancy of data_gradient: at least 25% (256 threads, 53248 bytes of shared memory).
// Occupancy of projection_gradients: at least 25% (256 threads, 53248 bytes of shared memory).
// Occupancy of weight_gradients: at least 37% (256 threads, 51456 bytes of shared memory).
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kAsppBranches = 8;
inline constexpr int kAsppGroups = kAsppBranches + 1;  // those of a map, and the pooled one
inline constexpr int kAsppProducts = 2 * kAsppGroups;  // gradients of w and of project
inline constexpr int kAsppFilters = 512;  // of y, at most: a block keeps the sums of a pixel's filters in registers

struct AsppTaps {
  int rows = 1, columns = 1;  // 1 or 3
  int rate = 0;
  REGOLITH_HOST_DEVICE int count() const { return rows * columns; }
  // Where a tap looks, relative to the centre.
  REGOLITH_HOST_DEVICE int down(int tap) const { return (tap / columns - rows / 2) * rate; }
  REGOLITH_HOST_DEVICE int right(int tap) const { return (tap % columns - columns / 2) * rate; }
};

struct AsppBranch {
  const void* w = nullptr;        // (K, rows, columns, C) of the maps' type
  const float* bias = nullptr;    // (K) or null
  const void* project = nullptr;  // (F, K)
  TensorView z;                   // (N, H, W, K)
  AsppTaps taps;
};

// Whether these kernels take C channels, branches of `width` channels and F filters.
inline bool aspp_takes(int C, int width, int F) {
  return C % 16 == 0 && width % 16 == 0 && F % 16 == 0 && F <= kAsppFilters;
}

struct AsppForward {
  TensorView x;  // (N, H, W, C)
  AsppBranch branches[kAsppBranches];
  int count = 0;
  const float* bias = nullptr;  // (F) or null
  TensorView image;             // (N, 1, 1, F) or null
  TensorView y;                 // (N, H, W, F)
};
REGOLITH_KERNEL(aspp_forward, AsppForward);

// dx (+)= sum over branches and taps of dz_g, read `taps` backwards, * w_g, + image_scale * image.
struct AsppDataGradient {
  struct Branch {
    const void* w = nullptr;  // (K, rows, columns, C)
    TensorView dz;            // (N, H, W, K)
    AsppTaps taps;
  } branches[kAsppBranches];
  int count = 0;
  TensorView image;  // (N, 1, 1, C) or null
  float image_scale = 1;
  TensorView dx;  // (N, H, W, C); written, or added to
  bool accumulate = false;
};
REGOLITH_KERNEL(aspp_data_gradient, AsppDataGradient);

// dz_g = dy_g * project_g of several branches at once, each with maps of its own size.
struct AsppProjectionGradients {
  struct Branch {
    TensorView dy;                  // (N, H, W, F)
    const void* project = nullptr;  // (F, K)
    TensorView dz;                  // (N, H, W, K)
  } branches[kAsppGroups];
  int count = 0;
};
REGOLITH_KERNEL(aspp_projection_gradients, AsppProjectionGradients);

// Of several products at once: dw (+)= sum over the pixels p of dz[p] * x[p + tap], db (+)= sum over p of dz[p]. The
// gradient of `project` is the same with dy and z; with it db is that of the bias of y.
struct AsppWeightGradients {
  struct Product {
    TensorView dz;        // (N, H, W, K)
    TensorView x;         // (N, H, W, C)
    float* dw = nullptr;  // (K, rows, columns, C)
    float* db = nullptr;  // (K) or null
    AsppTaps taps;
    bool accumulate = false;
  } products[kAsppProducts];
  int count = 0;
  void* workspace = nullptr;  // the sum of the products' aspp_product_workspace() bytes, 256-byte aligned
};
REGOLITH_KERNEL(aspp_weight_gradients, AsppWeightGradients);

// The sums over pixels are cut into parts, that the device has enough blocks; how many depends on the shape alone.
struct AsppSplits {
  static constexpr int kRows = 64, kColumns = 128;  // of dw, that a block has
  int parts, each;                                  // pixels of a part
  AsppSplits(int64_t pixels, int K, int C, int taps) {
    const int64_t tiles = static_cast<int64_t>((K + kRows - 1) / kRows) * ((C + kColumns - 1) / kColumns) * taps;
    parts = static_cast<int>(std::clamp<int64_t>(256 / tiles, 1, (pixels + 255) / 256));
    each = static_cast<int>((pixels + parts * 32 - 1) / (parts * 32) * 32);
    parts = static_cast<int>((pixels + each - 1) / each);
  }
};
inline size_t aspp_product_workspace(int64_t pixels, int K, int C, int taps) {
  return static_cast<size_t>(AsppSplits(pixels, K, C, taps).parts) * K * (taps * C + 1) * sizeof(float);
}

}  // namespace regolith::kernels
