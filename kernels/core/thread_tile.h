// Divides a batch of pixels of many channels among the threads of a block: a thread owns a pack of neighbouring
// channels of every n-th pixel.
#pragma once

#include "kernels/core/collectives.h"
#include "kernels/core/launch.h"
#include "kernels/core/tensor_view.h"
#include "kernels/core/vec.h"

// REGOLITH_FLAT stands before `void` of a kernel that is built of function objects: the fast host inlines them into its
// loops and keeps what they capture in registers. REGOLITH_DEVICE_LOOP stands before `void` of a loop over pixels that
// several kernels call: a GPU inlines it into each of them; a host compiles it once.
#if defined(__CUDACC__)
#define REGOLITH_FLAT
#define REGOLITH_DEVICE_LOOP __device__ __forceinline__
#elif defined(REGOLITH_CHECKED)
#define REGOLITH_FLAT
#define REGOLITH_DEVICE_LOOP __attribute__((noinline))
#else
#define REGOLITH_FLAT __attribute__((flatten))
#define REGOLITH_DEVICE_LOOP __attribute__((noinline, flatten))
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {

// K neighbouring vectors: what a thread owns where one vector is less than a cache line (the fast host; K is 1
// elsewhere). The operations are those of Vec.
template <int L, int K>
struct Pack {
  static constexpr int lanes = L, size = L * K;
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

template <class T, int L, int K>
__device__ __forceinline__ void store_pack(T* p, Pack<L, K> a, bool accumulate) {
  if (accumulate) a += load_pack<Pack<L, K>>(p);
  store_pack(p, a);
}

// The pixels of a map, by pointer and pitch. A null map has no data.
template <class T>
struct Plane {
  T* data = nullptr;
  int pitch = 0;
  Plane() = default;
  REGOLITH_HOST_DEVICE Plane(T* from, int elements) : data(from), pitch(elements) {}
  // From pixel `pixel` and channel `c` of the map on.
  REGOLITH_HOST_DEVICE explicit Plane(const TensorView& m, int64_t pixel = 0, int c = 0)
      : data(m ? m.as<T>() + pixel * m.pitch + c : nullptr), pitch(m.pitch) {}
  __device__ __forceinline__ T* at(int64_t pixel, int c) const { return data + pixel * pitch + c; }
  __device__ __forceinline__ void ahead(int64_t pixel, int c) const { prefetch(data, pixel * pitch + c); }
};

// The threads of a block as `rows` times `columns`: a column owns one of the `packs` of a pixel, the rows divide the
// pixels.
struct ThreadTile {
  int columns, rows, column, row;
  __device__ __forceinline__ explicit ThreadTile(int packs) {
    const int threads = static_cast<int>(blockDim.x), rank = static_cast<int>(threadIdx.x);
    columns = packs < threads ? packs : threads;
    rows = threads / columns;
    column = rank % columns;
    row = rank / columns;  // == rows for threads left over
  }
  // That of a block of columns_block().
  __device__ __forceinline__ static ThreadTile of_columns() {
    return {static_cast<int>(blockDim.x), static_cast<int>(blockDim.y), static_cast<int>(threadIdx.x),
            static_cast<int>(threadIdx.y)};
  }

 private:
  __device__ __forceinline__ ThreadTile(int width, int height, int x, int y)
      : columns(width), rows(height), column(x), row(y) {}
};

// Pixels of a cache block: on the host all their channels stay in the first caches while the columns are gone through
// one after the other; elsewhere all pixels.
template <class T>
__device__ __forceinline__ int64_t cache_block(int64_t pixels, [[maybe_unused]] int C) {
  if constexpr (kWarp == 1) {
    const int64_t fit = 32768 / (static_cast<int64_t>(C) * static_cast<int64_t>(sizeof(T)));
    return fit < 32 ? 32 : fit > 512 ? 512 : fit;
  } else {
    return pixels;
  }
}

// Calls body(c, first, last, step) for all pixels of `range` that the thread owns: first, first + step, ... below last,
// and of each the channels c to c + P::size. The number of calls differs between threads.
template <class T, class P, class F>
__device__ __forceinline__ void for_each_tile(Range range, int C, F&& body) {
  const int packs = C / P::size;
  const ThreadTile tile(packs);
  if (tile.row >= tile.rows) return;
  const int64_t block = cache_block<T>(range.end - range.begin, C);
  for (int64_t begin = range.begin; begin < range.end; begin += block) {
    const int64_t end = begin + block < range.end ? begin + block : range.end;
    for (int u = tile.column; u < packs; u += tile.columns) body(u * P::size, begin + tile.row, end, tile.rows);
  }
}

// Calls f(element type, pack) with what a thread may own of these maps, the first of which is never null: on the fast
// host up to 4 vectors, so that a pixel's cache lines are read one after the other. `kernel` names itself in the
// KernelError for an element type that it does not take.
template <class F>
void with_packs(const char* kernel, std::initializer_list<TensorView> maps, F&& f) {
  const int C = maps.begin()->C;
  with_float_type(maps.begin()->dtype, kernel, [&](auto t) {
    with_lanes<decltype(t)>(maps, [&](auto lanes) {
      constexpr int L = lanes;
      if constexpr (kWarp == 1 && L > 1) {
        if (C % (4 * L) == 0) return f(t, Pack<L, 4>{});
        if (C % (2 * L) == 0) return f(t, Pack<L, 2>{});
      }
      f(t, Pack<L, 1>{});
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
