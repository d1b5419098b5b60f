#include "engine/ops/squeeze_excite.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/ops/registry.h"
#include "kernels/add.h"

namespace regolith {

std::string SqueezeExciteOp::describe() const {
  std::string text = "ratio " + std::to_string(ratio_) + ", " + std::to_string(hidden_) + " hidden";
  if (reads_statistics) text += ", sums from the norm";
  if (epilogue.pool) text += " + max_pool 2x2";
  return text + epilogue.dropout.describe();
}

Inference SqueezeExciteOp::infer(const std::vector<Shape>& inputs) {
  shape_ = inputs[0];
  const int C = shape_.C;
  if (ratio_ > C) {
    throw GraphError("a ratio of " + std::to_string(ratio_) + " leaves nothing of " + std::to_string(C) +
                     " channels; set `ratio` to " + std::to_string(C) + " or less");
  }
  hidden_ = std::max(1, C / ratio_);
  Inference r;
  r.shape = shape_;
  if (epilogue.pool) r.shape.H /= 2, r.shape.W /= 2;
  r.params = {{"reduce/kernel", {hidden_, C}, Init::glorot_uniform, C, hidden_, true},
              {"reduce/bias", {hidden_}, Init::zeros, 0, 0, true},
              {"expand/kernel", {C, hidden_}, Init::glorot_uniform, hidden_, C, true},
              {"expand/bias", {C}, Init::zeros, 0, 0, true}};
  r.saves_input = {true};
  r.saved_bytes = 2 * aligned(static_cast<size_t>(shape_.N) * C * sizeof(float)) +
                  aligned(static_cast<size_t>(shape_.N) * hidden_ * sizeof(float));
  r.macs = shape_.elements() + 2 * static_cast<int64_t>(shape_.N) * C * hidden_;
  return r;
}

size_t SqueezeExciteOp::forward_workspace() const {
  return kernels::squeeze_excite_workspace(shape_.N, shape_.C, hidden_);
}

NormReading SqueezeExciteOp::reading() const {
  return {.per_image = true,
          .relu = true,
          .rate = epilogue.dropout.rate,
          .spatial = epilogue.dropout.spatial,
          .squeezed = true};
}

size_t SqueezeExciteOp::saved_memory() const {
  return normed_ ? size_t{2} * shape_.N * shape_.C * sizeof(float) : 0;  // the slopes of the norm's ReLU
}

// The norm's sums, then what makes the gradient at its output.
size_t SqueezeExciteOp::dx_aux_bytes() const {
  return leaves_gradient() ? size_t{4} * shape_.N * shape_.C * sizeof(float) : 0;
}

kernels::SqueezeExcite SqueezeExciteOp::arguments(const OpRun& run) const {
  const size_t channels = aligned(static_cast<size_t>(shape_.N) * shape_.C * sizeof(float));
  const size_t units = aligned(static_cast<size_t>(shape_.N) * hidden_ * sizeof(float));
  unsigned char* saved = static_cast<unsigned char*>(run.saved);
  return {.x = run.x[0],
          .hidden = hidden_,
          .reduce = run.params[0].master,
          .reduce_bias = run.params[1].master,
          .expand = run.params[2].master,
          .expand_bias = run.params[3].master,
          .mean = reinterpret_cast<float*>(saved),
          .activation = reinterpret_cast<float*>(saved + 2 * channels),
          .scale = reinterpret_cast<float*>(saved + channels),
          .pool = epilogue.pool,
          .dropout = dropout_draws(run, epilogue.dropout.rate, epilogue.dropout.spatial),
          .norm = normed_ ? run.x_aux[0] : nullptr,
          .slopes = normed_ ? reinterpret_cast<float*>(saved + 2 * channels + units) : nullptr,
          .workspace = run.workspace};
}

void SqueezeExciteOp::forward(const OpRun& run) {
  kernels::squeeze_excite_forward(*run.stream,
                                  {.op = arguments(run), .y = run.y, .sums = normed_ ? nullptr : run.x_aux[0]});
}

void SqueezeExciteOp::backward(const OpRun& run) {
  if (leaves_gradient() && run.dx[0].data != run.dy.data)  // there it would have been overwritten
    kernels::add_forward(*run.stream, {.a = run.dy, .b = {}, .y = run.dx[0]});
  kernels::squeeze_excite_backward(
      *run.stream, {.op = arguments(run),
                    .dy = run.dy,
                    .dx = leaves_gradient() ? TensorView{} : run.dx[0],
                    .dreduce = run.params[0].grad,
                    .dreduce_bias = run.params[1].grad,
                    .dexpand = run.params[2].grad,
                    .dexpand_bias = run.params[3].grad,
                    .accumulate_dx = run.accumulate[0],
                    .accumulate_parameters = run.accumulate_grads,
                    .sums = run.dx_aux,
                    .affine = leaves_gradient() ? run.dx_aux + int64_t{2} * shape_.N * shape_.C : nullptr});
}

Passes SqueezeExciteOp::forward_passes() const {
  return reads_statistics && !normed_ ? Passes{.launches = 2} : Passes{.launches = 3, .x = 2};
}

Passes SqueezeExciteOp::backward_passes(const std::vector<bool>& wants_dx) const {
  if (leaves_gradient()) return {.launches = 3};
  return {.launches = 3 + wants_dx[0], .x = 1 + epilogue.pool, .dy = 1 + wants_dx[0]};
}

std::unique_ptr<Op> parse_squeeze_excite(const Attributes& a) {
  return std::make_unique<SqueezeExciteOp>(a.integer("ratio", "channels for each hidden unit", 1, 1 << 16, 16));
}

namespace {
const RegisterOp squeeze{"squeeze_excite", "each channel times a gate of all means", 1, 1, parse_squeeze_excite};
}  // namespace

}  // namespace regolith
