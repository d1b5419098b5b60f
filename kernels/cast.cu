#include "kernels/cast.h"

#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <int L, class From, class To>
__device__ __forceinline__ void convert(const From* from, To* to, bool accumulate) {
  Vec<L> v = load<Vec<L>>(from);
  if (accumulate) v += load<Vec<L>>(to);
  store(to, v);
}

// `vectors` of L, then what is left of n one by one.
template <class From, class To, int L>
__global__ void __launch_bounds__(256)
    cast_array(const From* from, To* to, int64_t n, int64_t vectors, bool accumulate) {
  const Range r = block_range(vectors, 256);
  for (int64_t i = r.begin + threadIdx.x; i < r.end; i += blockDim.x) convert<L>(from + i * L, to + i * L, accumulate);
  const Range rest = block_range(n - vectors * L, 256);
  for (int64_t i = vectors * L + rest.begin + threadIdx.x; i < vectors * L + rest.end; i += blockDim.x)
    convert<1>(from + i, to + i, accumulate);
}

}  // namespace

void cast(Stream& stream, const Cast& k) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  with_stored_type(k.from_type, "cast", [&](auto a) {
    with_stored_type(k.to_type, "cast", [&](auto b) {
      using From = decltype(a);
      using To = decltype(b);
      constexpr int L = std::max(kLanes<From>, kLanes<To>);
      launch(stream, "cast", {blocks_for(stream, k.n, 4096)}, {256}, 0, cast_array<From, To, L>,
             static_cast<const From*>(k.from), static_cast<To*>(k.to), k.n,
             aligned(k.from) && aligned(k.to) ? k.n / L : 0, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
