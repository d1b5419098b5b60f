// Dropout and spatial dropout: the identity outside training.
#pragma once

#include "engine/graph/attributes.h"
#include "engine/graph/op.h"
#include "kernels/core/random.h"

namespace regolith {

class DropoutOp : public StridedOp<DropoutOp> {
 public:
  DropoutOp(float rate, bool spatial) : rate_(rate), spatial_(spatial) {}
  float rate() const { return rate_; }
  bool spatial() const { return spatial_; }
  std::string_view kind() const override { return spatial_ ? "spatial_dropout" : "dropout"; }
  std::string describe() const override;
  bool forward_in_place() const override { return true; }
  bool backward_in_place() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  float rate_;
  bool spatial_;
};

// Dropout that fusion has put into another op.
struct DropoutEpilogue {
  float rate = 0;
  bool spatial = false;
  std::string name;  // the node that was merged, whose random numbers are drawn
  explicit operator bool() const { return rate > 0; }
  std::string describe() const;  // " + spatial_dropout 0.1"
};

// What a run's dropout draws: with `dropout` off, nothing.
DropoutDraws dropout_draws(const OpRun& run, float rate, bool spatial);
std::string describe_rate(float rate);  // "0.1"

std::unique_ptr<Op> parse_dropout(const Attributes& a, bool spatial);  // rate

}  // namespace regolith
