// Activations, softmax and products.
#pragma once

#include "engine/graph/op.h"
#include "kernels/activation.h"

namespace regolith {

// Over the channels of each pixel.
class SoftmaxOp : public StridedOp<SoftmaxOp> {
 public:
  std::string_view kind() const override { return "softmax"; }
  bool backward_in_place() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
};

// One of kernels/activation.h.
class ActivationOp : public StridedOp<ActivationOp> {
 public:
  explicit ActivationOp(kernels::Activation f) : f_(f) {}
  std::string_view kind() const override { return kernels::traits_of(f_).name; }
  bool is_relu() const override { return f_ == kernels::Activation::relu; }
  bool forward_in_place() const override { return !kernels::traits_of(f_).gradient_reads_x; }
  bool backward_in_place() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  kernels::Activation f_;
};

// The product of two maps of one shape, or of a map and one that is repeated over its channels (N,H,W,1) or over its
// pixels (N,1,1,C), in either order.
class MultiplyOp : public StridedOp<MultiplyOp> {
 public:
  std::string_view kind() const override { return "multiply"; }
  std::string describe() const override;
  bool backward_in_place() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void compile(const CompileContext& context) override;
  size_t backward_workspace() const override { return workspace_; }
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  Shape large_, small_;
  int repeated_ = 1;  // the input that is the smaller one
  size_t workspace_ = 0;
};

}  // namespace regolith
