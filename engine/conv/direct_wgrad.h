// Weight gradients on the CPU by outer products held in registers, where oneDNN's are slower: on processors without
// AVX-512 (a third of the machine's rate), and in bf16 on those without AMX, as pairs or in fp32 (pairs.h). Maps are
// packed, a few rows at a time, into panels of channels; the tile is two vectors of output channels times some pairs of
// (tap, input channel).
#pragma once

#include <cstddef>

#include "engine/conv/provider.h"
#include "engine/conv/wgrad_kernel.h"

namespace regolith {

class DirectWgrad : public WgradKernel {
 public:
  // `type`: of x and dy, fp32 or bf16. `threads`: how many of the machine's it uses.
  DirectWgrad(const ConvShape& shape, DType type, int threads);
  const char* name() const override { return "direct"; }
  size_t workspace() const override { return threads_ * (packed_ + sums_) * sizeof(float); }
  void run(const void* x, const void* dy, float* dw, float* db, bool accumulate, void* workspace) const override;

 private:
  template <class F, int Taps, class T>
  void run(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const;
  template <class F, int Taps, class T>
  void accumulate_part(const T* x, const T* dy, int part, int parts, int k_begin, int k_end, float* packed, float* sums,
                       bool biases) const;

  ConvShape shape_;
  DType type_;
  bool pairs_;              // of bf16 are multiplied
  int threads_, k_groups_;  // threads: k_groups_ ranges of output channels times ranges of rows
  int taps_, channels_;     // of a tile
  int c_blocks_, k_blocks_, group_blocks_;
  int rows_, in_rows_, in_columns_;  // of a chunk: output rows, input rows, input columns with their padding
  int pixel_;                        // words of one of its pixels
  size_t packed_, sums_;             // words per thread
};

}  // namespace regolith
