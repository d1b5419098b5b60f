// Matrix products inside a kernel, of tiles that the kernel has staged, with fp32 sums that it takes over in registers.
//
// GPU and checked execution: a block of kTileThreads adds up a tile of kTile x kTile,
//
//   TileProduct<T> c;                                                  // zero
//   c.template add<false, true>(a, a_pitch, b, b_pitch);               // c(m, n) += sum_k a(m, k) b(k, n), k < kTile
//   c.for_each([&](int i, int n, float v) { ... c.row(i) ... });       // what of it the thread holds
//
// by tensor cores for bf16 and fp16, by FMA in fp32. Tiles lie in shared memory, `pitch` elements from one row to the
// next (kTilePitch<T>, or another odd multiple of 16 bytes); ends that do not fill a tile are zero.
//
// Fast host: panel_product and outer_product hold kRows x kPanel sums in registers. Factors are Factor<T>::Stored: bf16
// where the processor multiplies pairs of it (AVX512-BF16), else fp32.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/core/mma.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// L elements as they are; aligned like load and store.
template <int L, class T>
__device__ __forceinline__ void copy_elements(T* to, const T* from) {
#if defined(__CUDACC__)
  if constexpr (L * sizeof(T) == 16) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  } else {
    for (int i = 0; i < L; ++i) to[i] = from[i];
  }
#else
  std::memcpy(to, from, L * sizeof(T));
#endif
}

#if REGOLITH_MMA

inline constexpr int kTile = 64, kTileThreads = 128;  // four warps, each of 16 rows
template <class T>
inline constexpr int kTilePitch = kTile + 16 / sizeof(T);
template <class T>
inline constexpr int kTileElements = kTile* kTilePitch<T>;

// Copies rows x columns (at most kTile of each) of a matrix into a tile and fills the rest of it with zeros.
template <int L, class T>
__device__ __forceinline__ void stage_tile(const T* from, int64_t pitch, int64_t rows, int columns, T* tile) {
  constexpr int vectors = kTile / L;
#if defined(__CUDACC__)
#pragma unroll 2  // beside a product's sums there are no registers for more loads at once
#endif
  for (int i = thread_rank(); i < kTile * vectors; i += block_threads()) {
    const int r = i / vectors, c = i % vectors * L;
    T* to = tile + r * kTilePitch<T> + c;
    if (r < rows && c < columns) {
      copy_elements<L>(to, from + r * pitch + c);
    } else {
      for (int l = 0; l < L; ++l) to[l] = T(0.0f);
    }
  }
}

template <class T>
class TileProduct {
 public:
  static constexpr int rows = 2;  // of the tile, that a thread holds sums of

  static __device__ __forceinline__ int row(int i) { return warp_rank() * 16 + lane() / 4 + 8 * i; }
  // A(m, k) at a[m * pitch + k], or at a[k * pitch + m] if transposed; B(k, n) at b[k * pitch + n] or b[n * pitch + k].
  template <bool TransposedA, bool TransposedB>
  __device__ __forceinline__ void add(const T* a, int a_pitch, const T* b, int b_pitch) {
    const int m = warp_rank() * 16;
    for (int k = 0; k < kTile; k += 16) {
      const MmaA<T> x =
          TransposedA ? load_a_transposed(a + k * a_pitch + m, a_pitch) : load_a(a + m * a_pitch + k, a_pitch);
#if defined(__CUDACC__)
#pragma unroll
#endif
      for (int j = 0; j < 8; ++j) {
        const MmaB<T> w = TransposedB ? load_b_transposed(b + 8 * j * b_pitch + k, b_pitch)
                                      : load_b(b + k * b_pitch + 8 * j, b_pitch);
        mma_16x8x16(sum_[j], x, w);
      }
    }
  }
  // f(i, n, v): v stands in row(i), column n.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int j = 0; j < 8; ++j)
      for (int e = 0; e < 4; ++e) f(e / 2, 8 * j + mma_column(e), sum_[j].v[e]);
  }
  // Sum of x over the threads that hold parts of one row, in all of them; one of them is its leader.
  static __device__ __forceinline__ float row_sum(float x) {
    for (int m = 1; m < 4; m *= 2) x += shuffle_xor(x, m);
    return x;
  }
  static __device__ __forceinline__ bool leads_row() { return lane() % 4 == 0; }

 private:
  MmaC sum_[8];
};

template <>
class TileProduct<float> {
 public:
  static constexpr int rows = 16;

  static __device__ __forceinline__ int row(int i) { return warp_rank() * 16 + i; }
  template <bool TransposedA, bool TransposedB>
  __device__ __forceinline__ void add(const float* a, int a_pitch, const float* b, int b_pitch) {
    using V = Vec<4>;
    const int m = warp_rank() * 16;
    for (int k = 0; k < kTile; k += 4) {
      V w[2];
      for (int j = 0; j < 2; ++j) {
        const int n = lane() + kWarp * j;
        if constexpr (TransposedB) {
          w[j] = load<V>(b + n * b_pitch + k);
        } else {
          for (int t = 0; t < 4; ++t) w[j].set(t, b[(k + t) * b_pitch + n]);
        }
      }
#if defined(__CUDACC__)
#pragma unroll
#endif
      for (int i = 0; i < 16; ++i) {  // row i at k..k+3; or, transposed, rows of i / 4 * 4 at k + i % 4
        const V x = load<V>(TransposedA ? a + (k + i % 4) * a_pitch + m + i / 4 * 4 : a + (m + i) * a_pitch + k);
        for (int t = 0; t < 4; ++t) {
          const int at = TransposedA ? i / 4 * 4 + t : i;
          for (int j = 0; j < 2; ++j) sum_[at][j] += x[t] * w[j][TransposedA ? i % 4 : t];
        }
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 2; ++j) f(i, lane() + kWarp * j, sum_[i][j]);
  }
  static __device__ __forceinline__ float row_sum(float x) { return warp_sum(x); }
  static __device__ __forceinline__ bool leads_row() { return lane() == 0; }

 private:
  float sum_[16][2] = {};
};

#else

inline constexpr int kL = kLanes<float>;
inline constexpr int kPanel = 2 * kL;           // columns of a panel
inline constexpr int kRows = kL == 16 ? 8 : 4;  // rows that are summed together: what the registers hold
inline constexpr int kRowBlock = 16;            // a multiple of kRows and of kL

// How a factor is stored, and how many products of neighbours in depth one instruction adds up.
template <class T>
struct Factor {
  using Stored = float;
  using Vector = Vec<kL>;
  static constexpr int depth = 1;
  static Vector load(const float* p) { return fast::load<Vector>(p); }
  static Vector broadcast(const float* p) { return Vector(*p); }
  static Vec<kL> add_product(const Vector& a, const Vector& b, const Vec<kL>& sum) { return fma(a, b, sum); }
};
#if defined(__AVX512BF16__) && defined(__AVX512F__)
template <>
struct Factor<bf16> {
  using Stored = bf16;
  using Vector = __m512bh;
  static constexpr int depth = 2;
  static Vector load(const bf16* p) { return reinterpret_cast<Vector>(_mm512_loadu_si512(p)); }
  static Vector broadcast(const bf16* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return reinterpret_cast<Vector>(_mm512_set1_epi32(pair));
  }
  static Vec<kL> add_product(const Vector& a, const Vector& b, const Vec<kL>& sum) {
    Vec<kL> r;
    r.v = _mm512_dpbf16_ps(sum.v, a, b);
    return r;
  }
};
#endif

// a (kRows, K), `pitch` apart, times a panel (K / depth, kPanel, depth): calls finish(row, left half, right half).
template <class T, class F>
__forceinline__ void panel_product(const typename Factor<T>::Stored* a, int pitch, int K,
                                   const typename Factor<T>::Stored* panel, F&& finish) {
  using P = Factor<T>;
  Vec<kL> sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Vec<kL>(0);
  for (int k = 0; k < K; k += P::depth, panel += kPanel * P::depth) {
    const typename P::Vector left = P::load(panel), right = P::load(panel + kL * P::depth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename P::Vector x = P::broadcast(a + static_cast<ptrdiff_t>(r) * pitch + k);
      sum[r][0] = P::add_product(x, left, sum[r][0]);
      sum[r][1] = P::add_product(x, right, sum[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) finish(r, sum[r][0], sum[r][1]);
}

// sums (kRows, kPanel), `pitch` apart, += a^T b over `depths` steps of Factor<T>::depth rows, which lie interleaved.
template <class T>
__forceinline__ void outer_product(const typename Factor<T>::Stored* a, int a_pitch,
                                   const typename Factor<T>::Stored* b, int b_pitch, int depths, float* sums,
                                   int pitch) {
  using P = Factor<T>;
  using V = Vec<kL>;
  V sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = load<V>(sums + static_cast<ptrdiff_t>(r) * pitch);
    sum[r][1] = load<V>(sums + static_cast<ptrdiff_t>(r) * pitch + kL);
  }
  for (int k = 0; k < depths; ++k, a += a_pitch, b += b_pitch) {
    const typename P::Vector left = P::load(b), right = P::load(b + kL * P::depth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename P::Vector x = P::broadcast(a + r * P::depth);
      sum[r][0] = P::add_product(x, left, sum[r][0]);
      sum[r][1] = P::add_product(x, right, sum[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    store(sums + static_cast<ptrdiff_t>(r) * pitch, sum[r][0]);
    store(sums + static_cast<ptrdiff_t>(r) * pitch + kL, sum[r][1]);
  }
}

// from (rows, columns) to (rows / 2, columns, 2): what outer_product takes where depth is 2. columns: whole vectors.
inline void interleave_rows(const bf16* from, int rows, int columns, bf16* to) {
  using Halves = detail::Lanes<uint16_t, kL>;
  using Words = detail::Lanes<uint32_t, kL>;
  for (int r = 0; r < rows; r += 2) {
    const bf16 *low = from + static_cast<ptrdiff_t>(r) * columns, *high = low + columns;
    for (int c = 0; c < columns; c += kL, to += 2 * kL) {
      Halves l, h;
      std::memcpy(&l, low + c, sizeof l);
      std::memcpy(&h, high + c, sizeof h);
      const Words words = __builtin_convertvector(l, Words) | __builtin_convertvector(h, Words) << 16;
      std::memcpy(to, &words, sizeof words);
    }
  }
}

namespace detail {
template <int Bit, int... I>
__forceinline__ Vec<kL> fold_pair(const Vec<kL>& a, const Vec<kL>& b, std::integer_sequence<int, I...>) {
  Vec<kL> r;  // lanes without the bit go on with a, those with it with b
  r.v = __builtin_shufflevector(a.v, b.v, (I & Bit ? kL + I : I)...) +
        __builtin_shufflevector(a.v, b.v, (I & Bit ? kL + (I ^ Bit) : I ^ Bit)...);
  return r;
}
template <int Bit>
__forceinline__ void fold_lanes(Vec<kL>* rows) {
  if constexpr (Bit > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < Bit; ++i)
      rows[i] = fold_pair<Bit>(rows[i], rows[i + Bit], std::make_integer_sequence<int, kL>{});
    fold_lanes<Bit / 2>(rows);
  }
}
}  // namespace detail

// Lane i is the sum of the lanes of row i of (kL, kL) floats.
__forceinline__ Vec<kL> sum_lanes_of_rows(const float* rows) {
  Vec<kL> v[kL];
#pragma GCC unroll 16
  for (int i = 0; i < kL; ++i) v[i] = load<Vec<kL>>(rows + i * kL);
  detail::fold_lanes<kL / 2>(v);
  return v[0];
}

#endif

}  // namespace regolith::kernels::REGOLITH_EXECUTION
