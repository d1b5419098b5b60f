// One direction of a convolution of stride 1 in bf16, by products in tiles (AMX-BF16): a strip of the map is copied
// with its padding, channels in blocks of 32, so that each tap of the window is a shift by whole pixels; 32 pixels and
// 32 output channels are then the sum of one product for each tap and block. Pixels between the rows are computed, too,
// and thrown away.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/conv/winograd_pass.h"

namespace regolith {

using winograd::Source;
using winograd::Target;

struct TiledShape {
  int N, H, W, C, P, Q, K, R, S, top, left;  // in (N, H, W, C) -> out (N, P, Q, K); zeros above and on the left
};

// Results do not depend on the number of threads.
class TiledPass {
 public:
  static bool available();  // on this processor, in this build
  TiledPass(const TiledShape& shape, int threads);

  size_t packed_bytes() const;
  // The weights (K, R, S, C) as run() reads them; or those of (C, R, S, K), turned by half a turn.
  void pack(const bf16* w, bool turned, void* packed) const;
  // Share of the computed pixels that are pixels of the output.
  double yield() const { return 1.0 * shape_.N * shape_.P * shape_.Q / (static_cast<double>(strips_) * depth_); }

  // Without sums in the target it takes less.
  size_t workspace_bytes(bool sums) const { return 2 * threads_ * panel_bytes_ + (sums ? sums_bytes_ : 0); }
  void run(const Source<bf16>& in, const void* packed, const Target<bf16>& out, void* workspace) const;

 private:
  class Reader;
  template <bool Extras>
  class Writer;
  template <bool Extras>
  void compute(const bf16* panel, const std::byte* packed, const Target<bf16>& out, int strip, winograd::Range blocks,
               float* sums, Reader* next) const;
  int row_strips() const { return (shape_.P + rows_ - 1) / rows_; }

  TiledShape shape_;
  int threads_, c_blocks_, k_blocks_;  // of 32 channels
  int images_, rows_, strips_;         // of a strip; of the map
  int in_rows_, columns_;              // of an image in a strip, with its padding
  int depth_, pixels_;                 // pixels that are computed, a multiple of 32; that the panel has
  std::vector<int> output_;            // (depth): where a pixel goes, from the strip's first one; -1: nowhere
  size_t panel_bytes_, sums_bytes_;    // of a thread: (c_blocks, pixels, 32); (N, strips of an image, 2, K)
};

}  // namespace regolith
