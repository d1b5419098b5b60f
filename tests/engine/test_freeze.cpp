// A network frozen for inference computes what Mode::eval of the trained one does.
#include "engine/ops/freeze.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/train/weights.h"
#include "models/reader.h"
#include "places.h"
#include "tests/support/fixture.h"

namespace regolith {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

std::vector<float> logits(Network& network, int N, DeviceStream& stream) {
  Program& p = network.program(N, Mode::eval);
  const TensorView x = p.image(), y = p.value(p.graph().output);
  testing::Random random(5);
  for (int64_t i = 0; i < x.elements(); ++i) x.as<float>()[i] = static_cast<float>(random.normal());
  p.pack(stream);
  p.forward(stream);
  stream.synchronize();
  return {y.as<float>(), y.as<float>() + y.elements()};
}

// Random weights, with biases, norms and running statistics that are not the initial ones.
void randomise(Network& network, DeviceStream& stream) {
  Parameters& parameters = network.parameters();
  parameters.initialise(3, stream);
  testing::Random random(4);
  for (size_t i = 0; i < parameters.entries().size(); ++i) {
    const auto& e = parameters.entries()[i];
    if (e.fan_in > 0) continue;
    std::vector<float> values(e.elements);
    for (float& v : values) v = static_cast<float>(e.init == Init::ones ? random.uniform(.5, 2) : random.normal() / 4);
    parameters.write(static_cast<int>(i), ParamField::weight, values, stream);
  }
  parameters.refresh_compute_copy(stream);
}

struct Frozen {
  Graph graph;
  Checkpoint weights;
  std::vector<std::string> rewrites;
  double error = 0;  // of the logits, over their largest
};

Frozen freeze_and_compare(const Yaml& model) {
  auto cpu = make_cpu_device(2);
  auto stream = cpu->make_stream();
  Frozen f;
  f.graph = read_model(model);
  Network trained(f.graph, *cpu, {});
  randomise(trained, *stream);
  f.weights = save_weights(trained, *stream);
  f.rewrites = freeze(f.graph, f.weights);
  NetworkOptions options;
  options.training = false;
  Network network(f.graph, *cpu, options);
  load_weights(network, f.weights, *stream);
  const std::vector<float> expected = logits(trained, 2, *stream), actual = logits(network, 2, *stream);
  EXPECT_EQ(actual.size(), expected.size());
  double most = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(expected[i])));
    f.error = std::max(f.error, std::abs(static_cast<double>(actual[i]) - expected[i]));
  }
  f.error /= most;
  for (auto& [name, tensor] : f.weights.tensors) tensor.source = nullptr;  // reads what ends here
  return f;
}

Frozen freeze_nodes(const std::string& nodes) {
  return freeze_and_compare(Yaml::load_string("input: {height: 8, width: 12, channels: 3}\n" + nodes, "model.yaml"));
}

std::vector<std::string> names(const Graph& graph) {
  std::vector<std::string> names;
  for (const Node& n : graph.nodes) names.push_back(n.name);
  return names;
}

class FrozenNetwork : public ::testing::TestWithParam<std::string> {};

TEST_P(FrozenNetwork, HasTheLogitsOfTheTrainedOne) {
  const Yaml file = Yaml::load(std::string(REGOLITH_SOURCE_DIR) + "/configs/models/" + GetParam() + ".yaml");
  const Frozen f = freeze_and_compare(file.at("model"));
  EXPECT_LT(f.error, 3e-5);
  EXPECT_EQ(f.graph.heads.size(), 1U);
  EXPECT_EQ(f.graph.params.size(), f.weights.tensors.size());
  for (const Node& n : f.graph.nodes) {
    EXPECT_NE(n.op->kind(), "batch_norm") << n.name;
    EXPECT_THAT(std::string(n.op->kind()), Not(::testing::HasSubstr("dropout"))) << n.name;
  }
}

std::vector<std::string> networks() {
  std::vector<std::string> names;
  for (const auto& file : std::filesystem::directory_iterator(std::string(REGOLITH_SOURCE_DIR) + "/configs/models"))
    names.push_back(file.path().stem());
  std::sort(names.begin(), names.end());
  return names;
}
INSTANTIATE_TEST_SUITE_P(, FrozenNetwork, ::testing::ValuesIn(networks()), [](const auto& p) { return p.param; });

TEST(Freeze, FoldsANormIntoEitherConvolutionWithAndWithoutABias) {
  const Frozen f = freeze_nodes(
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 5, bias: false}\n"
      "  an: {op: batch_norm, in: a}\n"
      "  b: {op: conv_transpose, in: an, filters: 6, stride: 2}\n"
      "  bn: {op: batch_norm, in: b, epsilon: 0.1}\n");
  EXPECT_LT(f.error, 1e-6);
  EXPECT_THAT(f.rewrites, ElementsAre("folded norm: b takes bn", "folded norm: a takes an"));
  EXPECT_THAT(names(f.graph), ElementsAre("input", "a", "b"));
  EXPECT_THAT(f.weights.tensor("a/bias").shape, ElementsAre(5));
  EXPECT_EQ(f.weights.tensors.size(), 4U);
}

TEST(Freeze, LeavesANormWhoseInputIsReadElsewhereOrIsNoConvolution) {
  const Frozen f = freeze_nodes(
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 4}\n"
      "  n: {op: batch_norm, in: a}\n"
      "  sum: {op: add, in: [a, n]}\n"
      "  m: {op: batch_norm, in: sum}\n");
  EXPECT_LT(f.error, 1e-6);
  EXPECT_THAT(f.rewrites, IsEmpty());
  EXPECT_THAT(names(f.graph), ElementsAre("input", "a", "n", "sum", "m"));
}

TEST(Freeze, DropsDropoutOtherHeadsAndWhatOnlyTheyRead) {
  const Frozen f = freeze_nodes(
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 4}\n"
      "  da: {op: dropout, in: a, rate: 0.5}\n"
      "  side: {op: conv, in: da, filters: 4}\n"
      "  other: {op: relu, in: side}\n"
      "  b: {op: conv, in: da, filters: 4}\n"
      "  out: {op: spatial_dropout, in: b, rate: 0.5}\n"
      "heads: {other: 0.5, out: 1}\n");
  EXPECT_LT(f.error, 1e-6);
  EXPECT_THAT(names(f.graph), ElementsAre("input", "a", "b"));
  EXPECT_EQ(f.graph.nodes[f.graph.output].name, "b");
  EXPECT_FALSE(f.weights.tensors.contains("side/kernel"));
  EXPECT_THAT(f.rewrites, Contains("loss head: other is none"));
}

TEST(Freeze, RefusesWeightsOfAnotherShape) {
  const Yaml model = Yaml::load_string(
      "input: {height: 8, width: 8, channels: 1}\n"
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 2}\n"
      "  n: {op: batch_norm, in: a}\n",
      "model.yaml");
  Graph graph = read_model(model);
  Checkpoint weights;
  EXPECT_THROW(freeze(graph, weights), CheckpointError);
}

}  // namespace
}  // namespace regolith
