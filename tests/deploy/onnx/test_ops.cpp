// Every op in ONNX Runtime beside the engine.
#include <gmock/gmock.h>

#include "deploy/onnx/lower.h"
#include "engine/base/error.h"
#include "engine/ops/registry.h"
#include "exported.h"
#include "models/reader.h"
#include "tests/support/message.h"

namespace regolith::testing {
namespace {

using ::testing::HasSubstr;

struct OpCase {
  const char* name;
  int H, W, C;
  const char* nodes;
  int other_H = 0, other_W = 0;  // another size that the file takes where it is free; 0: none is tried
};

void PrintTo(const OpCase& c, std::ostream* out) { *out << c.name; }

class OnnxOps : public OnnxExport, public ::testing::WithParamInterface<std::vector<OpCase>> {};

TEST_P(OnnxOps, ComputeWhatTheEngineDoes) {
  for (const OpCase& c : GetParam()) {
    SCOPED_TRACE(c.name);
    const Yaml model = small_model(c.nodes, c.H, c.W, c.C);
    const Checkpoint weights = random_weights(model);
    expect_same_logits(write(c.name, model, weights, {.logits = true, .any_batch = true}), model, weights, 2);
    if (c.other_H == 0) continue;
    const std::string file =
        write(std::string(c.name) + "_any_size", model, weights, {.logits = true, .any_batch = true, .any_size = true});
    expect_same_logits(file, with_size(model, c.other_H, c.other_W), weights, 2);
  }
  expect_valid_files();
}

INSTANTIATE_TEST_SUITE_P(
    Convolutions, OnnxOps,
    ::testing::Values(std::vector<OpCase>{
        {"strided", 11, 12, 3,
         "    a: {op: conv, in: input, filters: 6, kernel: 5, stride: 2, bias: false}\n"
         "    b: {op: conv, in: a, filters: 5, kernel: [2, 3], stride: [1, 3]}\n",
         15, 18},
        {"dilated", 9, 12, 2,
         "    a: {op: conv, in: input, filters: 6, kernel: 3, dilation: [2, 3]}\n"
         "    b: {op: conv, in: a, filters: 3, kernel: [3, 4], padding: valid}\n",
         11, 17},
        {"even", 7, 8, 1, "    a: {op: conv, in: input, filters: 4, kernel: 4}\n", 6, 5},
        {"transposed", 6, 5, 3,
         "    a: {op: conv_transpose, in: input, filters: 4, kernel: 3, stride: 2}\n"
         "    b: {op: conv_transpose, in: a, filters: 3, kernel: 1, stride: [3, 2], bias: false}\n"
         "    c: {op: conv_transpose, in: b, filters: 3, kernel: [4, 5], stride: [3, 1]}\n",
         4, 9},
        {"aspp_pruned", 4, 8, 6, "    a: {op: aspp, in: input, filters: 4, rates: [2, 6, 12]}\n", 16, 20},
        {"aspp_whole", 4, 8, 6, "    a: {op: aspp, in: input, filters: 4, rates: [1, 6], bias: false, prune: false}\n"},
    }));

INSTANTIATE_TEST_SUITE_P(Resampling, OnnxOps,
                         ::testing::Values(std::vector<OpCase>{
                             {"overlapping_windows", 17, 9, 3, "    a: {op: max_pool, in: input, pool: 3, stride: 2}\n",
                              21, 15},
                             {"upsampled", 5, 6, 2,
                              "    a: {op: upsample, in: input, factor: 3}\n"
                              "    b: {op: upsample, in: a, factor: 2, mode: bilinear}\n"
                              "    c: {op: upsample, in: b, factor: 5, mode: bilinear}\n",
                              4, 3},
                             {"down_and_up", 18, 14, 2,
                              "    a: {op: resize, in: input, height: 3, width: 4}\n"
                              "    b: {op: resize, in: a, height: 7, width: 9}\n"
                              "    c: {op: resize, in: b, height: 14, width: 5}\n"},
                             {"between", 12, 13, 2,
                              "    a: {op: resize, in: input, height: 5, width: 26, mode: bilinear}\n"
                              "    b: {op: resize, in: a, height: 14, width: 9, mode: bilinear}\n"},
                             {"averages", 5, 6, 4,
                              "    a: {op: global_avg_pool, in: input}\n"
                              "    b: {op: multiply, in: [a, input]}\n",
                              9, 4},
                         }));

INSTANTIATE_TEST_SUITE_P(
    Norms, OnnxOps,
    ::testing::Values(std::vector<OpCase>{
        {"groups", 6, 7, 3,
         "    a: {op: conv, in: input, filters: 8}\n"
         "    one: {op: group_norm, in: a, groups: 1}\n"
         "    four: {op: group_norm, in: one, groups: 4, epsilon: 1.0e-5}\n"
         "    each: {op: group_norm, in: four, groups: 8}\n",
         9, 4},
        {"not_folded", 6, 7, 3, "    a: {op: batch_norm, in: input}\n    b: {op: relu, in: a}\n", 9, 4},
        {"pixels", 6, 7, 3,
         "    a: {op: conv, in: input, filters: 8}\n    b: {op: layer_norm, in: a, epsilon: 1.0e-3}\n", 9, 4},
    }));

INSTANTIATE_TEST_SUITE_P(Others, OnnxOps,
                         ::testing::Values(std::vector<OpCase>{
                             {"functions", 5, 6, 3,
                              "    a: {op: conv, in: input, filters: 6}\n"
                              "    gelu: {op: gelu, in: a}\n"
                              "    sigmoid: {op: sigmoid, in: a}\n"
                              "    softmax: {op: softmax, in: a}\n"
                              "    product: {op: multiply, in: [gelu, softmax]}\n"
                              "    dropped: {op: dropout, in: product, rate: 0.5}\n"
                              "    sum: {op: add, in: [a, gelu, sigmoid, dropped]}\n"
                              "    one: {op: conv, in: sum, filters: 1}\n"
                              "    gate: {op: multiply, in: [one, sum]}\n"
                              "    join: {op: concat, in: [gate, a, one]}\n",
                              4, 9},
                             {"gates", 6, 8, 3,
                              "    a: {op: conv, in: input, filters: 6}\n"
                              "    b: {op: squeeze_excite, in: a, ratio: 4}\n"
                              "    c: {op: attention_gate, in: [b, input], filters: 5}\n"
                              "    d: {op: spatial_dropout, in: c, rate: 0.5}\n"
                              "    e: {op: conv, in: d, filters: 3}\n",
                              5, 7},
                             {"attention", 6, 5, 3,
                              "    a: {op: conv, in: input, filters: 48}\n"
                              "    b: {op: attention, in: a, heads: 2}\n"
                              "    c: {op: conv, in: b, filters: 3}\n",
                              4, 9},
                             {"positions", 6, 5, 3,
                              "    a: {op: position_embedding, in: input}\n"
                              "    b: {op: conv, in: a, filters: 3}\n"},
                         }));

TEST(OnnxLowering, IsThereForEveryOp) {
  for (const OpEntry& e : op_registry()) EXPECT_TRUE(has_onnx_lowering(e.kind)) << e.kind;
}

struct StrangeOp : OpBase<StrangeOp> {
  std::string_view kind() const override { return "strange"; }
  Inference infer(const std::vector<Shape>& inputs) override {
    Inference r;
    r.shape = inputs[0];
    return r;
  }
  void forward(const OpRun&) override {}
};

TEST(OnnxLowering, NamesNodeAndOpThatItDoesNotKnow) {
  Graph graph = read_model(small_model("    a: {op: relu, in: input}\n", 4, 4).at("model"));
  graph.output = graph.add("odd/one", std::make_unique<StrangeOp>(), {graph.output}, "model.yaml:3:5");
  graph.infer(1);
  EXPECT_THAT(message([&] { to_onnx(graph, {}, {}, {}); }),
              HasSubstr("model.yaml:3:5: node odd/one: the op strange has no form in ONNX"));
}

std::array<int, 2> steps(const std::string& nodes, int H, int W) {
  Graph graph = read_model(small_model(nodes, H, W).at("model"));
  graph.infer(1);
  return onnx_size_steps(graph);
}

TEST(OnnxSizes, AreThoseThatEveryStrideDivides) {
  EXPECT_EQ(steps("    a: {op: conv, in: input, filters: 2}\n", 5, 7), (std::array{1, 1}));
  EXPECT_EQ(steps("    a: {op: max_pool, in: input}\n    b: {op: conv, in: a, filters: 2, stride: [3, 1]}\n", 12, 8),
            (std::array{6, 2}));
  EXPECT_EQ(steps("    a: {op: upsample, in: input, factor: 4}\n    b: {op: max_pool, in: a, pool: 6}\n", 3, 6),
            (std::array{3, 3}));
  EXPECT_EQ(
      steps("    a: {op: max_pool, in: input}\n    b: {op: upsample, in: a}\n    c: {op: max_pool, in: b}\n", 8, 8),
      (std::array{2, 2}));
  EXPECT_EQ(steps("    a: {op: global_avg_pool, in: input}\n    b: {op: multiply, in: [a, input]}\n"
                  "    c: {op: max_pool, in: b}\n",
                  8, 8),
            (std::array{2, 2}));
}

TEST(OnnxSizes, AreRefusedWhereThereIsOneOnly) {
  EXPECT_THAT(
      message([] { steps("    a: {op: resize, in: input, height: 4, width: 4}\n", 8, 8); }),
      HasSubstr("--dynamic size: the network takes images of 8x8 only: node a (resize) makes maps of one size"));
  EXPECT_THAT(message([] { steps("    a: {op: position_embedding, in: input}\n", 8, 4); }),
              HasSubstr("node a (position_embedding) has a weight for every position, embedding (1, 8, 4, 1)"));
  EXPECT_THAT(message([] {
                steps(
                    "    a: {op: conv, in: input, filters: 2, kernel: 8, padding: valid}\n"
                    "    b: {op: global_avg_pool, in: input}\n    c: {op: concat, in: [a, b]}\n",
                    8, 8);
              }),
              HasSubstr("One of 9x9: model.yaml:"));
}

}  // namespace
}  // namespace regolith::testing
