#include "engine/ops/norm.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/ops/registry.h"
#include "kernels/add.h"

namespace regolith {

std::string NormOp::describe() const {
  return (groups_ > 0 ? std::to_string(groups_) + " groups" : "") + (epilogue.residual ? " + residual" : "") +
         (epilogue.relu ? " + relu" : "") + epilogue.dropout.describe();
}

NormReading NormOp::reading() const {
  return {.per_image = groups_ > 0,
          .relu = epilogue.relu,
          .residual = epilogue.residual,
          .rate = epilogue.dropout.rate,
          .spatial = epilogue.dropout.spatial};
}

size_t NormOp::aux_bytes() const {
  return leaves_value() ? static_cast<size_t>(samples()) * 3 * shape_.C * sizeof(float) : 0;
}

size_t NormOp::dx_aux_bytes() const {
  return leaves_gradient_ ? static_cast<size_t>(samples()) * 5 * shape_.C * sizeof(float) : 0;
}

int64_t NormOp::statistics() const { return groups_ > 0 ? static_cast<int64_t>(shape_.N) * groups_ : shape_.C; }

Inference NormOp::infer(const std::vector<Shape>& inputs) {
  if (epilogue.residual && inputs[1] != inputs[0])
    throw GraphError("adds a residual of another shape, " + to_string(inputs[1]) + " to " + to_string(inputs[0]));
  shape_ = inputs[0];
  Inference r;
  r.shape = shape_;
  r.params.push_back({"gamma", {shape_.C}, Init::ones, 0, 0, true});
  r.params.push_back({"beta", {shape_.C}, Init::zeros, 0, 0, true});
  r.saves_input = {true};
  r.saves_output = epilogue.residual && epilogue.relu;  // alone, the sign of the output is computed anew from x
  r.saved_bytes = 2 * aligned(statistics() * sizeof(float));
  return r;
}

size_t NormOp::saved_memory() const {
  return gives_sums_ && group_channels() > 1 ? aligned(static_cast<size_t>(shape_.N) * shape_.C * sizeof(float)) : 0;
}

GradientSums NormOp::gradient_sums(size_t input) const {
  return input == 0 && training_ && group_channels() == 1 ? GradientSums::zero : GradientSums::known;
}

size_t NormOp::forward_workspace() const { return kernels::norm_workspace(groups_ > 0 ? shape_.N : 1, shape_.C); }

kernels::Norm NormOp::arguments(const OpRun& run) const {
  unsigned char* const saved = static_cast<unsigned char*>(run.saved);
  const size_t each = aligned(statistics() * sizeof(float));
  return {.x = run.x[0],
          .groups = groups_,
          .gamma = run.params[0].master,
          .beta = run.params[1].master,
          .mean = reinterpret_cast<float*>(saved),
          .rstd = reinterpret_cast<float*>(saved + each),
          .deviation = saved_memory() > 0 ? reinterpret_cast<float*>(saved + 2 * each) : nullptr,
          .relu = epilogue.relu,
          .dropout = dropout_draws(run, epilogue.dropout.rate, epilogue.dropout.spatial),
          .training = training_,
          .workspace = run.workspace,
          .ranks = groups_ == 0 && training_ ? run.ranks : nullptr};
}

void NormOp::forward(const OpRun& run) {
  const bool batch = groups_ == 0, left = leaves_value();
  if (left_to_readers_ && !left && run.x[0].data != run.y.data)
    kernels::add_forward(*run.stream, {.a = run.x[0], .b = {}, .y = run.y});
  kernels::norm_forward(*run.stream, {.norm = arguments(run),
                                      .residual = epilogue.residual ? run.x[1] : TensorView{},
                                      .y = run.y,
                                      .epsilon = epsilon_,
                                      .sums = left_to_readers_ ? nullptr : run.aux,
                                      .x_sums = takes_moments_ ? nullptr : run.x_aux[0],
                                      .affine = left_to_readers_ && !left ? run.aux : nullptr,
                                      .x_moments = takes_moments_ ? run.x_aux[0] : nullptr,
                                      .on_load = left ? run.aux : nullptr,
                                      .x_bias = run.x_bias[0],
                                      .running_mean = batch ? run.params[2].master : nullptr,
                                      .running_variance = batch ? run.params[3].master : nullptr,
                                      .momentum = momentum_,
                                      .step = run.step});
}

void NormOp::backward(const OpRun& run) {
  const bool residual = epilogue.residual && run.dx[1];
  if (leaves_gradient_ && run.dx[0].data != run.dy.data)  // there it would have been overwritten
    kernels::add_forward(*run.stream, {.a = run.dy, .b = {}, .y = run.dx[0]});
  kernels::norm_backward(*run.stream,
                         {.norm = arguments(run),
                          .y = epilogue.residual && epilogue.relu ? run.y : TensorView{},
                          .dy = run.dy,
                          .dx = leaves_gradient_ ? TensorView{} : run.dx[0],
                          .dresidual = residual ? run.dx[1] : TensorView{},
                          .dgamma = run.params[0].grad,
                          .dbeta = run.params[1].grad,
                          .dx_sums = run.dx_sums[0],
                          .dresidual_sums = epilogue.residual ? run.dx_sums[1] : nullptr,
                          .accumulate_dx = run.accumulate[0],
                          .accumulate_dresidual = residual && run.accumulate[1],
                          .accumulate_parameters = run.accumulate_grads,
                          .sums = takes_sums_ ? run.behind->dx_aux : nullptr,
                          .whole_sums = sums_of_images_,
                          .on_load = leaves_gradient_ ? run.dx_aux : nullptr,
                          .squeeze = takes_squeeze_ ? run.behind->dx_aux + 2 * run.y.N * shape_.C : nullptr});
}

// Group norm by a block for each bundle of channels, which stays in shared memory; batch norm by the three passes of
// one sample. What convolutions have summed spares the first of these, and what they read through the norm the last.
Passes NormOp::forward_passes() const {
  const int first = training_ && !takes_moments_;  // pass over x, for its moments
  if (leaves_value()) return {.launches = 1 + first, .x = first, .others = 0, .y = 0};
  if (groups_ > 0 && !takes_moments_) return {};
  return {.launches = 2 + first, .x = 1 + first};
}

Passes NormOp::backward_passes(const std::vector<bool>&) const {
  const int samples = groups_ > 0 ? 2 + gives_sums_ : 0,
            first = !takes_sums_;  // sums over samples; a pass for the sums
  if (leaves_gradient_) return {.launches = 1 + first, .sums = samples, .x = first, .y = first, .dy = first};
  if (takes_sums_) return {.launches = 2, .sums = samples};
  return {.launches = samples > 0 ? 1 : 3, .sums = samples, .x = 2, .y = 2, .dy = 2};
}

Inference GroupNormOp::infer(const std::vector<Shape>& inputs) {
  groups_ = std::min(groups_, inputs[0].C);
  if (inputs[0].C % groups_ != 0)
    throw GraphError(std::to_string(groups_) + " groups do not divide " + std::to_string(inputs[0].C) +
                     " channels; set `groups` to a divisor");
  if (static_cast<int64_t>(inputs[0].H) * inputs[0].W * (inputs[0].C / groups_) == 1)
    throw GraphError("has groups of a single value (" + std::to_string(groups_) + " groups, an input of 1x1x" +
                     std::to_string(inputs[0].C) +
                     "): its output would be beta, whatever comes in. Set fewer `groups`, or norm: none in a block");
  return NormOp::infer(inputs);
}

size_t GroupNormOp::aux_bytes() const {
  if (leaves_value()) return NormOp::aux_bytes();
  if (!emits_statistics && !left_to_readers_) return 0;
  return static_cast<size_t>(shape_.N) * shape_.C * sizeof(float) * (left_to_readers_ ? 2 : 1);
}

Inference BatchNormOp::infer(const std::vector<Shape>& inputs) {
  Inference r = NormOp::infer(inputs);
  r.params.push_back({"running_mean", {shape_.C}, Init::zeros, 0, 0, false});
  r.params.push_back({"running_variance", {shape_.C}, Init::ones, 0, 0, false});
  return r;
}

void BatchNormOp::compile(const CompileContext& context) {
  NormOp::compile(context);
  training_ = context.batch_statistics;
  if (training_ && static_cast<int64_t>(shape_.N) * shape_.H * shape_.W == 1)
    throw GraphError(
        "takes its statistics from a single value, a map of 1x1 in a batch of 1 image: its output would be "
        "beta, whatever comes in. Set a larger train.batch, train.drop_last where only the last batch has 1 "
        "image, or another norm");
}

namespace {

float parse_epsilon(const Attributes& a) {
  return static_cast<float>(a.number("epsilon", "added to the variance", 0, 1, 1e-3));
}

}  // namespace

std::unique_ptr<Op> parse_group_norm(const Attributes& a) {
  const int groups =
      a.integer("groups", "groups of channels; a group per channel where they are fewer", 1, 1 << 16, 32);
  return std::make_unique<GroupNormOp>(groups, parse_epsilon(a));
}

std::unique_ptr<Op> parse_batch_norm(const Attributes& a) {
  const double momentum = a.number("momentum", "fraction of the running statistics that a step keeps", 0, 1, 0.99);
  return std::make_unique<BatchNormOp>(static_cast<float>(momentum), parse_epsilon(a));
}

namespace {
const RegisterOp group{"group_norm", "group normalisation", 1, 1, parse_group_norm};
const RegisterOp batch{"batch_norm", "batch normalisation", 1, 1, parse_batch_norm};
}  // namespace

}  // namespace regolith
