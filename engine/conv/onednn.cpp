#include "engine/conv/onednn.h"

#include <omp.h>

#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "engine/conv/builtin.h"
#include "engine/conv/direct_wgrad.h"
#include "engine/conv/pairs.h"
#include "engine/conv/tiled_wgrad.h"
#include "kernels/cast.h"

namespace regolith {
namespace {

using dnnl::memory;
using Arguments = std::unordered_map<int, memory>;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

bool cpu_has(dnnl::cpu_isa isa) {  // instruction sets are bit masks, a larger one holds the bits of the smaller
  const int all = static_cast<int>(dnnl::get_effective_cpu_isa()), wanted = static_cast<int>(isa);
  return (all & wanted) == wanted;
}

size_t whole_lines(size_t bytes) { return (bytes + 255) / 256 * 256; }
std::byte* at(const void* base, size_t offset) {
  return const_cast<std::byte*>(static_cast<const std::byte*>(base)) + offset;
}
memory view(const memory::desc& desc, const void* data) { return memory(desc, cpu(), const_cast<void*>(data)); }

struct ReferenceLoops {  // thrown while compiling
  std::string direction;
};

// A compiled primitive with what it needs.
struct Primitive {
  dnnl::primitive run;
  memory::desc weights, scratch;  // weights: the layout it reads or, for wgrad, writes
  std::string name;

  Primitive() = default;
  template <class P, class Desc>
  static Primitive make(const Desc& desc, const memory::desc& weights, const char* direction) {
    Primitive p;
    p.name = desc.impl_info_str();
    if (p.name.find("ref") != std::string::npos) throw ReferenceLoops{direction};
    p.weights = weights;
    p.scratch = desc.scratchpad_desc();
    p.run = P(desc);
    return p;
  }
  void execute(Arguments arguments, const void* scratchpad) const {
    arguments.emplace(DNNL_ARG_SCRATCHPAD, view(scratch, scratchpad));
    static const dnnl::stream stream(cpu());
    run.execute(stream, arguments);
  }
};

// A change of layout of weights, or one that adds to what stands at the destination.
struct Reorder {
  memory::desc from, to;
  dnnl::primitive run;

  Reorder(const memory::desc& a, const memory::desc& b, bool add = false) : from(a), to(b) {
    dnnl::primitive_attr attributes;
    if (add) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    run = dnnl::reorder(dnnl::reorder::primitive_desc(cpu(), a, cpu(), b, attributes));
  }
  void execute(const void* a, void* b) const {
    static const dnnl::stream stream(cpu());
    run.execute(stream, {{DNNL_ARG_FROM, view(from, a)}, {DNNL_ARG_TO, view(to, b)}});
  }
};

// A text that differs for layouts that differ in memory.
std::string name_of(const memory::desc& d) {
  std::string text = std::to_string(static_cast<int>(d.get_data_type()));
  for (const auto& numbers : {d.get_padded_dims(), d.get_strides(), d.get_inner_blks(), d.get_inner_idxs()}) {
    text += ' ';
    for (const auto n : numbers) text += std::to_string(n) + ',';
  }
  return text;
}

// All that oneDNN compiles for a request.
struct Compiled {
  memory::desc x, y, bias, input_bias, weights, adjoint;  // weights: (K,R,S,C), and as its adjoint sees them
  Primitive forward;
  std::optional<Primitive> dgrad, dgrad_add, dgrad_bias, wgrad;
  std::optional<Reorder> pack_forward, pack_dgrad, write_dw, add_dw;
  std::unique_ptr<const WgradKernel> own_wgrad;

  Compiled(const ConvRequest& request, memory::data_type type, WeightGradients who) {
    using Tag = memory::format_tag;
    const ConvShape& s = request.shape;
    const auto f32 = memory::data_type::f32;
    x = {{s.N, s.C, s.H, s.W}, type, Tag::nhwc};
    y = {{s.N, s.K, s.P(), s.Q()}, type, Tag::nhwc};
    bias = {{s.K}, f32, Tag::a};
    const memory::dims size{s.K, s.C, s.R, s.S};
    weights = {size, type, Tag::ohwi};
    const memory::desc any(size, type, Tag::any), none;
    const memory::dims stride{s.stride[0], s.stride[1]}, dilation{s.dilation[0] - 1, s.dilation[1] - 1};
    const memory::dims before{s.pad_before[0], s.pad_before[1]}, after{s.pad_after[0], s.pad_after[1]};
    constexpr auto direct_algorithm = dnnl::algorithm::convolution_direct;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    using Forward = dnnl::convolution_forward;
    const Forward::primitive_desc hint(cpu(), dnnl::prop_kind::forward_training, direct_algorithm, x, any, none, y,
                                       stride, dilation, before, after, attributes);
    if (request.needs_dgrad) {
      // The adjoint as a forward primitive: the same loops as convolution_backward_data, which take an epilogue.
      const memory::dims turned{s.C, s.K, s.R, s.S};
      const int64_t pixel = s.C, row = pixel * s.S, filter = row * s.R;
      adjoint = {turned, type, memory::dims{1, filter, row, pixel}};
      input_bias = {{s.C}, f32, Tag::a};
      const memory::desc free(turned, type, Tag::any);
      const auto make = [&](const memory::desc& w, const memory::desc& b, bool add) {
        using Dgrad = dnnl::deconvolution_forward;
        dnnl::primitive_attr with;  // copies of an attribute are the same attribute
        with.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        if (add) {
          dnnl::post_ops sum;
          sum.append_sum(1.0f);
          with.set_post_ops(sum);
        }
        const Dgrad::primitive_desc desc(cpu(), dnnl::prop_kind::forward_training,
                                         dnnl::algorithm::deconvolution_direct, y, w, b, x, stride, dilation, before,
                                         after, with);
        return Primitive::make<Dgrad>(desc, desc.weights_desc(), "dgrad");
      };
      dgrad = make(free, none, false);
      dgrad_add = make(dgrad->weights, none, true);
      dgrad_bias = make(dgrad->weights, input_bias, false);
      if (dgrad->weights != adjoint) pack_dgrad.emplace(adjoint, dgrad->weights);
    }
    if (request.needs_wgrad && who == WeightGradients::direct)
      own_wgrad = std::make_unique<DirectWgrad>(s, request.type, omp_get_max_threads());
    if (request.needs_wgrad && who == WeightGradients::tiled)
      own_wgrad = std::make_unique<TiledWgrad>(s, omp_get_max_threads());
    if (request.needs_wgrad && who == WeightGradients::library) {
      using Wgrad = dnnl::convolution_backward_weights;
      const Wgrad::primitive_desc desc(cpu(), direct_algorithm, x, memory::desc(size, f32, Tag::any),
                                       request.bias ? bias : none, y, stride, dilation, before, after, hint,
                                       attributes);
      wgrad = Primitive::make<Wgrad>(desc, desc.diff_weights_desc(), "wgrad");
      const memory::desc dw(size, f32, Tag::ohwi);
      write_dw.emplace(wgrad->weights, dw);
      add_dw.emplace(wgrad->weights, dw, true);
    }
    if (request.relu) {
      dnnl::post_ops relu;
      relu.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
      attributes.set_post_ops(relu);
    }
    const Forward::primitive_desc desc(cpu(), dnnl::prop_kind::forward_training, direct_algorithm, x, any,
                                       request.bias ? bias : none, y, stride, dilation, before, after, attributes);
    forward = Primitive::make<Forward>(desc, desc.weights_desc(), "forward");
    if (forward.weights != weights) pack_forward.emplace(weights, forward.weights);
  }
};

std::shared_ptr<const Compiled> compile(const ConvRequest& r, memory::data_type type, WeightGradients who) {
  static std::mutex mutex;
  static std::map<std::tuple<ConvRequest, WeightGradients, memory::data_type, int>, std::shared_ptr<const Compiled>>
      cache;
  const std::lock_guard lock(mutex);
  auto& entry = cache[{r, who, type, omp_get_max_threads()}];
  if (entry == nullptr) entry = std::make_shared<Compiled>(r, type, who);
  return entry;
}

class OnednnConvolution : public Convolution {
 public:
  OnednnConvolution(const ConvRequest& request, memory::data_type type, WeightGradients who)
      : Convolution(request),
        compiled_(compile(request, type, who)),
        via_fp32_(type == memory::data_type::f32 && request.type != DType::f32) {
    const Compiled& c = *compiled_;
    if (via_fp32_) {
      x_bytes_ = whole_lines(c.x.get_size());
      y_bytes_ = whole_lines(c.y.get_size());
    }
  }

  std::string_view provider() const override { return "onednn"; }
  std::string implementation() const override {
    const Compiled& c = *compiled_;
    std::string text = c.forward.name;
    if (c.dgrad && c.dgrad->name != text) text += ", dgrad " + c.dgrad->name;
    if (c.wgrad && c.wgrad->name != c.forward.name) text += ", wgrad " + c.wgrad->name;
    if (c.own_wgrad) text += std::string(", wgrad ") + c.own_wgrad->name();
    return via_fp32_ ? text + " via fp32" : text;
  }

  size_t forward_workspace() const override { return x_bytes_ + y_bytes_ + compiled_->forward.scratch.get_size(); }
  size_t dgrad_workspace() const override {
    const Compiled& c = *compiled_;
    if (!c.dgrad) return 0;
    return x_bytes_ + y_bytes_ +
           std::max({c.dgrad->scratch.get_size(), c.dgrad_add->scratch.get_size(), c.dgrad_bias->scratch.get_size()});
  }
  bool has_dgrad_epilogue() const override { return !via_fp32_; }
  size_t wgrad_workspace() const override {
    const Compiled& c = *compiled_;
    if (c.own_wgrad) return c.own_wgrad->workspace();
    return c.wgrad ? scratch_at() + c.wgrad->scratch.get_size() : 0;
  }

  // Via fp32, an fp32 copy of the weights follows the blocked ones, or stands for them.
  Prepacked prepacked(WeightUse use) const override {
    const auto& reorder = reorder_for(use);
    const size_t fp32 =
        via_fp32_ && (use == WeightUse::forward || compiled_->dgrad) ? compiled_->weights.get_size() : 0;
    return {"onednn " + name_of(reorder ? reorder->to : compiled_->weights), blocked_bytes(reorder) + fp32};
  }
  void prepack_weights(DeviceStream& stream, WeightUse use, const void* w, void* packed) override {
    const auto& reorder = reorder_for(use);
    if (via_fp32_) {
      void* fp32 = at(packed, blocked_bytes(reorder));
      kernels::cast(stream, {w, request_.type, fp32, DType::f32, request_.shape.weights()});
      w = fp32;
    }
    if (!reorder) return;
    stream.enqueue("onednn_pack_weights", [c = compiled_, &reorder, w, packed] { reorder->execute(w, packed); });
  }

  void forward(DeviceStream& stream, const TensorView& x, const void* w, const void* packed, const ChannelBias& bias,
               const TensorView& y, void* workspace, const ForwardEpilogue&) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, y);
    const void* weights = compiled_->pack_forward || via_fp32_ ? packed : w;
    const void* in = to_fp32(stream, x, workspace);
    void* out = via_fp32_ ? at(workspace, x_bytes_) : y.data;
    stream.enqueue("onednn_forward", [c = compiled_, in, weights, bias = bias.full, out, has_bias = request_.bias,
                                      scratch = at(workspace, x_bytes_ + y_bytes_)] {
      Arguments arguments{{DNNL_ARG_SRC, view(c->x, in)},
                          {DNNL_ARG_WEIGHTS, view(c->forward.weights, weights)},
                          {DNNL_ARG_DST, view(c->y, out)}};
      if (has_bias) arguments.emplace(DNNL_ARG_BIAS, view(c->bias, bias));
      c->forward.execute(std::move(arguments), scratch);
    });
    if (via_fp32_) kernels::cast(stream, {out, DType::f32, y.data, request_.type, y.elements()});
  }

  void dgrad(DeviceStream& stream, const TensorView& dy, const void* w, const void* packed, const TensorView& dx,
             void* workspace, const DgradEpilogue& epilogue) override {
    require(compiled_->dgrad.has_value(), "dgrad");
    check_x(provider(), request_, dx);
    check_y(provider(), request_, dy);
    const void* weights = compiled_->pack_dgrad || via_fp32_ ? packed : w;
    const void* in = to_fp32(stream, dy, workspace);
    void* out = via_fp32_ ? at(workspace, y_bytes_) : dx.data;
    stream.enqueue(
        "onednn_dgrad", [c = compiled_, in, weights, out, epilogue, scratch = at(workspace, x_bytes_ + y_bytes_)] {
          Arguments arguments{{DNNL_ARG_SRC, view(c->y, in)},
                              {DNNL_ARG_WEIGHTS, view(c->dgrad->weights, weights)},
                              {DNNL_ARG_DST, view(c->x, out)}};
          if (epilogue.bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, view(c->input_bias, epilogue.bias));
          const auto& p = epilogue.accumulate ? c->dgrad_add : epilogue.bias != nullptr ? c->dgrad_bias : c->dgrad;
          p->execute(std::move(arguments), scratch);
        });
    if (via_fp32_) kernels::cast(stream, {out, DType::f32, dx.data, request_.type, dx.elements()});
  }

  void wgrad(DeviceStream& stream, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    require(compiled_->own_wgrad || compiled_->wgrad, "wgrad");
    check_x(provider(), request_, x);
    check_y(provider(), request_, dy);
    if (compiled_->own_wgrad) {
      stream.enqueue("own_wgrad", [c = compiled_, x = x.data, dy = dy.data, dw, db, accumulate, workspace] {
        c->own_wgrad->run(x, dy, dw, db, accumulate, workspace);
      });
      return;
    }
    require(db == nullptr || request_.bias, "bias gradient");
    const void* a = to_fp32(stream, x, workspace);
    const void* b = to_fp32(stream, dy, at(workspace, x_bytes_));
    stream.enqueue("onednn_wgrad", [c = compiled_, a, b, dw, db, accumulate, K = request_.shape.K,
                                    has_bias = request_.bias, blocked = at(workspace, x_bytes_ + y_bytes_),
                                    bias_sums = at(workspace, bias_at()), scratch = at(workspace, scratch_at())] {
      Arguments arguments{{DNNL_ARG_SRC, view(c->x, a)},
                          {DNNL_ARG_DIFF_DST, view(c->y, b)},
                          {DNNL_ARG_DIFF_WEIGHTS, view(c->wgrad->weights, blocked)}};
      if (has_bias) arguments.emplace(DNNL_ARG_DIFF_BIAS, view(c->bias, bias_sums));
      c->wgrad->execute(std::move(arguments), scratch);
      (accumulate ? c->add_dw : c->write_dw)->execute(blocked, dw);
      const float* sums = reinterpret_cast<const float*>(bias_sums);
      if (db != nullptr)
        for (int k = 0; k < K; ++k) db[k] = accumulate ? db[k] + sums[k] : sums[k];
    });
  }

 private:
  size_t bias_at() const { return x_bytes_ + y_bytes_ + whole_lines(compiled_->wgrad->weights.get_size()); }
  size_t scratch_at() const { return bias_at() + whole_lines(compiled_->bias.get_size()); }
  const void* to_fp32(DeviceStream& stream, const TensorView& m, void* workspace) const {
    if (!via_fp32_) return m.data;
    kernels::cast(stream, {m.data, request_.type, workspace, DType::f32, m.elements()});
    return workspace;
  }
  const std::optional<Reorder>& reorder_for(WeightUse use) const {
    return use == WeightUse::forward ? compiled_->pack_forward : compiled_->pack_dgrad;
  }
  static size_t blocked_bytes(const std::optional<Reorder>& reorder) {
    return reorder ? whole_lines(reorder->to.get_size()) : 0;
  }

  std::shared_ptr<const Compiled> compiled_;
  bool via_fp32_;
  size_t x_bytes_ = 0, y_bytes_ = 0;  // of the fp32 copies in the workspaces
};

// As measured, on two cores. Not timed anew in each run: the choice rounds differently, and a seed would not give the
// same bytes twice.
WeightGradients fastest(const ConvRequest& request, bool native) {
  using enum WeightGradients;
  if (request.type == DType::f16) return library;           // no network trains in it on a CPU
  if (!cpu_has(dnnl::cpu_isa::avx512_core)) return direct;  // oneDNN's run at a third of the machine's rate
  if (!native) return library;
  if (TiledWgrad::available()) return tiled;
  const ConvShape& s = request.shape;
  if (!multiplies_pairs_fast()) return s.Q() < 16 ? library : direct;
  // Zen 4: up to a fifth faster there, at most a tenth slower elsewhere.
  if (s.R * s.S == 1 || s.Q() < 16) return library;
  if (s.S % 2 == 1) return s.C <= 96 ? direct : library;
  return s.stride[1] > 1 || s.K >= 256 ? direct : library;
}

// Whether bf16 is multiplied as it is. Where pairs of it are slow, a copy in fp32 is worth its time for maps of many
// channels.
bool multiplies_bf16_well(const ConvShape& s) {
  if (!cpu_has(dnnl::cpu_isa::avx512_core_bf16)) return false;
  if (multiplies_pairs_fast() || cpu_has(dnnl::cpu_isa::avx512_core_amx)) return true;
  const int64_t x = int64_t{s.N} * s.H * s.W * s.C, y = int64_t{s.N} * s.P() * s.Q() * s.K;
  return s.macs() < 96 * (x + y);
}

struct OnednnProvider : ConvProvider {
  std::string_view name() const override { return "onednn"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    return make_onednn_convolution(device, request);
  }
};

}  // namespace

std::variant<std::unique_ptr<Convolution>, UnsupportedReason> make_onednn_convolution(Device& device,
                                                                                      const ConvRequest& request,
                                                                                      WeightGradients who) {
  if (device.kind() != DeviceKind::cpu) return UnsupportedReason{"runs on the CPU only"};
  if (request.type != DType::f32 && request.type != DType::bf16 && request.type != DType::f16)
    return UnsupportedReason{"takes fp32, bf16 and fp16, not " + std::string(name_of(request.type))};
  if (request.shape.P() < 1 || request.shape.Q() < 1) return UnsupportedReason{"the output would be empty"};
  const bool native = request.type == DType::bf16 && multiplies_bf16_well(request.shape);
  if (who == WeightGradients::measured) who = fastest(request, native);
  if (who == WeightGradients::tiled && !(native && TiledWgrad::available()))
    return UnsupportedReason{"has no weight gradients in tiles on this processor"};
  try {
    return std::make_unique<OnednnConvolution>(request, native ? memory::data_type::bf16 : memory::data_type::f32, who);
  } catch (const ReferenceLoops& e) {
    return UnsupportedReason{"has only its reference loops for " + e.direction};
  } catch (const dnnl::error& e) {
    return UnsupportedReason{std::string("oneDNN says: ") + e.what()};
  }
}

ConvProvider& onednn_provider() {
  static OnednnProvider provider;
  return provider;
}

}  // namespace regolith
