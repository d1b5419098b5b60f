#include "deploy/onnx/lower.h"

#include <cmath>
#include <map>

#include "engine/base/error.h"
#include "engine/ops/aspp.h"
#include "engine/ops/conv.h"
#include "engine/ops/norm.h"
#include "engine/ops/resample.h"
#include "engine/ops/transformer.h"

namespace regolith {
namespace {

using Dims = std::vector<int64_t>;
using Name = std::string;

template <class T>
const T& op(const OnnxLowering& l) {
  return dynamic_cast<const T&>(*l.node->op);
}

// (A,R,S,B) as (A,B,R,S): a kernel, or a map of one image, from the engine's layout to ONNX's.
std::vector<float> channels_second(const std::vector<float>& from, const Dims& d) {
  std::vector<float> to(from.size());
  const int64_t pixels = d[1] * d[2];
  for (int64_t a = 0; a < d[0]; ++a)
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t b = 0; b < d[3]; ++b) to[(a * d[3] + b) * pixels + p] = from[(a * pixels + p) * d[3] + b];
  return to;
}

// A constant of the parameter's own name.
Name kernel(const OnnxLowering& l, size_t param) {
  const ParamSpec& spec = l.node->inferred.params[param];
  const Dims& d = spec.shape;
  return l.onnx.constant(spec.name, channels_second(l.values(param), d), {d[0], d[3], d[1], d[2]});
}
Name vector(const OnnxLowering& l, size_t param) {
  const ParamSpec& spec = l.node->inferred.params[param];
  return l.onnx.constant(spec.name, l.values(param), spec.shape);
}
Name per_channel(const OnnxLowering& l, size_t param) {  // for maps
  const ParamSpec& spec = l.node->inferred.params[param];
  return l.onnx.constant(spec.name, l.values(param), {1, spec.shape[0], 1, 1});
}
Name number(const OnnxLowering& l, const char* role, float value) { return l.onnx.constant(role, {value}, {}); }

Name affine(const OnnxLowering& l, const Name& x) {
  return l.onnx.add("Add", "y", {l.onnx.add("Mul", "scaled", {x, per_channel(l, 0)}), per_channel(l, 1)});
}

// A 1x1 convolution. kernel and bias: names of constants.
Name conv_1x1(const OnnxLowering& l, const std::string& role, std::vector<Name> x_kernel_bias) {
  return l.onnx.add("Conv", role, std::move(x_kernel_bias),
                    {{"kernel_shape", Dims{1, 1}}, {"strides", Dims{1, 1}}, {"pads", Dims{0, 0, 0, 0}}});
}

// The shape (N, C, H, W) with the N, H and W of the map `x`, and C channels.
Name shape_like(const OnnxLowering& l, const Name& x, const Shape& map, int64_t C) {
  OnnxBuilder& o = l.onnx;
  if (!l.any_size) return o.constant("shape", Dims{0, C, map.H, map.W});  // 0: as it is
  const Name size = o.add("Slice", "size",
                          {o.add("Shape", "shape_of_x", {x}), o.constant("from", Dims{2}), o.constant("to", Dims{4})});
  return o.add("Concat", "shape", {o.constant("channels", Dims{0, C}), size}, {{"axis", int64_t{0}}});
}

Dims dims(const std::array<int, 2>& pair) { return {pair[0], pair[1]}; }

Name conv(const OnnxLowering& l) {
  const ConvShape& s = op<ConvOp>(l).convolution();
  std::vector<Name> inputs{l.x[0], kernel(l, 0)};
  if (op<ConvOp>(l).attributes().bias) inputs.push_back(vector(l, 1));
  return l.onnx.add("Conv", "y", inputs,
                    {{"kernel_shape", Dims{s.R, s.S}},
                     {"strides", dims(s.stride)},
                     {"dilations", dims(s.dilation)},
                     {"pads", Dims{s.pad_before[0], s.pad_before[1], s.pad_after[0], s.pad_after[1]}}});
}

// The adjoint: its output is (in - 1) * stride + reach - pads, and as much as the stride leaves over behind that.
Name conv_transpose(const OnnxLowering& l) {
  const ConvShape& s = op<ConvTransposeOp>(l).convolution();
  const Shape& x = l.shape(0);
  const auto missing = [&](int axis, int in, int out, int taps) {
    const int reach = (taps - 1) * s.dilation[axis] + 1;
    return int64_t{out} - ((in - 1) * s.stride[axis] + reach - s.pad_before[axis] - s.pad_after[axis]);
  };
  std::vector<Name> inputs{l.x[0], kernel(l, 0)};
  if (op<ConvTransposeOp>(l).attributes().bias) inputs.push_back(vector(l, 1));
  return l.onnx.add("ConvTranspose", "y", inputs,
                    {{"kernel_shape", Dims{s.R, s.S}},
                     {"strides", dims(s.stride)},
                     {"dilations", dims(s.dilation)},
                     {"pads", Dims{s.pad_before[0], s.pad_before[1], s.pad_after[0], s.pad_after[1]}},
                     {"output_padding", Dims{missing(0, x.H, s.H, s.R), missing(1, x.W, s.W, s.S)}}});
}

Name max_pool(const OnnxLowering& l) {
  const auto& pool = op<MaxPoolOp>(l);
  return l.onnx.add("MaxPool", "y", {l.x[0]},
                    {{"kernel_shape", Dims{pool.kernel(), pool.kernel()}},
                     {"strides", Dims{pool.stride(), pool.stride()}},
                     {"pads", Dims{0, 0, 0, 0}}});
}

// The input that each output of the nearest is, as kernels/resize.h has it.
Dims nearest(int64_t inputs, int64_t outputs) {
  Dims at;
  for (int64_t o = 0; o < outputs; ++o) at.push_back((2 * o + 1) * inputs / (2 * outputs));
  return at;
}

Name resize(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const auto& r = op<ResizeOp>(l);
  const Shape &x = l.shape(0), &y = l.node->shape();
  if (r.factor() > 0) {
    const float f = static_cast<float>(r.factor());
    const std::vector<Name> inputs{l.x[0], "", o.constant("scales", {1, 1, f, f}, {4})};
    if (r.bilinear())
      return o.add("Resize", "y", inputs, {{"mode", "linear"}, {"coordinate_transformation_mode", "half_pixel"}});
    return o.add("Resize", "y", inputs,
                 {{"mode", "nearest"}, {"coordinate_transformation_mode", "asymmetric"}, {"nearest_mode", "floor"}});
  }
  // Where two inputs are as near, runtimes that count in floats choose either.
  if (!r.bilinear()) {
    const Name rows = o.add("Gather", "rows", {l.x[0], o.constant("row", nearest(x.H, y.H))}, {{"axis", int64_t{2}}});
    return o.add("Gather", "y", {rows, o.constant("column", nearest(x.W, y.W))}, {{"axis", int64_t{3}}});
  }
  Name sizes;
  if (l.any_batch) {  // sizes, for scales would be rounded; all four of them
    const Name map =
        o.add("Slice", "batch_and_channels",
              {o.add("Shape", "shape_of_x", {l.x[0]}), o.constant("from", Dims{0}), o.constant("to", Dims{2})});
    sizes = o.add("Concat", "sizes", {map, o.constant("size", Dims{y.H, y.W})}, {{"axis", int64_t{0}}});
  } else {
    sizes = o.constant("sizes", Dims{y.N, y.C, y.H, y.W});
  }
  return o.add("Resize", "y", {l.x[0], "", "", sizes},
               {{"mode", "linear"}, {"coordinate_transformation_mode", "half_pixel"}});
}

Name add(const OnnxLowering& l) {
  Name sum = l.x[0];
  for (size_t i = 1; i < l.x.size(); ++i)
    sum = l.onnx.add("Add", i + 1 < l.x.size() ? "y" + std::to_string(i) : "y", {sum, l.x[i]});
  return sum;
}

Name concat(const OnnxLowering& l) { return l.onnx.add("Concat", "y", l.x, {{"axis", int64_t{1}}}); }
Name multiply(const OnnxLowering& l) { return l.onnx.add("Mul", "y", l.x); }
Name relu(const OnnxLowering& l) { return l.onnx.add("Relu", "y", l.x); }
Name sigmoid(const OnnxLowering& l) { return l.onnx.add("Sigmoid", "y", l.x); }
Name softmax(const OnnxLowering& l) { return l.onnx.add("Softmax", "y", l.x, {{"axis", int64_t{1}}}); }
Name global_avg_pool(const OnnxLowering& l) { return l.onnx.add("GlobalAveragePool", "y", l.x); }
Name same(const OnnxLowering& l) { return l.x[0]; }

Name gelu(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const Name erf = o.add("Erf", "erf", {o.add("Mul", "scaled", {l.x[0], number(l, "sqrt_half", std::sqrt(0.5F))})});
  const Name twice = o.add("Add", "twice", {erf, number(l, "one", 1)});
  return o.add("Mul", "y", {o.add("Mul", "half_x", {l.x[0], number(l, "half", 0.5F)}), twice});
}

Name batch_norm(const OnnxLowering& l) {
  return l.onnx.add("BatchNormalization", "y", {l.x[0], vector(l, 0), vector(l, 1), vector(l, 2), vector(l, 3)},
                    {{"epsilon", op<BatchNormOp>(l).epsilon()}});
}

// A group is a channel of InstanceNormalization over what its channels hold.
Name group_norm(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const auto& norm = op<GroupNormOp>(l);
  const auto groups = static_cast<size_t>(norm.groups());
  const auto standard = [&](const Name& x) {
    return o.add("InstanceNormalization", "standard",
                 {x, o.constant("ones", std::vector<float>(groups, 1), {norm.groups()}),
                  o.constant("zeros", std::vector<float>(groups, 0), {norm.groups()})},
                 {{"epsilon", norm.epsilon()}});
  };
  const Name split = o.add("Reshape", "split", {l.x[0], o.constant("groups", Dims{0, norm.groups(), -1})});
  const Name joined = o.add("Reshape", "joined", {standard(split), shape_like(l, l.x[0], l.shape(0), l.shape(0).C)});
  return affine(l, joined);
}

// LayerNormalization came with opset 17, and takes the last axes only.
Name layer_norm(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const auto mean = [&](const char* role, const Name& x) {
    return o.add("ReduceMean", role, {x}, {{"axes", Dims{1}}, {"keepdims", int64_t{1}}});
  };
  const Name centred = o.add("Sub", "centred", {l.x[0], mean("mean", l.x[0])});
  const Name variance = mean("variance", o.add("Mul", "squares", {centred, centred}));
  const Name deviation =
      o.add("Sqrt", "deviation",
            {o.add("Add", "variance_epsilon", {variance, number(l, "epsilon", op<LayerNormOp>(l).epsilon())})});
  return affine(l, o.add("Div", "standard", {centred, deviation}));
}

Name squeeze_excite(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const auto dense = [&](const char* role, const Name& x, size_t param) {  // (out, in), as a convolution of 1x1
    const ParamSpec& spec = l.node->inferred.params[param];
    return conv_1x1(
        l, role,
        {x, o.constant(spec.name, l.values(param), {spec.shape[0], spec.shape[1], 1, 1}), vector(l, param + 1)});
  };
  const Name hidden = o.add("Relu", "hidden", {dense("reduced", o.add("GlobalAveragePool", "mean", l.x), 0)});
  return o.add("Mul", "y", {l.x[0], o.add("Sigmoid", "gate", {dense("expanded", hidden, 2)})});
}

Name attention_gate(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const Name sum =
      o.add("Add", "sum", {conv_1x1(l, "theta", {l.x[0], kernel(l, 0)}), conv_1x1(l, "phi", {l.x[1], kernel(l, 1)})});
  const Name logit = conv_1x1(l, "psi", {o.add("Relu", "q", {sum}), kernel(l, 2), vector(l, 3)});
  return o.add("Mul", "y", {l.x[0], o.add("Sigmoid", "gate", {logit})});
}

// Per image and head: softmax(q^T k / sqrt(d)) over the keys, times v. Heads lie in the channels, one after the other.
Name attention(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const int64_t heads = op<AttentionOp>(l).heads(), C = l.node->shape().C, d = C / heads;
  const Name parts = o.add("Reshape", "parts", {l.x[0], o.constant("heads", Dims{0, 3, heads, d, -1})});
  const auto part = [&](const char* role, const char* index, int64_t i) {  // (N, heads, d, pixels)
    return o.add("Gather", role, {parts, o.constant(index, i)}, {{"axis", int64_t{1}}});
  };
  const auto turned = [&](const char* role, const Name& x) {
    return o.add("Transpose", role, {x}, {{"perm", Dims{0, 1, 3, 2}}});
  };
  const Name q =
      o.add("Mul", "q_scaled", {part("q", "first", 0), number(l, "scale", 1 / std::sqrt(static_cast<float>(d)))});
  const Name scores = o.add("MatMul", "scores", {turned("q_turned", q), part("k", "second", 1)});
  const Name weights = o.add("Softmax", "weights", {scores}, {{"axis", int64_t{3}}});
  const Name sum = o.add("MatMul", "sum", {weights, turned("v_turned", part("v", "third", 2))});
  return o.add("Reshape", "y", {turned("sum_turned", sum), shape_like(l, l.x[0], l.shape(0), C)});
}

Name position_embedding(const OnnxLowering& l) { return l.onnx.add("Add", "y", {l.x[0], kernel(l, 0)}); }

// Without the taps that see only padding; where the image may grow they may see something. The mean goes through its
// part of the projection by itself, and is added to every pixel.
Name aspp(const OnnxLowering& l) {
  OnnxBuilder& o = l.onnx;
  const auto& aspp = op<AsppOp>(l);
  const AsppAttributes& a = aspp.attributes();
  const int64_t C = l.shape(0).C, F = a.filters, step = a.bias ? 2 : 1;
  const auto inputs = [&](const Name& x, const Name& w, size_t param) {
    return a.bias ? std::vector<Name>{x, w, vector(l, param + 1)} : std::vector<Name>{x, w};
  };
  std::vector<Name> pixels{conv_1x1(l, "branch_1x1", inputs(l.x[0], kernel(l, 0), 0))};
  size_t param = step;
  for (const int rate : a.rates) {
    kernels::AsppTaps taps = aspp.taps(rate, l.shape(0).H, l.shape(0).W);
    if (l.any_size) taps.rows = taps.columns = 3;
    const std::vector<float> all = l.values(param);  // (F,3,3,C)
    std::vector<float> kept;                         // (F,C,rows,columns)
    for (int64_t f = 0; f < F; ++f)
      for (int64_t c = 0; c < C; ++c)
        for (int r = 0; r < 3; ++r)
          for (int s = 0; s < 3; ++s)
            if ((taps.rows == 3 || r == 1) && (taps.columns == 3 || s == 1))
              kept.push_back(all[((f * 3 + r) * 3 + s) * C + c]);
    const int64_t down = taps.rows == 3 ? rate : 0, right = taps.columns == 3 ? rate : 0;
    const std::string name = "branch_rate_" + std::to_string(rate);
    const Name w = o.constant(name + "/kernel", kept, {F, C, taps.rows, taps.columns});
    pixels.push_back(o.add("Conv", name, inputs(l.x[0], w, param),
                           {{"kernel_shape", Dims{taps.rows, taps.columns}},
                            {"strides", Dims{1, 1}},
                            {"dilations", Dims{std::max<int64_t>(down, 1), std::max<int64_t>(right, 1)}},
                            {"pads", Dims{down, right, down, right}}}));
    param += step;
  }
  const Name mean =
      conv_1x1(l, "branch_pool", inputs(o.add("GlobalAveragePool", "mean", l.x), kernel(l, param), param));
  param += step;
  const std::vector<float> project = l.values(param);  // (F, branches * F)
  const int64_t columns = static_cast<int64_t>(pixels.size() + 1) * F;
  std::vector<float> of_pixels, of_mean;
  for (int64_t f = 0; f < F; ++f) {
    const auto row = project.begin() + f * columns;
    of_pixels.insert(of_pixels.end(), row, row + columns - F);
    of_mean.insert(of_mean.end(), row + columns - F, row + columns);
  }
  const Name image =
      conv_1x1(l, "projected_mean", inputs(mean, o.constant("project_mean", of_mean, {F, F, 1, 1}), param));
  const Name all = o.add("Concat", "branches", pixels, {{"axis", int64_t{1}}});
  const Name map = conv_1x1(l, "projected", {all, o.constant("project_pixels", of_pixels, {F, columns - F, 1, 1})});
  return o.add("Add", "y", {map, image});
}

const std::map<std::string_view, Name (*)(const OnnxLowering&)> kLowerings{
    {"add", add},
    {"aspp", aspp},
    {"attention", attention},
    {"attention_gate", attention_gate},
    {"batch_norm", batch_norm},
    {"concat", concat},
    {"conv", conv},
    {"conv_transpose", conv_transpose},
    {"dropout", same},
    {"gelu", gelu},
    {"global_avg_pool", global_avg_pool},
    {"group_norm", group_norm},
    {"layer_norm", layer_norm},
    {"max_pool", max_pool},
    {"multiply", multiply},
    {"position_embedding", position_embedding},
    {"relu", relu},
    {"resize", resize},
    {"sigmoid", sigmoid},
    {"softmax", softmax},
    {"spatial_dropout", same},
    {"squeeze_excite", squeeze_excite},
    {"upsample", resize},
};

}  // namespace

bool has_onnx_lowering(std::string_view kind) { return kLowerings.contains(kind); }

std::string lower_to_onnx(const OnnxLowering& l) {
  const auto found = kLowerings.find(l.node->op->kind());
  if (found == kLowerings.end())
    throw GraphError((l.node->where.empty() ? "" : l.node->where + ": ") + "node " + l.node->name + ": the op " +
                     std::string(l.node->op->kind()) + " has no form in ONNX yet; deploy/onnx/lower.cpp holds them");
  l.onnx.enter(l.node->name);
  return found->second(l);
}

}  // namespace regolith
