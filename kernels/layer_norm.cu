#include "kernels/layer_norm.h"

#include "kernels/core/columns.h"
#include "kernels/core/reduce.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = 256;

// A warp owns a pixel; its channels stay in the first cache from one pass to the next.
template <class T, int L>
__global__ void __launch_bounds__(kThreads) layer_norm(TensorView x, TensorView y, const float* gamma,
                                                       const float* beta, float* mean, float* rstd, float epsilon) {
  using V = Vec<L>;
  const Range pixels = block_range(x.pixels());
  const int first = lane() * L, step = kWarp * L;
  const float over_C = 1 / static_cast<float>(x.C);
  for (int64_t p = pixels.begin + warp_rank(); p < pixels.end; p += warps()) {
    const T* in = x.as<const T>() + p * x.pitch;
    T* out = y.as<T>() + p * y.pitch;
    V sum(0), squares(0);
    for (int c = first; c < x.C; c += step) sum += load<V>(in + c);
    const float m = warp_sum(sum_lanes(sum)) * over_C;
    for (int c = first; c < x.C; c += step) {
      const V d = load<V>(in + c) - V(m);
      squares = fma(d, d, squares);
    }
    const float r = 1 / sqrtf(warp_sum(sum_lanes(squares)) * over_C + epsilon);
    for (int c = first; c < x.C; c += step)
      store(out + c, fma((load<V>(in + c) - V(m)) * V(r), load<V>(gamma + c), load<V>(beta + c)));
    if (lane() == 0) {
      mean[p] = m;
      rstd[p] = r;
    }
  }
}

template <class T, int L>
__global__ void __launch_bounds__(kThreads, 4)
    layer_norm_gradient(TensorView x, TensorView dy, TensorView dx, const float* gamma, const float* mean,
                        const float* rstd, bool accumulate) {
  using V = Vec<L>;
  const Range pixels = block_range(x.pixels());
  const int first = lane() * L, step = kWarp * L;
  const float over_C = 1 / static_cast<float>(x.C);
  for (int64_t p = pixels.begin + warp_rank(); p < pixels.end; p += warps()) {
    const T *in = x.as<const T>() + p * x.pitch, *up = dy.as<const T>() + p * dy.pitch;
    T* out = dx.as<T>() + p * dx.pitch;
    const V m(mean[p]), r(rstd[p]);
    V sum(0), moment(0);
    for (int c = first; c < x.C; c += step) {
      const V g = load<V>(up + c) * load<V>(gamma + c);
      sum += g;
      moment = fma(g, (load<V>(in + c) - m) * r, moment);
    }
    const V a(warp_sum(sum_lanes(sum)) * over_C), b(warp_sum(sum_lanes(moment)) * over_C);
    for (int c = first; c < x.C; c += step) {
      const V h = (load<V>(in + c) - m) * r;
      const V g = (load<V>(up + c) * load<V>(gamma + c) - a - h * b) * r;
      store(out + c, g, accumulate);
    }
  }
}

// Sums of dy * h and of dy, to partials (parts, 2, C).
template <class T, int L>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads)
    layer_norm_sums(TensorView x, TensorView dy, const float* mean, const float* rstd, int64_t each, float* partials) {
  using P = Pack<L, 1>;
  Shared shared;
  float* scratch = shared.take<float>(reduce_scratch<Sums<P, 2>>(kThreads, x.C / L));
  const Plane<const T> xs(x), gs(dy);
  sum_part<P, 2>(x.pixels(), each, x.C, partials, scratch, [&](Sums<P, 2>& sums, int64_t p, int c) {
    const P g = load_pack<P>(gs.at(p, c));
    sums[0] = fma(g, (load_pack<P>(xs.at(p, c)) - P(mean[p])) * P(rstd[p]), sums[0]);
    sums[1] += g;
  });
}

void require(const char* kernel, const TensorView& x, std::initializer_list<TensorView> others) {
  if (x.elements() == 0) throw KernelError(std::string(kernel) + ": x is empty");
  for (const TensorView& m : others) {
    if (m && (m.pixels() != x.pixels() || m.C != x.C || m.dtype != x.dtype))
      throw KernelError(std::string(kernel) + ": all maps must have the shape and the element type of x");
  }
}

}  // namespace

void layer_norm_forward(Stream& stream, const LayerNormForward& k) {
  require("layer_norm_forward", k.x, {k.y});
  const int C = k.x.C;
  with_float_type(k.x.dtype, "layer_norm_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y, row_map(k.gamma, C), row_map(k.beta, C)}, [&](auto lanes) {
      launch(stream, "layer_norm", {blocks_for(stream, k.x.pixels(), 16)}, {kThreads}, 0, layer_norm<T, lanes>, k.x,
             k.y, k.gamma, k.beta, k.mean, k.rstd, k.epsilon);
    });
  });
}

void layer_norm_backward(Stream& stream, const LayerNormBackward& k) {
  require("layer_norm_backward", k.x, {k.dy, k.dx});
  const int C = k.x.C;
  const PixelParts layout = layer_norm_parts(k.x);
  float* partials = static_cast<float*>(k.workspace);
  with_float_type(k.x.dtype, "layer_norm_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.dy, k.dx, row_map(k.gamma, C), row_map(partials, C)}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "layer_norm_sums", {static_cast<unsigned>(layout.parts)}, {kThreads},
             shared_bytes<float>(reduce_scratch<Sums<Pack<L, 1>, 2>>(kThreads, C / L)), layer_norm_sums<T, L>, k.x,
             k.dy, k.mean, k.rstd, layout.each, partials);
      if (!k.dx) return;  // last, because it may overwrite dy
      launch(stream, "layer_norm_gradient", {blocks_for(stream, k.x.pixels(), 16)}, {kThreads}, 0,
             layer_norm_gradient<T, L>, k.x, k.dy, k.dx, k.gamma, k.mean, k.rstd, k.accumulate_dx);
    });
  });
  sum_partials(stream, {partials, layout.parts, 2 * C, C}, k.dgamma, k.accumulate_parameters);
  sum_partials(stream, {partials + C, layout.parts, 2 * C, C}, k.dbeta, k.accumulate_parameters);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
