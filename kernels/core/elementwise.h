// Kernels that treat every element alike: y (+)= f(inputs...), where f is a function object over vectors of fp32.
//
//   elementwise(stream, "add", Sum{}, y, accumulate, a, b);
//
// An input is a map like y, or one of the operands below, which are smaller than y and repeated. Any input may be y.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kernels/core/columns.h"
#include "kernels/core/error.h"
#include "kernels/core/launch.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr unsigned kElementThreads = 256;

struct Identity {
  template <class V>
  __device__ __forceinline__ V operator()(const V& a) const {
    return a;
  }
};
struct Sum {
  template <class V>
  __device__ __forceinline__ V operator()(const V& a, const V& b) const {
    return a + b;
  }
};
struct Product {
  template <class V>
  __device__ __forceinline__ V operator()(const V& a, const V& b) const {
    return a * b;
  }
};

struct PerPixel {
  TensorView x;  // (N, H, W, 1), of y's element type
};
struct PerImage {
  TensorView x;  // (N, 1, 1, C), of y's element type
};
struct Parameter {
  const float* x;  // (C) with pitch 0, or (H, W, C) with pitch C
  int pitch;       // from one pixel of an image to the next
};

template <class In>
inline constexpr bool kByImage = std::is_same_v<In, PerImage> || std::is_same_v<In, Parameter>;

// Where a thread stands.
struct Place {
  int64_t pixel;     // of the batch
  int64_t position;  // of the image
  int image, c;
};

template <class T, class P>
__device__ __forceinline__ P read(const TensorView& x, const Place& at) {
  return load_pack<P>(x.as<const T>() + at.pixel * x.pitch + at.c);
}
template <class T, class P>
__device__ __forceinline__ P read(const PerPixel& b, const Place& at) {
  return P(static_cast<float>(b.x.as<const T>()[at.pixel * b.x.pitch]));
}
template <class T, class P>
__device__ __forceinline__ P read(const PerImage& b, const Place& at) {
  return load_pack<P>(b.x.as<const T>() + static_cast<int64_t>(at.image) * b.x.pitch + at.c);
}
template <class T, class P>
__device__ __forceinline__ P read(const Parameter& b, const Place& at) {
  return load_pack<P>(b.x + at.position * b.pitch + at.c);
}

// What with_lanes has to look at.
inline const TensorView& vectors_of(const TensorView& x, int) { return x; }
inline TensorView vectors_of(const PerPixel&, int) { return {}; }
inline const TensorView& vectors_of(const PerImage& b, int) { return b.x; }
inline TensorView vectors_of(const Parameter& b, int C) { return row_map(b.x, C); }

inline void expect_alike(const char* kernel, std::initializer_list<TensorView> maps) {
  const TensorView& x = *maps.begin();
  for (const TensorView& m : maps) {
    if (m.N != x.N || m.H != x.H || m.W != x.W || m.C != x.C || m.dtype != x.dtype)
      throw KernelError(std::string(kernel) + ": all maps must have one shape and one element type");
  }
}

// Looks at whole maps of one shape as pixels of 64 channels where their elements divide, so that one channel goes in
// vectors as well. Slices, and odd sizes, stay as they are.
inline void flatten(std::initializer_list<TensorView*> maps) {
  constexpr int kChannels = 64;
  const auto odd = [](const TensorView* m) { return !m->whole() || m->elements() % kChannels != 0; };
  if (std::any_of(maps.begin(), maps.end(), odd)) return;
  for (TensorView* m : maps)
    *m = {m->data, 1, 1, static_cast<int>(m->elements() / kChannels), kChannels, kChannels, m->dtype};
}

// Grid: shares of the pixels of an image, and of the images. One image stands for all where no operand goes by images.
template <class T, class P, class F, class... In>
__global__ REGOLITH_FLAT void __launch_bounds__(kElementThreads, 4)
    map_elements(F f, TensorView y, int images, int64_t pixels, bool accumulate, In... in) {
  if constexpr (!(kByImage<In> || ...)) images = 1;
  for (int image = static_cast<int>(blockIdx.y); image < images; image += static_cast<int>(gridDim.y)) {
    const int64_t before = image * pixels;
    for_each_tile<T, P>(block_range(pixels), y.C, [&](int c, int64_t first, int64_t last, int step) {
#if defined(__CUDACC__)
#pragma unroll 1  // no load may pass the store before it: more rounds at once would take registers for nothing
#endif
      for (int64_t p = first; p < last; p += step) {
        const Place at{before + p, p, image, c};
        T* const out = y.as<T>() + at.pixel * y.pitch + c;
        P v = P::each(f, read<T, P>(in, at)...);
        if (accumulate) v += load_pack<P>(out);
        store_pack(out, v);
      }
    });
  }
}

template <class F, class... In>
void elementwise(Stream& stream, const char* name, F f, TensorView y, bool accumulate, In... in) {
  const auto check = [&](const auto& x) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(x)>, TensorView>) expect_alike(name, {y, x});
  };
  (check(in), ...);
  if constexpr ((std::is_same_v<In, TensorView> && ...)) flatten({&y, &in...});
  with_packs(name, {y, vectors_of(in, y.C)...}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    const int images = (kByImage<In> || ...) ? y.N : 1;
    const int64_t pixels = y.pixels() / std::max(images, 1);
    // On the host a block goes over all images: its part of a parameter stays in the caches.
    const unsigned rows = kWarp == 1 ? std::min(images, 1) : images;
    const Dim3 grid{blocks_for(stream, pixels * y.C / P::size * images / std::max(rows, 1u), 1024), rows};
    launch(stream, name, grid, {kElementThreads}, 0, map_elements<T, P, F, In...>, f, y, images, pixels, accumulate,
           in...);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
