// Convolution and its adjoint, over the providers of engine/conv.
#pragma once

#include <array>

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
  // A batch norm follows and takes the bias out again: its gradient is zero by definition, and is not computed.
  bool bias_cancels = false;
  Init init = Init::glorot_uniform;
};

// kernel, stride, dilation, padding, bias, init: all but the filters.
ConvAttributes parse_conv(const Attributes& a);

// Parameters: kernel (filters,R,S,C), bias (filters).
class ConvOp : public OpBase<ConvOp> {
 public:
  explicit ConvOp(ConvAttributes a) : a_(a) {}
  ConvAttributes& attributes() { return a_; }
  std::string_view kind() const override { return "conv"; }
  std::string describe() const override;
  Inference infer(const std::vector<Shape>& inputs) override;
  bool accumulates() const override { return conv_ != nullptr && conv_->has_dgrad_epilogue(); }
  void compile(const CompileContext& context) override;
  std::string provider() const override;
  size_t forward_workspace() const override { return conv_->forward_workspace(); }
  size_t backward_workspace() const override;
  size_t prepacked_bytes() const override { return conv_->prepacked_bytes(); }
  void prepack_weights(const OpRun& run) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  ConvAttributes a_;
  ConvShape shape_{};
  bool skip_bias_gradient_ = false;
  std::shared_ptr<Convolution> conv_;
};

// Transposed convolution: the exact adjoint of the "same" convolution that maps its output to its input.
// Parameters: kernel (C_in, R, S, filters), which is the adjoint convolution's (K,R,S,C); bias (filters).
class ConvTransposeOp : public OpBase<ConvTransposeOp> {
 public:
  explicit ConvTransposeOp(ConvAttributes a) : a_(a) {}
  std::string_view kind() const override { return "conv_transpose"; }
  std::string describe() const override;
  Inference infer(const std::vector<Shape>& inputs) override;
  void compile(const CompileContext& context) override;
  std::string provider() const override;
  size_t forward_workspace() const override { return conv_->dgrad_workspace(); }
  size_t backward_workspace() const override;
  size_t prepacked_bytes() const override { return conv_->prepacked_bytes(); }
  void prepack_weights(const OpRun& run) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  ConvAttributes a_;
  ConvShape shape_{};  // of the adjoint: its input is our output
  std::shared_ptr<Convolution> conv_;
};

}  // namespace regolith
