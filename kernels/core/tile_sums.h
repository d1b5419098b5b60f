// Sums of products of tiles in shared memory, held in the registers of a block: C (M x N) += A (M x K) * B (K x N).
//
//   TileSums<T, 32, 128> c;                                      // M = 32, N up to 128
//   c.add<false, true>(a, a_pitch, b, b_pitch, K, N);            // all threads; K and N are multiples of 16
//   c.each(N, [&](int m, int n, float sum) { ... });             // each element once, from the thread that holds it
//
// Halves go through the tensor cores (mma.h: pitches are multiples of 8). fp32 has the same division of labour and
// plain multiply-adds. The one thread of the fast execution has the whole tile, and vectors.
#pragma once

#include "kernels/core/collectives.h"
#include "kernels/core/mma.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kTileThreads = 256;  // of a block that uses TileSums

#if REGOLITH_MMA
template <class T, int M, int kMostColumns>
class TileSums {
  static constexpr int kRows = M / 16, kWarps = kTileThreads / kWarp;
  static constexpr int kColumns = (kMostColumns + 8 * kWarps - 1) / (8 * kWarps);  // of 8, that a warp has
  static_assert(M % 16 == 0);

 public:
  // A(m, k) at a[m * a_pitch + k], or a[k * a_pitch + m] if kTransposedA; B(k, n) at b[k * b_pitch + n], or
  // b[n * b_pitch + k] if kTransposedB.
  template <bool kTransposedA, bool kTransposedB>
  __device__ __forceinline__ void add(const T* a, int a_pitch, const T* b, int b_pitch, int K, int N) {
    for (int k = 0; k < K; k += 16) {
      if constexpr (sizeof(T) == 2) {
        MmaA<T> fa[kRows];
        REGOLITH_UNROLL
        for (int i = 0; i < kRows; ++i) {
          fa[i] = kTransposedA ? load_a_transposed(a + k * a_pitch + i * 16, a_pitch)
                               : load_a(a + i * 16 * a_pitch + k, a_pitch);
        }
        REGOLITH_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          const int n = column(j);
          if (n >= N) continue;  // the same for the whole warp
          const MmaB<T> fb =
              kTransposedB ? load_b_transposed(b + n * b_pitch + k, b_pitch) : load_b(b + k * b_pitch + n, b_pitch);
          REGOLITH_UNROLL
          for (int i = 0; i < kRows; ++i) mma_16x8x16(sums_[i][j], fa[i], fb);
        }
      } else {
        REGOLITH_UNROLL
        for (int kk = k; kk < k + 16; ++kk) {
          float fa[kRows][2];
          REGOLITH_UNROLL
          for (int i = 0; i < kRows; ++i) REGOLITH_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int m = i * 16 + mma_row(half * 2);
            fa[i][half] = static_cast<float>(kTransposedA ? a[kk * a_pitch + m] : a[m * a_pitch + kk]);
          }
          REGOLITH_UNROLL
          for (int j = 0; j < kColumns; ++j) {
            if (column(j) >= N) continue;
            const int n = column(j) + mma_column(0);
            const float b0 = static_cast<float>(kTransposedB ? b[n * b_pitch + kk] : b[kk * b_pitch + n]);
            const float b1 = static_cast<float>(kTransposedB ? b[(n + 1) * b_pitch + kk] : b[kk * b_pitch + n + 1]);
            REGOLITH_UNROLL
            for (int i = 0; i < kRows; ++i) REGOLITH_UNROLL
            for (int half = 0; half < 2; ++half) {
              float* c = sums_[i][j].v + half * 2;
              c[0] = fmaf(fa[i][half], b0, c[0]);
              c[1] = fmaf(fa[i][half], b1, c[1]);
            }
          }
        }
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void each(int N, F&& f) const {
    REGOLITH_UNROLL
    for (int i = 0; i < kRows; ++i) REGOLITH_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      if (column(j) >= N) continue;
      REGOLITH_UNROLL
      for (int e = 0; e < 4; ++e) f(i * 16 + mma_row(e), column(j) + mma_column(e), sums_[i][j].v[e]);
    }
  }

 private:
  __device__ __forceinline__ static int column(int j) { return (warp_rank() + j * kWarps) * 8; }
  MmaC sums_[kRows][kColumns];
};
#else
template <class T, int M, int kMostColumns>
class TileSums {
 public:
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
  void each(int N, F&& f) const {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) f(m, n, sums_[m * kMostColumns + n]);
  }

 private:
  float sums_[M * kMostColumns] = {};
};
#endif

}  // namespace regolith::kernels::REGOLITH_EXECUTION
