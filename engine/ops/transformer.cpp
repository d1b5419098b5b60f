#include "engine/ops/transformer.h"

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/ops/registry.h"
#include "kernels/add.h"
#include "kernels/attention.h"
#include "kernels/layer_norm.h"
#include "kernels/position_embedding.h"

namespace regolith {
namespace {

// Mean and rstd of the pixels, one after the other in the op's saved memory.
struct Statistics {
  float *mean, *rstd;
  Statistics(void* saved, int64_t pixels)
      : mean(static_cast<float*>(saved)),
        rstd(reinterpret_cast<float*>(static_cast<unsigned char*>(saved) + aligned(pixels * sizeof(float)))) {}
};

int64_t pixels(const Shape& s) { return static_cast<int64_t>(s.N) * s.H * s.W; }

}  // namespace

Inference LayerNormOp::infer(const std::vector<Shape>& inputs) {
  shape_ = inputs[0];
  if (shape_.C == 1)
    throw GraphError(
        "normalises pixels of a single channel: its output would be beta, whatever comes in. Give it more "
        "channels");
  Inference r;
  r.shape = shape_;
  r.params.push_back({"gamma", {shape_.C}, Init::ones, 0, 0, true});
  r.params.push_back({"beta", {shape_.C}, Init::zeros, 0, 0, true});
  r.saves_input = {true};
  r.saved_bytes = 2 * aligned(pixels(shape_) * sizeof(float));
  return r;
}

size_t LayerNormOp::backward_workspace() const {
  return kernels::layer_norm_workspace({nullptr, shape_.N, shape_.H, shape_.W, shape_.C, shape_.C, DType::f32});
}

void LayerNormOp::forward(const OpRun& run) {
  const Statistics s(run.saved, pixels(shape_));
  kernels::layer_norm_forward(*run.stream, {.x = run.x[0],
                                            .y = run.y,
                                            .gamma = run.params[0].master,
                                            .beta = run.params[1].master,
                                            .mean = s.mean,
                                            .rstd = s.rstd,
                                            .epsilon = epsilon_});
}

void LayerNormOp::backward(const OpRun& run) {
  const Statistics s(run.saved, pixels(shape_));
  kernels::layer_norm_backward(*run.stream, {.x = run.x[0],
                                             .dy = run.dy,
                                             .dx = run.dx[0],
                                             .gamma = run.params[0].master,
                                             .mean = s.mean,
                                             .rstd = s.rstd,
                                             .dgamma = run.params[0].grad,
                                             .dbeta = run.params[1].grad,
                                             .accumulate_dx = run.accumulate[0],
                                             .accumulate_parameters = run.accumulate_grads,
                                             .workspace = run.workspace});
}

std::string AttentionOp::describe() const { return std::to_string(heads_) + " heads"; }

Inference AttentionOp::infer(const std::vector<Shape>& inputs) {
  const Shape& x = inputs[0];
  if (x.C % 3 != 0)
    throw GraphError("attention takes q, k and v side by side, three times the channels of its output; " +
                     std::to_string(x.C) + " channels are not");
  const int C = x.C / 3;
  if (C % heads_ != 0)
    throw GraphError(std::to_string(heads_) + " heads do not divide " + std::to_string(C) +
                     " channels; set `heads` to a divisor");
  const int d = C / heads_;
  if (d % 8 != 0 || d > kernels::kAttentionHead)
    throw GraphError(std::to_string(heads_) + " heads of " + std::to_string(C) + " channels have " + std::to_string(d) +
                     " each; expected a multiple of 8 up to " + std::to_string(kernels::kAttentionHead) +
                     ": choose other `heads`, or another number of channels");
  const int64_t positions = static_cast<int64_t>(x.H) * x.W;
  if (positions > kernels::kAttentionPositions)
    throw GraphError("a map of " + size_text({x.H, x.W}) + " has " + std::to_string(positions) +
                     " positions; attention takes at most " + std::to_string(kernels::kAttentionPositions) +
                     ": put it where the map is smaller");
  shape_ = {x.N, x.H, x.W, C};
  Inference r;
  r.shape = shape_;
  r.saves_input = {true};
  r.saves_output = true;
  r.saved_bytes = static_cast<size_t>(x.N) * heads_ * positions * sizeof(float);  // log-sum-exp
  r.macs = 2 * x.N * positions * positions * C;
  return r;
}

size_t AttentionOp::backward_workspace() const {
  return kernels::attention_workspace(shape_.N, heads_, shape_.H * shape_.W);
}

void AttentionOp::forward(const OpRun& run) {
  kernels::attention_forward(*run.stream,
                             {.qkv = run.x[0], .y = run.y, .lse = static_cast<float*>(run.saved), .heads = heads_});
}

void AttentionOp::backward(const OpRun& run) {
  if (!run.dx[0]) return;
  kernels::attention_backward(*run.stream, {.qkv = run.x[0],
                                            .y = run.y,
                                            .dy = run.dy,
                                            .dqkv = run.dx[0],
                                            .lse = static_cast<const float*>(run.saved),
                                            .heads = heads_,
                                            .workspace = run.workspace});
}

Inference PositionEmbeddingOp::infer(const std::vector<Shape>& inputs) {
  const Shape& x = inputs[0];
  Inference r;
  r.shape = x;
  r.params.push_back({"embedding", {1, x.H, x.W, x.C}, Init::zeros, 0, 0, true});
  return r;
}

void PositionEmbeddingOp::forward(const OpRun& run) {
  kernels::position_embedding_forward(*run.stream, {.x = run.x[0], .embedding = run.params[0].master, .y = run.y});
}

void PositionEmbeddingOp::backward(const OpRun& run) {
  kernels::position_embedding_backward(
      *run.stream, {.dy = run.dy, .dembedding = run.params[0].grad, .accumulate = run.accumulate_grads});
  if (run.dx[0] && run.dx[0].data != run.dy.data)
    kernels::add_forward(*run.stream, {.a = run.dy, .b = {}, .y = run.dx[0], .accumulate = run.accumulate[0]});
}

namespace {

std::unique_ptr<Op> parse_layer_norm(const Attributes& a) {
  return std::make_unique<LayerNormOp>(static_cast<float>(a.number("epsilon", "added to the variance", 0, 1, 1e-5)));
}
std::unique_ptr<Op> parse_attention(const Attributes& a) {
  return std::make_unique<AttentionOp>(
      a.integer("heads", "parts of the channels that attend on their own", 1, 1 << 10, 4));
}

const RegisterOp layer_norm{"layer_norm", "normalisation of every pixel over its channels", 1, 1, parse_layer_norm};
const RegisterOp attention{"attention", "self-attention over the positions of a map of [q | k | v]", 1, 1,
                           parse_attention};
const RegisterOp position{"position_embedding", "adds a learned map to every image", 1, 1, plain<PositionEmbeddingOp>};

}  // namespace

}  // namespace regolith
