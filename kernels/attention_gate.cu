#include "kernels/attention_gate.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"
#include "kernels/core/mma.h"
#include "kernels/core/reduce.h"
#if REGOLITH_MMA
#include "kernels/attention_gate_mma.h"
#else
#include "kernels/attention_gate_fast.h"
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

void check(const char* kernel, const TensorView& x, const TensorView& g, int Ci) {
  const auto size = [](const TensorView& m) {
    return std::to_string(m.N) + "x" + std::to_string(m.H) + "x" + std::to_string(m.W);
  };
  if (x.N != g.N || x.H != g.H || x.W != g.W)
    throw KernelError(std::string(kernel) + ": x of " + size(x) + " pixels and g of " + size(g) +
                      "; expected the same N, H, W");
  if (Ci < 1 || Ci > kGateChannels)
    throw KernelError(std::string(kernel) + ": " + std::to_string(Ci) + " intermediate channels; expected 1 to " +
                      std::to_string(kGateChannels));
}

}  // namespace

void attention_gate_pack([[maybe_unused]] Stream& stream, [[maybe_unused]] const AttentionGatePack& k) {
#if !REGOLITH_MMA
  with_float_type(k.dtype, "attention_gate_pack", [&](auto t) {
    using T = decltype(t);
    const Padded o(k.Cx, k.Cg, k.Ci);
    launch(stream, "attention_gate_pack", {static_cast<unsigned>((o.N + o.K) / kPanel)}, {1}, 0, pack<T>, k);
  });
#endif
}

void attention_gate_forward(Stream& stream, const AttentionGateForward& k) {
  const AttentionGateWeights& w = k.weights;
  check("attention_gate_forward", k.x, k.g, w.Ci);
  with_float_type(k.y.dtype, "attention_gate_forward", [&](auto t) {
    using T = decltype(t);
    const T *theta = static_cast<const T*>(w.theta), *phi = static_cast<const T*>(w.phi);
    with_lanes<T>({k.x, k.g, k.y, row_map(theta, k.x.C), row_map(phi, k.g.C)}, [&](auto lanes) {
#if REGOLITH_MMA
      const unsigned blocks = blocks_for(stream, k.x.pixels(), kTile, 16), threads = kGateThreads;
      const size_t bytes = shared_bytes_of<GateShared<T>>();
#else
      const unsigned blocks = blocks_for(stream, k.x.pixels(), kPixels<T>), threads = 1;
      const size_t bytes = shared_bytes_of<GateShared<T>>(Padded(k.x.C, k.g.C, w.Ci));
#endif
      launch(stream, "attention_gate", {blocks}, {threads}, bytes, gate<T, lanes>, k);
    });
  });
}

void attention_gate_backward(Stream& stream, const AttentionGateBackward& k) {
  const AttentionGateWeights& w = k.weights;
  check("attention_gate_backward", k.x, k.g, w.Ci);
  const AttentionGateWorkspace layout(k.x, k.g, w.Ci);
  const unsigned parts = static_cast<unsigned>(layout.parts);
  with_float_type(k.dy.dtype, "attention_gate_backward", [&](auto t) {
    using T = decltype(t);
    const T *theta = static_cast<const T*>(w.theta), *phi = static_cast<const T*>(w.phi);
    const auto maps = {k.x, k.g, k.dy, k.dx, k.dg, row_map(theta, k.x.C), row_map(phi, k.g.C), row_map(theta, w.Ci)};
    with_lanes<T>(maps, [&](auto lanes) {
#if REGOLITH_MMA
      launch(stream, "attention_gate_backward", {static_cast<unsigned>(layout.blocks)}, {kGateThreads},
             shared_bytes_of<GateBackwardShared<T>>(w.Ci), gate_backward<T, lanes>, k, layout);
      const auto tiles = [](int C) { return static_cast<unsigned>((C + kTile - 1) / kTile); };
      launch(stream, "attention_gate_weight_gradient", {tiles(w.Ci) * (tiles(k.x.C) + tiles(k.g.C)), parts},
             {kGateThreads}, shared_bytes_of<GateWeightShared<T>>(), gate_weight_gradient<T, lanes>, k, layout);
#else
      launch(stream, "attention_gate_backward", {parts}, {1},
             shared_bytes_of<GateBackwardShared<T>>(Padded(k.x.C, k.g.C, w.Ci)), gate_backward<T, lanes>, k, layout);
#endif
    });
  });
  const int blocks = REGOLITH_MMA ? layout.blocks : layout.parts;
  const int64_t n = static_cast<int64_t>(w.Ci) * k.x.C;
  const auto add_up = [&](const float* from, int count, int64_t stride, int64_t size, float* to) {
    sum_partials(stream, {from, count, stride, size}, to, k.accumulate_grads);
  };
  const float *weights = layout.weight_sums(k.workspace, 0), *vectors = layout.vector_sums(k.workspace, 0, w.Ci);
  add_up(weights, layout.parts, layout.weights, n, k.dtheta);
  add_up(weights + n, layout.parts, layout.weights, layout.weights - n, k.dphi);
  add_up(vectors, blocks, w.Ci + 1, w.Ci, k.dpsi);
  add_up(vectors + w.Ci, blocks, w.Ci + 1, 1, k.dbias);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
