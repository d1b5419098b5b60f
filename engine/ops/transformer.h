// What a transformer is made of, besides its dense layers, which are convolutions of 1x1: layer norm, GELU,
// self-attention over the positions of a map, and what tells them apart.
#pragma once

#include "engine/graph/op.h"

namespace regolith {

// Every pixel over its channels. Parameters: gamma (C), beta (C).
class LayerNormOp : public StridedOp<LayerNormOp> {
 public:
  explicit LayerNormOp(float epsilon = 1e-5f) : epsilon_(epsilon) {}
  float epsilon() const { return epsilon_; }
  std::string_view kind() const override { return "layer_norm"; }
  bool backward_in_place() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  size_t backward_workspace() const override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes backward_passes(const std::vector<bool>& wants_dx) const override {
    return {.launches = 3 + wants_dx[0], .x = 1 + wants_dx[0], .dy = 1 + wants_dx[0]};
  }

 private:
  float epsilon_;
  Shape shape_;
};

// (N,H,W,3C), the channels [q | k | v], to (N,H,W,C): every position attends to all H * W of its image.
class AttentionOp : public OpBase<AttentionOp> {
 public:
  explicit AttentionOp(int heads) : heads_(heads) {}
  int heads() const { return heads_; }
  std::string_view kind() const override { return "attention"; }
  std::string describe() const override;
  Inference infer(const std::vector<Shape>& inputs) override;
  size_t backward_workspace() const override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes backward_passes(const std::vector<bool>&) const override { return {.launches = 3, .x = 2, .dy = 2}; }

 private:
  int heads_;
  Shape shape_;  // of the output
};

// y = x + embedding, the same for every image. Parameter: embedding (1,H,W,C), which starts at zero: the convolutions
// before it know of positions by their padding, its gradient does not depend on its value, and the network starts as
// the one without it.
class PositionEmbeddingOp : public StridedOp<PositionEmbeddingOp> {
 public:
  std::string_view kind() const override { return "position_embedding"; }
  bool backward_in_place() const override { return true; }
  Inference infer(const std::vector<Shape>& inputs) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
};

}  // namespace regolith
