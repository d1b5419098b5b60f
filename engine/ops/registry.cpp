#include "engine/ops/registry.h"

#include <algorithm>

#include "engine/ops/aspp.h"
#include "engine/ops/attention_gate.h"
#include "engine/ops/basic.h"
#include "engine/ops/conv.h"
#include "engine/ops/dropout.h"
#include "engine/ops/norm.h"
#include "engine/ops/pointwise.h"
#include "engine/ops/resample.h"
#include "engine/ops/squeeze_excite.h"
#include "engine/ops/transformer.h"
#include "kernels/resize.h"

namespace regolith {

namespace {

ConvAttributes with_filters(const Attributes& a) {
  ConvAttributes c = parse_conv(a);
  c.filters = a.integer("filters", 1, 1 << 16);
  return c;
}

template <class T>
std::unique_ptr<Op> plain(const Attributes&) {  // an op without attributes
  return std::make_unique<T>();
}

template <kernels::Activation f>
std::unique_ptr<Op> activation(const Attributes&) {
  return std::make_unique<ActivationOp>(f);
}

std::unique_ptr<Op> max_pool(const Attributes& a) {
  const int pool = a.integer("pool", 1, 64, 2);
  return std::make_unique<MaxPoolOp>(pool, a.integer("stride", 1, 64, pool));
}

bool is_bilinear(const Attributes& a) { return a.choice("mode", {"nearest", "bilinear"}, "nearest") == "bilinear"; }

std::unique_ptr<Op> resize(const Attributes& a) {
  const int height = a.integer("height", 1, kernels::kResizeSize);
  return std::make_unique<ResizeOp>(height, a.integer("width", 1, kernels::kResizeSize), is_bilinear(a));
}

std::unique_ptr<Op> upsample(const Attributes& a) {
  return std::make_unique<ResizeOp>(a.integer("factor", 2, 64, 2), is_bilinear(a));
}

std::unique_ptr<Op> conv(const Attributes& a) { return std::make_unique<ConvOp>(with_filters(a)); }
std::unique_ptr<Op> conv_transpose(const Attributes& a) { return std::make_unique<ConvTransposeOp>(with_filters(a)); }

std::unique_ptr<Op> dropout(const Attributes& a) { return parse_dropout(a, false); }
std::unique_ptr<Op> spatial_dropout(const Attributes& a) { return parse_dropout(a, true); }

}  // namespace

const std::vector<OpEntry>& op_registry() {
  constexpr int many = 1 << 20;
  const std::vector<std::string> window{"filters", "kernel", "stride", "dilation", "padding", "bias", "init"};
  static const std::vector<OpEntry> entries{
      {"add", "the sum of maps of one shape", {}, 2, many, plain<AddOp>},
      {"aspp", "atrous spatial pyramid pooling", {"filters", "rates", "bias", "init", "prune"}, 1, 1, parse_aspp},
      {"attention", "self-attention over the positions of a map of [q | k | v]", {"heads"}, 1, 1, parse_attention},
      {"attention_gate", "a skip, each pixel times a gate", {"filters", "init"}, 2, 2, parse_attention_gate},
      {"batch_norm", "batch normalisation", {"momentum", "epsilon"}, 1, 1, parse_batch_norm},
      {"concat", "channels side by side", {}, 2, many, plain<ConcatOp>},
      {"conv", "convolution", window, 1, 1, conv},
      {"conv_transpose", "transposed convolution, the adjoint of the convolution", window, 1, 1, conv_transpose},
      {"dropout", "drops elements in training, the rest times 1 / (1 - rate)", {"rate"}, 1, 1, dropout},
      {"gelu", "x times the normal distribution function", {}, 1, 1, activation<kernels::Activation::gelu>},
      {"global_avg_pool", "the mean over the pixels of each image", {}, 1, 1, plain<GlobalAvgPoolOp>},
      {"group_norm", "group normalisation", {"groups", "epsilon"}, 1, 1, parse_group_norm},
      {"layer_norm", "normalisation of every pixel over its channels", {"epsilon"}, 1, 1, parse_layer_norm},
      {"max_pool", "max pooling without padding", {"pool", "stride"}, 1, 1, max_pool},
      {"multiply", "the product of two maps; one may have a single channel or pixel", {}, 2, 2, plain<MultiplyOp>},
      {"position_embedding", "adds a learned map to every image", {}, 1, 1, plain<PositionEmbeddingOp>},
      {"relu", "max(x, 0)", {}, 1, 1, activation<kernels::Activation::relu>},
      {"resize", "to a height and width, nearest or bilinear", {"height", "width", "mode"}, 1, 1, resize},
      {"sigmoid", "1 / (1 + exp(-x))", {}, 1, 1, activation<kernels::Activation::sigmoid>},
      {"softmax", "softmax over the channels", {}, 1, 1, plain<SoftmaxOp>},
      {"spatial_dropout", "drops whole channels of an image in training", {"rate"}, 1, 1, spatial_dropout},
      {"squeeze_excite", "each channel times a gate of all means", {"ratio"}, 1, 1, parse_squeeze_excite},
      {"upsample", "by a whole factor, nearest or bilinear", {"factor", "mode"}, 1, 1, upsample},
  };
  return entries;
}

const OpEntry* find_op(std::string_view kind) {
  const auto& all = op_registry();
  const auto it = std::find_if(all.begin(), all.end(), [&](const OpEntry& e) { return e.kind == kind; });
  return it == all.end() ? nullptr : &*it;
}

}  // namespace regolith
