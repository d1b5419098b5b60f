#include "engine/ops/pointwise.h"

#include "engine/base/error.h"
#include "engine/ops/registry.h"
#include "kernels/multiply.h"
#include "kernels/softmax.h"

namespace regolith {
namespace {

TensorView without_data(const Shape& s) { return {nullptr, s.N, s.H, s.W, s.C, s.C, DType::f32}; }

bool repeats(const Shape& large, const Shape& small) {
  const bool over_channels = small == Shape{large.N, large.H, large.W, 1};
  return small == large || over_channels || small == Shape{large.N, 1, 1, large.C};
}

}  // namespace

Inference SoftmaxOp::infer(const std::vector<Shape>& inputs) {
  if (inputs[0].C > kernels::kSoftmaxChannels)
    throw GraphError("softmax takes at most " + std::to_string(kernels::kSoftmaxChannels) + " channels, not " +
                     std::to_string(inputs[0].C));
  Inference r;
  r.shape = inputs[0];
  r.saves_output = true;
  return r;
}

void SoftmaxOp::forward(const OpRun& run) { kernels::softmax_forward(*run.stream, {.x = run.x[0], .y = run.y}); }

void SoftmaxOp::backward(const OpRun& run) {
  kernels::softmax_backward(*run.stream, {.y = run.y, .dy = run.dy, .dx = run.dx[0], .accumulate = run.accumulate[0]});
}

Inference ActivationOp::infer(const std::vector<Shape>& inputs) {
  Inference r;
  r.shape = inputs[0];
  r.saves_input = {kernels::traits_of(f_).gradient_reads_x};
  r.saves_output = !r.saves_input[0];
  return r;
}

void ActivationOp::forward(const OpRun& run) {
  kernels::activation_forward(*run.stream, {.f = f_, .x = run.x[0], .y = run.y});
}

void ActivationOp::backward(const OpRun& run) {
  kernels::activation_backward(*run.stream, {.f = f_,
                                             .saved = kernels::traits_of(f_).gradient_reads_x ? run.x[0] : run.y,
                                             .dy = run.dy,
                                             .dx = run.dx[0],
                                             .accumulate = run.accumulate[0]});
}

std::string MultiplyOp::describe() const {
  if (small_ == large_) return "";
  return "input " + std::to_string(repeated_ + 1) + " repeated over the " +
         (kernels::repeats_over_pixels(without_data(large_), without_data(small_)) ? "pixels" : "channels");
}

Inference MultiplyOp::infer(const std::vector<Shape>& inputs) {
  repeated_ = repeats(inputs[0], inputs[1]) ? 1 : 0;
  large_ = inputs[1 - repeated_];
  small_ = inputs[repeated_];
  if (!repeats(large_, small_))
    throw GraphError("cannot multiply maps of " + to_string(inputs[0]) + " and " + to_string(inputs[1]) +
                     ": give two of one shape, or one with a single channel or a single pixel");
  Inference r;
  r.shape = large_;
  r.saves_input = {true, true};
  return r;
}

void MultiplyOp::compile(const CompileContext& context) {
  const bool wanted = context.training && context.needs_dx[repeated_];
  workspace_ = wanted ? kernels::multiply_workspace(without_data(large_), without_data(small_)) : 0;
}

void MultiplyOp::forward(const OpRun& run) {
  kernels::multiply_forward(*run.stream, {.a = run.x[1 - repeated_], .b = run.x[repeated_], .y = run.y});
}

void MultiplyOp::backward(const OpRun& run) {
  const int a = 1 - repeated_, b = repeated_;
  kernels::multiply_backward(*run.stream, {.a = run.x[a],
                                           .b = run.x[b],
                                           .dy = run.dy,
                                           .da = run.dx[a],
                                           .db = run.dx[b],
                                           .accumulate_a = run.accumulate[a],
                                           .accumulate_b = run.accumulate[b],
                                           .workspace = run.workspace});
}

namespace {
template <kernels::Activation f>
std::unique_ptr<Op> parse_activation(const Attributes&) {
  return std::make_unique<ActivationOp>(f);
}
const RegisterOp relu{"relu", "max(x, 0)", 1, 1, parse_activation<kernels::Activation::relu>};
const RegisterOp sigmoid{"sigmoid", "1 / (1 + exp(-x))", 1, 1, parse_activation<kernels::Activation::sigmoid>};
const RegisterOp gelu{"gelu", "x times the normal distribution function", 1, 1,
                      parse_activation<kernels::Activation::gelu>};
const RegisterOp softmax{"softmax", "softmax over the channels", 1, 1, plain<SoftmaxOp>};
const RegisterOp multiply{"multiply", "the product of two maps; one may have a single channel or pixel", 2, 2,
                          plain<MultiplyOp>};
}  // namespace

}  // namespace regolith
