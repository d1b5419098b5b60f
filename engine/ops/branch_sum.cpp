#include "engine/ops/branch_sum.h"

#include <algorithm>
#include <utility>

#include "engine/ops/conv.h"
#include "kernels/channel_sum.h"

namespace regolith {
namespace {

TensorView shape_only(const BranchSumShape& s, int C, DType type) { return whole_map(nullptr, s.N, s.H, s.W, C, type); }

class KernelBranchSum : public BranchSum {
 public:
  explicit KernelBranchSum(const BranchSumShape& shape) : shape_(shape) {
    for (const auto& b : shape.branches)
      workspace_ += kernels::aspp_product_workspace(shape.pixels(), shape.F, b.K, 1) +
                    kernels::aspp_product_workspace(shape.pixels(), b.K, shape.C, b.taps.count());
  }
  std::string provider() const override { return "aspp kernel"; }
  size_t forward_workspace() const override { return 0; }
  size_t backward_workspace() const override { return 0; }
  size_t gradients_workspace() const override { return workspace_; }

  void forward(DeviceStream& stream, const TensorView& x, const std::vector<Branch>& branches, const ChannelBias& bias,
               const TensorView& image, const TensorView& y, void* const*, void*) override {
    kernels::AsppForward k;
    k.x = x;
    k.bias = bias.full;
    k.image = image;
    k.y = y;
    for (const Branch& b : branches) {
      k.branches[k.count] = {b.w, b.bias.full, b.project, b.z, shape_.branches[k.count].taps};
      ++k.count;
    }
    kernels::aspp_forward(stream, k);
  }

  void begin_backward(const TensorView& dy, const std::vector<Branch>& branches, Gradients& later) override {
    for (const Branch& b : branches) later.projections.branches[later.projections.count++] = {dy, b.project, b.dz};
  }
  void backward(DeviceStream& stream, const TensorView& x, const TensorView& dy, const std::vector<Branch>& branches,
                const TensorView& image, float image_scale, const TensorView& dx, bool accumulate, void* const*, void*,
                Gradients& later) override {
    kernels::AsppWeightGradients& weights = later.weights;
    kernels::AsppDataGradient all;
    all.image = image;
    all.image_scale = image_scale;
    all.dx = dx;
    all.accumulate = accumulate;
    for (const Branch& b : branches) {
      const kernels::AsppTaps taps = shape_.branches[all.count].taps;
      weights.products[weights.count++] = {dy, b.z, b.dproject, b.dbias, {}, false};
      weights.products[weights.count++] = {b.dz, x, b.dw, b.db, taps, b.accumulate};
      all.branches[all.count++] = {b.w, b.dz, taps};
    }
    if (dx) kernels::aspp_data_gradient(stream, all);
  }

 private:
  BranchSumShape shape_;
  size_t workspace_ = 0;
};

// The projection is split over its input channels, a product for each branch, and one pass adds their results: fewer
// bytes than to copy the branches side by side, in both directions, for every number of branches.
class ProviderBranchSum : public BranchSum {
 public:
  ProviderBranchSum(const CompileContext& context, const BranchSumShape& shape) : shape_(shape), type_(context.type) {
    const auto pick = [&](const ConvShape& conv, bool bias, bool dgrad) {
      ConvRequest r = conv_request(conv, context);
      r.bias = bias;
      r.needs_dgrad = context.training && dgrad;
      return std::shared_ptr<Convolution>(pick_convolution(context.device, r, context.conv));
    };
    for (const auto& b : shape.branches) {
      const int rate = std::max(b.taps.rate, 1), down = b.taps.rows / 2 * rate, right = b.taps.columns / 2 * rate;
      Compiled c;
      c.flat = b.taps.count() == 1;
      const TensorView x = seen({}, c.flat, shape.C), z = seen({}, true, b.K);
      c.branch = pick({x.N,
                       x.H,
                       x.W,
                       shape.C,
                       b.K,
                       b.taps.rows,
                       b.taps.columns,
                       {1, 1},
                       {rate, rate},
                       {down, right},
                       {down, right}},
                      shape.branch_bias, shape.needs_dx);
      c.projection = pick({z.N, z.H, z.W, b.K, shape.F, 1, 1}, shape.bias, true);
      compiled_.push_back(c);
    }
    split_ = shape.branches.size() > 1 || !shape.bias;
  }

  std::string provider() const override {
    const Convolution& c = *compiled_.front().branch;
    return std::string(c.provider()) + " " + c.implementation();
  }
  // Of each branch: its convolution forward and dgrad, its projection forward and dgrad.
  std::vector<Prepacked> prepacked() const override {
    std::vector<Prepacked> copies;
    for (size_t g = 0; g < compiled_.size(); ++g) {
      for (const auto& [conv, name] :
           {std::pair{compiled_[g].branch, " branch "}, std::pair{compiled_[g].projection, " projection "}}) {
        const auto two = regolith::prepacked(*conv, std::to_string(g) + name);
        copies.insert(copies.end(), two.begin(), two.end());
      }
    }
    return copies;
  }
  void prepack_weights(DeviceStream& stream, const std::vector<Branch>& branches, void* const* packed) override {
    for (size_t g = 0; g < compiled_.size(); ++g, packed += 4) {
      regolith::prepack_weights(*compiled_[g].branch, stream, branches[g].w, packed);
      regolith::prepack_weights(*compiled_[g].projection, stream, branches[g].project, packed + 2);
    }
  }
  size_t forward_workspace() const override {
    size_t most = 0;
    for (const Compiled& c : compiled_)
      most = std::max({most, c.branch->forward_workspace(), c.projection->forward_workspace()});
    return parts(shape_.F) + most;
  }
  size_t backward_workspace() const override {
    size_t most = 0;
    for (const Compiled& c : compiled_)
      most = std::max({most, c.branch->wgrad_workspace(), c.branch->dgrad_workspace(), c.projection->wgrad_workspace(),
                       c.projection->dgrad_workspace()});
    return parts(shape_.C) + most;
  }

  void forward(DeviceStream& stream, const TensorView& x, const std::vector<Branch>& branches, const ChannelBias& bias,
               const TensorView& image, const TensorView& y, void* const* packed, void* workspace) override {
    kernels::AddImages sum;
    sum.image = image;
    sum.y = y;
    void* scratch = piece(workspace, parts(shape_.F));
    for (size_t g = 0; g < compiled_.size(); ++g, packed += 4) {
      const Compiled& c = compiled_[g];
      const Branch& b = branches[g];
      c.branch->forward(stream, seen(x, c.flat), b.w, packed[0], b.bias, seen(b.z, c.flat), scratch);
      TensorView part = y;
      if (split_) part.data = piece(workspace, g * part_bytes(shape_.F));
      c.projection->forward(stream, seen(b.z, true), b.project, packed[2], bias, seen(part, true), scratch);
      sum.parts[sum.count++] = part;
    }
    if (split_) kernels::add_images(stream, sum);
  }

  void backward(DeviceStream& stream, const TensorView& x, const TensorView& dy, const std::vector<Branch>& branches,
                const TensorView& image, float image_scale, const TensorView& dx, bool accumulate, void* const* packed,
                void* workspace, Gradients&) override {
    kernels::AddImages sum;
    sum.image = image;
    sum.scale = image_scale;
    sum.y = dx;
    sum.accumulate = accumulate;
    void* scratch = piece(workspace, parts(shape_.C));
    for (size_t g = 0; g < compiled_.size(); ++g, packed += 4) {
      const Compiled& c = compiled_[g];
      const Branch& b = branches[g];
      const TensorView flat_dy = seen(dy, true), x_seen = seen(x, c.flat), dz = seen(b.dz, c.flat);
      c.projection->wgrad(stream, seen(b.z, true), flat_dy, b.dproject, nullptr, false, scratch);
      c.projection->dgrad(stream, flat_dy, b.project, packed[3], seen(b.dz, true), scratch);
      c.branch->wgrad(stream, x_seen, dz, b.dw, b.db, b.accumulate, scratch);
      if (!dx) continue;
      TensorView part = dx;
      part.data = piece(workspace, g * part_bytes(shape_.C));
      c.branch->dgrad(stream, dz, b.w, packed[1], seen(part, c.flat), scratch);
      sum.parts[sum.count++] = part;
    }
    if (dx) kernels::add_images(stream, sum);
  }

 private:
  struct Compiled {
    std::shared_ptr<Convolution> branch, projection;
    bool flat = false;  // one tap
  };
  // A 1x1 convolution sees all rows of the batch as those of one image: then its product has as many rows as it can.
  TensorView seen(const TensorView& m, bool flat) const {
    return flat ? TensorView{m.data, 1, m.N * m.H, m.W, m.C, m.pitch, m.dtype} : m;
  }
  TensorView seen(const TensorView&, bool flat, int C) const { return seen(shape_only(shape_, C, type_), flat); }
  size_t part_bytes(int C) const { return aligned(shape_.pixels() * C * size_of(type_)); }
  size_t parts(int C) const { return compiled_.size() * part_bytes(C); }

  BranchSumShape shape_;
  DType type_;
  std::vector<Compiled> compiled_;
  bool split_ = true;
};

}  // namespace

std::unique_ptr<BranchSum> make_branch_sum(const CompileContext& context, const BranchSumShape& shape) {
  const bool host = context.device.kind() == DeviceKind::cpu && context.device.execution() == Execution::fast;
  const bool fits = std::all_of(shape.branches.begin(), shape.branches.end(), [&](const BranchSumShape::Branch& b) {
    return kernels::aspp_takes(shape.C, b.K, shape.F);
  });
  if (!host && !context.tf32 && context.conv.provider == "auto" && fits)
    return std::make_unique<KernelBranchSum>(shape);
  return std::make_unique<ProviderBranchSum>(context, shape);
}

}  // namespace regolith
