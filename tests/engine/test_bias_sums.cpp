// Gradients of biases that the op behind has: which they are, and that they are the sums of dy.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/graph/plan.h"
#include "tests/engine/outcome.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

// Behind the biases: a group of several channels, of one, a batch norm; the residual of a norm, a sum before one; and
// what has no sums: a second reader, a ReLU of the convolution's own, a second convolution in the same sum, the loss.
const char* const kModel =
    "  wide: {op: conv, in: input, filters: 16}\n"
    "  n1: {op: group_norm, in: wide, groups: 4}\n"
    "  r1: {op: relu, in: n1}\n"
    "  single: {op: conv, in: r1, filters: 16}\n"
    "  n2: {op: group_norm, in: single, groups: 16}\n"
    "  batch: {op: conv, in: n2, filters: 16}\n"
    "  n3: {op: batch_norm, in: batch}\n"
    "  shortcut: {op: conv, in: r1, filters: 16, kernel: 1}\n"
    "  a1: {op: add, in: [n3, shortcut]}\n"
    "  r2: {op: relu, in: a1}\n"
    "  pool: {op: max_pool, in: r2}\n"
    "  up: {op: conv_transpose, in: pool, filters: 16, stride: 2}\n"
    "  second: {op: conv, in: r2, filters: 16, kernel: 1}\n"
    "  a2: {op: add, in: [up, r2, second]}\n"
    "  n4: {op: group_norm, in: a2, groups: 2}\n"
    "  twice: {op: conv, in: n4, filters: 16}\n"
    "  n5: {op: group_norm, in: twice, groups: 8}\n"
    "  rectified: {op: conv, in: twice, filters: 16, kernel: 1}\n"
    "  r3: {op: relu, in: rectified}\n"
    "  a3: {op: add, in: [n5, r3]}\n"
    "  logits: {op: conv, in: a3, filters: 5, kernel: 1}\n";

constexpr double kNoise = 3e-5;  // sums of 512 pixels that are zero but for rounding

std::vector<std::string> shared(const std::string& nodes, Mode mode = Mode::train,
                                const std::set<std::string>& frozen = {}) {
  auto cpu = make_cpu_device(1);
  Graph graph = model(nodes);
  graph.frozen = frozen;
  Network network(std::move(graph), *cpu, Variant{}.network);
  const Program& p = network.program(4, mode);
  std::vector<std::string> found;
  for (const BiasSums& s : p.shared_sums())
    found.push_back(p.graph().nodes[s.node].name + (s.zero ? " zero" : " from " + p.graph().nodes[s.giver].name) + " " +
                    std::to_string(s.input));
  return found;
}

TEST(BiasSums, ComeFromTheOpBehind) {
  using ::testing::UnorderedElementsAre;
  EXPECT_THAT(shared(kModel), UnorderedElementsAre("wide from n1 0", "single zero 0", "shortcut from n3 1",
                                                   "up from n4 0"));  // that of "batch" is left out altogether
  EXPECT_THAT(
      shared(kModel, Mode::gradients_of_eval),  // the running statistics are constants
      UnorderedElementsAre("wide from n1 0", "single zero 0", "batch from n3 0", "shortcut from n3 1", "up from n4 0"));
  EXPECT_THAT(shared(kModel, Mode::train, {"up/bias", "n3/gamma", "n3/beta"}),
              UnorderedElementsAre("wide from n1 0", "single zero 0", "batch from n3 0", "shortcut from n3 1",
                                   "second from n4 0"));
  EXPECT_TRUE(shared(kModel, Mode::eval).empty());
}

TEST(BiasSums, AreTheSumsOfTheGradient) {
  auto cpu = make_cpu_device(2);
  for (const Mode mode : {Mode::train, Mode::gradients_of_eval}) {
    Variant given, summed;
    given.mode = summed.mode = mode;
    summed.network.fuse.without = {"bias sums"};
    const Outcome expected = run(*cpu, model(kModel), summed);
    expect_close(run(*cpu, model(kModel), given), expected, kNoise);
  }
}

// Group norms only: a batch norm's statistics are those of a slice.
TEST(BiasSums, OfSlicesAddUp) {
  std::string nodes = kModel;
  nodes.replace(nodes.find("batch_norm, in: batch"), 21, "group_norm, in: batch");
  auto cpu = make_cpu_device(2);
  const Outcome whole = run(*cpu, model(nodes), Variant{});
  for (const int slice : {1, 2}) {
    Variant sliced;
    sliced.slice = slice;
    expect_close(run(*cpu, model(nodes), sliced), whole);
  }
}

TEST(BiasSums, SimulatedDeviceEqualsTheCpu) {
  auto cpu = make_cpu_device(1);
  const Outcome expected = run(*cpu, model(kModel), Variant{});
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    auto simulated = make_simulated_device(seed);
    expect_same(run(*simulated, model(kModel), Variant{}), expected);
  }
  auto checked = make_cpu_device(1, Execution::checked);  // as a GPU divides the work
  expect_close(run(*checked, model(kModel), Variant{}), expected);
}

TEST(BiasSums, OfFrozenNormsStillReachTheBias) {
  auto cpu = make_cpu_device(1);
  Graph graph = model(kModel);
  graph.frozen = {"n1/gamma", "n1/beta", "n3/gamma", "n3/beta"};
  Variant summed;
  summed.network.fuse.without = {"bias sums"};
  expect_close(run(*cpu, graph, Variant{}), run(*cpu, graph, summed), kNoise);
}

}  // namespace
}  // namespace regolith
