// The blocks that models name. Their nodes are named by what they are. A block asks for all of its attributes, whatever
// their values: its keys are those that it asks for.
#include "engine/ops/basic.h"
#include "engine/ops/pointwise.h"
#include "engine/ops/squeeze_excite.h"
#include "engine/ops/transformer.h"
#include "models/builder.h"

namespace regolith {
namespace {

int parse_repeat(const Attributes& a) { return a.integer("repeat", "how often, one after the other", 1, 64, 1); }

// repeat x (convolution, norm, ReLU)
int conv_norm(const Builder& b, const Attributes& a, const std::vector<int>& in) {
  const ConvAttributes conv = parse_conv(a);
  const int repeat = parse_repeat(a);
  int x = in[0];
  for (int i = 1; i <= repeat; ++i) {
    const Builder unit = b.inside(std::to_string(i));
    x = unit.relu("relu", unit.norm("norm", unit.conv("conv", x, conv), a));
  }
  return x;
}

// repeat x (convolution, norm, ReLU, dropout, convolution, norm, + shortcut, ReLU): He et al. 2016, "Deep residual
// learning". `stride` is that of the first convolution. Where sizes differ the shortcut is a 1x1 convolution, with a
// norm of its own unless `shortcut: conv`.
int residual(const Builder& b, const Attributes& a, const std::vector<int>& in) {
  const ConvAttributes given = parse_conv(a);
  const int repeat = parse_repeat(a);
  const bool bare = a.choice("shortcut", "what adapts a shortcut to another size", {"conv_norm", "conv"}) == 1;
  ConvAttributes first = given, second = given, around = given;
  second.stride = {1, 1};
  around.kernel = around.dilation = {1, 1};
  int x = in[0];
  for (int i = 1; i <= repeat; ++i, first = second) {
    const Builder unit = b.inside(std::to_string(i));
    int h = unit.relu("relu1", unit.norm("norm1", unit.conv("conv1", x, first), a));
    h = unit.dropout("dropout", h, a);
    h = unit.norm("norm2", unit.conv("conv2", h, second), a);
    int shortcut = x;
    if (b.channels(x) != first.filters || first.stride != second.stride) {
      shortcut = unit.conv("shortcut", x, around);
      if (!bare) shortcut = unit.norm("shortcut_norm", shortcut, a);
      around.stride = {1, 1};
    }
    x = unit.relu("relu2", unit.add_up("add", {h, shortcut}));
  }
  return x;
}

// repeat x (convolution, norm, ReLU, squeeze-and-excitation, dropout)
int se_conv(const Builder& b, const Attributes& a, const std::vector<int>& in) {
  const ConvAttributes conv = parse_conv(a);
  const int repeat = parse_repeat(a);
  int x = in[0];
  for (int i = 1; i <= repeat; ++i) {
    const Builder unit = b.inside(std::to_string(i));
    x = unit.relu("relu", unit.norm("norm", unit.conv("conv", x, conv), a));
    x = unit.dropout("dropout", unit.add("se", parse_squeeze_excite(a), {x}), a);
  }
  return x;
}

// position embedding, then repeat x (x + proj(attention(qkv(norm(x)))), x + fc2(gelu(fc1(norm(x))))), with dropout
// before each addition: a transformer's encoder with the norms first (Xiong et al. 2020) over the positions of the map,
// as Dosovitskiy et al. 2021 have it.
int transformer(const Builder& b, const Attributes& a, const std::vector<int>& in) {
  const int heads = a.integer("heads", "heads of the attention", 1, 1 << 10, 4);
  const int ratio = a.integer("mlp_ratio", "hidden channels of the dense layers for each channel", 1, 64, 4);
  const int repeat = parse_repeat(a), C = b.channels(in[0]);
  int x = b.add("position", std::make_unique<PositionEmbeddingOp>(), {in[0]});
  for (int i = 1; i <= repeat; ++i) {
    const Builder layer = b.inside(std::to_string(i));
    const auto norm = [&](const char* name) { return layer.add(name, std::make_unique<LayerNormOp>(), {x}); };
    const auto dense = [&](const char* name, int from, int filters) {
      ConvAttributes conv;
      conv.filters = filters;
      conv.kernel = {1, 1};
      return layer.conv(name, from, conv);
    };
    const int qkv = dense("qkv", norm("norm1"), 3 * C);
    const int attention = layer.add("attention", std::make_unique<AttentionOp>(heads), {qkv});
    x = layer.add_up("add1", {x, layer.dropout("dropout1", dense("proj", attention, C), a)});
    const int hidden = dense("fc1", norm("norm2"), ratio * C);
    const int gelu = layer.add("gelu", std::make_unique<ActivationOp>(kernels::Activation::gelu), {hidden});
    x = layer.add_up("add2", {x, layer.dropout("dropout2", dense("fc2", gelu, C), a)});
  }
  return x;
}

}  // namespace

const std::vector<BlockEntry>& block_registry() {
  static const std::vector<BlockEntry> entries = [] {
    std::vector<BlockEntry> list{
        {"conv_norm", "`repeat` times: convolution, norm, ReLU", 1, 1, conv_norm},
        {"residual", "`repeat` times: two convolutions with norms, dropout between them, and a shortcut around them", 1,
         1, residual},
        {"se_conv", "`repeat` times: convolution, norm, ReLU, squeeze-and-excitation, dropout", 1, 1, se_conv},
        {"transformer", "position embedding, then `repeat` times: x + attention(norm(x)), x + mlp(norm(x))", 1, 1,
         transformer},
    };
    for (BlockEntry& e : list) {  // built once for its keys, over a map that every block takes
      Graph graph;
      const int image = Builder(graph, "input", "").add("", std::make_unique<InputOp>(8, 8, 64), {});
      e.build(Builder(graph, "block", ""), Attributes(e.keys), std::vector(e.min_inputs, image));
    }
    return list;
  }();
  return entries;
}

}  // namespace regolith
