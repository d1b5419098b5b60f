// Sums of maps: their addends' gradients in one memory, several addends and a bias in one pass.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "engine/graph/plan.h"
#include "tests/engine/outcome.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

// The top of a UNet++: a transposed convolution and two skips are added, one of which others read before.
const char* const kModel =
    "  e: {op: conv, in: input, filters: 8}\n"
    "  n1: {op: batch_norm, in: e}\n"
    "  r1: {op: relu, in: n1}\n"
    "  p: {op: max_pool, in: r1}\n"
    "  b: {op: conv, in: p, filters: 8}\n"
    "  u1: {op: conv_transpose, in: b, filters: 8, stride: 2}\n"
    "  a1: {op: add, in: [u1, r1]}\n"
    "  c: {op: conv, in: a1, filters: 8}\n"
    "  n2: {op: batch_norm, in: c}\n"
    "  r2: {op: relu, in: n2}\n"
    "  u2: {op: conv_transpose, in: b, filters: 8, stride: 2}\n"
    "  a2: {op: add, in: [u2, r1, r2]}\n"
    "  logits: {op: conv, in: a2, filters: 5, kernel: 1}\n";

TEST(Plan, AddendsShareTheGradientOfTheirSum) {
  auto cpu = make_cpu_device(1);
  Network network(model(kModel), *cpu, Variant{}.network);
  const Program& p = network.program(2, Mode::train);
  const auto gradient = [&](const char* name) { return p.gradient(p.graph().find(name)).data; };
  EXPECT_EQ(gradient("u2"), gradient("a2"));
  EXPECT_EQ(gradient("n2"), gradient("a2"));  // r2, that fusion put into n2
  EXPECT_EQ(gradient("n1"), gradient("a2"));  // a1 is added to it when u2 and n2 have read it
  EXPECT_NE(gradient("c"), gradient("a2"));   // must not be overwritten before
  EXPECT_EQ(gradient("u1"), gradient("a1"));
  EXPECT_NE(gradient("a1"), gradient("a2"));
}

TEST(Plan, AnAddendThatOverwritesItsGradientSharesItLast) {
  const auto shares = [](const char* first, const char* second) {
    auto cpu = make_cpu_device(1);
    const std::string a = "  a: {op: conv, in: input, filters: 8}\n", b = "  b: {op: conv, in: input, filters: 8}\n";
    Network network(
        model(a + first + b + second + "  y: {op: add, in: [x1, x2]}\n  l: {op: conv, in: y, filters: 5}\n"), *cpu,
        Variant{}.network);
    const Program& p = network.program(2, Mode::train);
    const std::vector<int>& inputs = p.graph().nodes[p.graph().find("y")].inputs;
    return p.gradient(inputs[0]).data == p.gradient(inputs[1]).data;
  };
  // A convolution with ReLU takes the mask in place: before its turn, the other must have read.
  EXPECT_TRUE(shares("  x1: {op: relu, in: a}\n", "  x2: {op: conv, in: b, filters: 8}\n"));
  EXPECT_FALSE(shares("  x1: {op: conv, in: a, filters: 8}\n", "  x2: {op: relu, in: b}\n"));
}

TEST(Sums, AreOnePassWithTheBiasOfATransposedConvolution) {
  auto cpu = make_cpu_device(2);
  const Outcome expected = run(*cpu, model(kModel), Variant{});
  std::string by_hand = kModel;  // a reader more, and it adds its bias itself; two sums for one of three
  by_hand.replace(by_hand.find("  a2: "), std::string::npos,
                  "  i: {op: spatial_dropout, in: u2, rate: 0}\n"
                  "  s: {op: add, in: [i, r1]}\n"
                  "  a2: {op: add, in: [s, r2]}\n"
                  "  logits: {op: conv, in: a2, filters: 5, kernel: 1}\n");
  expect_close(run(*cpu, model(by_hand), Variant{}), expected);
  Variant evaluation;
  evaluation.mode = Mode::eval;
  Variant gradients;
  gradients.mode = Mode::gradients_of_eval;
  expect_close(run(*cpu, model(kModel), evaluation).logits, run(*cpu, model(by_hand), gradients).logits, "logits");
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    auto simulated = make_simulated_device(seed);
    expect_same(run(*simulated, model(kModel), Variant{}), expected);
  }
}

TEST(Sums, OfManyAddends) {
  std::string nodes, sum = "  y: {op: add, in: [c0", pairs = "  s0: {op: add, in: [c0, c1]}\n";
  for (int i = 0; i < 11; ++i) {
    const std::string n = std::to_string(i);
    nodes += "  c" + n + ": {op: conv, in: input, filters: 8}\n";
    if (i > 0) sum += ", c" + n;
    if (i > 1)
      pairs += "  s" + std::to_string(i - 1) + ": {op: add, in: [s" + std::to_string(i - 2) + ", c" + n + "]}\n";
  }
  const std::string end = ", filters: 5, kernel: 1}\n";
  auto cpu = make_cpu_device(2);
  expect_close(run(*cpu, model(nodes + sum + "]}\n  logits: {op: conv, in: y" + end), Variant{}),
               run(*cpu, model(nodes + pairs + "  logits: {op: conv, in: s9" + end), Variant{}));
}

// Ops that take dy over, leave it, hand on slices of it, overwrite it, in any order: with memory of its own for each
// gradient the numbers must be the same.
TEST(Plan, SharedGradientsAreRightInRandomGraphs) {
  auto cpu = make_cpu_device(1);
  for (uint32_t seed = 0; seed < 150; ++seed) {
    uint32_t count = 0;
    const auto below = [&](uint32_t n) { return philox(seed, count++, 0, 0, 0).v[0] % n; };
    std::string nodes = "  x0: {op: conv, in: input, filters: 8}\n  x1: {op: conv, in: x0, filters: 8}\n";
    std::vector<std::string> maps{"x0", "x1"};
    std::set<std::string> unread{"x1"};
    const auto pick = [&] {
      const std::string& name = maps[maps.size() - 1 - below(std::min<uint32_t>(4, maps.size()))];
      unread.erase(name);
      return name;
    };
    const auto several = [&] {
      std::string list = pick();
      for (uint32_t more = 1 + below(3); more > 0; --more) list += ", " + pick();
      return "[" + list + "]";
    };
    for (int i = 2; i < 14; ++i) {
      const std::string name = "x" + std::to_string(i), wide = std::to_string(i);
      switch (below(7)) {
        case 0:
          nodes += "  c" + wide + ": {op: conv, in: " + pick() + ", filters: 8, kernel: 1}\n  " + name +
                   ": {op: relu, in: c" + wide + "}\n";
          break;
        case 1:
          nodes += "  " + name + ": {op: group_norm, in: " + pick() + ", groups: 4}\n";
          break;
        case 2:
          nodes += "  " + name + ": {op: dropout, in: " + pick() + ", rate: 0.3}\n";
          break;
        case 3:
          nodes += "  j" + wide + ": {op: concat, in: " + several() + "}\n  " + name + ": {op: conv, in: j" + wide +
                   ", filters: 8, kernel: 1}\n";
          break;
        case 4:
          nodes += "  " + name + ": {op: conv, in: " + pick() + ", filters: 8, kernel: 1}\n";
          break;
        default:
          nodes += "  " + name + ": {op: add, in: " + several() + "}\n";
      }
      maps.push_back(name);
      unread.insert(name);
    }
    // Sums of concatenations, and concatenations of sums: slices of a gradient that is shared.
    for (const char* name : {"y1", "y2"})
      nodes += "  " + std::string(name) + ": {op: concat, in: [" + pick() + ", " + pick() + "]}\n";
    nodes += "  y: {op: add, in: [y1, y2]}\n  z: {op: conv, in: y, filters: 8, kernel: 1}\n  s: {op: add, in: [z, x0";
    for (const std::string& name : unread) nodes += ", " + name;
    nodes += "]}\n  logits: {op: conv, in: s, filters: 5, kernel: 1}\n";
    Variant shared, apart;
    shared.N = shared.slice = apart.N = apart.slice = 2;
    apart.network.reuse = false;
    expect_same(run(*cpu, model(nodes), shared), run(*cpu, model(nodes), apart));
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed << "\n" << nodes;
  }
}

}  // namespace
}  // namespace regolith
