// How the threads of a block share a batch of pixels of many channels: some stand side by side and own the channels of
// one pixel, the rest of them take other pixels.
#pragma once

#include <algorithm>

#include "kernels/core/collectives.h"
#include "kernels/core/vec.h"

// Before `void` of a kernel that is built of function objects: the fast host takes them all into its loops, and keeps
// what they refer to in registers.
#if !defined(__CUDACC__) && !defined(REGOLITH_CHECKED)
#define REGOLITH_FLAT __attribute__((flatten))
#else
#define REGOLITH_FLAT
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {

// K neighbouring vectors: what a thread owns where one vector is less than a cache line (the fast host; K is 1
// elsewhere). The operations are those of Vec.
template <int L, int K>
struct Pack {
  static constexpr int size = L * K;
  Vec<L> v[K];

  Pack() = default;
  __device__ __forceinline__ Pack(float x) {
    for (int k = 0; k < K; ++k) v[k] = Vec<L>(x);
  }
  template <class F, class... A>
  static __device__ __forceinline__ Pack each(F&& f, const A&... a) {
    Pack r;
    REGOLITH_UNROLL
    for (int k = 0; k < K; ++k) r.v[k] = f(a.v[k]...);
    return r;
  }
  friend __device__ __forceinline__ Pack operator+(const Pack& a, const Pack& b) {
    return each([](const auto& x, const auto& y) { return x + y; }, a, b);
  }
  friend __device__ __forceinline__ Pack operator-(const Pack& a, const Pack& b) {
    return each([](const auto& x, const auto& y) { return x - y; }, a, b);
  }
  friend __device__ __forceinline__ Pack operator*(const Pack& a, const Pack& b) {
    return each([](const auto& x, const auto& y) { return x * y; }, a, b);
  }
  __device__ __forceinline__ Pack& operator+=(const Pack& b) { return *this = *this + b; }
};

template <int L, int K>
__device__ __forceinline__ Pack<L, K> fma(const Pack<L, K>& a, const Pack<L, K>& b, const Pack<L, K>& c) {
  return Pack<L, K>::each([](const auto& x, const auto& y, const auto& z) { return fma(x, y, z); }, a, b, c);
}
// The larger; NaN where b is NaN.
template <int L, int K>
__device__ __forceinline__ Pack<L, K> max(const Pack<L, K>& a, const Pack<L, K>& b) {
  return Pack<L, K>::each([](const auto& x, const auto& y) { return max(x, y); }, a, b);
}
// x where `gate` is positive, else 0: the derivative of a ReLU whose input or output is `gate`.
template <int L, int K>
__device__ __forceinline__ Pack<L, K> where_positive(const Pack<L, K>& gate, const Pack<L, K>& x) {
  return Pack<L, K>::each([](const auto& g, const auto& y) { return select(g > Vec<L>(0), y, Vec<L>(0)); }, gate, x);
}
template <class P, class T>
__device__ __forceinline__ P load_pack(const T* p) {
  P r;
  REGOLITH_UNROLL
  for (int k = 0; k < static_cast<int>(sizeof r.v / sizeof r.v[0]); ++k) {
    using V = std::remove_cvref_t<decltype(r.v[0])>;
    r.v[k] = load<V>(p + k * V::size);
  }
  return r;
}
template <class T, int L, int K>
__device__ __forceinline__ void store_pack(T* p, const Pack<L, K>& a) {
  REGOLITH_UNROLL
  for (int k = 0; k < K; ++k) store(p + k * L, a.v[k]);
}

// Threads of a block as `rows` times `columns`; a column owns one of the `units` packs of a pixel.
struct ThreadTile {
  int columns, rows, column, row;
  __device__ __forceinline__ explicit ThreadTile(int units) {
    const int threads = static_cast<int>(blockDim.x), rank = static_cast<int>(threadIdx.x);
    columns = units < threads ? units : threads;
    rows = threads / columns;
    column = rank % columns;
    row = rank / columns;  // == rows for threads left over
  }
};

// Pixels that are handled together: on the host so many that their channels stay in the first caches while the columns
// are gone through one after the other; elsewhere all.
template <class T>
__device__ __forceinline__ int64_t chunk_of(int64_t pixels, [[maybe_unused]] int C) {
  if constexpr (kWarp == 1) {
    const int64_t fit = 32768 / (static_cast<int64_t>(C) * static_cast<int64_t>(sizeof(T)));
    return fit < 32 ? 32 : fit > 512 ? 512 : fit;
  } else {
    return pixels;
  }
}

// Calls body(c, first, last, step) for every share of the pixels of `range` that the thread owns: pixels first,
// first + step, ... below last, and of each the channels c to c + P::size. Not all threads make the same calls.
template <class T, class P, class F>
__device__ __forceinline__ void for_each_tile(Range range, int C, F&& body) {
  const int units = C / P::size;
  const ThreadTile crew(units);
  if (crew.row >= crew.rows) return;
  const int64_t chunk = chunk_of<T>(range.end - range.begin, C);
  for (int64_t begin = range.begin; begin < range.end; begin += chunk) {
    const int64_t end = begin + chunk < range.end ? begin + chunk : range.end;
    for (int u = crew.column; u < units; u += crew.columns) body(u * P::size, begin + crew.row, end, crew.rows);
  }
}

// Folds the states of the threads of a column into that of its row 0, in a fixed order. State: `floats` (a multiple of
// 4, or anything for packs of one channel), save(float*), merge(const float*). All threads of the block call it.
template <class State>
__device__ __forceinline__ void reduce_rows(const ThreadTile& crew, State& mine, float* scratch) {
  for (int left = crew.rows; left > 1;) {
    const int half = (left + 1) / 2;
    sync_block();  // the scratch may still be read
    if (crew.row >= half && crew.row < left) {
      mine.save(scratch + ((crew.row - half) * crew.columns + crew.column) * State::floats);
    }
    sync_block();
    if (crew.row < left - half) mine.merge(scratch + (crew.row * crew.columns + crew.column) * State::floats);
    left = half;
  }
}
// Floats of shared memory that reduce_rows needs.
template <class State>
size_t reduce_scratch(int threads, int units) {
  const int columns = std::min(threads, units), rows = threads / columns;
  return rows == 1 ? 0 : static_cast<size_t>((rows + 1) / 2) * columns * State::floats;
}

// Threads of a block: `threads`, or the one that the fast host has.
constexpr unsigned tile_threads(unsigned threads) { return kWarp == 1 ? 1 : threads; }

// Calls f with the number of packs' vectors, as a compile-time constant: as many as the channels allow up to 4 on the
// fast host, where they amortise the loop; 1 elsewhere.
template <int L, class F>
void with_pack([[maybe_unused]] int C, F&& f) {
  if constexpr (kWarp == 1 && L > 1) {
    if (C % (4 * L) == 0) return f(std::integral_constant<int, 4>{});
    if (C % (2 * L) == 0) return f(std::integral_constant<int, 2>{});
  }
  return f(std::integral_constant<int, 1>{});
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
