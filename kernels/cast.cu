#include "kernels/cast.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <int L, class From, class To>
__device__ __forceinline__ void convert(const From* from, To* to, bool accumulate) {
  Vec<L> v = load<Vec<L>>(from);
  if (accumulate) v += load<Vec<L>>(to);
  store(to, v);
}

// Vectors of L, then what is left of n one by one.
template <class From, class To, int L>
__global__ void __launch_bounds__(256) cast_array(const From* from, To* to, int64_t n, bool accumulate) {
  const Range r = block_range(n / L, 256);
  for (int64_t i = r.begin + threadIdx.x; i < r.end; i += blockDim.x) convert<L>(from + i * L, to + i * L, accumulate);
  if (blockIdx.x == 0)
    for (int64_t i = n / L * L + threadIdx.x; i < n; i += blockDim.x) convert<1>(from + i, to + i, accumulate);
}

template <class From, class To, int L>
__global__ void __launch_bounds__(kColumnThreads) cast_pixels(TensorView x, TensorView y, bool accumulate) {
  const Range pixels = block_range(x.pixels(), 64);
  for (int64_t p = pixels.begin + threadIdx.y; p < pixels.end; p += blockDim.y)
    for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L)
      convert<L>(x.as<const From>() + p * x.pitch + c, y.as<To>() + p * y.pitch + c, accumulate);
}

// Both types, and how many lanes suit the wider and the narrower of them.
template <class F>
void with_two_types(DType from, DType to, const char* kernel, F&& f) {
  with_stored_type(from, kernel, [&](auto a) { with_stored_type(to, kernel, [&](auto b) { f(a, b); }); });
}
template <class A, class B>
inline constexpr int kCommonLanes = kLanes<A> > kLanes<B> ? kLanes<A> : kLanes<B>;

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void cast(Stream& stream, const Cast& k) {
  with_two_types(k.from_type, k.to_type, "cast", [&](auto a, auto b) {
    using From = decltype(a);
    using To = decltype(b);
    constexpr int L = kCommonLanes<From, To>;
    const auto kernel = aligned(k.from) && aligned(k.to) ? cast_array<From, To, L> : cast_array<From, To, 1>;
    launch(stream, "cast", {blocks_for(stream, k.n, 4096)}, {256}, 0, kernel, static_cast<const From*>(k.from),
           static_cast<To*>(k.to), k.n, k.accumulate);
  });
}

void cast_map(Stream& stream, const CastMap& k) {
  if (k.x.whole() && k.y.whole())
    return cast(stream, {k.x.data, k.x.dtype, k.y.data, k.y.dtype, k.y.elements(), k.accumulate});
  with_two_types(k.x.dtype, k.y.dtype, "cast_map", [&](auto a, auto b) {
    using From = decltype(a);
    using To = decltype(b);
    constexpr int L = kCommonLanes<From, To>;
    const auto whole = [](const TensorView& m) { return m.C % L == 0 && m.pitch % L == 0 && aligned(m.data); };
    const bool vectors = whole(k.x) && whole(k.y);
    launch(stream, "cast_map", {blocks_for(stream, k.y.pixels(), 64)}, columns_block(vectors ? k.y.C / L : k.y.C), 0,
           vectors ? cast_pixels<From, To, L> : cast_pixels<From, To, 1>, k.x, k.y, k.accumulate);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
