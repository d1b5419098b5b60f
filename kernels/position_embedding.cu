#include "kernels/position_embedding.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads) embed(TensorView x, const float* embedding, TensorView y) {
  using V = Vec<L>;
  const int positions = x.H * x.W;
  const Range r = block_range(positions);
  for (int n = 0; n < x.N; ++n) {
    for (int64_t p = r.begin + threadIdx.y; p < r.end; p += blockDim.y) {
      const int64_t pixel = static_cast<int64_t>(n) * positions + p;
      const T* in = x.as<const T>() + pixel * x.pitch;
      T* out = y.as<T>() + pixel * y.pitch;
      for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L)
        store(out + c, load<V>(in + c) + load<V>(embedding + p * x.C + c));
    }
  }
}

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads, 4) embed_gradient(TensorView dy, float* dembedding, bool accumulate) {
  using V = Vec<L>;
  const int positions = dy.H * dy.W;
  const Range r = block_range(positions);
  for (int64_t p = r.begin + threadIdx.y; p < r.end; p += blockDim.y) {
    for (int c = threadIdx.x * L; c < dy.C; c += blockDim.x * L) {
      float* out = dembedding + p * dy.C + c;
      V sum = accumulate ? load<V>(out) : V(0);
      for (int n = 0; n < dy.N; ++n)
        sum += load<V>(dy.as<const T>() + (static_cast<int64_t>(n) * positions + p) * dy.pitch + c);
      store(out, sum);
    }
  }
}

template <class F>
void with_shapes(const char* kernel, std::initializer_list<TensorView> maps, const float* embedding, F&& f) {
  const TensorView& x = *maps.begin();
  for (const TensorView& m : maps) {
    if (m.N != x.N || m.H != x.H || m.W != x.W || m.C != x.C || m.dtype != x.dtype)
      throw KernelError(std::string(kernel) + ": all maps must have one shape and one element type");
  }
  with_float_type(x.dtype, kernel, [&](auto t) {
    const auto with = [&](auto lanes) { f(t, lanes); };
    if (maps.size() == 2)
      with_lanes<decltype(t)>({x, maps.begin()[1], row_map(embedding, x.C)}, with);
    else
      with_lanes<decltype(t)>({x, row_map(embedding, x.C)}, with);
  });
}

}  // namespace

void position_embedding_forward(Stream& stream, const PositionEmbeddingForward& k) {
  with_shapes("position_embedding_forward", {k.x, k.y}, k.embedding, [&](auto t, auto lanes) {
    using T = decltype(t);
    constexpr int L = lanes;
    launch(stream, "embed", {blocks_for(stream, static_cast<int64_t>(k.x.H) * k.x.W, 16)}, columns_block(k.x.C / L), 0,
           embed<T, L>, k.x, k.embedding, k.y);
  });
}

void position_embedding_backward(Stream& stream, const PositionEmbeddingBackward& k) {
  with_shapes("position_embedding_backward", {k.dy}, k.dembedding, [&](auto t, auto lanes) {
    using T = decltype(t);
    constexpr int L = lanes;
    launch(stream, "embed_gradient", {blocks_for(stream, static_cast<int64_t>(k.dy.H) * k.dy.W, 4)},
           columns_block(k.dy.C / L), 0, embed_gradient<T, L>, k.dy, k.dembedding, k.accumulate);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
