#include "kernels/adamw.h"

#include "kernels/core/flat.h"
#include "kernels/core/math.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr int kThreads = kFlatThreads, L = kFlatLanes;

// Copy: float where there is none
template <class Copy, class V>
__device__ __forceinline__ void put(float* weights, Copy* copy, int64_t i, const V& w) {
  store(weights + i, w);
  if constexpr (sizeof(Copy) == 2) store(copy + i, w);
}

template <class Copy>
__global__ void __launch_bounds__(kThreads, 8) adamw_update(AdamW a, Copy* copy) {
  if (!a.state->finite) return;
  const float scale = a.state->gradient_scale, rate = a.state->learning_rate;
  const float keep = 1 - rate * a.weight_decay, step = static_cast<float>(rate / a.state->bias_correction[0]);
  const float over_c2 = static_cast<float>(1 / a.state->bias_correction[1]);
  const float epsilon = a.epsilon_hat ? a.epsilon * sqrtf(over_c2) : a.epsilon;
  const float beta1 = static_cast<float>(a.beta1), rest1 = static_cast<float>(1 - a.beta1);
  const float beta2 = static_cast<float>(a.beta2), rest2 = static_cast<float>(1 - a.beta2);
  for_vectors(a.count, [&](auto lanes, int64_t i) {
    using V = decltype(lanes);
    const V g = load<V>(a.gradient + i) * V(scale);
    const V m = fma(V(beta1), load<V>(a.m + i), V(rest1) * g);
    const V v = fma(V(beta2), load<V>(a.v + i), V(rest2) * g * g);
    store(a.m + i, m);
    store(a.v + i, v);
    const V down = V(step) * m / (sqrt(v * V(over_c2)) + V(epsilon));
    put(a.weights, copy, i, load<V>(a.weights + i) * V(keep) - down);
  });
}

template <class Copy>
__global__ void __launch_bounds__(kThreads, 8) sgd_update(Sgd a, Copy* copy) {
  if (!a.state->finite) return;
  const float scale = a.state->gradient_scale, rate = a.state->learning_rate;
  for_vectors(a.count, [&](auto lanes, int64_t i) {
    using V = decltype(lanes);
    const V w = load<V>(a.weights + i);
    const V g = fma(V(a.weight_decay), w, load<V>(a.gradient + i) * V(scale));
    const V m = fma(V(a.momentum), load<V>(a.m + i), g);
    store(a.m + i, m);
    put(a.weights, copy, i, w - V(rate) * (a.nesterov ? fma(V(a.momentum), m, g) : m));
  });
}

// Calls f with the low-precision copy, or with a null float pointer where none is asked for.
template <class F>
void with_copy(void* copy, DType type, const char* kernel, F&& f) {
  if (copy == nullptr) return f(static_cast<float*>(nullptr));
  if (type == DType::bf16) return f(static_cast<bf16*>(copy));
  if (type == DType::f16) return f(static_cast<fp16*>(copy));
  throw KernelError(std::string(kernel) + ": the copy of the weights is bf16 or fp16, not " +
                    std::string(name_of(type)));
}

}  // namespace

void adamw(Stream& stream, const AdamW& a) {
  with_copy(a.copy, a.copy_type, "adamw", [&](auto* copy) {
    launch(stream, "adamw", {blocks_for(stream, a.count, kThreads * L)}, {kThreads}, 0,
           adamw_update<std::remove_pointer_t<decltype(copy)>>, a, copy);
  });
}

void sgd(Stream& stream, const Sgd& a) {
  with_copy(a.copy, a.copy_type, "sgd", [&](auto* copy) {
    launch(stream, "sgd", {blocks_for(stream, a.count, kThreads * L)}, {kThreads}, 0,
           sgd_update<std::remove_pointer_t<decltype(copy)>>, a, copy);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
