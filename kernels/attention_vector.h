// Attention through fp32 vectors: fp32 maps everywhere, and bf16 on a fast host that has no products of pairs. Tiles of
// q, k, v stand in shared memory as fp32; every product of theirs is one loop, C(rows, columns) += A(rows, depth)
// B(depth, columns), in which a thread owns kM rows of kQ vectors of columns. Lanes are queries in forward and for dq,
// keys for dk and dv, so that softmax never looks across lanes.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/core/launch.h"
#include "kernels/core/math.h"
#include "kernels/core/shared.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// What all kernels of attention know. One image is `positions` pixels.
struct Attention {
  int positions, heads, d;
  float scale;                                              // 1 / sqrt(d)
  int qkv_pitch, y_pitch, C;                                // C = heads * d
  __device__ __forceinline__ int64_t row(int head) const {  // of lse and D
    return (static_cast<int64_t>(blockIdx.z) * heads + head) * positions;
  }
};

namespace attention {

inline constexpr int kL = kLanes<float>;
inline constexpr bool kHost = kWarp == 1;
inline constexpr int kVectorThreads = 64;
inline constexpr int kColumns = kHost ? 4 * kL : 32;  // of a tile whose lanes they are
inline constexpr int kRows = 32;                      // of the tiles that are gone through
inline constexpr int kM = kHost && kL == 16 ? 8 : 4;  // with kQ: the registers that the execution has
inline constexpr int kQ = kHost ? 2 : 1;
inline constexpr int kOwned = kHost ? kColumns / kL : 1;  // vectors of columns of a thread, where each has some rows

// d rounded up to whole vectors, where channels are lanes.
__device__ __host__ constexpr int whole(int d) { return (d + kL - 1) / kL * kL; }

// Rows first..first+rows of a head's map, as fp32, at out[row * pitch + c]; zero beyond the last position.
template <class T>
__device__ __forceinline__ void load_rows(const T* map, int map_pitch, int first, int rows, int positions, int d,
                                          float* out, int pitch) {
  constexpr int L = kHost ? 8 : kL;
  using V = Vec<L>;
  const ThreadTile crew(d / L);
  for (int r = crew.row; r < rows && crew.row < crew.rows; r += crew.rows) {
    const T* in = map + static_cast<int64_t>(first + r) * map_pitch;
    for (int c = crew.column * L; c < d; c += crew.columns * L)
      store(out + r * pitch + c, first + r < positions ? load<V>(in + c) : V(0));
  }
}

// The same at out[c * kColumns + row].
template <class T>
__device__ __forceinline__ void load_transposed(const T* map, int map_pitch, int first, int positions, int d,
                                                float* out) {
  constexpr int L = kHost ? 8 : kL;
  using V = Vec<L>;
  for (int i = thread_rank(); i < kColumns * (d / L); i += block_threads()) {
    const int r = i % kColumns, c = i / kColumns * L;
    const V v = first + r < positions ? load<V>(map + static_cast<int64_t>(first + r) * map_pitch + c) : V(0);
    for (int l = 0; l < L; ++l) out[(c + l) * kColumns + r] = v[l];
  }
}

// Writes out[c * kColumns + row] * by(row) to rows first.. of a head's map.
template <class T, class F>
__device__ __forceinline__ void store_transposed(const float* in, int first, int positions, int d, T* map,
                                                 int map_pitch, F&& by) {
  constexpr int L = kHost ? 8 : kL;
  for (int i = thread_rank(); i < kColumns * (d / L); i += block_threads()) {
    const int r = i % kColumns, c = i / kColumns * L;
    if (first + r >= positions) continue;
    Vec<L> v;
    for (int l = 0; l < L; ++l) v.set(l, in[(c + l) * kColumns + r]);
    store(map + static_cast<int64_t>(first + r) * map_pitch + c, v * Vec<L>(by(r)));
  }
}

// c(rows, columns) = start(c, column) + a(rows, depth) b(depth, columns); a is a[row * pitch + i], or
// a[i * pitch + row] if kTransposed; b and c are contiguous. rows % kM == 0, columns % (kL * Q) == 0.
template <int Q, bool kTransposed, class Start>
__device__ __forceinline__ void product(const float* a, int pitch, const float* b, float* c, int rows, int columns,
                                        int depth, Start&& start) {
  using V = Vec<kL>;
  const int units = columns / (kL * Q);
  for (int u = thread_rank(); u < rows / kM * units; u += block_threads()) {
    const int row = u / units * kM, column = u % units * kL * Q;
    const float* in = kTransposed ? a + row : a + row * pitch;
    float* out = c + row * columns + column;
    V sum[kM][Q];
#if !defined(__CUDACC__)
#pragma GCC unroll 8
#endif
    for (int m = 0; m < kM; ++m)
      for (int j = 0; j < Q; ++j) sum[m][j] = start(out + m * columns + j * kL, column + j * kL);
    for (int i = 0; i < depth; ++i) {
      V right[Q];
      for (int j = 0; j < Q; ++j) right[j] = load<V>(b + i * columns + column + j * kL);
#if !defined(__CUDACC__)
#pragma GCC unroll 8
#endif
      for (int m = 0; m < kM; ++m) {
        const V left(kTransposed ? in[i * pitch + m] : in[m * pitch + i]);
        for (int j = 0; j < Q; ++j) sum[m][j] = fma(left, right[j], sum[m][j]);
      }
    }
#if !defined(__CUDACC__)
#pragma GCC unroll 8
#endif
    for (int m = 0; m < kM; ++m)
      for (int j = 0; j < Q; ++j) store(out + m * columns + j * kL, sum[m][j]);
  }
}
struct FromZero {
  __device__ __forceinline__ Vec<kL> operator()(const float*, int) const { return Vec<kL>(0); }
};
struct OnTop {
  bool first;  // nothing stands there yet
  __device__ __forceinline__ Vec<kL> operator()(const float* c, int) const {
    return first ? Vec<kL>(0) : load<Vec<kL>>(c);
  }
};
// Rows of a tile that hold positions, rounded up to what a product takes.
__device__ __forceinline__ int used(int first, int positions) {
  const int rest = positions - first < kRows ? positions - first : kRows;
  return (rest + kM - 1) / kM * kM;
}

}  // namespace attention

// Block: kColumns queries (x) of a head (y) of an image (z).
template <class T>
__global__ REGOLITH_FLAT void __launch_bounds__(attention::kVectorThreads, 8)
    attend(const T* qkv, T* y, float* lse, Attention g) {
  using namespace attention;
  using V = Vec<kL>;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * kColumns, pitch = g.d + 4;
  const ThreadTile crew(kColumns / kL);
  Shared shared;
  float* q = shared.take<float>(g.d * kColumns);    // (d, queries)
  float* o = shared.take<float>(g.d * kColumns);    // (d, queries)
  float* s = shared.take<float>(kRows * kColumns);  // (keys, queries)
  float* k = shared.take<float>(kRows * pitch);     // (keys, d)
  float* v = shared.take<float>(kRows * pitch);
  float* most = shared.take<float>(2 * kColumns);           // of a query's scores before this tile, and with it
  float* shrink = shared.take<float>(kColumns);             // by which a new maximum scales what was summed
  float* total = shared.take<float>(crew.rows * kColumns);  // sums of exponentials, those of a row of the crew
  float* peak = shared.take<float>(crew.rows * kColumns);   // maxima of a tile, likewise
  qkv += static_cast<int64_t>(blockIdx.z) * g.positions * g.qkv_pitch + head * g.d;
  load_transposed(qkv, g.qkv_pitch, first, g.positions, g.d, q);
  for (int k0 = 0; k0 < g.positions; k0 += kRows) {
    const int keys = g.positions - k0 < kRows ? g.positions - k0 : kRows, rows = used(k0, g.positions);
    load_rows(qkv + g.C, g.qkv_pitch, k0, rows, g.positions, g.d, k, pitch);
    load_rows(qkv + 2 * g.C, g.qkv_pitch, k0, rows, g.positions, g.d, v, pitch);
    sync_block();
    product<kQ, false>(k, pitch, q, s, rows, kColumns, g.d, FromZero{});
    sync_block();
    const int own = crew.column * kL;
    V m[kOwned];
    for (V& each : m) each = V(-INFINITY);
    for (int r = crew.row; r < keys; r += crew.rows)
      for (int j = 0; j < kOwned; ++j) m[j] = max(m[j], load<V>(s + r * kColumns + own + j * kL));
    for (int j = 0; j < kOwned; ++j) store(peak + crew.row * kColumns + own + j * kL, m[j] * V(g.scale));
    sync_block();
    V sum[kOwned];
    for (int j = 0; j < kOwned; ++j) {
      const int c = own + j * kL;
      const V before = k0 == 0 ? V(-INFINITY) : load<V>(most + k0 / kRows % 2 * kColumns + c);
      m[j] = before;
      for (int r = 0; r < crew.rows; ++r) m[j] = max(m[j], load<V>(peak + r * kColumns + c));
      const V by = exp(before - m[j]);
      sum[j] = k0 == 0 ? V(0) : load<V>(total + crew.row * kColumns + c) * by;
      if (crew.row > 0) continue;
      store(most + (k0 / kRows + 1) % 2 * kColumns + c, m[j]);
      store(shrink + c, by);
    }
    for (int r = crew.row; r < rows; r += crew.rows) {
      for (int j = 0; j < kOwned; ++j) {
        float* at = s + r * kColumns + own + j * kL;
        const V p = r < keys ? exp(fma(load<V>(at), V(g.scale), V(0) - m[j])) : V(0);
        sum[j] += p;
        store(at, p);
      }
    }
    for (int j = 0; j < kOwned; ++j) store(total + crew.row * kColumns + own + j * kL, sum[j]);
    sync_block();
    product<kQ, true>(v, pitch, s, o, g.d, kColumns, rows, [&](const float* at, int column) {
      return k0 == 0 ? V(0) : load<V>(at) * load<V>(shrink + column);
    });
    sync_block();
  }
  y += static_cast<int64_t>(blockIdx.z) * g.positions * g.y_pitch + head * g.d;
  const int tiles = (g.positions + kRows - 1) / kRows;
  const auto sum_of = [&](int r) {
    float sum = total[r];
    for (int i = 1; i < crew.rows; ++i) sum += total[i * kColumns + r];
    return sum;
  };
  store_transposed(o, first, g.positions, g.d, y, g.y_pitch, [&](int r) { return 1 / sum_of(r); });
  for (int r = thread_rank(); r < kColumns && first + r < g.positions; r += block_threads())
    lse[g.row(head) + first + r] = most[tiles % 2 * kColumns + r] + logf(sum_of(r));
}
inline size_t attend_bytes(int d) {
  using namespace attention;
  const int rows = kHost ? 1 : kVectorThreads / (kColumns / kL);
  return 2 * shared_bytes<float>(d * kColumns) + shared_bytes<float>(kRows * kColumns) +
         2 * shared_bytes<float>(kRows * (d + 4)) + shared_bytes<float>(2 * kColumns) + shared_bytes<float>(kColumns) +
         2 * shared_bytes<float>(rows * kColumns);
}

// Block: kColumns queries (x) of a head (y) of an image (z).
template <class T>
__global__ REGOLITH_FLAT void __launch_bounds__(attention::kVectorThreads, 8)
    query_gradient(const T* qkv, const T* dy, const float* lse, const float* D, T* dqkv, Attention g) {
  using namespace attention;
  using V = Vec<kL>;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * kColumns, pitch = g.d + 4;
  const ThreadTile crew(kColumns / kL);
  Shared shared;
  float* q = shared.take<float>(g.d * kColumns);     // (d, queries)
  float* dout = shared.take<float>(g.d * kColumns);  // (d, queries)
  float* dq = shared.take<float>(g.d * kColumns);    // (d, queries)
  float* s = shared.take<float>(kRows * kColumns);   // (keys, queries)
  float* ds = shared.take<float>(kRows * kColumns);
  float* k = shared.take<float>(kRows * pitch);  // (keys, d)
  float* v = shared.take<float>(kRows * pitch);
  float* statistics = shared.take<float>(2 * kColumns);  // lse, then D
  const int64_t image = static_cast<int64_t>(blockIdx.z) * g.positions;
  qkv += image * g.qkv_pitch + head * g.d;
  dqkv += image * g.qkv_pitch + head * g.d;
  dy += image * g.y_pitch + head * g.d;
  load_transposed(qkv, g.qkv_pitch, first, g.positions, g.d, q);
  load_transposed(dy, g.y_pitch, first, g.positions, g.d, dout);
  for (int r = thread_rank(); r < kColumns; r += block_threads()) {
    const bool there = first + r < g.positions;
    statistics[r] = there ? lse[g.row(head) + first + r] : 0;
    statistics[kColumns + r] = there ? D[g.row(head) + first + r] : 0;
  }
  for (int k0 = 0; k0 < g.positions; k0 += kRows) {
    const int keys = g.positions - k0 < kRows ? g.positions - k0 : kRows, rows = used(k0, g.positions);
    load_rows(qkv + g.C, g.qkv_pitch, k0, rows, g.positions, g.d, k, pitch);
    load_rows(qkv + 2 * g.C, g.qkv_pitch, k0, rows, g.positions, g.d, v, pitch);
    sync_block();
    product<kQ, false>(k, pitch, q, s, rows, kColumns, g.d, FromZero{});
    product<kQ, false>(v, pitch, dout, ds, rows, kColumns, g.d, FromZero{});
    sync_block();
    for (int c = crew.column * kL; c < kColumns; c += crew.columns * kL) {
      const V l = load<V>(statistics + c), mean = load<V>(statistics + kColumns + c);
      for (int r = crew.row; r < rows; r += crew.rows) {
        float* at = ds + r * kColumns + c;
        const V p = exp(fma(load<V>(s + r * kColumns + c), V(g.scale), V(0) - l));
        store(at, r < keys ? p * (load<V>(at) - mean) * V(g.scale) : V(0));
      }
    }
    sync_block();
    product<kQ, true>(k, pitch, ds, dq, g.d, kColumns, rows, OnTop{k0 == 0});
    sync_block();
  }
  store_transposed(dq, first, g.positions, g.d, dqkv, g.qkv_pitch, [](int) { return 1.0f; });
}
inline size_t query_gradient_bytes(int d) {
  using namespace attention;
  return 3 * shared_bytes<float>(d * kColumns) + 2 * shared_bytes<float>(kRows * kColumns) +
         2 * shared_bytes<float>(kRows * (d + 4)) + shared_bytes<float>(2 * kColumns);
}

// Block: kColumns keys (x) of a head (y) of an image (z); on the fast host all keys of it, and dq as well.
template <class T>
__global__ REGOLITH_FLAT void __launch_bounds__(attention::kVectorThreads, 8)
    key_gradient(const T* qkv, const T* dy, const float* lse, const float* D, T* dqkv, Attention g) {
  using namespace attention;
  using V = Vec<kL>;
  const int head = static_cast<int>(blockIdx.y), pitch = g.d + 4, wide = whole(g.d);
  const ThreadTile crew(kColumns / kL);
  Shared shared;
  float* k = shared.take<float>(g.d * kColumns);  // (d, keys)
  float* v = shared.take<float>(g.d * kColumns);
  float* dk = shared.take<float>(g.d * kColumns);
  float* dv = shared.take<float>(g.d * kColumns);
  float* s = shared.take<float>(kRows * kColumns);  // (queries, keys)
  float* ds = shared.take<float>(kRows * kColumns);
  float* q = shared.take<float>(kRows * pitch);  // (queries, d)
  float* dout = shared.take<float>(kRows * pitch);
  [[maybe_unused]] float* keys = kHost ? shared.take<float>(kColumns * wide) : nullptr;             // (keys, d)
  [[maybe_unused]] float* dq = kHost ? shared.take<float>((g.positions + kRows) * wide) : nullptr;  // (queries, d)
  const int64_t image = static_cast<int64_t>(blockIdx.z) * g.positions;
  qkv += image * g.qkv_pitch + head * g.d;
  dqkv += image * g.qkv_pitch + head * g.d;
  dy += image * g.y_pitch + head * g.d;
  lse += g.row(head);
  D += g.row(head);
  const int last = kHost ? g.positions : static_cast<int>(blockIdx.x + 1) * kColumns;
  for (int first = static_cast<int>(blockIdx.x) * kColumns; first < last; first += kColumns) {
    load_transposed(qkv + g.C, g.qkv_pitch, first, g.positions, g.d, k);
    load_transposed(qkv + 2 * g.C, g.qkv_pitch, first, g.positions, g.d, v);
    if constexpr (kHost) {
      if (wide > g.d) std::fill(keys, keys + kColumns * wide, 0.0f);
      load_rows(qkv + g.C, g.qkv_pitch, first, kColumns, g.positions, g.d, keys, wide);
    }
    for (int q0 = 0; q0 < g.positions; q0 += kRows) {
      const int queries = g.positions - q0 < kRows ? g.positions - q0 : kRows, rows = used(q0, g.positions);
      load_rows(qkv, g.qkv_pitch, q0, rows, g.positions, g.d, q, pitch);
      load_rows(dy, g.y_pitch, q0, rows, g.positions, g.d, dout, pitch);
      sync_block();
      product<kQ, false>(q, pitch, k, s, rows, kColumns, g.d, FromZero{});
      product<kQ, false>(dout, pitch, v, ds, rows, kColumns, g.d, FromZero{});
      sync_block();
      for (int r = crew.row; r < rows; r += crew.rows) {
        const V l(r < queries ? lse[q0 + r] : INFINITY), mean(r < queries ? D[q0 + r] : 0.0f);  // P = 0 beyond
        for (int c = crew.column * kL; c < kColumns; c += crew.columns * kL) {
          float *at = s + r * kColumns + c, *slope = ds + r * kColumns + c;
          const V p = exp(fma(load<V>(at), V(g.scale), V(0) - l));
          store(at, p);
          store(slope, p * (load<V>(slope) - mean) * V(g.scale));
        }
      }
      sync_block();
      product<kQ, true>(dout, pitch, s, dv, g.d, kColumns, rows, OnTop{q0 == 0});
      product<kQ, true>(q, pitch, ds, dk, g.d, kColumns, rows, OnTop{q0 == 0});
      if constexpr (kHost) {
        const int depth = g.positions - first < kColumns ? g.positions - first : kColumns;
        float* out = dq + q0 * wide;
        if (wide % (2 * kL) == 0)
          product<2, false>(ds, kColumns, keys, out, rows, wide, depth, OnTop{first == 0});
        else
          product<1, false>(ds, kColumns, keys, out, rows, wide, depth, OnTop{first == 0});
      }
      sync_block();
    }
    const auto one = [](int) { return 1.0f; };
    store_transposed(dk, first, g.positions, g.d, dqkv + g.C, g.qkv_pitch, one);
    store_transposed(dv, first, g.positions, g.d, dqkv + 2 * g.C, g.qkv_pitch, one);
  }
  if constexpr (kHost) {
    for (int p = 0; p < g.positions; ++p)
      for (int c = 0; c < g.d; c += 8)
        store(dqkv + static_cast<int64_t>(p) * g.qkv_pitch + c, load<Vec<8>>(dq + p * wide + c));
  }
}
inline size_t key_gradient_bytes(int d, [[maybe_unused]] int positions) {
  using namespace attention;
  size_t bytes = 4 * shared_bytes<float>(d * kColumns) + 2 * shared_bytes<float>(kRows * kColumns) +
                 2 * shared_bytes<float>(kRows * (d + 4));
  if (kHost) {
    bytes += shared_bytes<float>(kColumns * whole(d));
    bytes += shared_bytes<float>(static_cast<size_t>(positions + kRows) * whole(d));
  }
  return bytes;
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
