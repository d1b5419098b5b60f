#include "engine/ops/dropout.h"

#include "engine/base/text.h"

#include "engine/ops/registry.h"
#include "kernels/dropout.h"

namespace regolith {

DropoutDraws dropout_draws(const OpRun& run, float rate, bool spatial) {
  return {run.dropout ? rate : 0, spatial, run.seed, run.step, run.first_sample};
}

std::string describe_rate(float rate) { return format("%g", static_cast<double>(rate)); }

std::string DropoutEpilogue::describe() const {
  return rate > 0 ? std::string(spatial ? " + spatial_dropout " : " + dropout ") + describe_rate(rate) : "";
}

std::string DropoutOp::describe() const { return "rate " + describe_rate(rate_); }

Inference DropoutOp::infer(const std::vector<Shape>& inputs) {
  Inference r;
  r.shape = inputs[0];
  return r;
}

void DropoutOp::forward(const OpRun& run) {
  kernels::dropout(*run.stream, {.x = run.x[0], .y = run.y, .draws = dropout_draws(run, rate_, spatial_)});
}

void DropoutOp::backward(const OpRun& run) {
  kernels::dropout(
      *run.stream,
      {.x = run.dy, .y = run.dx[0], .draws = dropout_draws(run, rate_, spatial_), .accumulate = run.accumulate[0]});
}

std::unique_ptr<Op> parse_dropout(const Attributes& a, bool spatial) {
  const float rate = static_cast<float>(a.number("rate", "fraction that is dropped", 0, 1));
  if (rate >= 1) a.fail("rate", "expected a rate of 0 or more and less than 1: at 1 nothing would be left");
  return std::make_unique<DropoutOp>(rate, spatial);
}

namespace {
const RegisterOp elements{"dropout", "drops elements in training, the rest times 1 / (1 - rate)", 1, 1,
                          [](const Attributes& a) { return parse_dropout(a, false); }};
const RegisterOp channels{"spatial_dropout", "drops whole channels of an image in training", 1, 1,
                          [](const Attributes& a) { return parse_dropout(a, true); }};
}  // namespace

}  // namespace regolith
