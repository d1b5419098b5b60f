#include "engine/ops/attention_gate.h"

#include "engine/base/error.h"
#include "engine/ops/conv.h"
#include "engine/ops/registry.h"
#include "kernels/attention_gate.h"

namespace regolith {
namespace {

enum Param { theta, phi, psi, bias };

kernels::AttentionGateWeights weights(const OpRun& run, int Ci) {
  return {.theta = run.params[theta].compute,
          .phi = run.params[phi].compute,
          .psi = run.params[psi].master,
          .bias = run.params[bias].master,
          .packed = run.packed[0],
          .Ci = Ci};
}

}  // namespace

Inference AttentionGateOp::infer(const std::vector<Shape>& inputs) {
  x_ = inputs[0];
  g_ = inputs[1];
  if (x_.N != g_.N || x_.H != g_.H || x_.W != g_.W)
    throw GraphError("gates x of " + to_string(x_) + " by g of " + to_string(g_) +
                     "; expected the same height and width: upsample g first");
  const int64_t Ci = filters_;
  const auto kernel = [&](const char* name, int64_t out, int64_t in) {
    return ParamSpec{name, {out, 1, 1, in}, init_, in, out, true};
  };
  Inference r;
  r.shape = x_;
  r.params = {kernel("theta/kernel", Ci, x_.C),
              kernel("phi/kernel", Ci, g_.C),
              kernel("psi/kernel", 1, Ci),
              {"psi/bias", {1}, Init::zeros, 0, 0, true}};
  r.saves_input = {true, true};
  r.saved_bytes = static_cast<size_t>(x_.pixels()) * sizeof(float);  // a
  r.macs = x_.pixels() * (Ci * (x_.C + g_.C + 1) + x_.C);
  return r;
}

void AttentionGateOp::compile(const CompileContext& context) {
  type_ = context.type;
  packs_ = context.device.kind() != DeviceKind::cuda;
}

size_t AttentionGateOp::backward_workspace() const {
  const auto map = [&](const Shape& s) { return TensorView{nullptr, s.N, s.H, s.W, s.C, s.C, type_}; };
  return kernels::AttentionGateWorkspace(map(x_), map(g_), filters_).bytes;
}

std::vector<Prepacked> AttentionGateOp::prepacked() const {
  return {{"gate", packs_ ? kernels::attention_gate_packed(x_.C, g_.C, filters_) : 0}};
}

void AttentionGateOp::prepack_weights(const OpRun& run) {
  if (!packs_) return;
  kernels::attention_gate_pack(*run.stream, {.theta = run.params[theta].compute,
                                             .phi = run.params[phi].compute,
                                             .dtype = type_,
                                             .Cx = x_.C,
                                             .Cg = g_.C,
                                             .Ci = filters_,
                                             .packed = run.packed[0]});
}

void AttentionGateOp::forward(const OpRun& run) {
  kernels::attention_gate_forward(*run.stream, {.x = run.x[0],
                                                .g = run.x[1],
                                                .weights = weights(run, filters_),
                                                .y = run.y,
                                                .a = static_cast<float*>(run.saved)});
}

void AttentionGateOp::backward(const OpRun& run) {
  kernels::attention_gate_backward(*run.stream, {.x = run.x[0],
                                                 .g = run.x[1],
                                                 .weights = weights(run, filters_),
                                                 .a = static_cast<const float*>(run.saved),
                                                 .dy = run.dy,
                                                 .dx = run.dx[0],
                                                 .dg = run.dx[1],
                                                 .accumulate_dx = run.accumulate[0],
                                                 .accumulate_dg = run.accumulate[1],
                                                 .dtheta = run.params[theta].grad,
                                                 .dphi = run.params[phi].grad,
                                                 .dpsi = run.params[psi].grad,
                                                 .dbias = run.params[bias].grad,
                                                 .accumulate_grads = run.accumulate_grads,
                                                 .workspace = run.workspace});
}

namespace {

std::unique_ptr<Op> parse_attention_gate(const Attributes& a) {
  const int filters = a.integer("filters", "channels in which x and g are compared", 1, kernels::kGateChannels);
  return std::make_unique<AttentionGateOp>(filters, parse_init(a));
}

const RegisterOp gate{"attention_gate", "a skip, each pixel times a gate", 2, 2, parse_attention_gate};

}  // namespace

}  // namespace regolith
