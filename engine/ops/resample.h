// Pooling, upsampling and resizing.
#pragma once

#include "engine/graph/op.h"

namespace regolith {

// Without padding; the map's size must be a multiple of the stride, so that no pixel is lost silently.
class MaxPoolOp : public StridedOp<MaxPoolOp> {
 public:
  MaxPoolOp(int kernel, int stride) : kernel_(kernel), stride_(stride) {}
  int kernel() const { return kernel_; }
  int stride() const { return stride_; }
  bool halves() const { return kernel_ == 2 && stride_ == 2; }
  std::string_view kind() const override { return "max_pool"; }
  std::string describe() const override;
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  int kernel_, stride_;
};

// To a height and width, up or down, or by a whole factor; see kernels/resize.h for where the pixels lie.
class ResizeOp : public StridedOp<ResizeOp> {
 public:
  ResizeOp(int height, int width, bool bilinear) : height_(height), width_(width), bilinear_(bilinear) {}
  ResizeOp(int factor, bool bilinear) : factor_(factor), bilinear_(bilinear) {}
  int factor() const { return factor_; }  // 0: to a height and width
  bool bilinear() const { return bilinear_; }
  std::string_view kind() const override { return factor_ > 0 ? "upsample" : "resize"; }
  std::string describe() const override;
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  int height_ = 0, width_ = 0, factor_ = 0;
  bool bilinear_;
};

// (N,H,W,C) to (N,1,1,C).
class GlobalAvgPoolOp : public StridedOp<GlobalAvgPoolOp> {
 public:
  std::string_view kind() const override { return "global_avg_pool"; }
  Inference infer(const std::vector<Shape>& inputs) override;
  size_t forward_workspace() const override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  float scale() const { return 1.0f / (static_cast<float>(shape_.H) * static_cast<float>(shape_.W)); }
  Shape shape_;
};

}  // namespace regolith
