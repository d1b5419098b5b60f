#include "kernels/dropout.h"

#include "kernels/add.h"
#include "kernels/core/dropout.h"
#include "kernels/core/elementwise.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads, 4)
    drop(TensorView x, TensorView y, DropoutNumbers numbers, bool accumulate) {
  using V = Vec<L>;
  DropoutFactors<> factors(numbers);
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* in = row_of<const T>(x, row);
    T* out = row_of<T>(y, row);
    const auto put = [&](int w, int c, const V& factor) {
      V v = load<V>(in + w * x.pitch + c) * factor;
      if (accumulate) v += load<V>(out + w * y.pitch + c);
      store(out + w * y.pitch + c, v);
    };
    const int n = row / y.H;
    factors.sample(n);
    if (numbers.spatial) {  // a thread draws once a channel and row
      for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L) {
        const V factor = factors.template at<L>(c);
        for (int w = threadIdx.y; w < y.W; w += blockDim.y) put(w, c, factor);
      }
    } else {
      const int64_t first = static_cast<int64_t>(row - n * y.H) * y.W * y.C;
      for (int w = threadIdx.y; w < y.W; w += blockDim.y)
        for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L)
          put(w, c, factors.template at<L>(first + w * y.C + c));
    }
  }
}

}  // namespace

void dropout(Stream& stream, const Dropout& k) {
  const TensorView &x = k.x, &y = k.y;
  expect_alike("dropout", {x, y});
  if (!(k.draws.rate >= 0 && k.draws.rate < 1))
    throw KernelError("dropout: the rate is " + std::to_string(k.draws.rate) + "; expected 0 or more and less than 1");
  if (!k.draws) {
    if (x.data != y.data || k.accumulate) add_forward(stream, {.a = x, .b = {}, .y = y, .accumulate = k.accumulate});
    return;
  }
  with_float_type(y.dtype, "dropout", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({x, y}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "dropout", {row_blocks(stream, y)}, columns_block(y.C / L), 0, drop<T, L>, x, y,
             dropout_numbers(k.draws), k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
