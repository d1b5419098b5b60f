// Convolutions of few channels by implicit products on tensor cores, of stride 1 and windows up to 3x3, with the norms
// around them inside: what a norm would write is never written.
//
//   forward:   y = w * act((x - mean) * scale + beta) (* dropout) (+ bias) (ReLU), and the moments of y for the norm
//              behind it
//   backward:  dy = scale * g + slope * (x' - mean) + offset of the norm behind, x' being y, as it is read;
//              dx = w^T * dy, which the activation's mask makes the g of the norm before, and the sums that its
//              gradient wants; dw from the same tiles
//
// A block keeps the weights of its channels in shared memory, and goes over strips of kTileStrip rows of an image in
// tiles of 8 x 32 pixels: a tile with its border is loaded once, for all taps. Norms are computed as norm_common.h does
// it, to the same bits. Sums of products are fp32. All sums are in an order that depends on the shapes alone.
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

inline constexpr int kTileStrip = 8;      // rows of an image whose sums are one partial result
inline constexpr int kTileOutputs = 128;  // output channels, at most
inline constexpr int kTileInputs = 256;   // input channels, at most
inline constexpr int kTileBlocks = 132;   // of backward, for each that fits on a multiprocessor: those of an H100
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
  // (N, 2, K), without y: before the activation's mask, dy (* dropout) is multiplied by the first row of its image, and
  // the second added, as a squeeze behind the norm leaves them (squeeze_excite.h). Or null.
  const float* squeeze = nullptr;
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

constexpr int tile_channels(int C) { return (C + 15) / 16 * 16; }  // as they lie in shared memory
constexpr size_t tile_border(int R, int S) { return static_cast<size_t>(kTileStrip + R - 1) * (32 + S - 1); }  // pixels
constexpr int tile_least(int a, int b) { return a < b ? a : b; }

// Blocks share out the channels where those are many. Of forward, a block has all inputs and a slice of the outputs, of
// one of two sizes that the kernel is compiled for.
constexpr size_t tile_forward_shared(int C, int slice, int R, int S) {
  C = tile_channels(C);
  return static_cast<size_t>(slice) * (R * S * C + 8) * 2 + tile_border(R, S) * (C + 8) * 2 + 8 * 32 * 40 * 2 +
         3 * C * 4 + 8 * (2 * size_t(slice) + 1) * 4 + 16 * 16;
}
constexpr int tile_output_slice(int C, int K, int R, int S) {
  return K <= 32 || tile_forward_shared(C, 64, R, S) > kTileShared ? 32 : 64;
}
// Of backward, all outputs, as the kernel is compiled for them, and a slice of the inputs. Where the outputs are many,
// y is not in shared memory beside dy.
constexpr int tile_outputs(int K) { return K <= 32 ? 32 : K <= 64 ? 64 : 128; }
constexpr int tile_input_slice(int C, int K, int R, int S) {
  if (K > 64) return R * S == 9 ? 32 : 64;
  return C <= 32 ? 32 : C <= 64 || C > 96 || K > 32 ? 64 : 96;
}
// Whether backward takes what a squeeze left: where its sums of dw leave registers for it.
inline constexpr int kTileSqueezed = 9 * 64 * 64;
constexpr bool tile_squeezes(int C, int K, int R, int S) {
  return R * S * tile_outputs(K) * tile_input_slice(C, K, R, S) < kTileSqueezed;
}
constexpr size_t tile_backward_shared(int C, int K, int R, int S) {
  const int slice = tile_input_slice(C, K, R, S), width = tile_channels(tile_least(C, slice));
  return static_cast<size_t>(tile_outputs(K)) * (R * S * width + 8) * 2 +
         (K > 64 ? 1 : 2) * tile_border(R, S) * (tile_outputs(K) + 8) * 2 + size_t{kTileStrip} * 32 * (slice + 8) * 2 +
         8 * 16 * 40 * 2 + (3 * width + 7 * tile_channels(K)) * 4 + 8 * 2 * size_t(width) * 4 + 16 * 16;
}

// Why the kernels do not take such a convolution on a GPU that gives a block `shared` bytes; "": they do.
inline std::string tile_refusal(int C, int K, int R, int S, size_t shared = kTileShared) {
  if (C > kTileInputs || K > kTileOutputs)
    return std::to_string(C) + " channels to " + std::to_string(K) + ": more than " + std::to_string(kTileInputs) +
           " to " + std::to_string(kTileOutputs);
  if (!(R == S && R >= 1 && R <= 3)) return "a window other than 1x1, 2x2 and 3x3";
  if (tile_forward_shared(C, tile_output_slice(C, K, R, S), R, S) > shared || tile_backward_shared(C, K, R, S) > shared)
    return "more shared memory than a block has";
  return "";
}

constexpr int tile_slices(int channels, int slice) { return (channels + slice - 1) / slice; }
// Blocks of backward for each slice, of maps x of N images of H rows; each leaves a partial result of its part of dw.
inline int tile_blocks(int N, int H, int C, int K, int R, int S) {
  const int slice = tile_input_slice(C, K, R, S), most = kTileBlocks * (tile_outputs(K) == 32 && slice == 32 ? 2 : 1);
  return tile_least(N * tile_strips(H), most / tile_slices(C, slice));
}
inline size_t tile_workspace(int N, int H, int C, int K, int R, int S) {
  return static_cast<size_t>(tile_blocks(N, H, C, K, R, S)) * K * R * S * C * sizeof(float);
}

}  // namespace regolith::kernels
