// Weight gradients in bf16 on processors that hold sums of products in tiles (AMX-BF16), where oneDNN's take three
// times as long as its other directions. dy is packed channel by channel and x in pairs of pixels, with its padding, so
// that a tap of the window is a shift of x's panel (there are two, of even and of odd pairs): dw of 32 output and 32
// input channels is then a product of two panels for each tap.
#pragma once

#include <cstddef>

#include "engine/conv/provider.h"
#include "engine/conv/wgrad_kernel.h"

namespace regolith {

class TiledWgrad : public WgradKernel {
 public:
  // `threads`: how many of the machine's it uses.
  TiledWgrad(const ConvShape& shape, int threads);
  static bool available();  // on this processor, in this build
  const char* name() const override { return "tiles"; }
  size_t workspace() const override { return threads_ * (x_bytes_ + dy_bytes_ + sums_bytes_); }
  void run(const void* x, const void* dy, float* dw, float* db, bool accumulate, void* workspace) const override;

 private:
  struct Part;  // of the work: what one thread sums up
  void add_up(const Part& part) const;
  void pack_x(const Part& part, int n, int p0, int image) const;
  void pack_dy(const Part& part, int n, int p0, int image) const;
  void add_products(const Part& part, bool first) const;
  void write_tile(std::byte* workspace, int kb, int cb, int tap, float* dw, bool accumulate) const;
  float* sums_of(std::byte* workspace, int part, int group) const;

  ConvShape shape_;
  int threads_, groups_;                    // threads: groups_ ranges of input channels times ranges of pixels
  int c_blocks_, k_blocks_, group_blocks_;  // of 32 channels; those of a range of input channels
  int phases_[2], parities_;                // of a stride, and of pairs, that taps fall on: each has a panel of x
  int chunks_, images_, rows_;              // of the maps; of a chunk
  int in_rows_, columns_;                   // of an image in a panel, with its padding
  int depth_, pitch_;                       // pixels of a chunk, padding among them; from channel to channel of dy
  int pairs_;                               // of a panel of x
  size_t x_bytes_, dy_bytes_, sums_bytes_;  // of a thread
};

}  // namespace regolith
