#include "kernels/multiply.h"

#include "kernels/core/elementwise.h"
#include "kernels/core/reduce.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kElementThreads, 4)
    multiply_gradient(TensorView a, TensorView b, TensorView dy, TensorView da, TensorView db, bool accumulate_a,
                      bool accumulate_b) {
  for_each_tile<T, P>(block_range(dy.pixels()), dy.C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      const P g = load_pack<P>(dy.as<const T>() + p * dy.pitch + c);
      const P x = load_pack<P>(a.as<const T>() + p * a.pitch + c);
      store_pack(da.as<T>() + p * da.pitch + c, g * load_pack<P>(b.as<const T>() + p * b.pitch + c), accumulate_a);
      store_pack(db.as<T>() + p * db.pitch + c, g * x, accumulate_b);
    }
  });
}

// b is repeated over the channels: `group` neighbouring lanes of a warp share a pixel.

template <class T, int L>
__global__ void __launch_bounds__(kElementThreads, 4)
    multiply_channels_gradient(TensorView a, TensorView b, TensorView dy, TensorView da, TensorView db,
                               bool accumulate_a, bool accumulate_b, int group) {
  using V = Vec<L>;
  const int rank = thread_rank(), groups = block_threads() / group;
  const Range r = block_range(dy.pixels());
  for (int64_t base = r.begin; base < r.end; base += groups) {  // the same for all lanes, which meet in the sum
    const int64_t p = base + rank / group;
    float sum = 0;
    if (p < r.end) {
      const T* const gs = dy.as<const T>() + p * dy.pitch;
      const T* const xs = a.as<const T>() + p * a.pitch;
      T* const out = da.as<T>() + p * da.pitch;
      const V scale(da ? static_cast<float>(b.as<const T>()[p * b.pitch]) : 0.0f);
      V total(0);
      for (int c = rank % group * L; c < dy.C; c += group * L) {
        const V g = load<V>(gs + c);
        total = fma(g, load<V>(xs + c), total);
        if (da) {
          V v = g * scale;
          if (accumulate_a) v += load<V>(out + c);
          store(out + c, v);
        }
      }
      sum = sum_lanes(total);
    }
    for (int m = group / 2; m > 0; m /= 2) sum += shuffle_xor(sum, m);
    if (p >= r.end || rank % group != 0) continue;
    T& out = db.as<T>()[p * db.pitch];
    out = static_cast<T>(accumulate_b ? sum + static_cast<float>(out) : sum);
  }
}

// b is repeated over the pixels.

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kElementThreads, 4)
    multiply_pixels_gradient(TensorView a, TensorView b, TensorView dy, TensorView da, bool accumulate_a, int64_t each,
                             float* partials) {
  Shared shared;
  float* scratch = shared.take<float>(reduce_scratch<Sums<P>>(kElementThreads, dy.C / P::size));
  const T* const scale = b.as<const T>() + static_cast<int64_t>(blockIdx.y) * b.pitch;
  sum_part<P, 1, 1>(static_cast<int64_t>(dy.H) * dy.W, each, dy.C, partials, scratch,
                    [&](Sums<P>& sum, int64_t p, int c) {
                      const P g = load_pack<P>(dy.as<const T>() + p * dy.pitch + c);
                      const P x = load_pack<P>(a.as<const T>() + p * a.pitch + c);
                      if (da) store_pack(da.as<T>() + p * da.pitch + c, g * load_pack<P>(scale + c), accumulate_a);
                      sum[0] += g * x;
                    });
}

bool same(const TensorView& a, const TensorView& b) { return a.N == b.N && a.H == b.H && a.W == b.W && a.C == b.C; }
bool repeats_over_channels(const TensorView& large, const TensorView& b) {
  return b.N == large.N && b.H == large.H && b.W == large.W && b.C == 1;
}

// Null maps are not looked at.
void check(const char* kernel, const TensorView& large, const TensorView& a, const TensorView& b) {
  const bool fits = (!a || same(a, large)) && (!b || same(b, large) || repeats_over_channels(large, b) ||
                                               (b.N == large.N && repeats_over_pixels(large, b)));
  if (!fits || (a && a.dtype != large.dtype) || (b && b.dtype != large.dtype))
    throw KernelError(std::string(kernel) +
                      ": a must have the shape of y, b that shape, (N, H, W, 1) or (N, 1, 1, C), all one element type");
}

// y (+)= a * b
void product(Stream& stream, const TensorView& a, const TensorView& b, const TensorView& y, bool accumulate) {
  if (same(y, b))
    elementwise(stream, "multiply", Product{}, y, accumulate, a, b);
  else if (repeats_over_pixels(y, b))
    elementwise(stream, "multiply_pixels", Product{}, y, accumulate, a, PerImage{b});
  else
    elementwise(stream, "multiply_channels", Product{}, y, accumulate, a, PerPixel{b});
}

// Lanes that share a pixel of so many vectors.
int group_of(int vectors) {
  int group = 1;
  while (group < kWarp && group < vectors) group *= 2;
  return group;
}

}  // namespace

void multiply_forward(Stream& stream, const MultiplyForward& k) {
  check("multiply_forward", k.y, k.a, k.b);
  product(stream, k.a, k.b, k.y, false);
}

void multiply_backward(Stream& stream, const MultiplyBackward& k) {
  check("multiply_backward", k.dy, k.a, k.b);
  check("multiply_backward", k.dy, k.da, k.db);
  if ((k.da && !k.b) || (k.db && !k.a)) throw KernelError("multiply_backward: da needs b, and db needs a");
  if (!k.db) {
    if (k.da) product(stream, k.dy, k.b, k.da, k.accumulate_a);
    return;
  }
  TensorView a = k.a, b = k.da ? k.b : TensorView{}, dy = k.dy, da = k.da, db = k.db;
  if (same(dy, db)) {
    if (!da) return product(stream, dy, a, db, k.accumulate_b);
    flatten({&a, &b, &dy, &da, &db});
    return with_packs("multiply_backward", {dy, a, b, da, db}, [&](auto t, auto pack) {
      using T = decltype(t);
      using P = decltype(pack);
      launch(stream, "multiply_gradient", {blocks_for(stream, dy.elements() / P::size, 1024)}, {kElementThreads}, 0,
             multiply_gradient<T, P>, a, b, dy, da, db, k.accumulate_a, k.accumulate_b);
    });
  }
  if (!repeats_over_pixels(dy, db)) {
    return with_float_type(dy.dtype, "multiply_backward", [&](auto t) {
      using T = decltype(t);
      with_lanes<T>({a, dy, da}, [&](auto lanes) {
        constexpr int L = lanes;
        launch(stream, "multiply_channels_gradient", {blocks_for(stream, dy.elements() / L, 1024)}, {kElementThreads},
               0, multiply_channels_gradient<T, L>, a, b, dy, da, db, k.accumulate_a, k.accumulate_b,
               group_of(dy.C / L));
      });
    });
  }
  with_packs("multiply_backward", {dy, a, b, da, db}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    const PixelParts layout = image_parts(dy);
    float* const partials = static_cast<float*>(k.workspace);
    launch(stream, "multiply_pixels_gradient", {static_cast<unsigned>(layout.parts), static_cast<unsigned>(dy.N)},
           {kElementThreads}, shared_bytes<float>(reduce_scratch<Sums<P>>(kElementThreads, dy.C / P::size)),
           multiply_pixels_gradient<T, P>, a, b, dy, da, k.accumulate_a, layout.each, partials);
    finish_image_sums<T, P::lanes>(stream, partials, layout.parts, 1.0f, db, k.accumulate_b);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
