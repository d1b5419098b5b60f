// Products of pairs of bf16 on processors that have them (AVX512-BF16, twice the rate of fp32): a word holds two
// neighbours along the summed dimension, the first in its lower half. For the fast execution only, and where
// REGOLITH_PAIRS is 1; subnormal factors count as zero.
#pragma once

#include "kernels/core/vec.h"

#if REGOLITH_VECTOR_EXTENSION && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define REGOLITH_PAIRS 1
#else
#define REGOLITH_PAIRS 0
#endif

#if REGOLITH_PAIRS
namespace regolith::kernels::REGOLITH_EXECUTION {

struct Words {  // one of each of 16 lanes
  __m512i v;
};
__device__ __forceinline__ Words load_words(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
__device__ __forceinline__ void store_words(uint32_t* p, const Words& w) { _mm512_storeu_si512(p, w.v); }

// sum + the products of the pairs of `a`, the same for all lanes, with those of b.
__device__ __forceinline__ Vec<16> dot(uint32_t a, const Words& b, const Vec<16>& sum) {
  Vec<16> r;
  r.v = _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
                         reinterpret_cast<__m512bh>(b.v));
  return r;
}

// The lanes of both, rounded to bf16, as pairs.
__device__ __forceinline__ Words to_words(const Vec<16>& first, const Vec<16>& second) {
  const __m512i halves =
      reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v));  // 16 of first, then 16 of second
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return {_mm512_permutexvar_epi16(_mm512_load_si512(order), halves)};
}

// 32 words: those of 32 elements of `first` with those of `second`. Null stands for zeros.
__device__ __forceinline__ void interleave(const bf16* first, const bf16* second, uint32_t* to) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i a = first != nullptr ? _mm512_loadu_si512(first) : zero;
  const __m512i b = second != nullptr ? _mm512_loadu_si512(second) : zero;
  alignas(64) static constexpr uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                   8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static constexpr uint16_t high[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                    24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, _mm512_load_si512(low), b));
  _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(a, _mm512_load_si512(high), b));
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
#endif
