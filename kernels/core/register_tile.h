// Products of matrices whose sums one thread holds in registers: C (Rows x Vecs vectors) += A (Rows x steps) * B.
//
//   RegisterTile<Factor<T>, 8, 2> c(start);          // start(i, j): vector j of row i at first, as Zero or Stored
//   c.add(a, row, 1, b, pitch, steps);               // row i of step s has the word a[row(i) + s * 1],
//                                                    // and the step multiplies it by the words from b[s * pitch] on
//   c.each([&](int i, const V (&sums)[2]) { ... });  // the vectors of row i
//
// A factor is a word of 32 bits: one number in fp32; or two numbers of bf16, neighbours along the summed dimension and
// the first in the lower half, where the processor multiplies pairs (AVX512-BF16, twice the rate of fp32; subnormal
// factors count as zero). Then REGOLITH_PAIRS is 1. Sums are fp32, in the order of the steps.
#pragma once

#include <cstring>

#include "kernels/core/vec.h"

#if REGOLITH_VECTOR_EXTENSION && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define REGOLITH_PAIRS 1
#else
#define REGOLITH_PAIRS 0
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kL = kLanes<float>;

// How numbers of type T are multiplied: in fp32 ...
template <class T>
struct Fp32Factor {
  using Element = float;  // in which a number is stored
  using Word = float;
  using Words = Vec<kL>;
  static constexpr int depth = 1;  // numbers in a word
  static __device__ __forceinline__ const Word* words(const Element* p) { return p; }
  static __device__ __forceinline__ Words load_words(const Word* p) {
    Words words = load<Words>(p);
#if REGOLITH_VECTOR_EXTENSION && defined(__x86_64__)
    // In a register: g++ 12 would rather load them again for each row, and with few rows loads are what takes the time.
    if constexpr (Words::native) asm("" : "+v"(words.v));
#endif
    return words;
  }
  // sum + the products of `a`, the same for all lanes, with those of b.
  static __device__ __forceinline__ Vec<kL> dot(Word a, const Words& b, const Vec<kL>& sum) {
    return fma(Words(a), b, sum);
  }
  // The lanes of `depth` vectors, neighbours in the summed dimension.
  static __device__ __forceinline__ void store_words(Word* to, const Vec<kL>* v) { store(to, v[0]); }
  // n words, of neighbouring elements of `first`. Null stands for zeros.
  static void pack(const T* first, const T* /*second*/, int n, Word* to) {
    for (int j = 0; j < n; ++j) to[j] = first != nullptr ? static_cast<float>(first[j]) : 0.0f;
  }
  static Vec<kL> sum_of(const Words& words, const Vec<kL>& sum) { return sum + words; }
};
template <class T>
struct Factor : Fp32Factor<T> {};

#if REGOLITH_PAIRS
// ... or in pairs of bf16.
template <>
struct Factor<bf16> {
  using Bits = detail::Lanes<uint32_t, kL>;
  using Element = bf16;
  using Word [[gnu::may_alias]] = uint32_t;
  using Words = __m512i;
  static constexpr int depth = 2;
  static __forceinline__ const Word* words(const Element* p) { return reinterpret_cast<const Word*>(p); }
  static __forceinline__ Words load_words(const Word* p) { return _mm512_loadu_si512(p); }
  static __forceinline__ Vec<kL> dot(Word a, const Words& b, const Vec<kL>& sum) {
    Vec<kL> r;
    r.v = _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
                           reinterpret_cast<__m512bh>(b));
    return r;
  }
  static __forceinline__ void store_words(Word* to, const Vec<kL>* v) {
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v[1].v, v[0].v));  // 16 of v[0], 16 of v[1]
    alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(order), halves));
  }
  // n words, of neighbouring elements of `first` with those of `second`. Null stands for zeros.
  static void pack(const bf16* first, const bf16* second, int n, Word* to) {
    int j = 0;
    for (; j + kL <= n; j += kL) {
      const auto lanes = [&](const bf16* p) {  // the masked form, as in vec.h
        if (p == nullptr) return Bits{};
        const auto* halves = reinterpret_cast<const __m256i*>(p + j);
        return reinterpret_cast<Bits>(_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(halves)));
      };
      const Bits words = lanes(first) | lanes(second) << 16;
      std::memcpy(to + j, &words, sizeof words);
    }
    for (; j < n; ++j) {
      const uint32_t low = first != nullptr ? first[j].bits : 0, high = second != nullptr ? second[j].bits : 0;
      to[j] = low | high << 16;
    }
  }
  // sum + the first numbers + the second numbers.
  static Vec<kL> sum_of(const Words& words, const Vec<kL>& sum) {
    const Bits bits = reinterpret_cast<Bits>(words);
    Vec<kL> r;
    r.v = sum.v + reinterpret_cast<__m512>(bits << 16) + reinterpret_cast<__m512>(bits & 0xffff0000u);
    return r;
  }
};
#endif

// Starts of a tile: from nothing, or from what stands at p, rows `pitch` apart.
struct Zero {
  __device__ __forceinline__ Vec<kL> operator()(int, int) const { return Vec<kL>(0); }
};
struct Stored {
  const float* p;
  ptrdiff_t pitch;
  __device__ __forceinline__ Vec<kL> operator()(int i, int j) const { return load<Vec<kL>>(p + i * pitch + j * kL); }
};

template <class F, int Rows, int Vecs>
class RegisterTile {
  using V = Vec<kL>;
  using Word = typename F::Word;

 public:
  template <class Start>
  explicit __device__ __forceinline__ RegisterTile(Start&& start) {
    REGOLITH_UNROLL
    for (int i = 0; i < Rows; ++i) REGOLITH_UNROLL
    for (int j = 0; j < Vecs; ++j) sum_[i][j] = start(i, j);
  }
  template <class Row>
  __device__ __forceinline__ void add(const Word* a, Row&& row, ptrdiff_t a_step, const Word* b, ptrdiff_t b_step,
                                      int steps) {
    for (int s = 0; s < steps; ++s, a += a_step, b += b_step) {
      typename F::Words right[Vecs];
      REGOLITH_UNROLL
      for (int j = 0; j < Vecs; ++j) right[j] = F::load_words(b + j * kL);
      REGOLITH_UNROLL
      for (int i = 0; i < Rows; ++i) {
        const Word left = a[row(i)];
        REGOLITH_UNROLL
        for (int j = 0; j < Vecs; ++j) sum_[i][j] = F::dot(left, right[j], sum_[i][j]);
      }
    }
  }
  template <class Use>
  __device__ __forceinline__ void each(Use&& use) const {
    REGOLITH_UNROLL
    for (int i = 0; i < Rows; ++i) use(i, sum_[i]);
  }
  __device__ __forceinline__ void store_to(float* p, ptrdiff_t pitch) const {
    each([&](int i, const V(&sums)[Vecs]) {
      REGOLITH_UNROLL
      for (int j = 0; j < Vecs; ++j) store(p + i * pitch + j * kL, sums[j]);
    });
  }

 private:
  V sum_[Rows][Vecs];
};

}  // namespace regolith::kernels::REGOLITH_EXECUTION
