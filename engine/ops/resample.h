// Max pooling and upsampling.
#pragma once

#include "engine/graph/op.h"

namespace regolith {

// Without padding; the map's size must be a multiple of the stride, so that no pixel is lost silently.
class MaxPoolOp : public OpBase<MaxPoolOp> {
 public:
  MaxPoolOp(int kernel, int stride) : kernel_(kernel), stride_(stride) {}
  std::string_view kind() const override { return "max_pool"; }
  std::string describe() const override;
  bool reads_slices() const override { return true; }
  bool writes_slices() const override { return true; }
  bool accumulates() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  int kernel_, stride_;
};

class UpsampleOp : public OpBase<UpsampleOp> {
 public:
  UpsampleOp(int factor, bool bilinear) : factor_(factor), bilinear_(bilinear) {}
  std::string_view kind() const override { return "upsample"; }
  std::string describe() const override;
  bool reads_slices() const override { return true; }
  bool writes_slices() const override { return true; }
  bool accumulates() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;

 private:
  int factor_;
  bool bilinear_;
};

}  // namespace regolith
