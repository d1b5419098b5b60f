#include "engine/ops/conv.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/ops/dropout.h"
#include "engine/ops/registry.h"
#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/bias.h"
#include "kernels/channel_sum.h"

namespace regolith {
namespace {

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

}  // namespace

std::array<int, 2> same_padding(int in, int kernel, int stride, int dilation) {
  const int out = (in + stride - 1) / stride;
  const int total = std::max((out - 1) * stride + (kernel - 1) * dilation + 1 - in, 0);
  return {total / 2, total - total / 2};
}

Init parse_init(const Attributes& a) {
  const int i = a.choice("init", "how the weights start", {"glorot_uniform", "he_normal"});
  return i == 1 ? Init::he_normal : Init::glorot_uniform;
}

int parse_filters(const Attributes& a) { return a.integer("filters", "channels of the output", 1, 1 << 16); }

ConvAttributes parse_conv(const Attributes& a) {
  ConvAttributes c;
  c.filters = parse_filters(a);
  c.kernel = a.pair("kernel", "rows and columns of the kernel", 1, 255, 3);
  c.stride = a.pair("stride", "distance of the outputs, in inputs", 1, 64, 1);
  c.dilation = a.pair("dilation", "distance of the kernel's taps", 1, 1024, 1);
  c.same = a.choice("padding", "same: the size of the output is that of the input / stride", {"same", "valid"}) == 0;
  c.bias = a.boolean("bias", "a bias for each channel", true);
  c.init = parse_init(a);
  return c;
}

std::vector<Prepacked> prepacked(const Convolution& conv, const std::string& prefix) {
  std::vector<Prepacked> copies{conv.prepacked(WeightUse::forward), conv.prepacked(WeightUse::dgrad)};
  copies[0].layout = prefix + "forward " + copies[0].layout;
  copies[1].layout = prefix + "dgrad " + copies[1].layout;
  return copies;
}

void prepack_weights(Convolution& conv, DeviceStream& stream, const void* w, void* const* packed) {
  if (packed[0] != nullptr) conv.prepack_weights(stream, WeightUse::forward, w, packed[0]);
  if (packed[1] != nullptr) conv.prepack_weights(stream, WeightUse::dgrad, w, packed[1]);
}

std::string ConvBase::describe() const {
  std::string text = join(a_.kernel, "x") + ", " + std::to_string(a_.filters) + " filters";
  if (a_.stride != std::array{1, 1}) text += ", stride " + join(a_.stride, "x");
  if (a_.dilation != std::array{1, 1}) text += ", dilation " + join(a_.dilation, "x");
  if (!a_.same) text += ", valid";
  if (a_.residual) text += " + residual";
  if (a_.relu) text += " + relu";
  return text;
}

std::string ConvBase::provider() const {
  const std::string name(conv_->provider()), what = conv_->implementation();
  return what.empty() ? name : name + " " + what;
}

Inference ConvBase::infer_conv(const Shape& y, int kernels, int in) const {
  const int64_t taps = static_cast<int64_t>(a_.kernel[0]) * a_.kernel[1];
  Inference r;
  r.shape = y;
  r.params.push_back({"kernel", {kernels, a_.kernel[0], a_.kernel[1], in}, a_.init, taps * in, taps * kernels, true});
  if (a_.bias) r.params.push_back({"bias", {a_.filters}, Init::zeros, 0, 0, true});
  r.saves_input = {true};
  r.saves_output = a_.relu;  // its sign is the gradient's mask
  r.macs = shape_.macs();
  return r;
}

Inference ConvOp::infer(const std::vector<Shape>& inputs) {
  check(a_);
  const Shape& x = inputs[0];
  shape_ = conv_shape(a_, x.N, x.H, x.W, x.C, a_.filters);
  const Shape y{x.N, shape_.P(), shape_.Q(), a_.filters};
  if (a_.residual && inputs[1] != y)
    throw GraphError("adds a residual of another shape, " + to_string(inputs[1]) + " to " + to_string(y));
  return infer_conv(y, a_.filters, x.C);
}

void ConvOp::compile(const CompileContext& context) {
  trains_ = context.training;
  leaves_bias_out_ = a_.bias && a_.bias_cancels && context.batch_statistics;
  ConvRequest r = conv_request(shape_, context);
  r.bias = a_.bias && !leaves_bias_out_;
  r.relu = a_.relu;
  r.needs_dgrad = context.training && context.needs_dx[0];
  conv_ = pick_convolution(context.device, r, context.conv);
  has_epilogue_ = !context.training && conv_->has_forward_epilogue();
  if (a_.residual && a_.relu && !has_epilogue_) {  // ReLU comes after the sum, in a pass of its own
    r.relu = false;
    conv_ = pick_convolution(context.device, r, context.conv);
  }
}

bool ConvOp::takes_gradient() const { return takes_norms() && shape_.K % 8 == 0 && !a_.relu && !sums_dy(); }

size_t ConvOp::dx_aux_bytes() const {
  const int64_t strips = int64_t{shape_.N} * kernels::tile_strips(shape_.H);
  return gives_sums_ ? static_cast<size_t>(strips) * 2 * shape_.C * sizeof(float) : 0;
}

size_t ConvOp::aux_bytes() const {
  const int64_t strips = int64_t{shape_.N} * kernels::tile_strips(shape_.P());
  if (gives_moments_) return static_cast<size_t>(strips) * 2 * shape_.K * sizeof(float);
  return a_.emits_sums && has_epilogue_ ? size_t{2} * shape_.N * shape_.K * sizeof(float) : 0;
}

size_t ConvOp::backward_workspace() const {
  if (!takes_norms()) return std::max(conv_->dgrad_workspace(), conv_->wgrad_workspace());
  const TensorView dy{nullptr, shape_.N, shape_.P(), shape_.Q(), shape_.K, shape_.K, DType::f32};
  return aligned(conv_->wgrad_workspace()) + (sums_dy() ? kernels::channel_sum_workspace(dy) : 0);
}

// The dropout of a norm whose run is `of`.
static DropoutDraws draws_of(const NormReading& norm, const OpRun& run, const OpRun& of) {
  DropoutDraws d = dropout_draws(run, norm.rate, norm.spatial);
  d.key = of.seed;
  return d;
}

kernels::NormOnLoad ConvOp::norm_on_load(const OpRun& run) const {
  if (!applies_norm_) return {};
  return {run.x_aux[0], norm_.per_image, norm_.relu, draws_of(norm_, run, *run.before)};
}

void ConvOp::forward(const OpRun& run) {
  const ChannelBias bias = a_.bias && !leaves_bias_out_ ? bias_of(run.params[1]) : ChannelBias();
  ForwardEpilogue epilogue;
  if (has_epilogue_) {
    if (a_.residual) epilogue.residual = run.x[1];
    epilogue.sums = run.aux;
  }
  if (takes_norms()) {
    epilogue.norm = norm_on_load(run);
    epilogue.moments = gives_moments_ ? run.aux : nullptr;
  } else if (applies_norm_) {
    epilogue.affine = run.x_aux[0];
    epilogue.input_relu = norm_.relu;
  }
  conv_->forward(*run.stream, run.x[0], run.params[0].compute, run.packed[0], bias, run.y, run.workspace, epilogue);
  if (a_.residual && !has_epilogue_)
    kernels::add_forward(*run.stream, {.a = run.y, .b = run.x[1], .y = run.y, .relu = a_.relu});
}

void ConvOp::backward_with_norms(const OpRun& run) {
  ConvBackward k{.x = run.x[0],
                 .norm = norm_on_load(run),
                 .dy = run.dy,
                 .dx = run.dx[0],
                 .accumulate_dx = run.accumulate[0],
                 .sums = gives_sums_ ? run.dx_aux : nullptr,
                 .dw = run.trains ? run.params[0].grad : nullptr,
                 .accumulate_dw = run.accumulate_grads};
  if (takes_gradient_) {
    const OpRun& norm = *run.behind;
    const NormReading& n = norm_behind_;
    k.gradient = {
        .x = run.y, .coefficients = norm.dx_aux, .per_image = n.per_image, .relu = {}, .dropout = {}, .y = {}};
    if (n.masked) {
      k.dy = norm.dx[1];
    } else {
      k.gradient.relu = n.relu;
      k.gradient.dropout = draws_of(n, run, n.squeezed ? *norm.behind : norm);
      if (n.squeezed) k.gradient.squeeze = norm.behind->dx_aux + int64_t{2} * shape_.N * shape_.K;
      if (n.residual && n.relu) k.gradient.y = norm.y;
    }
  }
  conv_->backward(*run.stream, k, run.params[0].compute, run.workspace);
}

void ConvOp::backward(const OpRun& run) {
  if (a_.relu)
    kernels::activation_backward(*run.stream,
                                 {.f = kernels::Activation::relu, .saved = run.y, .dy = run.dy, .dx = run.dy});
  float* db = sums_dy() ? run.params[1].grad : nullptr;
  if (takes_norms()) {
    backward_with_norms(run);
    if (run.trains && db != nullptr)
      kernels::channel_sum(
          *run.stream, {.x = run.dy,
                        .sum = db,
                        .accumulate = run.accumulate_grads,
                        .workspace = static_cast<unsigned char*>(run.workspace) + aligned(conv_->wgrad_workspace())});
    return;
  }
  if (run.trains)
    conv_->wgrad(*run.stream, run.x[0], run.dy, run.params[0].grad, db, run.accumulate_grads, run.workspace);
  if (run.dx[0])
    conv_->dgrad(*run.stream, run.dy, run.params[0].compute, run.packed[1], run.dx[0], run.workspace,
                 {.accumulate = run.accumulate[0]});
}

Passes ConvOp::backward_passes(const std::vector<bool>& wants_dx) const {
  const bool db = sums_dy();
  if (takes_norms()) {
    const int mask = takes_gradient_ && norm_behind_.residual && norm_behind_.relu && !norm_behind_.masked;
    return {.launches = 1 + db + a_.relu,
            .sums = 1 + db,
            .y = 1 + mask,
            .dy = 1 + db + 2 * a_.relu,
            .bytes = static_cast<double>(conv_->wgrad_traffic())};
  }
  const int launches = conv_->wgrad_launches(db), sums = launches > conv_->wgrad_launches(false) ? 1 : 0;
  return {.launches = launches + wants_dx[0] + a_.relu, .dy = 1 + sums + wants_dx[0] + 2 * a_.relu};
}

Inference ConvTransposeOp::infer(const std::vector<Shape>& inputs) {
  check(a_);
  const Shape& x = inputs[0];
  if (!a_.same) throw GraphError("a transposed convolution takes padding: same only");
  const int H = x.H * a_.stride[0], W = x.W * a_.stride[1];
  shape_ = conv_shape(a_, x.N, H, W, a_.filters, x.C);
  // Keras stores (R, S, filters, C) and counts its fans from that: in = filters, out = C.
  return infer_conv({x.N, H, W, a_.filters}, x.C, a_.filters);
}

void ConvTransposeOp::compile(const CompileContext& context) {
  ConvRequest r = conv_request(shape_, context);
  r.needs_dgrad = true;  // is our forward
  r.needs_forward = context.training && context.needs_dx[0];
  conv_ = pick_convolution(context.device, r, context.conv);
}

size_t ConvTransposeOp::backward_workspace() const {
  const TensorView dy{nullptr, shape_.N, shape_.H, shape_.W, shape_.C, shape_.C, DType::f32};
  return std::max({conv_->forward_workspace(), conv_->wgrad_workspace(), kernels::channel_sum_workspace(dy)});
}

void ConvTransposeOp::forward(const OpRun& run) {
  const bool fused = a_.bias && adds_bias_ && conv_->has_dgrad_epilogue();
  conv_->dgrad(*run.stream, run.x[0], run.params[0].compute, run.packed[1], run.y, run.workspace,
               {.bias = fused ? run.params[1].master : nullptr});
  if (a_.bias && adds_bias_ && !fused)
    kernels::bias_forward(*run.stream, {.x = run.y, .bias = run.params[1].master, .y = run.y});
}

void ConvTransposeOp::backward(const OpRun& run) {
  // The adjoint's input is our output: its x is dy, its dy is our x.
  if (run.trains)
    conv_->wgrad(*run.stream, run.dy, run.x[0], run.params[0].grad, nullptr, run.accumulate_grads, run.workspace);
  if (run.trains && a_.bias && sums_bias_)
    kernels::channel_sum(
        *run.stream,
        {.x = run.dy, .sum = run.params[1].grad, .accumulate = run.accumulate_grads, .workspace = run.workspace});
  if (run.dx[0])
    conv_->forward(*run.stream, run.dy, run.params[0].compute, run.packed[0], nullptr, run.dx[0], run.workspace);
}

Passes ConvTransposeOp::forward_passes() const {
  const int pass = may_leave_bias() && adds_bias_ ? 1 : 0;
  return {.launches = 1 + pass, .y = 1 + 2 * pass};
}

Passes ConvTransposeOp::backward_passes(const std::vector<bool>& wants_dx) const {
  const int sums = a_.bias && sums_bias_ ? 1 : 0;
  return {.launches = conv_->wgrad_launches(false) + wants_dx[0] + 2 * sums, .dy = 1 + wants_dx[0] + sums};
}

namespace {
template <class T>
std::unique_ptr<Op> parse_conv(const Attributes& a) {
  return std::make_unique<T>(parse_conv(a));
}
const RegisterOp convolution{"conv", "convolution", 1, 1, parse_conv<ConvOp>};
const RegisterOp transposed{"conv_transpose", "transposed convolution, the adjoint of the convolution", 1, 1,
                            parse_conv<ConvTransposeOp>};
}  // namespace

}  // namespace regolith
