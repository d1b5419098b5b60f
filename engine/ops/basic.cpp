#include "engine/ops/basic.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/ops/registry.h"
#include "kernels/add.h"
#include "kernels/channel_sum.h"

namespace regolith {

TensorView channel_slice(const TensorView& whole, int at, int C) {
  TensorView m = whole;
  m.data = static_cast<unsigned char*>(whole.data) + at * size_of(whole.dtype);
  m.C = C;
  return m;
}

Inference InputOp::infer(const std::vector<Shape>& inputs) {
  Inference r;
  r.shape = {inputs[0].N, shape_.H, shape_.W, shape_.C};
  return r;
}

Inference AddOp::infer(const std::vector<Shape>& inputs) {
  if (inputs.size() < 2) throw GraphError("add takes two inputs or more");
  for (const Shape& s : inputs) {
    if (s != inputs[0])
      throw GraphError("adds maps of different shapes, " + to_string(inputs[0]) + " and " + to_string(s));
  }
  terms_ = static_cast<int>(inputs.size());
  Inference r;
  r.shape = inputs[0];
  return r;
}

void AddOp::forward(const OpRun& run) {
  const auto bias = std::find_if(run.x_bias.begin(), run.x_bias.end(), [](const float* b) { return b != nullptr; });
  const bool biased = bias != run.x_bias.end();
  if (run.x.size() == 2 && !biased)
    return kernels::add_forward(*run.stream, {.a = run.x[0], .b = run.x[1], .y = run.y});
  for (size_t i = 0; i < run.x.size();) {
    kernels::AddImages sum;
    sum.accumulate = i > 0;
    if (i == 0 && biased) sum.bias = *bias;
    while (i < run.x.size() && sum.count < kernels::kMostParts) sum.parts[sum.count++] = run.x[i++];
    sum.y = run.y;
    kernels::add_images(*run.stream, sum);
  }
}

Passes AddOp::forward_passes() const {
  const int passes = (terms_ + kernels::kMostParts - 1) / kernels::kMostParts;
  return {.launches = passes, .y = 2 * passes - 1};
}

void AddOp::backward(const OpRun& run) {
  for (size_t i = 0; i < run.dx.size(); ++i) {
    if (run.dx[i] && run.dx[i].data != run.dy.data)  // dx of one input may be the memory of dy
      kernels::add_forward(*run.stream, {.a = run.dy, .b = {}, .y = run.dx[i], .accumulate = run.accumulate[i]});
  }
}

Inference ConcatOp::infer(const std::vector<Shape>& inputs) {
  if (inputs.size() < 2) throw GraphError("concat takes two inputs or more");
  Inference r;
  r.shape = inputs[0];
  r.shape.C = 0;
  for (const Shape& s : inputs) {
    if (s.N != inputs[0].N || s.H != inputs[0].H || s.W != inputs[0].W)
      throw GraphError("concatenates maps of different sizes, " + to_string(inputs[0]) + " and " + to_string(s));
    r.shape.C += s.C;
  }
  return r;
}

void ConcatOp::forward(const OpRun& run) {
  int at = 0;
  for (const TensorView& x : run.x) {
    const TensorView part = channel_slice(run.y, at, x.C);
    if (x.data != part.data) kernels::add_forward(*run.stream, {.a = x, .b = {}, .y = part});
    at += x.C;
  }
}

void ConcatOp::backward(const OpRun& run) {
  int at = 0;
  for (size_t i = 0; i < run.dx.size(); ++i) {
    const TensorView part = channel_slice(run.dy, at, run.x[i].C);
    if (run.dx[i] && run.dx[i].data != part.data)
      kernels::add_forward(*run.stream, {.a = part, .b = {}, .y = run.dx[i], .accumulate = run.accumulate[i]});
    at += run.x[i].C;
  }
}

namespace {
const RegisterOp sum{"add", "the sum of maps of one shape", 2, kAnyInputs, plain<AddOp>};
const RegisterOp concat{"concat", "channels side by side", 2, kAnyInputs, plain<ConcatOp>};
}  // namespace

}  // namespace regolith
