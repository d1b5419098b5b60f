// The attention gate of Attention U-Net (Oktay et al., 2018): y = x * sigmoid(psi . relu(theta x + phi g) + b), one
// number a pixel. What it computes is in kernels/attention_gate.h.
#pragma once

#include "engine/graph/op.h"

namespace regolith {

// Inputs: x, and the gating signal g of the same N, H, W. Parameters: theta/kernel (filters,1,1,Cx), phi/kernel
// (filters,1,1,Cg), psi/kernel (1,1,1,filters), psi/bias (1).
class AttentionGateOp : public StridedOp<AttentionGateOp> {
 public:
  AttentionGateOp(int filters, Init init) : filters_(filters), init_(init) {}
  std::string_view kind() const override { return "attention_gate"; }
  std::string describe() const override { return std::to_string(filters_) + " filters"; }
  Inference infer(const std::vector<Shape>& inputs) override;
  bool backward_in_place() const override { return true; }
  void compile(const CompileContext& context) override;
  size_t backward_workspace() const override;
  std::vector<Prepacked> prepacked() const override;
  void prepack_weights(const OpRun& run) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes backward_passes(const std::vector<bool>&) const override {
    return {.launches = 2, .sums = 4, .x = 2, .others = 2};
  }
  LateSums late_sums() const override { return LateSums::after_op; }  // the workspace holds a map as well

 private:
  int filters_;
  Init init_;
  Shape x_, g_;
  DType type_ = DType::f32;
  bool packs_ = true;  // the kernels of this device want weights laid out for them
};

}  // namespace regolith
