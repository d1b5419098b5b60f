#include "engine/ops/aspp.h"

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/ops/conv.h"
#include "engine/ops/registry.h"
#include "kernels/channel_sum.h"
#include "kernels/copy_matrices.h"

namespace regolith {
namespace {

std::string rates_text(const std::vector<int>& rates) { return (rates.size() > 1 ? "rates " : "rate ") + join(rates); }

// The copies between parameters and the tensors that are gathered of them, in either direction.
class Copies {
 public:
  Copies(DType type, bool accumulate) : size_(size_of(type)) {
    k_.type = type;
    k_.accumulate = accumulate;
  }
  // `rows` rows of `columns` elements, the first at an element of `from` and of `to`; zeros where `from` is null.
  void add(int rows, int columns, const void* from, int64_t from_at, int from_pitch, void* to, int64_t to_at,
           int to_pitch) {
    const auto* source = static_cast<const unsigned char*>(from);
    k_.copies.push_back({source == nullptr ? nullptr : source + from_at * size_,
                         static_cast<unsigned char*>(to) + to_at * size_, rows, columns, from_pitch, to_pitch});
  }
  void run(Stream& stream) const { kernels::copy_matrices(stream, k_); }

 private:
  int64_t size_;
  kernels::CopyMatrices k_;
};

std::unique_ptr<Op> parse_aspp(const Attributes& a) {
  AsppAttributes p;
  p.filters = parse_filters(a);
  p.rates = a.integers("rates", "dilations of the 3x3 branches", 1, 1024, p.rates);
  p.bias = a.boolean("bias", "a bias for each channel of each convolution", true);
  p.init = parse_init(a);
  p.prune = a.boolean("prune", "leave out taps that see only padding; off to compare", true);
  return std::make_unique<AsppOp>(p);
}

const RegisterOp aspp{"aspp", "atrous spatial pyramid pooling", 1, 1, parse_aspp};

}  // namespace

std::string AsppOp::describe() const {
  return std::to_string(a_.filters) + " filters, " + rates_text(a_.rates) + (a_.prune ? "" : ", not pruned");
}

kernels::AsppTaps AsppOp::taps(int rate, int H, int W) const {
  return {!a_.prune || rate < H ? 3 : 1, !a_.prune || rate < W ? 3 : 1, rate};
}

std::vector<AsppOp::Group> AsppOp::groups(int H, int W) const {
  std::vector<Group> list{{{}, {{0, {0}, 1}}}};
  for (size_t i = 0; i < a_.rates.size(); ++i) {
    const kernels::AsppTaps taps = this->taps(a_.rates[i], H, W);
    Group::Member member{static_cast<int>(i) + 1, {}, 9};
    for (int t = 0; t < 9; ++t)
      if ((taps.rows == 3 || t / 3 == 1) && (taps.columns == 3 || t % 3 == 1)) member.live.push_back(t);
    if (taps.count() == 1) {
      list[0].members.push_back(member);
    } else {
      list.push_back({taps, {member}});
    }
  }
  list.push_back({{}, {{pool_branch(), {0}, 1}}});
  return list;
}

std::string AsppOp::note(int H, int W) const {
  if (!a_.prune) return "every tap is multiplied, those that see only padding too (prune: false)";
  struct Class {
    size_t taps;
    std::vector<int> rates;
  };
  std::vector<Class> classes;  // neighbours in the list of rates that keep as many taps
  int kept = 1;
  for (int rate : a_.rates) {
    const size_t taps = static_cast<size_t>(rate < H ? 3 : 1) * (rate < W ? 3 : 1);
    kept += static_cast<int>(taps);
    if (classes.empty() || classes.back().taps != taps) classes.push_back({taps, {}});
    classes.back().rates.push_back(rate);
  }
  std::string text;
  for (const Class& c : classes) {
    text += (text.empty() ? "" : ", ") + rates_text(c.rates) + ": ";
    text += c.taps == 1 ? "centre only" : c.taps == 9 ? "all 9 taps" : std::to_string(c.taps) + " of 9 taps";
  }
  const int all = 1 + 9 * static_cast<int>(a_.rates.size());
  return text + (kept < all ? format("; %.2fx fewer multiplications in the branches", 1.0 * all / kept) : "");
}

Inference AsppOp::infer(const std::vector<Shape>& inputs) {
  x_ = inputs[0];
  if (a_.rates.empty()) throw GraphError("rates is empty; expected at least one dilation, as in [6, 12, 18]");
  if (a_.rates.size() >= kernels::kAsppBranches)
    throw GraphError("rates has " + std::to_string(a_.rates.size()) + " dilations; expected at most " +
                     std::to_string(kernels::kAsppBranches - 1));
  for (size_t i = 0; i < a_.rates.size(); ++i) {
    if (a_.rates[i] < 1)
      throw GraphError("rates has a dilation of " + std::to_string(a_.rates[i]) + "; expected 1 or more");
    if (std::count(a_.rates.begin(), a_.rates.begin() + static_cast<std::ptrdiff_t>(i), a_.rates[i]) > 0)
      throw GraphError("rates names " + std::to_string(a_.rates[i]) +
                       " twice; each dilation is one branch, and gives its parameters their name");
  }
  groups_ = groups(x_.H, x_.W);
  const int C = x_.C, F = a_.filters;
  Inference r;
  r.shape = {x_.N, x_.H, x_.W, F};
  const auto add = [&](const std::string& name, int size, int in) {
    const int64_t taps = static_cast<int64_t>(size) * size;
    r.params.push_back({name + "/kernel", {F, size, size, in}, a_.init, taps * in, taps * F, true});
    if (a_.bias) r.params.push_back({name + "/bias", {F}, Init::zeros, 0, 0, true});
  };
  add("branch_1x1", 1, C);
  for (int rate : a_.rates) add("branch_rate_" + std::to_string(rate), 3, C);
  add("branch_pool", 1, C);
  add("project", 1, columns() * F);
  r.saves_input = {true};
  int64_t taps = 0;
  for (const Group& g : groups_) taps += static_cast<int64_t>(g.members.size()) * g.taps.count();
  r.macs = x_.pixels() * F * ((taps - 1) * C + static_cast<int64_t>(pool_branch()) * F) +
           static_cast<int64_t>(x_.N) * F * (C + F);
  r.note = note(x_.H, x_.W);
  return r;
}

void AsppOp::compile(const CompileContext& context) {
  type_ = context.type;
  const int N = x_.N, C = x_.C, F = a_.filters;
  const size_t element = size_of(type_);
  BranchSumShape shape{N, x_.H, x_.W, C, F, {}, a_.bias, false, context.needs_dx[0]};
  for (size_t i = 0; i + 1 < groups_.size(); ++i) shape.branches.push_back({width(groups_[i]), groups_[i].taps});
  pixels_ = make_branch_sum(context, shape);
  pooled_ = make_branch_sum(context, {N, 1, 1, C, F, {{F, {}}}, a_.bias, a_.bias, context.needs_dx[0]});

  Pieces saved, forward, backward;
  places_.clear();
  packed_.clear();
  const auto gather = [&](const std::string& name, size_t bytes) {
    packed_.push_back({name, bytes});
    return packed_.size() - 1;
  };
  for (size_t i = 0; i < groups_.size(); ++i) {
    const Group& g = groups_[i];
    const size_t K = width(g), weights = K * g.taps.count() * C;
    const size_t pixels = i + 1 < groups_.size() ? x_.pixels() : N;
    Places p;
    p.project = gather("projection " + std::to_string(i), F * K * element);
    p.dproject = backward.take(F * K * sizeof(float));
    p.z = saved.take(pixels * K * element);
    p.dz = backward.take(pixels * K * element);
    if (!g.whole()) {
      p.w = gather("kernel " + std::to_string(i), weights * element);
      p.bias = gather("bias " + std::to_string(i), K * sizeof(float));
      p.dw = backward.take(weights * sizeof(float));
      p.db = backward.take(K * sizeof(float));
    }
    places_.push_back(p);
  }
  saved_.mean = saved.take(static_cast<size_t>(N) * C * element);
  backward_.mean = backward.take(static_cast<size_t>(N) * C * element);
  forward_.sum = forward.take(static_cast<size_t>(N) * F * element);
  backward_.sum = backward.take(static_cast<size_t>(N) * F * element);
  pixels_packed_ = packed_.size();
  for (const Prepacked& p : pixels_->prepacked()) gather("pixels " + p.layout, p.bytes);
  pooled_packed_ = packed_.size();
  for (const Prepacked& p : pooled_->prepacked()) gather("pooled " + p.layout, p.bytes);
  // The two sums, and what follows them, run one after the other.
  const auto image_sum = [&](int channels) {
    return kernels::image_sum_workspace(whole_map(nullptr, N, x_.H, x_.W, channels, type_));
  };
  forward_.pixels = forward.take(std::max({pixels_->forward_workspace(), pooled_->forward_workspace(), image_sum(C)}));
  backward_.pixels = backward.take(std::max({pixels_->backward_workspace(), pooled_->backward_workspace(), image_sum(F),
                                             kernels::channel_sum_workspace(image_map(nullptr, F))}));
  backward_.dbias = backward.take(F * sizeof(float));
  backward_.gradients = backward.take(pixels_->gradients_workspace() + pooled_->gradients_workspace());
  saved_.bytes = saved.bytes();
  forward_.bytes = forward.bytes();
  backward_.bytes = backward.bytes();
}

BranchSum::Branch AsppOp::branch(const OpRun& run, size_t group, int H, int W, bool backward) const {
  const Group& g = groups_[group];
  const Places& p = places_[group];
  const ParamView& kernel = run.params[kernel_of(g.members[0].branch)];
  const ParamView* bias = a_.bias ? &run.params[kernel_of(g.members[0].branch) + 1] : nullptr;
  BranchSum::Branch b;
  b.w = g.whole() ? kernel.compute : run.packed[p.w];
  if (bias != nullptr) b.bias = g.whole() ? bias_of(*bias) : ChannelBias(static_cast<const float*>(run.packed[p.bias]));
  b.project = run.packed[p.project];
  b.z = whole_map(piece(run.saved, p.z), x_.N, H, W, width(g), type_);
  if (backward) {
    b.dz = whole_map(piece(run.workspace, p.dz), x_.N, H, W, width(g), type_);
    b.dw = g.whole() ? kernel.grad : piece<float>(run.workspace, p.dw);
    if (bias != nullptr) b.db = g.whole() ? bias->grad : piece<float>(run.workspace, p.db);
    b.dproject = piece<float>(run.workspace, p.dproject);
    b.accumulate = g.whole() && run.accumulate_grads;
  }
  return b;
}

std::vector<BranchSum::Branch> AsppOp::branches(const OpRun& run, bool backward) const {
  std::vector<BranchSum::Branch> list;
  for (size_t i = 0; i + 1 < groups_.size(); ++i) list.push_back(branch(run, i, x_.H, x_.W, backward));
  return list;
}

bool AsppOp::forward_reads(size_t k) const {
  if (a_.bias && k % 2 == 1) return true;
  const int branch = static_cast<int>(a_.bias ? k / 2 : k);
  return branch != project_branch() && std::any_of(groups_.begin(), groups_.end(), [&](const Group& g) {
           return g.whole() && g.members[0].branch == branch;
         });
}

// Branches of several taps lie in the packed weights as (K, taps, C), the members of a group one after the other; the
// projection as one (F, K) for each group.
void AsppOp::prepack_weights(const OpRun& run) {
  const int C = x_.C, F = a_.filters;
  DeviceStream& stream = *run.stream;
  const void* projection = run.params[kernel_of(project_branch())].compute;
  Copies weights(type_, false), biases(DType::f32, false);
  each_member([&](const Group& g, size_t i, const Group::Member& m, int j) {
    const Places& p = places_[i];
    weights.add(F, F, projection, int64_t{F} * m.branch, columns() * F, run.packed[p.project], int64_t{F} * j,
                width(g));
    if (g.whole()) return;
    const int taps = g.taps.count();
    for (int t = 0; t < taps; ++t)
      weights.add(F, C, run.params[kernel_of(m.branch)].compute, int64_t{C} * m.live[t], m.stored * C, run.packed[p.w],
                  (int64_t{F} * j * taps + t) * C, taps * C);
    if (a_.bias)
      biases.add(1, F, run.params[kernel_of(m.branch) + 1].master, 0, F, run.packed[p.bias], int64_t{F} * j, F);
  });
  weights.run(stream);
  biases.run(stream);
  pixels_->prepack_weights(stream, branches(run, false), run.packed.data() + pixels_packed_);
  pooled_->prepack_weights(stream, pooled(run, false), run.packed.data() + pooled_packed_);
}

void AsppOp::forward(const OpRun& run) {
  DeviceStream& stream = *run.stream;
  const TensorView mean = image_map(piece(run.saved, saved_.mean), x_.C);
  const TensorView sum = image_map(piece(run.workspace, forward_.sum), a_.filters);
  void* scratch = piece(run.workspace, forward_.pixels);
  const ChannelBias bias = a_.bias ? bias_of(run.params[kernel_of(project_branch()) + 1]) : ChannelBias();
  kernels::image_sum(
      stream, {.x = run.x[0], .sum = mean, .scale = 1.0f / static_cast<float>(x_.H * x_.W), .workspace = scratch});
  pooled_->forward(stream, mean, pooled(run, false), bias, {}, sum, run.packed.data() + pooled_packed_, scratch);
  pixels_->forward(stream, run.x[0], branches(run, false), nullptr, sum, run.y, run.packed.data() + pixels_packed_,
                   scratch);
}

void AsppOp::backward(const OpRun& run) {
  DeviceStream& stream = *run.stream;
  const TensorView mean = image_map(piece(run.saved, saved_.mean), x_.C);
  const TensorView dsum = image_map(piece(run.workspace, backward_.sum), a_.filters);
  const TensorView dmean = run.dx[0] ? image_map(piece(run.workspace, backward_.mean), x_.C) : TensorView{};
  void* scratch = piece(run.workspace, backward_.pixels);
  kernels::image_sum(stream, {.x = run.dy, .sum = dsum, .workspace = scratch});
  const std::vector<BranchSum::Branch> of_mean = pooled(run, true);
  std::vector<BranchSum::Branch> of_pixels = branches(run, true);
  float* const dbias = a_.bias ? piece<float>(run.workspace, backward_.dbias) : nullptr;
  of_pixels[0].dbias = dbias;
  BranchSum::Gradients later;
  pooled_->begin_backward(dsum, of_mean, later);
  pixels_->begin_backward(run.dy, of_pixels, later);
  if (later.projections.count > 0) kernels::aspp_projection_gradients(stream, later.projections);
  pooled_->backward(stream, mean, dsum, of_mean, {}, 1, dmean, false, run.packed.data() + pooled_packed_, scratch,
                    later);
  pixels_->backward(stream, run.x[0], run.dy, of_pixels, dmean, 1.0f / static_cast<float>(x_.H * x_.W), run.dx[0],
                    run.accumulate[0], run.packed.data() + pixels_packed_, scratch, later);
  later.weights.workspace = piece(run.workspace, backward_.gradients);
  if (later.weights.count > 0)
    kernels::aspp_weight_gradients(stream, later.weights);
  else if (a_.bias)
    kernels::channel_sum(stream, {.x = dsum, .sum = dbias, .accumulate = false, .workspace = scratch});
  scatter_gradients(run);
}

// The images' sums take two; weights are gathered before, and biases where a group is not a parameter as it is.
Passes AsppOp::forward_passes() const {
  const bool biases = a_.bias && !std::all_of(groups_.begin(), groups_.end(), [](const Group& g) { return g.whole(); });
  return {.launches = 5 + biases, .x = 2};
}

// By the kernels of kernels/aspp.h: the images' sums and the gradients of weights, each with a second kernel that adds
// up parts, those of z, what is scattered, and the data gradients. By a provider more, of each group.
Passes AsppOp::backward_passes(const std::vector<bool>& wants_dx) const {
  const int branches = static_cast<int>(groups_.size());
  const int launches = pixels_->gradients_workspace() > 0 ? 6 : 7 + 7 * branches;
  return {.launches = launches + 2 * wants_dx[0], .x = branches - 1, .dy = 2 * branches - 1};
}

// The way back of prepack_weights. The gradient of a dead tap is written too: it is zero.
void AsppOp::scatter_gradients(const OpRun& run) const {
  const int C = x_.C, F = a_.filters;
  float* projection = run.params[kernel_of(project_branch())].grad;
  Copies copies(DType::f32, run.accumulate_grads);
  each_member([&](const Group& g, size_t i, const Group::Member& m, int j) {
    const Places& p = places_[i];
    copies.add(F, F, piece(run.workspace, p.dproject), int64_t{F} * j, width(g), projection, int64_t{F} * m.branch,
               columns() * F);
    if (g.whole()) return;
    float* kernel = run.params[kernel_of(m.branch)].grad;
    const int taps = g.taps.count();
    for (int t = 0; t < taps; ++t)
      copies.add(F, C, piece(run.workspace, p.dw), (int64_t{F} * j * taps + t) * C, taps * C, kernel,
                 int64_t{C} * m.live[t], m.stored * C);
    for (int t = 0; t < m.stored && !run.accumulate_grads; ++t)
      if (std::find(m.live.begin(), m.live.end(), t) == m.live.end())
        copies.add(F, C, nullptr, 0, 0, kernel, int64_t{C} * t, m.stored * C);
    if (a_.bias)
      copies.add(1, F, piece(run.workspace, p.db), int64_t{F} * j, F, run.params[kernel_of(m.branch) + 1].grad, 0, F);
  });
  if (a_.bias)
    copies.add(1, F, piece(run.workspace, backward_.dbias), 0, F, run.params[kernel_of(project_branch()) + 1].grad, 0,
               F);
  copies.run(*run.stream);
}

}  // namespace regolith
