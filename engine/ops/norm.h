// Group and batch normalisation with the activation and the residual add that fusion puts into the same pass.
#pragma once

#include "engine/graph/attributes.h"
#include "engine/graph/op.h"
#include "engine/ops/dropout.h"
#include "kernels/norm.h"

namespace regolith {

// What fusion adds to a norm: y = dropout(act(norm(x) + residual)). The residual is input 1.
struct NormEpilogue {
  bool residual = false;
  bool relu = false;
  DropoutEpilogue dropout;
};

// Parameters: gamma (C), beta (C).
class NormOp : public Op {
 public:
  NormEpilogue epilogue;
  bool reads_strided() const override { return true; }
  bool writes_strided() const override { return true; }
  bool accumulates() const override { return true; }
  bool backward_in_place() const override { return true; }
  std::string random_name() const override { return epilogue.dropout.name; }
  std::string describe() const override;
  Inference infer(const std::vector<Shape>& inputs) override;
  size_t forward_workspace() const override;
  size_t backward_workspace() const override { return forward_workspace(); }
  LateSums late_sums() const override { return LateSums::after_pass; }
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes forward_passes() const override;
  Passes backward_passes(const std::vector<bool>& wants_dx) const override;
  // A norm has taken the mean out of what is one channel alone, and with it the bias before it.
  GradientSums gradient_sums(size_t input) const override;
  void give_gradient_sums(size_t input) override { gives_sums_ |= input == 0; }
  size_t saved_memory() const override;
  size_t aux_bytes() const override;
  size_t dx_aux_bytes() const override;
  AuxUse reads_aux(size_t input) const override {
    return takes_moments_ && input == 0 ? AuxUse::forward : AuxUse::none;
  }
  bool is_norm() const override { return true; }
  bool may_leave_to_readers() const override { return trains_ && !epilogue.residual; }
  void leave_to_readers() override { left_to_readers_ = true; }
  NormReading reading() const override;
  void take_moments() override { takes_moments_ = true; }
  void take_sums(bool of_images) override { takes_sums_ = true, sums_of_images_ = of_images; }
  void take_squeeze() override { takes_squeeze_ = true; }
  void leave_gradient() override { leaves_gradient_ = true; }
  bool leaves_value() const override { return trains_ && left_to_readers_; }
  bool leaves_gradient() const override { return leaves_gradient_; }
  void compile(const CompileContext& context) override { trains_ = context.training; }
  int groups() const { return groups_; }  // 0: batch norm
  float epsilon() const { return epsilon_; }

 protected:
  NormOp(int groups, float epsilon) : groups_(groups), epsilon_(epsilon) {}
  int64_t samples() const { return groups_ > 0 ? shape_.N : 1; }
  int64_t statistics() const;  // pairs of mean and rstd
  int group_channels() const { return groups_ > 0 ? shape_.C / groups_ : 1; }
  bool trains_ = false;  // backward will run
  bool left_to_readers_ = false, takes_moments_ = false, takes_sums_ = false, sums_of_images_ = false,
       leaves_gradient_ = false, takes_squeeze_ = false;
  kernels::Norm arguments(const OpRun& run) const;
  int groups_;  // 0: batch norm
  float epsilon_, momentum_ = 0;
  bool training_ = true;
  bool gives_sums_ = false;  // of dx
  Shape shape_;
};

class GroupNormOp : public NormOp {
 public:
  // Fewer channels than groups: a group per channel.
  GroupNormOp(int groups, float epsilon) : NormOp(groups, epsilon) {}
  bool emits_statistics = false;  // of y over H and W, (N, C), to the squeezes that read it: set by fusion
  bool takes_sums = false;        // of the convolution before it, where that has them: set by fusion
  AuxUse reads_aux(size_t input) const override {
    return takes_sums && input == 0 ? AuxUse::forward : NormOp::reads_aux(input);
  }
  bool may_leave_to_readers() const override { return !epilogue.residual && !(trains_ && emits_statistics); }
  // Materialised, it reads x once and keeps it: that x has been summed would only cost launches.
  bool takes_moments() const override { return left_to_readers_; }
  bool forward_in_place() const override { return left_to_readers_ && !trains_; }
  std::string_view kind() const override { return "group_norm"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<GroupNormOp>(*this); }
  Inference infer(const std::vector<Shape>& inputs) override;
  size_t aux_bytes() const override;
};

// Parameters also: the running mean and variance (C), which are not trained.
class BatchNormOp : public NormOp {
 public:
  BatchNormOp(float momentum, float epsilon) : NormOp(0, epsilon) { momentum_ = momentum; }
  std::string_view kind() const override { return "batch_norm"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<BatchNormOp>(*this); }
  bool couples_batch() const override { return true; }
  bool takes_moments() const override { return training_; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void compile(const CompileContext& context) override;  // throws GraphError for statistics of a single value
};

std::unique_ptr<Op> parse_group_norm(const Attributes& a);  // groups, epsilon
std::unique_ptr<Op> parse_batch_norm(const Attributes& a);  // momentum, epsilon

}  // namespace regolith
