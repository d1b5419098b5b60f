// Whole networks as ONNX files: the same logits; images, classes and what stands beside the graph.
#include <gmock/gmock.h>
#include <onnx.pb.h>

#include <cmath>

#include "deploy/onnx/check.h"
#include "engine/base/error.h"
#include "engine/ops/freeze.h"
#include "exported.h"
#include "models/reader.h"
#include "tests/support/message.h"

namespace regolith::testing {
namespace {

using ::testing::HasSubstr;

class OnnxNetworks : public OnnxExport, public ::testing::WithParamInterface<const char*> {};

TEST_P(OnnxNetworks, HaveTheEnginesLogits) {
  const Yaml model = network_file(GetParam());
  const Checkpoint weights = random_weights(model);
  const std::string file = write("fixed", model, weights, {.logits = true, .any_batch = true});
  expect_same_logits(file, model, weights, 1);
  expect_same_logits(file, model, weights, 3);
  const OnnxOptions any{.logits = true, .any_batch = true, .any_size = true};
  if (GetParam() == std::string("unet_transformer")) {
    EXPECT_THAT(message([&] { write("any", model, weights, any); }),
                HasSubstr("node t/position (position_embedding) has a weight for every position"));
  } else {
    expect_same_logits(write("any", model, weights, any), with_size(model, 96, 48), weights, 2);
  }
  expect_valid_files();
}

INSTANTIATE_TEST_SUITE_P(Onnx, OnnxNetworks,
                         ::testing::Values("unet", "unet_plus_plus", "double_unet", "se_unet", "unet_plus_plus_full",
                                           "unet_transformer"),
                         [](const auto& info) { return info.param; });

class OnnxFile : public OnnxExport {
 protected:
  Yaml model_ = small_model(
      "    a: {block: conv_norm, in: input, filters: 8, norm: batch}\n"
      "    p: {op: max_pool, in: a}\n"
      "    u: {op: upsample, in: p}\n"
      "    logits: {op: conv, in: u, filters: 5, kernel: 1}\n",
      16, 24, 3);
  Checkpoint weights_ = random_weights(model_);
  OnnxImages images_{2, 16, 24, 3};
};

TEST_F(OnnxFile, BytesAndFloatsAreTheSameImages) {
  const OnnxCard card{.divisor = 50, .offset = 100};
  const std::string floats = write("floats", model_, weights_, {.logits = true, .any_batch = true}, card),
                    bytes = write("bytes", model_, weights_, {.bytes = true, .logits = true, .any_batch = true}, card);
  const std::vector<float> of_floats = run_onnx(floats, images_.entry(images_.planes())).read("logits").as_f32(),
                           of_bytes = run_onnx(bytes, images_.entry()).read("logits").as_f32(),
                           ours = engine_logits(model_, weights_, images_, card);
  EXPECT_EQ(of_floats, of_bytes);
  ASSERT_EQ(ours.size(), of_bytes.size());
  for (int64_t p = 0; p < 2 * 16 * 24; ++p)
    for (int64_t k = 0; k < 5; ++k)
      ASSERT_NEAR(of_bytes[(p / 384 * 5 + k) * 384 + p % 384], ours[p * 5 + k], 1e-4) << p;
}

// What the loss leaves out has no probability, and is no class; the others share what there is.
TEST_F(OnnxFile, ExcludedClassesAreNeverPredicted) {
  const OnnxCard card{.excluded = {0, 3}};
  const std::vector<float> bias{20, 0, 0, 20, 0};
  weights_.set<float>("logits/bias", {5}, bias);
  const NpzReader shares =
                      run_onnx(write("p", model_, weights_, {.bytes = true, .any_batch = true}, card), images_.entry()),
                  classes =
                      run_onnx(write("c", model_, weights_, {.bytes = true, .argmax = true, .any_batch = true}, card),
                               images_.entry()),
                  all = run_onnx(write("a", model_, weights_, {.bytes = true, .argmax = true, .any_batch = true}),
                                 images_.entry());
  const NpyArray p = shares.read("probabilities"), c = classes.read("classes"), a = all.read("classes");
  EXPECT_EQ(p.shape, (std::vector<int64_t>{2, 5, 16, 24}));
  EXPECT_EQ(c.shape, (std::vector<int64_t>{2, 16, 24}));
  EXPECT_EQ(c.type_name(), "uint8");
  EXPECT_THAT(shares.names(), ::testing::ElementsAre("probabilities"));
  const std::vector<float> logits = engine_logits(model_, weights_, images_), probability = p.as_f32();
  int excluded_elsewhere = 0;
  for (int64_t i = 0; i < 2 * 384; ++i) {
    double sum = 0;
    int best = 1;
    for (const int k : {1, 2, 4}) {
      sum += std::exp(static_cast<double>(logits[i * 5 + k]));
      if (logits[i * 5 + k] > logits[i * 5 + best]) best = k;
    }
    const auto at = [&](int k) { return probability[(i / 384 * 5 + k) * 384 + i % 384]; };
    for (const int k : {1, 2, 4}) ASSERT_NEAR(at(k), std::exp(static_cast<double>(logits[i * 5 + k])) / sum, 1e-4);
    ASSERT_EQ(at(0), 0);
    ASSERT_EQ(at(3), 0);
    ASSERT_EQ(c.bytes[i], best);
    excluded_elsewhere += a.bytes[i] == 0 || a.bytes[i] == 3;
  }
  EXPECT_GT(excluded_elsewhere, 50);
}

TEST_F(OnnxFile, SaysWhatItIs) {
  OnnxCard card{.name = "tiny", .producer_version = "1.2", .classes = {"sand", "gro\xC3\x9F"}, .excluded = {0}};
  card.colours = {{1, 2, 3}, {4, 5, 6}};
  Graph graph = read_model(model_.at("model"));
  graph.infer(1);
  std::string summary;
  onnx::ModelProto m;
  ASSERT_TRUE(m.ParseFromString(
      to_onnx(graph, weights_, card, {.bytes = true, .any_batch = true, .any_size = true}, &summary)));
  EXPECT_EQ(summary,
            "input  image: uint8 (batch, height, width, 3)\n"
            "output probabilities: float32 (batch, 5, height, width)\n"
            "height and width: multiples of 2\n");
  EXPECT_EQ(m.ir_version(), 7);
  ASSERT_EQ(m.opset_import_size(), 1);
  EXPECT_EQ(m.opset_import(0).version(), 13);
  EXPECT_EQ(m.graph().name(), "tiny");
  std::map<std::string, std::string> said;
  for (const auto& e : m.metadata_props()) said[e.key()] = e.value();
  EXPECT_EQ(said.at("regolith.classes"), "[\"sand\",\"gro\xC3\x9F\"]");
  EXPECT_EQ(said.at("regolith.colours"), "[[1,2,3],[4,5,6]]");
  EXPECT_EQ(said.at("regolith.excluded_classes"), "[0]");
  EXPECT_EQ(said.at("regolith.normalisation"), "{\"divisor\":255.0,\"offset\":0.0}");
  EXPECT_EQ(said.at("regolith.size"), "multiples of 2");
  for (const auto& node : m.graph().node())
    for (const auto& attribute : node.attribute()) EXPECT_NE(attribute.name(), "auto_pad");
}

TEST_F(OnnxFile, IsTheSameForTheSameWeights) {
  Graph graph = read_model(model_.at("model"));
  graph.infer(1);
  EXPECT_EQ(to_onnx(graph, weights_, {}, {}), to_onnx(graph, weights_, {}, {}));
}

TEST_F(OnnxFile, IsRefusedWithImagesOfAnotherSize) {
  const std::string file = write("fixed", model_, weights_, {.bytes = true});
  EXPECT_THAT(message([&] { run_onnx(file, OnnxImages(1, 18, 24, 3).entry()); }),
              HasSubstr("fixed.onnx: ONNX Runtime: "));
}

}  // namespace
}  // namespace regolith::testing
