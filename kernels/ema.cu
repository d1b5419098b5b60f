#include "kernels/ema.h"

#include "kernels/core/flat.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

__global__ void __launch_bounds__(kFlatThreads, 8) ema_update(Ema a) {
  if (!a.state->finite) return;
  const auto t = static_cast<double>(a.state->updates);
  const double ramp = (1 + t) / (10 + t), decay = a.warm_up && ramp < a.decay ? ramp : a.decay;
  const bool first = a.state->updates <= 1;  // what the buffer holds then is no average
  const float share = static_cast<float>(1 - decay);
  for_vectors(a.count, [&](auto lanes, int64_t i) {
    using V = decltype(lanes);
    const V w = load<V>(a.weights + i), before = load<V>(a.average + i);
    store(a.average + i, first ? w : fma(V(share), w - before, before));
  });
}

__global__ void __launch_bounds__(kFlatThreads, 8) exchange_buffers(Exchange e) {
  for_vectors(e.count, [&](auto lanes, int64_t i) {
    using V = decltype(lanes);
    const V a = load<V>(e.a + i), b = load<V>(e.b + i);
    store(e.a + i, b);
    store(e.b + i, a);
  });
}

}  // namespace

void ema(Stream& stream, const Ema& a) {
  launch(stream, "ema", {blocks_for(stream, a.count, kFlatThreads * kFlatLanes)}, {kFlatThreads}, 0, ema_update, a);
}

void exchange(Stream& stream, const Exchange& e) {
  launch(stream, "exchange", {blocks_for(stream, e.count, kFlatThreads * kFlatLanes)}, {kFlatThreads}, 0,
         exchange_buffers, e);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
