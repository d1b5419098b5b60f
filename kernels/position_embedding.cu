#include "kernels/position_embedding.h"

#include "kernels/core/elementwise.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

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

}  // namespace

void position_embedding_forward(Stream& stream, const PositionEmbeddingForward& k) {
  elementwise(stream, "embed", Sum{}, k.y, false, k.x, Parameter{k.embedding, k.x.C});
}

void position_embedding_backward(Stream& stream, const PositionEmbeddingBackward& k) {
  with_float_type(k.dy.dtype, "position_embedding_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.dy, row_map(k.dembedding, k.dy.C)}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "embed_gradient", {blocks_for(stream, static_cast<int64_t>(k.dy.H) * k.dy.W, 4)},
             columns_block(k.dy.C / L), 0, embed_gradient<T, L>, k.dy, k.dembedding, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
