#include "engine/ops/conv.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "kernels/activation.h"
#include "kernels/bias.h"
#include "kernels/channel_sum.h"

namespace regolith {
namespace {

std::string describe(const ConvAttributes& a) {
  std::string text = join(a.kernel, "x") + ", " + std::to_string(a.filters) + " filters";
  if (a.stride != std::array{1, 1}) text += ", stride " + join(a.stride, "x");
  if (a.dilation != std::array{1, 1}) text += ", dilation " + join(a.dilation, "x");
  if (!a.same) text += ", valid";
  if (a.relu) text += " + relu";
  return text;
}

void check(const ConvAttributes& a) {
  if (a.filters < 1) throw GraphError("filters is " + std::to_string(a.filters) + "; expected at least 1");
  for (int i = 0; i < 2; ++i) {
    if (a.dilation[i] > 1 && a.kernel[i] % 2 == 0)
      throw GraphError("dilation " + std::to_string(a.dilation[i]) + " on the even kernel " + join(a.kernel, "x") +
                       " has no centre; use an odd kernel or dilation 1");
  }
}

// The convolution of these attributes with C input channels and K outputs over an N x H x W map.
ConvShape conv_shape(const ConvAttributes& a, int N, int H, int W, int C, int K) {
  ConvShape s{N, H, W, C, K, a.kernel[0], a.kernel[1], a.stride, a.dilation, {0, 0}, {0, 0}};
  if (a.same) {
    const auto h = same_padding(H, a.kernel[0], a.stride[0], a.dilation[0]);
    const auto w = same_padding(W, a.kernel[1], a.stride[1], a.dilation[1]);
    s.pad_before = {h[0], w[0]};
    s.pad_after = {h[1], w[1]};
  }
  if (s.P() < 1 || s.Q() < 1)
    throw GraphError("a " + join(a.kernel, "x") + " kernel does not fit a map of " + size_text({H, W}));
  return s;
}

ConvRequest request(const ConvShape& shape, const CompileContext& c) {
  ConvRequest r;
  r.shape = shape;
  r.type = c.type;
  r.tf32 = c.tf32;
  r.needs_wgrad = c.training;
  r.deterministic = c.deterministic;
  r.workspace_limit = static_cast<size_t>(c.conv.workspace_mib) << 20;
  return r;
}

std::string provider_text(const Convolution& c) {
  const std::string name(c.provider()), what = c.implementation();
  return what.empty() ? name : name + " " + what;
}

}  // namespace

std::array<int, 2> same_padding(int in, int kernel, int stride, int dilation) {
  const int out = (in + stride - 1) / stride;
  const int total = std::max((out - 1) * stride + (kernel - 1) * dilation + 1 - in, 0);
  return {total / 2, total - total / 2};
}

ConvAttributes parse_conv(const Attributes& a) {
  ConvAttributes c;
  c.kernel = a.pair("kernel", 1, 255, 3);
  c.stride = a.pair("stride", 1, 64, 1);
  c.dilation = a.pair("dilation", 1, 1024, 1);
  c.same = a.choice("padding", {"same", "valid"}, "same") == "same";
  c.bias = a.boolean("bias", true);
  c.init = a.choice("init", {"glorot_uniform", "he_normal"}, "glorot_uniform") == "he_normal" ? Init::he_normal
                                                                                              : Init::glorot_uniform;
  return c;
}

std::string ConvOp::describe() const { return regolith::describe(a_); }

Inference ConvOp::infer(const std::vector<Shape>& inputs) {
  check(a_);
  const Shape& x = inputs[0];
  shape_ = conv_shape(a_, x.N, x.H, x.W, x.C, a_.filters);
  const int64_t taps = static_cast<int64_t>(a_.kernel[0]) * a_.kernel[1];
  Inference r;
  r.shape = {x.N, shape_.P(), shape_.Q(), a_.filters};
  r.params.push_back(
      {"kernel", {a_.filters, a_.kernel[0], a_.kernel[1], x.C}, a_.init, taps * x.C, taps * a_.filters, true});
  if (a_.bias) r.params.push_back({"bias", {a_.filters}, Init::zeros, 0, 0, true});
  r.saves_input = {true};
  r.saves_output = a_.relu;  // its sign is the gradient's mask
  r.macs = shape_.macs();
  return r;
}

void ConvOp::compile(const CompileContext& context) {
  ConvRequest r = request(shape_, context);
  r.bias = a_.bias;
  r.relu = a_.relu;
  r.needs_dgrad = context.training && context.needs_dx[0];
  conv_ = pick_convolution(context.device, r, context.conv);
  skip_bias_gradient_ = a_.bias_cancels && context.batch_statistics;
}

std::string ConvOp::provider() const { return provider_text(*conv_); }

size_t ConvOp::backward_workspace() const { return std::max(conv_->dgrad_workspace(), conv_->wgrad_workspace()); }

void ConvOp::prepack_weights(const OpRun& run) {
  conv_->prepack_weights(*run.stream, run.params[0].compute, run.packed);
}

void ConvOp::forward(const OpRun& run) {
  const float* bias = a_.bias ? run.params[1].master : nullptr;
  conv_->forward(*run.stream, run.x[0], run.params[0].compute, run.packed, bias, run.y, run.workspace);
}

void ConvOp::backward(const OpRun& run) {
  if (a_.relu)
    kernels::activation_backward(*run.stream,
                                 {.f = kernels::Activation::relu, .saved = run.y, .dy = run.dy, .dx = run.dy});
  float* db = a_.bias && !skip_bias_gradient_ ? run.params[1].grad : nullptr;
  conv_->wgrad(*run.stream, run.x[0], run.dy, run.params[0].grad, db, run.accumulate_grads, run.workspace);
  if (run.dx[0])
    conv_->dgrad(*run.stream, run.dy, run.params[0].compute, run.packed, run.dx[0], run.workspace,
                 {.accumulate = run.accumulate[0]});
}

std::string ConvTransposeOp::describe() const { return regolith::describe(a_); }

Inference ConvTransposeOp::infer(const std::vector<Shape>& inputs) {
  check(a_);
  const Shape& x = inputs[0];
  if (!a_.same) throw GraphError("a transposed convolution takes padding: same only");
  const int H = x.H * a_.stride[0], W = x.W * a_.stride[1];
  shape_ = conv_shape(a_, x.N, H, W, a_.filters, x.C);
  const int64_t taps = static_cast<int64_t>(a_.kernel[0]) * a_.kernel[1];
  Inference r;
  r.shape = {x.N, H, W, a_.filters};
  // Keras stores (R, S, filters, C) and counts its fans from that: in = filters, out = C.
  r.params.push_back(
      {"kernel", {x.C, a_.kernel[0], a_.kernel[1], a_.filters}, a_.init, taps * a_.filters, taps * x.C, true});
  if (a_.bias) r.params.push_back({"bias", {a_.filters}, Init::zeros, 0, 0, true});
  r.saves_input = {true};
  r.macs = shape_.macs();
  return r;
}

void ConvTransposeOp::compile(const CompileContext& context) {
  ConvRequest r = request(shape_, context);
  r.needs_dgrad = true;  // is our forward
  conv_ = pick_convolution(context.device, r, context.conv);
}

std::string ConvTransposeOp::provider() const { return provider_text(*conv_); }

size_t ConvTransposeOp::backward_workspace() const {
  const TensorView dy{nullptr, shape_.N, shape_.H, shape_.W, shape_.C, shape_.C, DType::f32};
  return std::max({conv_->forward_workspace(), conv_->wgrad_workspace(), kernels::channel_sum_workspace(dy)});
}

void ConvTransposeOp::prepack_weights(const OpRun& run) {
  conv_->prepack_weights(*run.stream, run.params[0].compute, run.packed);
}

void ConvTransposeOp::forward(const OpRun& run) {
  const bool fused = a_.bias && conv_->has_dgrad_epilogue();
  conv_->dgrad(*run.stream, run.x[0], run.params[0].compute, run.packed, run.y, run.workspace,
               {.bias = fused ? run.params[1].master : nullptr});
  if (a_.bias && !fused) kernels::bias_forward(*run.stream, {.x = run.y, .bias = run.params[1].master, .y = run.y});
}

void ConvTransposeOp::backward(const OpRun& run) {
  // The adjoint's input is our output: its x is dy, its dy is our x.
  conv_->wgrad(*run.stream, run.dy, run.x[0], run.params[0].grad, nullptr, run.accumulate_grads, run.workspace);
  if (a_.bias)
    kernels::channel_sum(
        *run.stream,
        {.x = run.dy, .sum = run.params[1].grad, .accumulate = run.accumulate_grads, .workspace = run.workspace});
  if (run.dx[0])
    conv_->forward(*run.stream, run.dy, run.params[0].compute, run.packed, nullptr, run.dx[0], run.workspace);
}

}  // namespace regolith
