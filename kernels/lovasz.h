// Lovasz-Softmax (Berman, Rannen Triki, Blaschko, "The Lovasz-Softmax loss", 2018): of each class the Lovasz extension
// of its Jaccard loss, over an image or the batch. With the errors |[t = c] - p_c| of the pixels that have a truth,
// sorted from the largest down (of equal ones the earlier pixel first), the loss of class c is the sum of
//   error * (J_r - J_{r-1}),  J_r = 1 - (T - F_r) / (T + r - F_r),  J_0 = 0
// at rank r = 1, 2 ..., T the pixels of the class and F_r those among the first r. Their mean over the classes that are
// there, or over all that have a weight, times that weight, is what this kernel makes, with its derivative by p_c:
// softmax_loss takes that through the softmax. The errors are sorted in fp32, on a GPU by CUB's radix sort.
//
// Occupancy: at least 50% (256 threads).
// Occupancy of lovasz_keys: at least 50% (256 threads, 6144 bytes of shared memory).
// Occupancy of lovasz_slopes: at least 50% (256 threads, 1280 bytes of shared memory).
#pragma once

#include <bit>

#include "kernels/core/kernel.h"
#include "kernels/loss_terms.h"

namespace regolith::kernels {

// How the errors are laid out: a segment for each class of each group, which is an image or the batch.
struct LovaszSegments {
  int64_t pixels;  // of a group
  int groups, classes;
  int8_t slot[kMaxClasses];  // of a class among those with a weight; -1: it has none

  LovaszSegments(int N, int H, int W, int K, const LossTerms::Lovasz& term)
      : pixels(static_cast<int64_t>(H) * W * (term.per_image ? 1 : N)), groups(term.per_image ? N : 1), classes(0) {
    for (int c = 0; c < kMaxClasses; ++c)
      slot[c] = c < K && term.class_weight[c] > 0 ? static_cast<int8_t>(classes++) : static_cast<int8_t>(-1);
  }
  int64_t segments() const { return static_cast<int64_t>(groups) * classes; }
  int64_t items() const { return segments() * pixels; }
  int64_t chunks() const { return (pixels + kChunk - 1) / kChunk; }  // of a segment
  int index_bits() const { return std::bit_width(static_cast<uint64_t>(pixels - 1)); }
  int segment_bits() const { return std::bit_width(static_cast<uint64_t>(segments() - 1)); }

  static constexpr int kChunk = 4096;  // that one block sums up: fixed, so that results do not depend on the machine
};

struct Lovasz {
  TensorView logits;              // (N, H, W, K <= 32)
  const uint8_t* mask = nullptr;  // (N, H, W)
  int ignore = -1;
  LossTerms::Lovasz term;
  float* slope;     // (groups, classes of a weight, pixels): the derivative by p_c
  double* loss;     // (groups): weighted
  void* workspace;  // lovasz_workspace bytes, 256-byte aligned
};
// Throws KernelError where a segment's number, an error, a bit and a pixel's number do not fit into 64 bits.
REGOLITH_KERNEL(lovasz, Lovasz);

// Bytes that CUB's sort of that many keys takes beside the keys; its own answer needs a GPU, and is held against this.
inline size_t lovasz_sort_workspace(int64_t items) {
  return (size_t{1} << 16) + (2 * static_cast<size_t>(items) + 15) / 16 * 16;
}

inline size_t lovasz_workspace(int N, int H, int W, int K, const LossTerms::Lovasz& term) {
  const LovaszSegments s(N, H, W, K, term);
  const auto chunks = static_cast<size_t>(s.segments() * s.chunks());
  return 2 * sizeof(uint64_t) * static_cast<size_t>(s.items()) + lovasz_sort_workspace(s.items()) +
         chunks * (sizeof(double) + sizeof(int)) + static_cast<size_t>(s.segments()) * sizeof(int);
}

}  // namespace regolith::kernels
