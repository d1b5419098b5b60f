// Atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017):
// a 1x1 convolution, 3x3 convolutions of several dilations, and a 1x1 convolution of the image's mean, side by side,
// and a 1x1 convolution of all of them. No norms, no activations. The map keeps its size.
//
// Taps that never land inside the image are left out, exactly: at 4x8 a dilation of 6 keeps three taps of nine, 12 the
// centre. Branches that keep the centre only join the 1x1 branch in one product. The weights of dead taps have a
// gradient of zero, and decay like all others.
#pragma once

#include <memory>
#include <vector>

#include "engine/ops/branch_sum.h"

namespace regolith {

struct AsppAttributes {
  int filters = 0;
  std::vector<int> rates{6, 12, 18};
  bool bias = true;
  bool prune = true;  // off: every tap is multiplied, and no branch joins another
  Init init = Init::glorot_uniform;
};

// Parameters, each with its bias (F): branch_1x1/kernel (F,1,1,C), branch_rate_6/kernel (F,3,3,C) ...,
// branch_pool/kernel (F,1,1,C), project/kernel (F,1,1,(2+rates)*F), whose input channels are the branches in that
// order.
class AsppOp : public OpBase<AsppOp> {
 public:
  explicit AsppOp(AsppAttributes a) : a_(std::move(a)) {}
  AsppAttributes& attributes() { return a_; }
  const AsppAttributes& attributes() const { return a_; }
  // What a dilation keeps of its nine taps on maps of H x W.
  kernels::AsppTaps taps(int rate, int H, int W) const;
  std::string_view kind() const override { return "aspp"; }
  std::string describe() const override;
  Inference infer(const std::vector<Shape>& inputs) override;
  bool accumulates() const override { return true; }
  void compile(const CompileContext& context) override;
  std::string provider() const override { return pixels_->provider(); }
  size_t saved_memory() const override { return saved_.bytes; }
  size_t forward_workspace() const override { return forward_.bytes; }
  size_t backward_workspace() const override { return backward_.bytes; }
  std::vector<Prepacked> prepacked() const override { return packed_; }
  bool forward_reads(size_t k) const override;
  void prepack_weights(const OpRun& run) override;
  void forward(const OpRun& run) override;
  void backward(const OpRun& run) override;
  Passes forward_passes() const override;
  Passes backward_passes(const std::vector<bool>& wants_dx) const override;

 private:
  // Branches that are one convolution.
  struct Group {
    struct Member {
      int branch;             // 0: the 1x1 convolution; i: rate i - 1 of the list; behind those, that of the mean
      std::vector<int> live;  // taps, among the 1 or 9 of the parameter
      int stored;             // taps of the parameter
    };
    kernels::AsppTaps taps;
    std::vector<Member> members;
    // Whether its weights are a parameter as it is; else they are gathered, and their gradient is scattered.
    bool whole() const { return members.size() == 1 && taps.count() == members[0].stored; }
  };
  // Where a group's tensors lie, in bytes from the start of the memory that holds them.
  struct Places {
    size_t w = 0, bias = 0, project = 0;  // among the prepacked copies
    size_t z = 0, dz = 0, dw = 0, db = 0, dproject = 0;
  };
  struct Memory {
    size_t bytes = 0;
    size_t mean = 0, sum = 0;  // one pixel per image, of C channels and of F
    size_t pixels = 0;         // what the two sums of branches need for themselves
    size_t dbias = 0, gradients = 0;
  };

  std::vector<Group> groups(int H, int W) const;
  std::string note(int H, int W) const;
  int kernel_of(int branch) const { return branch * (a_.bias ? 2 : 1); }  // among the parameters
  int pool_branch() const { return static_cast<int>(a_.rates.size()) + 1; }
  int project_branch() const { return pool_branch() + 1; }
  int columns() const { return pool_branch() + 1; }  // of F input channels, that the projection has
  TensorView image_map(void* data, int C) const { return whole_map(data, x_.N, 1, 1, C, type_); }
  // Of a group over maps of H x W. backward: with its gradients.
  BranchSum::Branch branch(const OpRun& run, size_t group, int H, int W, bool backward) const;
  // Those over the pixels of the map: all but the last. That is over the means of the images.
  std::vector<BranchSum::Branch> branches(const OpRun& run, bool backward) const;
  std::vector<BranchSum::Branch> pooled(const OpRun& run, bool backward) const {
    return {branch(run, groups_.size() - 1, 1, 1, backward)};
  }
  // f(group, its number, member, its number) for all members of all groups.
  template <class F>
  void each_member(F&& f) const {
    for (size_t i = 0; i < groups_.size(); ++i)
      for (size_t j = 0; j < groups_[i].members.size(); ++j)
        f(groups_[i], i, groups_[i].members[j], static_cast<int>(j));
  }
  int width(const Group& g) const { return static_cast<int>(g.members.size()) * a_.filters; }
  void scatter_gradients(const OpRun& run) const;

  AsppAttributes a_;
  Shape x_;
  std::vector<Group> groups_;  // the last is that of the images' means
  // Compiled.
  DType type_ = DType::f32;
  std::shared_ptr<BranchSum> pixels_, pooled_;
  std::vector<Places> places_;
  Memory saved_, forward_, backward_;
  std::vector<Prepacked> packed_;  // the gathered weights, then those of pixels_, then those of pooled_
  size_t pixels_packed_ = 0, pooled_packed_ = 0;
};

}  // namespace regolith
