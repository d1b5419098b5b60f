// How the kernels of a loss walk over the pixels of a batch: tile by tile, each class a row of shared memory.
#pragma once

#include "kernels/core/launch.h"
#include "kernels/core/math.h"
#include "kernels/softmax_loss.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// A block walks over its pixels tile by tile. A tile lies in shared memory in fp32, class by class, so that a thread
// owns a vector of neighbouring pixels (one, on the GPU) and finds any number of classes without holding them.
constexpr int kTile = 256;
constexpr int kPixels = kWarp == 1 ? kLanes<float> : 1;
using V = Vec<kPixels>;
static_assert(kLossBlockPixels % kTile == 0 && kTile % kPixels == 0);

// The logits or their gradient. `vectors`: every tile of every image is whole 16-byte vectors of memory.
struct Pixels {
  TensorView map;
  bool vectors;
  explicit Pixels(const TensorView& m)
      : map(m),
        vectors(kWarp > 1 && m.whole() && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 &&
                static_cast<int64_t>(m.H) * m.W * m.C * static_cast<int64_t>(size_of(m.dtype)) % 16 == 0) {}
};

// Calls f with the first element of pixel `begin`, by the element type of the map: once a tile, so that a kernel is
// compiled once for all types.
template <class F>
__device__ __forceinline__ void with_elements_at(const TensorView& m, int64_t begin, F&& f) {
  if (m.dtype == DType::f32) return f(m.as<float>() + begin * m.pitch);
  if constexpr (kExecution != Execution::fast) {
    if (m.dtype == DType::f16) return f(m.as<fp16>() + begin * m.pitch);
  }
  f(m.as<bf16>() + begin * m.pitch);
}

__device__ __forceinline__ void load_tile(const Pixels& x, int64_t begin, int pixels, float* tile) {
  const int K = x.map.C, pitch = x.map.pitch;
  with_elements_at(x.map, begin, [&](const auto* from) {
    constexpr int L = kLanes<std::remove_cvref_t<decltype(*from)>>;
    if (kWarp == 1 || !x.vectors) {
      for (int k = 0; k < K; ++k)
        for (int p = threadIdx.x; p < pixels; p += blockDim.x)
          tile[k * kTile + p] = static_cast<float>(from[p * pitch + k]);
      return;
    }
    for (int i = threadIdx.x * L; i < pixels * K; i += blockDim.x * L) {
      const Vec<L> v = load<Vec<L>>(from + i);
      int p = i / K, k = i % K;
      for (int j = 0; j < L; ++j) {
        tile[k * kTile + p] = v[j];
        if (++k == K) k = 0, ++p;
      }
    }
  });
}

__device__ __forceinline__ void store_tile(const Pixels& x, int64_t begin, int pixels, const float* tile) {
  const int K = x.map.C, pitch = x.map.pitch;
  with_elements_at(x.map, begin, [&](auto* to) {
    using T = std::remove_cvref_t<decltype(*to)>;
    constexpr int L = kLanes<T>;
    if (kWarp == 1 || !x.vectors) {
      for (int k = 0; k < K; ++k)
        for (int p = threadIdx.x; p < pixels; p += blockDim.x) to[p * pitch + k] = static_cast<T>(tile[k * kTile + p]);
      return;
    }
    for (int i = threadIdx.x * L; i < pixels * K; i += blockDim.x * L) {
      int p = i / K, k = i % K;
      Vec<L> v;
      for (int j = 0; j < L; ++j) {
        v.set(j, tile[k * kTile + p]);
        if (++k == K) k = 0, ++p;
      }
      store(to + i, v);
    }
  });
}

// The true class of each pixel of a tile, whole vectors of them; K where it counts for nothing.
__device__ __forceinline__ void load_truth(const uint8_t* mask, int64_t begin, int pixels, int K, int ignore,
                                           float* truth) {
  const int whole = (pixels + kPixels - 1) / kPixels * kPixels;
  for (int p = threadIdx.x; p < whole; p += blockDim.x) {
    const int t = mask != nullptr && p < pixels ? mask[begin + p] : K;
    truth[p] = static_cast<float>(t == ignore || t > K ? K : t);
  }
}

// table[t] of each pixel.
__device__ __forceinline__ V look_up(const float* table, const V& t) {
  return V::each([=](float i) { return table[static_cast<int>(i)]; }, t);
}

struct Shape {
  int64_t image;  // pixels
  int K;
};

struct TileShared {
  float *tile, *truth;  // (K, kTile), (kTile)
  template <class A>
  REGOLITH_HOST_DEVICE TileShared(A& a, int K) {
    a.take(tile, K * kTile);
    a.take(truth, kTile);
  }
};

struct TileRange {
  int64_t begin, end;  // of the image's pixels
};
__device__ __forceinline__ TileRange block_pixels(const Shape& s) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kLossBlockPixels, end = begin + kLossBlockPixels;
  return {begin, end < s.image ? end : s.image};
}

// The logits and the truth of the tile at pixel `at` of the block's image, for all threads. Returns its pixels.
__device__ __forceinline__ int load_pixels(const Pixels& x, const uint8_t* mask, int ignore, const Shape& s,
                                           const TileRange& r, int64_t at, float* tile, float* truth) {
  const int pixels = static_cast<int>(r.end - at < kTile ? r.end - at : kTile);
  const int64_t begin = blockIdx.y * s.image + at;
  sync_block();  // the tile may still be read
  load_tile(x, begin, pixels, tile);
  load_truth(mask, begin, pixels, s.K, ignore, truth);
  sync_block();
  return pixels;
}

// Turns a vector's logits, which begin at `here` in the tile, into their exponentials, over that of the highest.
// Returns the sum of them.
__device__ __forceinline__ V exponentials(float* here, int K) {
  V top = load<V>(here), sum(0);
  for (int k = 1; k < K; ++k) top = max(load<V>(here + k * kTile), top);
  for (int k = 0; k < K; ++k) {
    const V e = exp(load<V>(here + k * kTile) - top);
    store(here + k * kTile, e);
    sum += e;
  }
  return sum;
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
