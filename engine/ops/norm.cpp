#include "engine/ops/norm.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/ops/registry.h"
#include "kernels/batch_norm.h"
#include "kernels/group_norm.h"

namespace regolith {

std::string NormOp::describe() const {
  return numbers() + (epilogue.residual ? " + residual" : "") + (epilogue.relu ? " + relu" : "");
}

Inference NormOp::infer_norm(const std::vector<Shape>& inputs) const {
  if (epilogue.residual && inputs[1] != inputs[0])
    throw GraphError("adds a residual of another shape, " + to_string(inputs[1]) + " to " + to_string(inputs[0]));
  Inference r;
  r.shape = inputs[0];
  r.params.push_back({"gamma", {inputs[0].C}, Init::ones, 0, 0, true});
  r.params.push_back({"beta", {inputs[0].C}, Init::zeros, 0, 0, true});
  r.saves_input = {true};
  r.saves_output = epilogue.residual && epilogue.relu;  // alone, the sign of the output is computed anew from x
  return r;
}

Inference GroupNormOp::infer(const std::vector<Shape>& inputs) {
  shape_ = inputs[0];
  groups_ = std::min(groups_, shape_.C);
  if (shape_.C % groups_ != 0)
    throw GraphError(std::to_string(groups_) + " groups do not divide " + std::to_string(shape_.C) +
                     " channels; set `groups` to a divisor");
  Inference r = infer_norm(inputs);
  r.saved_bytes = 2 * aligned(static_cast<size_t>(shape_.N) * groups_ * sizeof(float));
  return r;
}

std::string GroupNormOp::numbers() const { return std::to_string(groups_) + " groups"; }

size_t GroupNormOp::aux_bytes() const {
  return emits_statistics ? static_cast<size_t>(shape_.N) * shape_.C * sizeof(float) : 0;
}

size_t GroupNormOp::forward_workspace() const { return kernels::group_norm_workspace(shape_.N, shape_.C); }

namespace {

// Mean and rstd, one after the other in the op's saved memory.
struct Statistics {
  float *mean, *rstd;
  Statistics(void* saved, int64_t count)
      : mean(static_cast<float*>(saved)),
        rstd(reinterpret_cast<float*>(static_cast<unsigned char*>(saved) + aligned(count * sizeof(float)))) {}
};

}  // namespace

void GroupNormOp::forward(const OpRun& run) {
  const Statistics s(run.saved, static_cast<int64_t>(shape_.N) * groups_);
  kernels::group_norm_forward(*run.stream, {.x = run.x[0],
                                            .residual = epilogue.residual ? run.x[1] : TensorView{},
                                            .y = run.y,
                                            .gamma = run.params[0].master,
                                            .beta = run.params[1].master,
                                            .mean = s.mean,
                                            .rstd = s.rstd,
                                            .sums = run.aux,
                                            .groups = groups_,
                                            .epsilon = epsilon_,
                                            .relu = epilogue.relu,
                                            .workspace = run.workspace});
}

void GroupNormOp::backward(const OpRun& run) {
  const Statistics s(run.saved, static_cast<int64_t>(shape_.N) * groups_);
  const bool residual = epilogue.residual && run.dx[1];
  kernels::group_norm_backward(*run.stream, {.x = run.x[0],
                                             .y = epilogue.residual && epilogue.relu ? run.y : TensorView{},
                                             .dy = run.dy,
                                             .dy2 = {},
                                             .dx = run.dx[0],
                                             .dresidual = residual ? run.dx[1] : TensorView{},
                                             .gamma = run.params[0].master,
                                             .beta = run.params[1].master,
                                             .mean = s.mean,
                                             .rstd = s.rstd,
                                             .dgamma = run.params[0].grad,
                                             .dbeta = run.params[1].grad,
                                             .groups = groups_,
                                             .relu = epilogue.relu,
                                             .accumulate_dx = run.accumulate[0],
                                             .accumulate_dresidual = residual && run.accumulate[1],
                                             .accumulate_parameters = run.accumulate_grads,
                                             .workspace = run.workspace});
}

Inference BatchNormOp::infer(const std::vector<Shape>& inputs) {
  shape_ = inputs[0];
  Inference r = infer_norm(inputs);
  r.params.push_back({"running_mean", {shape_.C}, Init::zeros, 0, 0, false});
  r.params.push_back({"running_variance", {shape_.C}, Init::ones, 0, 0, false});
  r.saved_bytes = 2 * aligned(shape_.C * sizeof(float));
  return r;
}

std::string BatchNormOp::numbers() const { return ""; }

size_t BatchNormOp::forward_workspace() const { return kernels::batch_norm_workspace(shape_.C); }

void BatchNormOp::forward(const OpRun& run) {
  const Statistics s(run.saved, shape_.C);
  kernels::batch_norm_forward(*run.stream, {.x = run.x[0],
                                            .residual = epilogue.residual ? run.x[1] : TensorView{},
                                            .y = run.y,
                                            .gamma = run.params[0].master,
                                            .beta = run.params[1].master,
                                            .running_mean = run.params[2].master,
                                            .running_variance = run.params[3].master,
                                            .mean = s.mean,
                                            .rstd = s.rstd,
                                            .momentum = momentum_,
                                            .epsilon = epsilon_,
                                            .step = run.step,
                                            .relu = epilogue.relu,
                                            .training = training_,
                                            .workspace = run.workspace});
}

void BatchNormOp::backward(const OpRun& run) {
  const Statistics s(run.saved, shape_.C);
  const bool residual = epilogue.residual && run.dx[1];
  kernels::batch_norm_backward(*run.stream, {.x = run.x[0],
                                             .y = epilogue.residual && epilogue.relu ? run.y : TensorView{},
                                             .dy = run.dy,
                                             .dy2 = {},
                                             .dx = run.dx[0],
                                             .dresidual = residual ? run.dx[1] : TensorView{},
                                             .gamma = run.params[0].master,
                                             .beta = run.params[1].master,
                                             .mean = s.mean,
                                             .rstd = s.rstd,
                                             .dgamma = run.params[0].grad,
                                             .dbeta = run.params[1].grad,
                                             .relu = epilogue.relu,
                                             .training = training_,
                                             .accumulate_dx = run.accumulate[0],
                                             .accumulate_dresidual = residual && run.accumulate[1],
                                             .accumulate_parameters = run.accumulate_grads,
                                             .workspace = run.workspace});
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
