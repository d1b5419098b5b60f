// The attention gate in a graph: what it says of itself, and that no part of the planner or device changes its results.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/base/error.h"
#include "engine/run/network.h"
#include "kernels/core/random.h"
#include "models/reader.h"
#include "tests/support/message.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using testing::message;

constexpr int kH = 8, kW = 16;

// The gate reads a part of a concat, writes a part of it, and both of its inputs have other readers.
Graph gated(const std::string& gate = "{op: attention_gate, in: [n, u], filters: 24}") {
  return read_model(
      Yaml::load_string("input: {height: 8, width: 16}\n"
                        "nodes:\n"
                        "  e: {op: conv, in: input, filters: 16}\n"
                        "  n: {op: group_norm, in: e, groups: 4}\n"
                        "  p: {op: max_pool, in: n}\n"
                        "  b: {op: conv, in: p, filters: 20}\n"
                        "  u: {op: upsample, in: b}\n"
                        "  a: " +
                            gate +
                            "\n"
                            "  c: {op: concat, in: [a, n, u]}\n"
                            "  y: {op: conv, in: c, filters: 5, kernel: 1}\n",
                        "gated.yaml"));
}

TEST(AttentionGate, SaysWhatItTakes) {
  Graph g = gated();
  g.infer(2);
  const Node& node = g.nodes[g.find("a")];
  EXPECT_EQ(node.shape(), (Shape{2, kH, kW, 16}));
  std::vector<std::pair<std::string, std::vector<int64_t>>> params;
  for (int p : node.params) params.emplace_back(g.params[p].name, g.params[p].spec.shape);
  EXPECT_THAT(params, ::testing::ElementsAre(::testing::Pair("a/theta/kernel", std::vector<int64_t>{24, 1, 1, 16}),
                                             ::testing::Pair("a/phi/kernel", std::vector<int64_t>{24, 1, 1, 20}),
                                             ::testing::Pair("a/psi/kernel", std::vector<int64_t>{1, 1, 1, 24}),
                                             ::testing::Pair("a/psi/bias", std::vector<int64_t>{1})));
  EXPECT_EQ(node.inferred.macs, 2 * kH * kW * (24 * (16 + 20) + 24 + 16));
  EXPECT_EQ(g.params[node.params[0]].spec.init, Init::glorot_uniform);
  Graph he = gated("{op: attention_gate, in: [n, u], filters: 24, init: he_normal}");
  he.infer(1);
  EXPECT_EQ(he.params[he.nodes[he.find("a")].params[0]].spec.init, Init::he_normal);
}

TEST(AttentionGate, RefusesWhatDoesNotFit) {
  EXPECT_THAT(message([] { gated("{op: attention_gate, in: [n, b], filters: 8}"); }),
              ::testing::AllOf(::testing::HasSubstr("gated.yaml:8:"), ::testing::HasSubstr("node a (attention_gate)"),
                               ::testing::HasSubstr("8x16x16"), ::testing::HasSubstr("4x8x20"),
                               ::testing::HasSubstr("upsample g first")));
  EXPECT_THAT(message([] { gated("{op: attention_gate, in: [n, u], filters: 257}"); }), ::testing::HasSubstr("256"));
  EXPECT_THAT(message([] { gated("{op: attention_gate, in: n, filters: 8}"); }), ::testing::HasSubstr("gated.yaml:8:"));
}

struct Outcome {
  std::vector<float> logits;
  std::vector<std::vector<float>> gradients;  // of all parameters
};

// One pass forward and back over 4 images, `images` of them at a time.
Outcome pass(Device& device, const NetworkOptions& options, int images = 4) {
  Network network(gated(), device, options);
  const auto stream = device.make_stream();
  network.parameters().initialise(5, *stream);
  const int64_t step = 0;
  DeviceBuffer steps(device, sizeof step);
  device.upload(steps.as(), &step, sizeof step, *stream);
  network.step_counter(steps.as<int64_t>());
  Program& program = network.program(images, Mode::train_without_dropout);
  program.pack(*stream);
  Outcome o;
  for (int first = 0; first < 4; first += images) {
    const auto fill = [&](const TensorView& map, int key) {
      std::vector<float> values(map.elements());
      std::vector<bf16> low(values.size());
      for (size_t i = 0; i < values.size(); ++i) {
        const uint32_t at = static_cast<uint32_t>(i + first * values.size() / images);
        values[i] = static_cast<float>(philox(7, at, key, 0, 0).v[0]) / 0x1p31f - 1;
        low[i] = bf16(values[i]);
      }
      const void* from = map.dtype == DType::f32 ? static_cast<const void*>(values.data()) : low.data();
      device.upload(map.data, from, values.size() * size_of(map.dtype), *stream);
      stream->synchronize();
    };
    fill(program.image(), 1);
    program.forward(*stream, first);
    const TensorView y = program.value(program.graph().output);
    std::vector<unsigned char> raw(y.elements() * size_of(y.dtype));
    device.download(raw.data(), y.data, raw.size(), *stream);
    stream->synchronize();
    for (int64_t i = 0; i < y.elements(); ++i)
      o.logits.push_back(y.dtype == DType::f32 ? reinterpret_cast<float*>(raw.data())[i]
                                               : static_cast<float>(reinterpret_cast<bf16*>(raw.data())[i]));
    fill(program.gradient(program.graph().output), 2);
    program.backward(*stream, first > 0);
  }
  for (size_t i = 0; i < network.parameters().entries().size(); ++i)
    o.gradients.push_back(network.parameters().read(static_cast<int>(i), ParamField::gradient, *stream));
  return o;
}

NetworkOptions options(Precision precision = Precision::fp32) {
  NetworkOptions o;
  o.precision = precision;
  o.conv.provider = "reference";
  return o;
}

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.logits, b.logits);
  EXPECT_EQ(a.gradients, b.gradients);
}
// By the norm of the difference: a maximum that moves to a neighbour changes single values by much.
void expect_close(const Outcome& a, const Outcome& b, double relative) {
  const auto compare = [&](const std::vector<float>& x, const std::vector<float>& y) {
    ASSERT_EQ(x.size(), y.size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      difference += std::pow(x[i] - y[i], 2);
      norm += std::pow(y[i], 2);
    }
    EXPECT_GT(norm, 0);
    EXPECT_TRUE(std::sqrt(difference) <= relative * std::sqrt(norm)) << std::sqrt(difference / norm);
  };
  compare(a.logits, b.logits);
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  for (size_t i = 0; i < a.gradients.size(); ++i) compare(a.gradients[i], b.gradients[i]);
}

TEST(AttentionGate, ViewsReuseAndTheSimulatedDeviceChangeNothing) {
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    NetworkOptions plain = options(precision), copies = plain, roomy = plain;
    copies.views = false;
    roomy.reuse = false;
    auto cpu = make_cpu_device(2);
    const Outcome expected = pass(*cpu, plain);
    expect_same(pass(*cpu, copies), expected);
    expect_same(pass(*cpu, roomy), expected);
    for (uint64_t seed = 1; seed <= 3; ++seed) expect_same(pass(*make_simulated_device(seed), plain), expected);
  }
}

TEST(AttentionGate, SlicesAndTheCheckedExecutionChangeNothingButRounding) {
  auto cpu = make_cpu_device(2);
  const Outcome expected = pass(*cpu, options());
  expect_close(pass(*cpu, options(), 1), expected, 1e-5);
  expect_close(pass(*make_cpu_device(1, Execution::checked), options()), expected, 1e-5);
  expect_close(pass(*cpu, options(Precision::bf16)), expected, 0.05);
}

TEST(AttentionGate, TakesItsPlaceInAConcat) {
  auto cpu = make_cpu_device(1);
  Network network(gated(), *cpu, options());
  Program& p = network.program(1, Mode::train);
  EXPECT_EQ(p.plan().concat_copies, 0);
  EXPECT_EQ(p.plan().extra_adds, 0);
  const int a = p.graph().find("a");
  EXPECT_EQ(p.value(a).pitch, 16 + 16 + 20);
  EXPECT_EQ(p.value(p.graph().find("n")).pitch, 16 + 16 + 20);
}

}  // namespace
}  // namespace regolith
