// Norms that convolutions take over in training: which they are, that results stay those of the norms on their own, and
// what a step saves by it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "engine/report/traffic.h"
#include "tests/engine/outcome.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using ::testing::UnorderedElementsAre;

// Norms behind and before convolutions; two with a residual, that nobody else reads and that others do; one that a pool
// reads too, one that two convolutions read, one behind a convolution that the tiles do not take, one behind that of a
// single channel, and one that a convolution with a ReLU of its own reads.
std::string chain(const std::string& norm) {
  return "  c1: {op: conv, in: input, filters: 32}\n"
         "  n1: {op: " +
         norm +
         ", in: c1}\n"
         "  r1: {op: relu, in: n1}\n"
         "  c2: {op: conv, in: r1, filters: 32}\n"
         "  n2: {op: " +
         norm +
         ", in: c2}\n"
         "  r2: {op: relu, in: n2}\n"
         "  d2: {op: dropout, in: r2, rate: 0.25}\n"
         "  c3: {op: conv, in: d2, filters: 48, kernel: 2}\n"
         "  n3: {op: " +
         norm +
         ", in: c3}\n"
         "  s: {op: conv, in: r1, filters: 48, kernel: 1}\n"
         "  a: {op: add, in: [n3, s]}\n"
         "  r3: {op: relu, in: a}\n"
         "  c4: {op: conv, in: r3, filters: 64}\n"
         "  n4: {op: " +
         norm +
         ", in: c4}\n"
         "  r4: {op: relu, in: n4}\n"
         "  p: {op: max_pool, in: r4}\n"
         "  u: {op: upsample, in: p}\n"
         "  cat: {op: concat, in: [u, r3]}\n"
         "  c5: {op: conv, in: cat, filters: 16, kernel: 5}\n"
         "  n5: {op: " +
         norm +
         ", in: c5}\n"
         "  c6: {op: conv, in: n5, filters: 16}\n"
         "  r6: {op: relu, in: c6}\n"
         "  c7: {op: conv, in: r6, filters: 16, kernel: 2}\n"
         "  n7: {op: " +
         norm +
         ", in: c7}\n"
         "  a7: {op: add, in: [n7, r6]}\n"
         "  r7: {op: relu, in: a7}\n"
         "  l: {op: conv, in: r7, filters: 5, kernel: 1}\n";
}
// Squeezes: behind a norm, with dropout, and behind one with a residual.
const std::string kSqueezes =
    "  c1: {op: conv, in: input, filters: 24}\n"
    "  n1: {op: group_norm, in: c1, groups: 8}\n"
    "  r1: {op: relu, in: n1}\n"
    "  q1: {op: squeeze_excite, in: r1, ratio: 4}\n"
    "  d1: {op: dropout, in: q1, rate: 0.25}\n"
    "  c2: {op: conv, in: d1, filters: 16, kernel: 2}\n"
    "  n2: {op: group_norm, in: c2, groups: 8}\n"
    "  s2: {op: conv, in: d1, filters: 16, kernel: 1}\n"
    "  a2: {op: add, in: [n2, s2]}\n"
    "  r2: {op: relu, in: a2}\n"
    "  q2: {op: squeeze_excite, in: r2, ratio: 4}\n"
    "  l: {op: conv, in: q2, filters: 5, kernel: 1}\n";
const std::string kBatch = chain("batch_norm"), kGroups = chain("group_norm, groups: 8");

Variant variant(Precision precision = Precision::bf16) {
  Variant v;
  v.network.conv.provider = "auto";
  v.network.precision = precision;
  return v;
}
Variant apart(Variant v = variant()) {
  v.network.fuse.without = {"norms in convolutions"};
  return v;
}

// Relative to the length of b.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, length = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    length += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / std::max(length, 1e-12));
}

// Both read the same rounded maps. What differs is the order of fp32 sums, which turns a rounding here and there, and
// that a gradient between a convolution and its norm is rounded once less, or once more: by 2^-9 of a value each, on
// the way through at most eight layers.
constexpr double kRoundings = 8 * 0x1p-9;
// Of gradients, where such a rounding carries a value over zero, or over its neighbour in a pool: a share kRoundings of
// them, each with its whole gradient. On one thread the norms' sums have the same order, and it does not happen.
const double kFlips = std::sqrt(kRoundings);

void expect_near(const Outcome& a, const Outcome& b, const Graph& graph) {
  EXPECT_LT(distance(a.logits, b.logits), kRoundings) << "logits";
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  Graph inferred = graph;
  inferred.infer(1);
  for (size_t i = 0; i < a.gradients.size(); ++i) {
    double length = 0;
    for (const float g : b.gradients[i]) length += std::abs(g);
    if (length < 1e-2 * static_cast<double>(b.gradients[i].size())) continue;  // zero but for rounding
    EXPECT_LT(distance(a.gradients[i], b.gradients[i]), kFlips) << inferred.params[i].name;
  }
}

std::vector<std::string> nodes_where(const Program& p, bool (Op::*holds)() const) {
  std::vector<std::string> found;
  for (const Node& n : p.graph().nodes)
    if (((*n.op).*holds)()) found.push_back(n.name);
  return found;
}

TEST(NormsInConvolutions, AreThoseWhoseReadersAllTakeThem) {
  auto device = make_simulated_device(1);
  Network network(model(kBatch), *device, variant().network);
  const Program& p = network.program(4, Mode::train);
  // n1 is read by two convolutions; n4 by a pool; n3 has a residual.
  EXPECT_THAT(nodes_where(p, &Op::leaves_value), UnorderedElementsAre("n1", "n2", "n5"));
  // The window of c5 is too large.
  EXPECT_THAT(nodes_where(p, &Op::leaves_gradient), UnorderedElementsAre("n1", "n2", "n3", "n4", "n7"));
  // Squeezes hand on their gradient; one without a residual takes the norm as well.
  Network squeezes(model(kSqueezes), *device, variant().network);
  const Program& q = squeezes.program(4, Mode::train);
  EXPECT_THAT(nodes_where(q, &Op::leaves_value), UnorderedElementsAre("n1"));
  EXPECT_THAT(nodes_where(q, &Op::leaves_gradient), UnorderedElementsAre("n1", "q1", "n2", "q2"));
  Network on_their_own(model(kBatch), *device, apart().network);
  EXPECT_TRUE(nodes_where(on_their_own.program(4, Mode::train), &Op::leaves_value).empty());
  auto cpu = make_cpu_device(1);
  Network on_cpu(model(kBatch), *cpu, variant().network);
  EXPECT_TRUE(nodes_where(on_cpu.program(4, Mode::train), &Op::leaves_gradient).empty());
  EXPECT_TRUE(nodes_where(network.program(4, Mode::eval), &Op::leaves_value).empty());
}

TEST(NormsInConvolutions, ResultsAreThoseOfNormsOnTheirOwn) {
  for (const std::string& nodes : {kBatch, kGroups, kSqueezes}) {
    const Graph graph = model(nodes);
    for (const Mode mode : {Mode::train, Mode::gradients_of_eval}) {
      auto device = make_simulated_device(2);
      Variant with = variant(), without = apart();
      with.mode = without.mode = mode;
      expect_near(run(*device, graph, with), run(*device, graph, without), graph);
    }
  }
}

TEST(NormsInConvolutions, TheCheckedKernelsAgree) {
  for (const Precision precision : {Precision::bf16, Precision::fp16}) {
    for (const std::string& nodes : {kGroups, kSqueezes}) {
      const Graph graph = model(nodes);
      auto checked = make_simulated_device(3, Execution::checked);
      expect_near(run(*checked, graph, variant(precision)), run(*checked, graph, apart(variant(precision))), graph);
    }
  }
}

TEST(NormsInConvolutions, TheOrderOfTheWorkChangesNothing) {
  for (const std::string& nodes : {kBatch, kGroups, kSqueezes}) {
    auto first = make_simulated_device(4);
    const Outcome expected = run(*first, model(nodes), variant());
    for (uint64_t seed = 5; seed <= 7; ++seed) {
      auto device = make_simulated_device(seed);
      expect_same(run(*device, model(nodes), variant()), expected);
    }
    Variant poisoned = variant();  // no two tensors share memory, but for what is not written
    poisoned.network.reuse = false;
    poisoned.network.views = false;
    expect_same(run(*first, model(nodes), poisoned), expected);
  }
}

TEST(NormsInConvolutions, SlicesAddUp) {
  auto device = make_simulated_device(8);
  const Graph graph = model(kGroups);
  const Outcome whole = run(*device, graph, variant());
  Variant sliced = variant();
  sliced.slice = 2;
  expect_near(run(*device, graph, sliced), whole, graph);
}

TEST(NormsInConvolutions, FrozenLayersKeepTheirPlace) {
  Graph graph = model(kBatch);
  graph.frozen = {"c2/kernel", "c2/bias", "n2/gamma", "n2/beta"};
  auto device = make_simulated_device(9);
  expect_near(run(*device, graph, variant()), run(*device, graph, apart()), graph);
}

TEST(NormsInConvolutions, AStepMovesAndKeepsLess) {
  auto device = make_simulated_device(10);
  for (const std::string& nodes : {kBatch, kGroups}) {
    Variant planned = variant(), planned_apart = apart();
    planned.network.reserve = planned_apart.network.reserve = false;
    Network with(model(nodes), *device, planned.network), without(model(nodes), *device, planned_apart.network);
    const Program &a = with.program(1024, Mode::train), &b = without.program(1024, Mode::train);
    EXPECT_LT(traffic_of_step(a, 1, 2).bytes, 0.9 * traffic_of_step(b, 1, 2).bytes);
    EXPECT_LT(a.plan().bytes, b.plan().bytes);
  }
}

}  // namespace
}  // namespace regolith
