// Convolution and its adjoint, over the providers of engine/conv.
#pragma once

#include <array>

#include "engine/conv/provider.h"
#include "engine/graph/attributes.h"
#include "engine/graph/op.h"

namespace regolith {

// Padding before and after one axis: "same" as TensorFlow has it, total = max((ceil(in/s)-1)*s + (k-1)*d + 1 - in, 0)
// with the odd pixel after; "valid" is none.
std::array<int, 2> same_padding(int in, int kernel, int stride, int dilation);

struct ConvAttributes {
  int filters = 0;
  std::array<int, 2> kernel{3, 3}, stride{1, 1}, dilation{1, 1};
  bool same = true;
  bool bias = true;
  bool relu = false;  // in the epilogue: set by fusion
  // In inference, set by fusion: input 1 is added before the ReLU; a group norm reads the sums of y.
  bool residual = false, emits_sums = false;
  // A batch norm follows and takes the bias out again: with the batch's statistics it is left out, and has no gradient.
  bool bias_cancels = false;
  Init init = Init::glorot_uniform;
};

ConvAttributes parse_conv(const Attributes& a);
Init parse_init(const Attributes& a);    // the key `init`, of every op that has kernels
int parse_filters(const Attributes& a);  // the key `filters`

inline ChannelBias bias_of(const ParamView& p) { return {p.master, p.compute}; }

// The copies of the weights that a convolution reads forward and for dgrad, for Op::prepacked(); `prefix` tells those
// of several convolutions of one op apart.
std::vector<Prepacked> prepacked(const Convolution& conv, const std::string& prefix = "");
// Writes them from `w` to packed[0] and packed[1].
void prepack_weights(Convolution& conv, DeviceStream& stream, const void* w, void* const* packed);

// What a convolution and its adjoint have in common.
class ConvBase : public Op {
 public:
  explicit ConvBase(ConvAttributes a) : a_(a) {}
  ConvAttributes& attributes() { return a_; }
  const ConvAttributes& attributes() const { return a_; }
  // Once inferred: the convolution that runs, or whose adjoint does; with its padding.
  const ConvShape& convolution() const { return shape_; }
  virtual bool filters_first() const { return true; }  // of the kernel's axes; else they come last
  std::string describe() const override;
  std::string provider() const override;
  int bias_parameter() const override { return a_.bias && !a_.relu ? 1 : -1; }
  void leave_bias_gradient() override { sums_bias_ = false; }
  std::vector<Prepacked> prepacked() const override { return regolith::prepacked(*conv_); }
  void prepack_weights(const OpRun& run) override {
    regolith::prepack_weights(*conv_, *run.stream, run.params[0].compute, run.packed.data());
  }

 protected:
  // For an output and a kernel (kernels,R,S,in), whose fans count `in` and `kernels` channels.
  Inference infer_conv(const Shape& y, int kernels, int in) const;

  ConvAttributes a_;
  ConvShape shape_{};
  std::shared_ptr<Convolution> conv_;
  bool sums_bias_ = true;  // computes the gradient of its bias, where it has one
};

// Parameters: kernel (filters,R,S,C), bias (filters).
class ConvOp : public ConvBase {
 public:
  using ConvBase::ConvBase;
  std::string_view kind() const override { return "conv"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<ConvOp>(*this); }
  Inference infer(const std::vector<Shape>& inputs) override;
  bool accumulates() const override {
    return conv_ != nullptr && (conv_->has_dgrad_epilogue() || conv_->takes_norms());
  }
  bool overwrites_dy() const override { return a_.relu; }
  bool reads_strided() const override { return has_epilogue_ || conv_->takes_norms(); }
  bool writes_strided() const override { return has_epilogue_ || conv_->takes_norms(); }
  size_t aux_bytes() const override;
  int left_out_bias() const override { return leaves_bias_out_ ? 1 : -1; }
  int bias_parameter() const override { return leaves_bias_out_ ? -1 : ConvBase::bias_parameter(); }
  AuxUse reads_aux(size_t input) const override {
    if (!applies_norm_ || input != 0) return AuxUse::none;
    return takes_norms() ? AuxUse::forward_and_backward : AuxUse::forward;
  }
  bool applies_norm() const override { return has_epilogue_ || (takes_norms() && shape_.C % 8 == 0); }
  void apply_norm(const NormReading& norm) override { applies_norm_ = true, norm_ = norm; }
  bool takes_norms() const override { return trains_ && conv_->takes_norms(); }
  void give_moments() override { gives_moments_ = true; }
  void give_sums() override { gives_sums_ = true; }
  bool takes_gradient() const override;
  bool takes_squeezed_gradient() const override {
    return takes_norms() && kernels::tile_squeezes(shape_.C, shape_.K, shape_.R, shape_.S);
  }
  void take_gradient(const NormReading& norm) override { takes_gradient_ = true, norm_behind_ = norm; }
  size_t dx_aux_bytes() const override;
  void compile(const CompileContext& context) override;
  bool forward_reads(size_t k) const override { return k > 0 || conv_->prepacked(WeightUse::forward).bytes == 0; }
  size_t forward_workspace() const override { return conv_->forward_workspace(); }
  size_t backward_workspace() const override;
  LateSums late_sums() const override { return takes_norms() ? LateSums::after_pass : LateSums::none; }
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes backward_passes(const std::vector<bool>& wants_dx) const override;

 private:
  bool sums_dy() const { return a_.bias && sums_bias_ && !leaves_bias_out_; }  // for the gradient of the bias
  kernels::NormOnLoad norm_on_load(const OpRun& run) const;
  void backward_with_norms(const OpRun& run);
  bool leaves_bias_out_ = false;
  bool has_epilogue_ = false;  // in inference, of its provider
  bool trains_ = false;        // backward will run
  bool applies_norm_ = false, takes_gradient_ = false, gives_moments_ = false, gives_sums_ = false;
  NormReading norm_, norm_behind_;
};

// Transposed convolution: the exact adjoint of the "same" convolution that maps its output to its input; shape_ is that
// convolution's. Parameters: kernel (C_in, R, S, filters), which is the adjoint convolution's (K,R,S,C); bias
// (filters).
class ConvTransposeOp : public ConvBase {
 public:
  using ConvBase::ConvBase;
  std::string_view kind() const override { return "conv_transpose"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<ConvTransposeOp>(*this); }
  bool filters_first() const override { return false; }
  bool may_leave_bias() const override { return a_.bias && !conv_->has_dgrad_epilogue(); }
  void leave_bias() override { adds_bias_ = false; }
  int left_out_bias() const override { return adds_bias_ ? -1 : 1; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void compile(const CompileContext& context) override;
  bool forward_reads(size_t k) const override { return k > 0 || conv_->prepacked(WeightUse::dgrad).bytes == 0; }
  size_t forward_workspace() const override { return conv_->dgrad_workspace(); }
  size_t backward_workspace() const override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes forward_passes() const override;
  Passes backward_passes(const std::vector<bool>& wants_dx) const override;

 private:
  bool adds_bias_ = true;  // where it has one: no reader does
};

}  // namespace regolith
