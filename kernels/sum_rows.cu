#include "kernels/sum_rows.h"

#include "kernels/core/flat.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T>
__global__ void __launch_bounds__(kFlatThreads, 4) add_rows(SumRows a) {
  const T* const rows = static_cast<const T*>(a.rows);
  const auto row = [&](int j) { return rows + (a.order == nullptr ? j : a.order[j]) * a.count; };
  for_vectors(a.count, [&](auto lanes, int64_t i) {
    using V = decltype(lanes);
    V sum = load<V>(row(0) + i);
    for (int j = 1; j < a.terms; ++j) sum += load<V>(row(j) + i);
    store(a.out + i, sum);
  });
}

__global__ void __launch_bounds__(kFlatThreads, 8) mean_of_rows(SumRows a) {
  const float* const rows = static_cast<const float*>(a.rows);
  const Range r = block_range(a.count);
  for (int64_t i = r.begin + threadIdx.x; i < r.end; i += blockDim.x) {
    double sum = 0;
    for (int j = 0; j < a.terms; ++j) sum += rows[(a.order == nullptr ? j : a.order[j]) * a.count + i];
    a.out[i] = static_cast<float>(sum / a.terms);
  }
}

}  // namespace

void sum_rows(Stream& stream, const SumRows& a) {
  if (a.terms < 1 || a.count % 8 != 0)
    throw KernelError("sum_rows: takes at least one row of a multiple of 8 values, not " + std::to_string(a.terms) +
                      " of " + std::to_string(a.count));
  if (a.type != DType::f32 && (a.type != DType::bf16 || a.mean))
    throw KernelError("sum_rows: takes rows of fp32, or of bf16 without a mean, not " + std::string(name_of(a.type)));
  if (a.count == 0) return;
  const Dim3 grid{blocks_for(stream, a.count, kFlatThreads * kFlatLanes)};
  launch(stream, "sum_rows", grid, {kFlatThreads}, 0,
         a.mean                  ? mean_of_rows
         : a.type == DType::bf16 ? add_rows<bf16>
                                 : add_rows<float>,
         a);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
