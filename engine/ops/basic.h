// The ops that move maps about: the image, sums, and concatenation.
#pragma once

#include "engine/graph/op.h"

namespace regolith {

// The image batch (N,H,W,C); written by the sampler, not by an op before it.
class InputOp : public OpBase<InputOp> {
 public:
  InputOp(int H, int W, int C) : shape_{0, H, W, C} {}
  std::string_view kind() const override { return "input"; }
  bool writes_strided() const override { return false; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun&) override {}

 private:
  Shape shape_;
};

// y = x1 + x2 + ... of one shape.
class AddOp : public StridedOp<AddOp> {
 public:
  std::string_view kind() const override { return "add"; }
  bool is_sum() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  bool backward_in_place() const override { return true; }
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes forward_passes() const override;

 private:
  int terms_ = 2;
};

// y = the channels of x1, then of x2, ... The plan lets the producers write into y: what it could not place is copied.
class ConcatOp : public OpBase<ConcatOp> {
 public:
  std::string_view kind() const override { return "concat"; }
  bool joins_channels() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  bool reads_strided() const override { return true; }
  bool accumulates() const override { return true; }
  // Copies the inputs that are not already slices of y; backward likewise.
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
};

// The channels [at, at + C) of `whole`.
TensorView channel_slice(const TensorView& whole, int at, int C);

}  // namespace regolith
