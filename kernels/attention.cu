#include "kernels/attention.h"

#include "kernels/attention_mma.h"
#include "kernels/attention_vector.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// D of the header: (N, heads, positions).
template <class T>
__global__ void __launch_bounds__(256)
    row_products(const T* y, int y_pitch, const T* dy, int dy_pitch, int N, Attention g, float* products) {
  constexpr int L = kWarp == 1 ? 8 : kLanes<T>;
  using V = Vec<L>;
  const int rows = g.heads * g.positions;  // of an image
  const Range r = block_range(static_cast<int64_t>(N) * rows, 64);
  for (int64_t i = r.begin + threadIdx.x; i < r.end; i += blockDim.x) {
    const int n = static_cast<int>(i / rows), head = static_cast<int>(i % rows) / g.positions;
    const int64_t pixel = static_cast<int64_t>(n) * g.positions + i % g.positions;
    const T *a = y + pixel * y_pitch + head * g.d, *b = dy + pixel * dy_pitch + head * g.d;
    V sum(0);
    for (int c = 0; c < g.d; c += L) sum = fma(load<V>(a + c), load<V>(b + c), sum);
    products[i] = sum_lanes(sum);
  }
}

Attention require(const char* kernel, const TensorView& qkv, int heads, std::initializer_list<TensorView> outs) {
  const auto refuse = [&](const std::string& what) { throw KernelError(std::string(kernel) + ": " + what); };
  const int C = qkv.C / 3, positions = qkv.H * qkv.W;
  if (heads < 1 || qkv.C != 3 * C || C % heads != 0)
    refuse(std::to_string(heads) + " heads of " + std::to_string(qkv.C) +
           " channels of q, k and v; expected 3 * heads " + "* d channels");
  const int d = C / heads;
  if (d % 8 != 0 || d > kAttentionHead)
    refuse("a head has " + std::to_string(d) + " channels; expected a multiple of 8 up to " +
           std::to_string(kAttentionHead));
  if (positions > kAttentionPositions)
    refuse(std::to_string(positions) + " positions; expected at most " + std::to_string(kAttentionPositions));
  const auto aligned = [](const TensorView& m) {
    return m.pitch % 8 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  };
  if (!aligned(qkv)) refuse("qkv does not start at, or step by, whole vectors of 8 elements");
  for (const TensorView& m : outs) {
    if (m.N != qkv.N || m.H * m.W != positions || (m.C != C && m.C != qkv.C) || m.dtype != qkv.dtype)
      refuse("maps must have the positions and the element type of qkv, and a third of its channels");
    if (!aligned(m)) refuse("a map does not start at, or step by, whole vectors of 8 elements");
  }
  return {positions, heads, d, 1 / std::sqrt(static_cast<float>(d)), qkv.pitch, outs.begin()->pitch, C};
}

Dim3 grid_of(const TensorView& qkv, const Attention& g, int rows) {
  return {static_cast<unsigned>((g.positions + rows - 1) / rows), static_cast<unsigned>(g.heads),
          static_cast<unsigned>(qkv.N)};
}

// Calls f with d rounded up to what tensor cores are used for.
template <class F>
void with_width(int d, F&& f) {
  if (d <= 32) return f(std::integral_constant<int, 32>{});
  if (d <= 64) return f(std::integral_constant<int, 64>{});
  f(std::integral_constant<int, 128>{});
}

template <class T>
constexpr bool kTensorCores = REGOLITH_MMA && sizeof(T) == 2;

}  // namespace

void attention_forward(Stream& stream, const AttentionForward& k) {
  const Attention g = require("attention_forward", k.qkv, k.heads, {k.y});
  with_float_type(k.qkv.dtype, "attention_forward", [&](auto t) {
    using T = decltype(t);
    const T* qkv = k.qkv.as<const T>();
    T* y = k.y.as<T>();
    if constexpr (kTensorCores<T>) {
#if REGOLITH_MMA
      with_width(g.d, [&](auto width) {
        constexpr int D = width;
        launch(stream, "attention", grid_of(k.qkv, g, attention::kOwn), {attention::kMmaThreads},
               shared_bytes_of<AttentionTiles<T, D>>(true), attend_mma<T, D>, qkv, y, k.lse, g);
      });
#endif
    } else {
      launch(stream, "attention", grid_of(k.qkv, g, attention::kColumns), {attention::kVectorThreads},
             shared_bytes_of<AttendShared<T>>(g.d), attend<T>, qkv, y, k.lse, g);
    }
  });
}

void attention_backward(Stream& stream, const AttentionBackward& k) {
  const Attention g = require("attention_backward", k.qkv, k.heads, {k.dy, k.y});
  if (k.dqkv.N != k.qkv.N || k.dqkv.H * k.dqkv.W != g.positions || k.dqkv.C != k.qkv.C || k.dqkv.pitch != k.qkv.pitch ||
      k.dqkv.dtype != k.qkv.dtype)
    throw KernelError("attention_backward: dqkv must have the shape, the pitch and the element type of qkv");
  float* products = static_cast<float*>(k.workspace);
  with_float_type(k.qkv.dtype, "attention_backward", [&](auto t) {
    using T = decltype(t);
    const T *qkv = k.qkv.as<const T>(), *dy = k.dy.as<const T>();
    T* dqkv = k.dqkv.as<T>();
    launch(stream, "attention_products",
           {blocks_for(stream, static_cast<int64_t>(k.qkv.N) * g.heads * g.positions, 64)}, {256}, 0, row_products<T>,
           k.y.as<const T>(), k.y.pitch, dy, k.dy.pitch, k.qkv.N, g, products);
    if constexpr (kTensorCores<T>) {
#if REGOLITH_MMA
      with_width(g.d, [&](auto width) {
        constexpr int D = width;
        const Dim3 grid = grid_of(k.qkv, g, attention::kOwn);
        const size_t bytes = shared_bytes_of<AttentionTiles<T, D>>(false);
        launch(stream, "attention_dq", grid, {attention::kMmaThreads}, bytes, gradient_mma<T, D, false>, qkv, dy, k.lse,
               products, dqkv, g);
        launch(stream, "attention_dkv", grid, {attention::kMmaThreads}, bytes, gradient_mma<T, D, true>, qkv, dy, k.lse,
               products, dqkv, g);
      });
#endif
    } else {
      if constexpr (kWarp > 1)
        launch(stream, "attention_dq", grid_of(k.qkv, g, attention::kColumns), {attention::kVectorThreads},
               shared_bytes_of<GradientShared<T, false>>(g.d, g.positions), gradient<T, false>, qkv, dy, k.lse,
               products, dqkv, g);
      launch(stream, "attention_dkv", grid_of(k.qkv, g, kWarp > 1 ? attention::kColumns : g.positions),
             {attention::kVectorThreads}, shared_bytes_of<GradientShared<T, true>>(g.d, g.positions), gradient<T, true>,
             qkv, dy, k.lse, products, dqkv, g);
    }
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
