// Convolutions of few channels by implicit products on tensor cores, of stride 1 and windows up to 3x3, with the norms
// around them inside: what a norm would write is never written.
//
//   forward:   y = w * act((x - mean) * scale + beta) (* dropout) (+ bias) (ReLU), and the moments of y for the norm
//              behind it
//   backward:  dy = scale * g + slope * (x' - mean) + offset of the norm behind, x' being y, as it is read;
//              dx = w^T * dy, which the activation's mask makes the g of the norm before, and the sums that its
//              gradient wants; dw from the same tiles
//
// A block keeps the weights in shared memory, and goes over strips of kTileStrip rows of an image in tiles of 8 x 32
// pixels: a tile with its border is loaded once, for all taps. Norms are computed as norm_common.h does it, to the same bits.
// Sums of products are fp32. All sums are in an order that depends on the shapes alone.
//
// Maps are bf16 or fp16 (in the fast execution bf16) and may be slices of channels. In shared memory channels are
// filled up with zeros to a multiple of 16: so the thin ends of a network run here too. What runs: tile_refusal().
// Throws KernelError for shapes beyond it. A norm is read on load where its channels are a multiple of 8.
//
// Occupancy of conv_tile: at least 12% (256 threads).
// Occupancy of conv_tile_gradient: at least 12% (256 threads).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/core/kernel.h"
#include "kernels/core/random.h"

namespace regolith::kernels {

inline constexpr int kTileStrip = 8;     // rows of an image whose sums are one partial result
inline constexpr int kTileOutputs = 64;  // output channels, at most
inline constexpr int kTileInputs = 96;   // input channels, at most
inline constexpr int kTileBlocks = 132;  // of backward, for each that fits on a multiprocessor: those of an H100
inline constexpr size_t kTileShared = 227 * 1024;  // bytes of shared memory of a block, at most

// Strips of an image of H rows.
constexpr int tile_strips(int H) { return (H + kTileStrip - 1) / kTileStrip; }

// The taps of pixel (p, q) of y are the R * S pixels of x from (p - pad[0], q - pad[1]) on. Weights are (K, R, S, C).
struct TileWindow {
  int R = 3, S = 3;
  int pad[2] = {0, 0};  // top, left
};

// How a map is read that a norm left as it was: act((x - mean) * scale + beta) (* dropout). The padding stays zero.
struct NormOnLoad {
  const float* coefficients = nullptr;  // (samples, 3, C): mean, scale, beta; null: the map is read as it is
  bool per_image = false;               // there are N samples, of a group norm; else one
  bool relu = false;
  DropoutDraws dropout{};
};

struct TileForward {
  TensorView x;  // (N, H, W, C)
  NormOnLoad norm;
  const void* w = nullptr;      // of the maps' type
  const float* bias = nullptr;  // (K) or null
  TensorView y;                 // (N, P, Q, K)
  TileWindow window;
  bool relu = false;
  // (N, tile_strips(P), 2, K): means and sums of squared deviations of y, as it is stored, of each strip; or null.
  float* moments = nullptr;
};
REGOLITH_KERNEL(tile_forward, TileForward);

// How the gradient of y is read where the norm behind did not write it.
struct GradientOnLoad {
  TensorView x;  // what that norm read: y
  // (samples, 5, K): mean, scale, beta, slope, offset; null: dy is what TileBackward::dy holds.
  const float* coefficients = nullptr;
  bool per_image = false;
  // How TileBackward::dy is to be masked first: as the norm's activation and dropout mask it.
  bool relu = false;
  DropoutDraws dropout{};
  // With relu: the masks are taken from what the norm made of x and its residual, instead of from x. Or null.
  TensorView y;
};

struct TileBackward {
  TensorView x;             // as forward read it; without dw and norm its shape alone counts
  NormOnLoad norm;          // likewise
  const void* w = nullptr;  // for dx
  TensorView dy;
  GradientOnLoad gradient;
  TileWindow window;
  TensorView dx;  // null: not wanted
  bool accumulate_dx = false;
  // (N, tile_strips(H), 2, C): of each strip the sums of g and of g * (x - mean), g being dx times the slope of act and
  // the factors of dropout; dx is g then. Needs norm.coefficients. Or null.
  float* sums = nullptr;
  float* dw = nullptr;  // (K, R, S, C); null: not wanted
  bool accumulate_dw = false;
  void* workspace = nullptr;  // tile_workspace() bytes, for dw
};
REGOLITH_KERNEL(tile_backward, TileBackward);

// Channels as the kernels are compiled for them.
constexpr int tile_outputs(int K) { return K <= 32 ? 32 : 64; }
constexpr int tile_inputs(int C) { return C <= 32 ? 32 : C <= 64 ? 64 : 96; }
constexpr int tile_channels(int C) { return (C + 15) / 16 * 16; }  // as they lie in shared memory

// Bytes of shared memory of a block, of the larger direction.
constexpr size_t tile_shared(int C, int K, int R, int S) {
  C = tile_channels(C), K = tile_channels(K);
  const size_t weights = static_cast<size_t>(tile_outputs(K)) * (R * S * C + 8) * 2;
  const size_t border = static_cast<size_t>(kTileStrip + R - 1) * (32 + S - 1) * 2;
  const size_t backward = 2 * border * (tile_outputs(K) + 8) + size_t{kTileStrip} * 32 * (tile_inputs(C) + 8) * 2 +
                          8 * 16 * 40 * 2 + (3 * C + 5 * K) * 4 + 8 * 2 * size_t(C) * 4;
  const size_t forward = border * (C + 8) + 8 * 32 * 40 * 2 + 3 * C * 4 + 8 * (2 * size_t(K) + 1) * 4;
  return weights + (backward > forward ? backward : forward) + 16 * 16;
}
// Why the kernels do not take such a convolution on a GPU that gives a block `shared` bytes; "": they do.
inline std::string tile_refusal(int C, int K, int R, int S, size_t shared = kTileShared) {
  if (C > kTileInputs || K > kTileOutputs || (C > 64 && K > 32))
    return std::to_string(C) + " channels to " + std::to_string(K) + ": more than 64 to 64, or 96 to 32";
  if (!(R == S && R >= 1 && R <= 3)) return "a window other than 1x1, 2x2 and 3x3";
  if (tile_shared(C, K, R, S) > shared) return "more shared memory than a block has";
  return "";
}

// Blocks of backward for maps x of N images of H rows; each leaves a partial result of dw.
inline int tile_blocks(int N, int H, int C, int K) {
  const int strips = N * tile_strips(H), most = kTileBlocks * (tile_outputs(K) == 32 && tile_inputs(C) == 32 ? 2 : 1);
  return strips < most ? strips : most;
}
inline size_t tile_workspace(int N, int H, int C, int K, int R, int S) {
  return static_cast<size_t>(tile_blocks(N, H, C, K)) * K * R * S * C * sizeof(float);
}

}  // namespace regolith::kernels
