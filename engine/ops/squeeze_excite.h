// Squeeze and excitation: every channel of a sample times a number that two dense layers make of the means of all of
// its channels.
#pragma once

#include "engine/graph/attributes.h"
#include "engine/graph/op.h"
#include "engine/ops/dropout.h"
#include "kernels/squeeze_excite.h"

namespace regolith {

// What fusion adds to the pass that scales: max pooling of 2x2, or dropout.
struct SqueezeEpilogue {
  bool pool = false;
  DropoutEpilogue dropout;
};

// Parameters, (out, in): reduce/kernel (hidden, C), reduce/bias, expand/kernel (C, hidden), expand/bias; hidden is
// C / ratio, at least 1.
class SqueezeExciteOp : public StridedOp<SqueezeExciteOp> {
 public:
  explicit SqueezeExciteOp(int ratio) : ratio_(ratio) {}
  SqueezeEpilogue epilogue;
  bool reads_statistics = false;  // from the norm that makes its input: set by fusion
  std::string_view kind() const override { return "squeeze_excite"; }
  std::string describe() const override;
  bool forward_in_place() const override { return true; }
  bool backward_in_place() const override { return true; }
  AuxUse reads_aux(size_t) const override {
    return normed_ ? AuxUse::forward_and_backward : reads_statistics ? AuxUse::forward : AuxUse::none;
  }
  bool may_squeeze_norm() const override { return trains_ && !epilogue.pool; }
  void apply_norm(const NormReading&) override { normed_ = true; }
  NormReading reading() const override;
  bool may_leave_gradient() const override { return trains_ && !epilogue.pool && !epilogue.dropout; }
  void leave_gradient() override { leaves_gradient_ = true; }
  bool leaves_gradient() const override { return normed_ || leaves_gradient_; }
  size_t saved_memory() const override;
  size_t dx_aux_bytes() const override;
  void compile(const CompileContext& context) override { trains_ = context.training; }
  std::string random_name() const override { return epilogue.dropout.name; }
  Inference infer(const std::vector<Shape>& inputs) override;
  size_t forward_workspace() const override;
  size_t backward_workspace() const override { return forward_workspace(); }
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes forward_passes() const override;
  Passes backward_passes(const std::vector<bool>& wants_dx) const override;

 private:
  kernels::SqueezeExcite arguments(const OpRun& run) const;
  int ratio_, hidden_ = 1;
  bool trains_ = false, normed_ = false, leaves_gradient_ = false;
  Shape shape_;
};

std::unique_ptr<Op> parse_squeeze_excite(const Attributes& a);  // ratio

}  // namespace regolith
