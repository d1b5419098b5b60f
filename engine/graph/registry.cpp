#include "engine/graph/registry.h"

#include <algorithm>

#include "engine/ops/aspp.h"
#include "engine/ops/attention_gate.h"
#include "engine/ops/basic.h"
#include "engine/ops/conv.h"
#include "engine/ops/norm.h"
#include "engine/ops/pointwise.h"
#include "engine/ops/resample.h"
#include "engine/ops/transformer.h"
#include "kernels/resize.h"

namespace regolith {

namespace {

ConvAttributes with_filters(const Attributes& a) {
  ConvAttributes c = parse_conv(a);
  c.filters = a.integer("filters", 1, 1 << 16);
  return c;
}

}  // namespace

const std::vector<OpEntry>& op_registry() {
  constexpr int many = 1 << 20;
  static const std::vector<std::string> conv{"filters", "kernel", "stride", "dilation", "padding", "bias", "init"};
  static const std::vector<OpEntry> entries{
      {"add", "the sum of maps of one shape", {}, 2, many, [](const Attributes&) { return std::make_unique<AddOp>(); }},
      {"attention_gate",
       "a skip weighted per pixel by a gating signal",
       {"filters", "init"},
       2,
       2,
       parse_attention_gate},
      {"attention", "self-attention over the positions of a map of [q | k | v]", {"heads"}, 1, 1, parse_attention},
      {"aspp", "atrous spatial pyramid pooling", {"filters", "rates", "bias", "init", "prune"}, 1, 1, parse_aspp},
      {"batch_norm", "batch normalisation", {"momentum", "epsilon"}, 1, 1, parse_batch_norm},
      {"concat", "channels side by side", {}, 2, many, [](const Attributes&) { return std::make_unique<ConcatOp>(); }},
      {"conv", "convolution", conv, 1, 1,
       [](const Attributes& a) { return std::make_unique<ConvOp>(with_filters(a)); }},
      {"conv_transpose", "transposed convolution, the adjoint of the convolution", conv, 1, 1,
       [](const Attributes& a) { return std::make_unique<ConvTransposeOp>(with_filters(a)); }},
      {"gelu",
       "x times the normal distribution function",
       {},
       1,
       1,
       [](const Attributes&) { return std::make_unique<GeluOp>(); }},
      {"global_avg_pool",
       "the mean over the pixels of each image",
       {},
       1,
       1,
       [](const Attributes&) { return std::make_unique<GlobalAvgPoolOp>(); }},
      {"group_norm", "group normalisation", {"groups", "epsilon"}, 1, 1, parse_group_norm},
      {"layer_norm", "normalisation of every pixel over its channels", {"epsilon"}, 1, 1, parse_layer_norm},
      {"max_pool",
       "max pooling without padding",
       {"pool", "stride"},
       1,
       1,
       [](const Attributes& a) {
         const int pool = a.integer("pool", 1, 64, 2);
         return std::make_unique<MaxPoolOp>(pool, a.integer("stride", 1, 64, pool));
       }},
      {"position_embedding",
       "adds a learned map to every image",
       {},
       1,
       1,
       [](const Attributes&) { return std::make_unique<PositionEmbeddingOp>(); }},
      {"multiply",
       "the product of two maps; one may have a single channel or a single pixel",
       {},
       2,
       2,
       [](const Attributes&) { return std::make_unique<MultiplyOp>(); }},
      {"relu", "max(x, 0)", {}, 1, 1, [](const Attributes&) { return std::make_unique<ReluOp>(); }},
      {"resize",
       "resizing to a height and width, nearest or bilinear",
       {"height", "width", "mode"},
       1,
       1,
       [](const Attributes& a) {
         const int height = a.integer("height", 1, kernels::kResizeSize);
         return std::make_unique<ResizeOp>(height, a.integer("width", 1, kernels::kResizeSize),
                                           a.choice("mode", {"nearest", "bilinear"}, "nearest") == "bilinear");
       }},
      {"sigmoid", "1 / (1 + exp(-x))", {}, 1, 1, [](const Attributes&) { return std::make_unique<SigmoidOp>(); }},
      {"softmax",
       "softmax over the channels",
       {},
       1,
       1,
       [](const Attributes&) { return std::make_unique<SoftmaxOp>(); }},
      {"upsample",
       "upsampling by a whole factor, nearest or bilinear",
       {"factor", "mode"},
       1,
       1,
       [](const Attributes& a) {
         return std::make_unique<UpsampleOp>(a.integer("factor", 2, 64, 2),
                                             a.choice("mode", {"nearest", "bilinear"}, "nearest") == "bilinear");
       }},
  };
  return entries;
}

const OpEntry* find_op(std::string_view kind) {
  const auto& all = op_registry();
  const auto it = std::find_if(all.begin(), all.end(), [&](const OpEntry& e) { return e.kind == kind; });
  return it == all.end() ? nullptr : &*it;
}

}  // namespace regolith
