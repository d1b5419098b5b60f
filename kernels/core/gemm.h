// Matrix products inside a kernel: C (M x N) += A (M x K) * B (K x N) of tiles in shared memory, with fp32 sums in the
// registers of a block.
//
//   TileSums<T, 64, 128, 256> c;                                 // M = 64, N up to 128, a block of 256 threads
//   c.add<false, true>(a, a_pitch, b, b_pitch, K, N);            // all threads; K and N are multiples of 16
//   c.each(N, [&](int r, int n, float& sum) { c.row(r) ... });   // what the thread holds: row(r), column n
//
// Rows are divided among kRowWarps warps; each has all columns of its rows if these are all of the block's warps, and
// then row_sum() adds up over the threads that share a row. Halves go through the tensor cores (mma.h), fp32 has the
// same division of labour and plain multiply-adds. The one thread of the fast execution has the whole tile.
//
// Tiles have rows tile_pitch<T>(columns) apart: an odd multiple of 16 bytes where columns are a multiple of 16, so that
// the banks of neighbouring rows differ.
#pragma once

#include <cstring>

#include "kernels/core/async_copy.h"
#include "kernels/core/collectives.h"
#include "kernels/core/mma.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

template <class T>
inline constexpr int kTileVector = 16 / sizeof(T);  // elements of 16 bytes
template <class T>
REGOLITH_HOST_DEVICE constexpr int tile_pitch(int columns) {
  return columns + kTileVector<T>;
}
template <class T>
REGOLITH_HOST_DEVICE constexpr int tile_elements(int rows, int columns) {
  return rows * tile_pitch<T>(columns);
}

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

// Fills a tile of rows x columns: `width` elements of each row from source(row), L at a time, and zeros beyond them and
// where that is null. kAsync: by copies that run on (async_copy.h). All threads call it.
template <int L, bool kAsync = false, class T, class Source>
__device__ __forceinline__ void stage_tile(T* tile, int pitch, int rows, int columns, int width, Source&& source) {
  const int vectors = columns / L;
#if defined(__CUDACC__)
#pragma unroll 2  // beside a product's sums there are no registers for more loads at once
#endif
  for (int i = thread_rank(); i < rows * vectors; i += block_threads()) {
    const int r = i / vectors, c = i % vectors * L;
    const T* from = source(r);
    T* to = tile + r * pitch + c;
    if (from == nullptr || c >= width) {
      for (int l = 0; l < L; ++l) to[l] = T(0.0f);
    } else if constexpr (kAsync) {
      copy_async(to, from + c);
    } else {
      copy_elements<L>(to, from + c);
    }
  }
}

// Writes `width` elements of each row of a tile to target(row), nowhere where that is null. All threads call it.
template <int L, class T, class Target>
__device__ __forceinline__ void write_tile(const T* tile, int pitch, int rows, int width, Target&& target) {
  const int vectors = width / L;
  for (int i = thread_rank(); i < rows * vectors; i += block_threads()) {
    const int r = i / vectors, c = i % vectors * L;
    T* to = target(r);
    if (to != nullptr) copy_elements<L>(to + c, tile + r * pitch + c);
  }
}

#if REGOLITH_MMA
template <class T, int M, int kMostColumns, int kThreads, int kRowWarps = 1>
class TileSums {
  static constexpr int kColumnWarps = kThreads / kWarp / kRowWarps;
  static constexpr int kRows = M / 16 / kRowWarps;                                             // of 16, of a warp
  static constexpr int kColumns = (kMostColumns + 8 * kColumnWarps - 1) / (8 * kColumnWarps);  // of 8, of a warp
  static_assert(M % (16 * kRowWarps) == 0 && kThreads % (kWarp * kRowWarps) == 0);
  template <class, int, int, int, int>
  friend class TileSums;

 public:
  static constexpr int rows = 2 * kRows;  // of which a thread holds sums
  static __device__ __forceinline__ int row(int r) { return first_row() + r / 2 * 16 + mma_row(r % 2 * 2); }

  // A(m, k) at a[m * a_pitch + k], or a[k * a_pitch + m] if kTransposedA; B(k, n) at b[k * b_pitch + n], or
  // b[n * b_pitch + k] if kTransposedB.
  template <bool kTransposedA, bool kTransposedB>
  __device__ __forceinline__ void add(const T* a, int a_pitch, const T* b, int b_pitch, int K, int N) {
    a += first_row() * (kTransposedA ? 1 : a_pitch);
    if constexpr (sizeof(T) == 2) {
      for (int k = 0; k < K; k += 16) {
        MmaA<T> left[kRows];
        REGOLITH_UNROLL
        for (int i = 0; i < kRows; ++i) {
          left[i] = kTransposedA ? load_a_transposed(a + k * a_pitch + i * 16, a_pitch)
                                 : load_a(a + i * 16 * a_pitch + k, a_pitch);
        }
        REGOLITH_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          const int n = column(j);
          if (n >= N) continue;  // the same for the whole warp
          const MmaB<T> right =
              kTransposedB ? load_b_transposed(b + n * b_pitch + k, b_pitch) : load_b(b + k * b_pitch + n, b_pitch);
          REGOLITH_UNROLL
          for (int i = 0; i < kRows; ++i) mma_16x8x16(sums_[i][j], left[i], right);
        }
      }
    } else {
      constexpr int kSteps = kTransposedA && !kTransposedB ? 1 : 4;  // of k, that are read together
      using V = Vec<kSteps>;
      for (int k = 0; k < K; k += kSteps) {
        V left[rows];
        REGOLITH_UNROLL
        for (int r = 0; r < rows; ++r) {
          const int m = row(r) - first_row();
          if constexpr (kTransposedA)
            for (int t = 0; t < kSteps; ++t) left[r].set(t, a[(k + t) * a_pitch + m]);
          else
            left[r] = load<V>(a + m * a_pitch + k);
        }
        REGOLITH_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          if (column(j) >= N) continue;
          const int n = column(j) + mma_column(0);
          V right[2];  // of columns n and n + 1
          if constexpr (kTransposedB)
            for (int half = 0; half < 2; ++half) right[half] = load<V>(b + (n + half) * b_pitch + k);
          else
            for (int t = 0; t < kSteps; ++t) load_two(b + (k + t) * b_pitch + n, right, t);
          REGOLITH_UNROLL
          for (int r = 0; r < rows; ++r) REGOLITH_UNROLL
          for (int half = 0; half < 2; ++half) REGOLITH_UNROLL
          for (int t = 0; t < kSteps; ++t) {
            float& sum = sums_[r / 2][j].v[r % 2 * 2 + half];
            sum = fmaf(left[r][t], right[half][t], sum);
          }
        }
      }
    }
  }

  // C += P * B, P (M x K): sums of the same rows, rounded to T. B(k, n) at b[k * b_pitch + n].
  template <int K>
  __device__ __forceinline__ void add_product(const TileSums<T, M, K, kThreads, kRowWarps>& p, const T* b,
                                              int b_pitch) {
    static_assert(sizeof(T) == 2 && kColumnWarps == 1);
    REGOLITH_UNROLL
    for (int k = 0; k < K; k += 16) {
      REGOLITH_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const MmaA<T> left = to_a<T>(p.sums_[i][k / 8], p.sums_[i][k / 8 + 1]);
        REGOLITH_UNROLL
        for (int j = 0; j < kColumns; ++j) mma_16x8x16(sums_[i][j], left, load_b(b + k * b_pitch + 8 * j, b_pitch));
      }
    }
  }

  // Each sum less shift(r, n), times that of `factor`.
  template <class F>
  __device__ __forceinline__ void multiply(const TileSums& factor, F&& shift) {
    REGOLITH_UNROLL
    for (int i = 0; i < kRows; ++i) REGOLITH_UNROLL
    for (int j = 0; j < kColumns; ++j) REGOLITH_UNROLL
    for (int e = 0; e < 4; ++e) {
      float& sum = sums_[i][j].v[e];
      sum = factor.sums_[i][j].v[e] * (sum - shift(2 * i + e / 2, column(j) + mma_column(e)));
    }
  }

  // f(r, n, sum) of each sum of the first N columns: it stands in row(r), column n.
  template <class F>
  __device__ __forceinline__ void each(int N, F&& f) {
    REGOLITH_UNROLL
    for (int i = 0; i < kRows; ++i) REGOLITH_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      if (column(j) >= N) continue;
      REGOLITH_UNROLL
      for (int e = 0; e < 4; ++e) f(2 * i + e / 2, column(j) + mma_column(e), sums_[i][j].v[e]);
    }
  }
  // x of the threads that hold parts of one row, combined by f, in all of them; one of them is its leader.
  template <class F>
  static __device__ __forceinline__ float over_row(float x, F&& f) {
    static_assert(kColumnWarps == 1);
    for (int m = 1; m < 4; m *= 2) x = f(x, shuffle_xor(x, m));
    return x;
  }
  static __device__ __forceinline__ float row_sum(float x) {
    return over_row(x, [](float a, float b) { return a + b; });
  }
  static __device__ __forceinline__ bool leads_row() { return lane() % 4 == 0; }

 private:
  static __device__ __forceinline__ int first_row() { return warp_rank() / kColumnWarps * (16 * kRows); }
  static __device__ __forceinline__ int column(int j) { return (warp_rank() % kColumnWarps + j * kColumnWarps) * 8; }
  template <class V>
  static __device__ __forceinline__ void load_two(const float* p, V (&v)[2], int t) {  // to lane t of both
#if defined(__CUDACC__)
    const float2 two = *reinterpret_cast<const float2*>(p);
    v[0].set(t, two.x);
    v[1].set(t, two.y);
#else
    v[0].set(t, p[0]);
    v[1].set(t, p[1]);
#endif
  }
  MmaC sums_[kRows][kColumns];
};
#else
template <class T, int M, int kMostColumns, int kThreads>
class TileSums {
 public:
  static constexpr int row(int r) { return r; }
  template <bool kTransposedA, bool kTransposedB>
  void add(const T* a, int a_pitch, const T* b, int b_pitch, int K, int N) {
    using V = Vec<kLanes<T>>;
    for (int m = 0; m < M; ++m) {
      float* row = sums_ + m * kMostColumns;
      if constexpr (kTransposedB) {
        static_assert(!kTransposedA);
        for (int n = 0; n < N; ++n) {
          V sum(0);
          for (int k = 0; k < K; k += V::size)
            sum = fma(load<V>(a + m * a_pitch + k), load<V>(b + n * b_pitch + k), sum);
          row[n] += sum_lanes(sum);
        }
      } else {
        for (int k = 0; k < K; ++k) {
          const V x(static_cast<float>(kTransposedA ? a[k * a_pitch + m] : a[m * a_pitch + k]));
          for (int n = 0; n < N; n += V::size) store(row + n, fma(x, load<V>(b + k * b_pitch + n), load<V>(row + n)));
        }
      }
    }
  }
  template <class F>
  void each(int N, F&& f) {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) f(m, n, sums_[m * kMostColumns + n]);
  }

 private:
  float sums_[M * kMostColumns] = {};
};
#endif

}  // namespace regolith::kernels::REGOLITH_EXECUTION
