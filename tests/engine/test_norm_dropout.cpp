// Dropout in the pass of a norm: the same numbers as by itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/outcome.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

// With and without ReLU and residual, by groups and over the batch; under a squeeze, and where another reads the map
// too.
const char* const kModel =
    "  c1: {op: conv, in: input, filters: 16}\n"
    "  n1: {op: group_norm, in: c1, groups: 4}\n"
    "  r1: {op: relu, in: n1}\n"
    "  d1: {op: dropout, in: r1, rate: 0.3}\n"
    "  s1: {op: squeeze_excite, in: d1, ratio: 4}\n"
    "  c2: {op: conv, in: s1, filters: 16}\n"
    "  n2: {op: batch_norm, in: c2}\n"
    "  a2: {op: add, in: [n2, s1]}\n"
    "  r2: {op: relu, in: a2}\n"
    "  d2: {op: spatial_dropout, in: r2, rate: 0.4}\n"
    "  c3: {op: conv, in: d2, filters: 16}\n"
    "  n3: {op: group_norm, in: c3, groups: 2}\n"
    "  d3: {op: dropout, in: n3, rate: 0.2}\n"
    "  r3: {op: relu, in: d3}\n"
    "  n4: {op: batch_norm, in: r3}\n"
    "  d4: {op: dropout, in: n4, rate: 0.5}\n"
    "  a4: {op: add, in: [d4, n4]}\n"
    "  logits: {op: conv, in: a4, filters: 5, kernel: 1}\n";

TEST(NormDropout, IsFusedWhereNobodyElseReads) {
  Graph g = model(kModel);
  EXPECT_THAT(fuse(g, FuseOptions{}),
              ::testing::IsSupersetOf({"norm+dropout: n1 takes d1", "norm+dropout: n2 takes d2",
                                       "norm+dropout: n3 takes d3", "squeeze from norm: s1 takes the sums of n1"}));
  EXPECT_GE(g.find("d4"), 0);
  EXPECT_EQ(g.nodes[g.find("n2")].op->describe(), " + residual + relu + spatial_dropout 0.4");
}

TEST(NormDropout, FusionChangesNothingButRounding) {
  auto cpu = make_cpu_device(2);
  for (const Mode mode : {Mode::train, Mode::train_without_dropout, Mode::eval}) {
    Variant fused, apart;
    fused.mode = apart.mode = mode;
    apart.network.fuse.without = {"norm+dropout"};
    expect_close(run(*cpu, model(kModel), fused), run(*cpu, model(kModel), apart), 3e-5);
  }
  Variant other;
  other.step = 8;
  EXPECT_NE(run(*cpu, model(kModel), other).logits, run(*cpu, model(kModel), Variant{}).logits);
}

TEST(NormDropout, SlicesOfTheBatchChangeNothingButRounding) {
  std::string nodes = kModel;
  for (size_t at; (at = nodes.find("batch_norm")) != std::string::npos;) nodes.replace(at, 10, "group_norm, groups: 4");
  auto cpu = make_cpu_device(2);
  const Outcome whole = run(*cpu, model(nodes), Variant{});
  for (const int slice : {1, 2}) {
    Variant sliced;
    sliced.slice = slice;
    expect_close(run(*cpu, model(nodes), sliced), whole, 3e-5);
  }
}

TEST(NormDropout, SimulatedDeviceEqualsTheCpu) {
  auto cpu = make_cpu_device(1);
  const Outcome expected = run(*cpu, model(kModel), Variant{});
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    auto simulated = make_simulated_device(seed);
    expect_same(run(*simulated, model(kModel), Variant{}), expected);
  }
  auto checked = make_cpu_device(1, Execution::checked);
  expect_close(run(*checked, model(kModel), Variant{}), expected, 3e-5);
}

}  // namespace
}  // namespace regolith
