// The transformer block: what it refuses, what it is made of, and that slices, views and devices change nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/base/error.h"
#include "engine/train/trainer.h"
#include "kernels/core/random.h"
#include "losses/loss.h"
#include "models/reader.h"
#include "places.h"
#include "tests/support/message.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using testing::message;

constexpr int kH = 8, kW = 16, kCount = 6, kPixels = kH * kW;

Graph model(const std::string& nodes, const std::string& input = "{height: 8, width: 16}") {
  return read_model(Yaml::load_string("input: " + input + "\nnodes:\n" + nodes, "model.yaml"));
}

Graph small() {
  return model(
      "  e: {op: conv, in: input, filters: 16}\n"
      "  p: {op: max_pool, in: e}\n"
      "  t: {block: transformer, in: p, heads: 2, mlp_ratio: 2, repeat: 2}\n"
      "  u: {op: upsample, in: t}\n"
      "  c: {op: concat, in: [u, e]}\n"
      "  n: {op: layer_norm, in: c}\n"
      "  g: {op: gelu, in: n}\n"
      "  h: {op: gelu, in: e}\n"
      "  k: {op: concat, in: [g, h]}\n"
      "  q: {op: position_embedding, in: k}\n"
      "  logits: {op: conv, in: q, filters: 5, kernel: 1}\n");
}

std::string refusal(int channels, const std::string& transformer, const std::string& input) {
  return message([&] {
    model("  a: {op: conv, in: input, filters: " + std::to_string(channels) + "}\n  t: {block: transformer, in: a" +
              transformer + "}\n",
          input);
  });
}

TEST(Transformer, ErrorsSayWhatFits) {
  const std::string fits = "{height: 8, width: 16}";
  EXPECT_EQ(refusal(32, "", fits), "no error");
  const std::string heads = refusal(64, ", heads: 5", fits);
  EXPECT_THAT(heads, ::testing::HasSubstr("model.yaml:4:"));
  EXPECT_THAT(heads, ::testing::HasSubstr("node t/1/attention (attention): 5 heads do not divide 64 channels"));
  EXPECT_THAT(refusal(48, ", heads: 4", fits),
              ::testing::HasSubstr("4 heads of 48 channels have 12 each; expected a multiple of 8 up to 128"));
  EXPECT_THAT(refusal(256, ", heads: 1", fits), ::testing::HasSubstr("have 256 each"));
  const std::string many = refusal(32, ", heads: 1", "{height: 32, width: 33}");
  EXPECT_THAT(many, ::testing::HasSubstr("a map of 32x33 has 1056 positions; attention takes at most 1024"));
  EXPECT_EQ(refusal(32, ", heads: 1", "{height: 32, width: 32}"), "no error");
  EXPECT_THAT(message([] { model("  a: {op: conv, in: input, filters: 32}\n  t: {op: attention, in: a}\n"); }),
              ::testing::HasSubstr("q, k and v side by side"));
  EXPECT_THAT(refusal(32, ", head: 4", fits), ::testing::HasSubstr("did you mean 'heads'?"));
}

TEST(Transformer, UnetHasTheParametersThatItsFileCounts) {
  Graph g = read_model(Yaml::load(REGOLITH_SOURCE_DIR "/configs/models/unet_transformer.yaml").at("model"));
  g.infer(1);
  EXPECT_EQ(g.parameter_count(), 934469);
  EXPECT_EQ(g.nodes[g.find("t/2/attention")].shape(), (Shape{1, 16, 32, 128}));
  std::vector<std::string> names;
  for (const Parameter& p : g.params)
    if (p.name.rfind("t/", 0) == 0 && p.name.rfind("t/2", 0) != 0) names.push_back(p.name);
  EXPECT_THAT(names, ::testing::ElementsAre("t/position/embedding", "t/1/norm1/gamma", "t/1/norm1/beta",
                                            "t/1/qkv/kernel", "t/1/qkv/bias", "t/1/proj/kernel", "t/1/proj/bias",
                                            "t/1/norm2/gamma", "t/1/norm2/beta", "t/1/fc1/kernel", "t/1/fc1/bias",
                                            "t/1/fc2/kernel", "t/1/fc2/bias"));
}

struct Outcome {
  std::vector<double> losses;
  std::vector<std::vector<float>> weights;
};

// A few steps over random images and masks.
Outcome train(Device& device, const NetworkOptions& options) {
  std::vector<uint8_t> images(kCount * kPixels), masks(images.size());
  for (size_t i = 0; i < images.size(); ++i) {
    const Philox r = philox(7, static_cast<uint32_t>(i), 0, 0, 0);
    images[i] = static_cast<uint8_t>(r.v[0] >> 24);
    masks[i] = static_cast<uint8_t>(r.v[1] % 5);
  }
  const LossSpec spec{Focal{2, {.25}, {0}, Reduction::mean_elements}};
  const Loss loss(spec, 5);
  TrainerOptions trainer_options;
  trainer_options.batch = 4;  // 6 samples: a whole batch and a rest of two
  Network network(small(), device, options);
  DeviceData data(device, {images.data(), masks.data(), kCount, kH, kW, 1}, trainer_options.batch);
  Trainer trainer(network, loss, data, kCount, trainer_options);
  network.parameters().initialise(5, trainer.stream());
  std::vector<int32_t> order(kCount);
  for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index(i, false);
  Outcome o;
  for (int e = 0; e < 4; ++e) {
    trainer.run_epoch(
        order, [](int64_t) { return 1e-2; },
        [&](const StepReport& r) {
          o.losses.push_back(r.loss);
          return true;
        });
  }
  for (size_t i = 0; i < network.parameters().entries().size(); ++i)
    o.weights.push_back(network.parameters().read(static_cast<int>(i), ParamField::weight, trainer.stream()));
  return o;
}

NetworkOptions options() {
  NetworkOptions o;
  o.conv.provider = "reference";
  o.seed = 3;
  return o;
}

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.weights, b.weights);
}
void expect_close(const Outcome& a, const Outcome& b, double relative) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i)
    EXPECT_TRUE(std::abs(a.losses[i] - b.losses[i]) <= relative * b.losses[i]) << a.losses[i] << " and " << b.losses[i];
}

TEST(Transformer, LearnsAndThePlanChangesNothing) {
  auto cpu = make_cpu_device(2);
  const Outcome expected = train(*cpu, options());
  ASSERT_EQ(expected.losses.size(), 8u);
  EXPECT_LT(expected.losses[6], expected.losses[0]);
  expect_same(train(*cpu, options()), expected);
  NetworkOptions o = options();
  o.views = false;
  expect_same(train(*cpu, o), expected);
  o = options();
  o.reuse = false;
  expect_same(train(*cpu, o), expected);
  o = options();
  o.fuse = FuseOptions::none();
  expect_same(train(*cpu, o), expected);  // there is nothing to fuse
}

TEST(Transformer, SlicesAndLowPrecisionChangeNothingButRounding) {
  auto cpu = make_cpu_device(2);
  NetworkOptions o = options();
  o.micro_batches = 1;
  const Outcome expected = train(*cpu, o);
  o.micro_batches = 4;
  expect_close(train(*cpu, o), expected, 1e-4);
  o = options();
  o.precision = Precision::bf16;
  expect_close(train(*cpu, o), expected, .05);
}

TEST(Transformer, SimulatedDeviceEqualsTheCpu) {
  auto cpu = make_cpu_device(1);
  const Outcome expected = train(*cpu, options());
  for (uint64_t seed = 1; seed <= 2; ++seed) expect_same(train(*make_simulated_device(seed), options()), expected);
}

}  // namespace
}  // namespace regolith
