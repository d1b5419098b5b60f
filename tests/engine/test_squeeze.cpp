// Squeeze and excitation, dropout, and the auxiliary outputs that norms give them: the plan, the rewrites, and runs
// that must be equal.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "engine/base/error.h"
#include "engine/graph/plan.h"
#include "engine/ops/basic.h"
#include "engine/run/network.h"
#include "tests/engine/outcome.h"
#include "tests/support/message.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using testing::message;

// All three fusions of the squeeze, one that has none of them, and both kinds of dropout by themselves.
Graph squeezes() {
  return model(
      "  c1: {op: conv, in: input, filters: 8}\n"
      "  n1: {op: group_norm, in: c1, groups: 4}\n"
      "  r1: {op: relu, in: n1}\n"
      "  s1: {op: squeeze_excite, in: r1, ratio: 4}\n"
      "  p1: {op: max_pool, in: s1}\n"
      "  d1: {op: dropout, in: p1, rate: 0.2}\n"
      "  c2: {op: conv, in: d1, filters: 16}\n"
      "  n2: {op: group_norm, in: c2, groups: 4}\n"
      "  r2: {op: relu, in: n2}\n"
      "  s2: {op: squeeze_excite, in: r2, ratio: 5}\n"
      "  d2: {op: dropout, in: s2, rate: 0.3}\n"
      "  u: {op: upsample, in: d2}\n"
      "  c3: {op: conv, in: u, filters: 16}\n"
      "  s3: {op: squeeze_excite, in: c3}\n"
      "  d3: {op: spatial_dropout, in: s3, rate: 0.4}\n"
      "  c: {op: concat, in: [d3, r1]}\n"
      "  s4: {op: squeeze_excite, in: c, ratio: 3}\n"
      "  logits: {op: conv, in: s4, filters: 5, kernel: 1}\n");
}

TEST(SqueezeExcite, HasTheParametersOfItsLayers) {
  Graph g = squeezes();
  g.infer(1);
  std::vector<std::string> shapes;
  for (const int p : g.nodes[g.find("s2")].params) {
    std::string text = g.params[p].name;
    for (const int64_t d : g.params[p].spec.shape) text += " " + std::to_string(d);
    shapes.push_back(text);
  }
  EXPECT_THAT(shapes, ::testing::ElementsAre("s2/reduce/kernel 3 16", "s2/reduce/bias 3", "s2/expand/kernel 16 3",
                                             "s2/expand/bias 16"));
}

TEST(SqueezeExcite, ErrorsSayWhere) {
  const std::string narrow =
      message([] { model("  a: {op: conv, in: input, filters: 8}\n  s: {op: squeeze_excite, in: a}\n"); });
  EXPECT_EQ(narrow,
            "model.yaml:4:3: node s (squeeze_excite): a ratio of 16 leaves nothing of 8 channels; set `ratio` to 8 or "
            "less");
  EXPECT_THAT(message([] { model("  a: {op: dropout, in: input}\n"); }),
              ::testing::AllOf(::testing::HasSubstr("model.yaml:3:"), ::testing::HasSubstr("rate")));
  EXPECT_THAT(message([] { model("  a: {op: dropout, in: input, rate: 1}\n"); }),
              ::testing::AllOf(::testing::HasSubstr("model.yaml:3:"), ::testing::HasSubstr("less than 1")));
  EXPECT_THAT(message([] { model("  a: {op: spatial_dropout, in: input, rate: -0.1}\n"); }),
              ::testing::HasSubstr("model.yaml:3:"));
}

TEST(Fusion, SqueezesTakeSumsPoolingAndDropout) {
  Graph g = squeezes();
  EXPECT_THAT(fuse(g, FuseOptions{}),
              ::testing::IsSupersetOf({"squeeze+pool: s1 takes p1", "squeeze+dropout: s2 takes d2",
                                       "squeeze+dropout: s3 takes d3", "squeeze from norm: s1 takes the sums of n1",
                                       "squeeze from norm: s2 takes the sums of n2"}));
  EXPECT_GE(g.find("d1"), 0);
  EXPECT_EQ(g.find("d2"), -1);
  g.infer(2);
  EXPECT_EQ(g.nodes[g.find("s1")].shape(), (Shape{2, 4, 8, 8}));
}

TEST(Fusion, AMapThatOthersReadIsNotPooledAway) {
  Graph g = model(
      "  c: {op: conv, in: input, filters: 8}\n"
      "  s: {op: squeeze_excite, in: c, ratio: 4}\n"
      "  p: {op: max_pool, in: s}\n"
      "  u: {op: upsample, in: p}\n"
      "  y: {op: add, in: [u, s]}\n");
  EXPECT_TRUE(fuse(g, FuseOptions{}).empty());
}

TEST(SqueezeExcite, FusionsChangeNothingButRounding) {
  auto cpu = make_cpu_device(2);
  const Outcome expected = run(*cpu, squeezes(), Variant{});
  Variant plain;
  plain.network.fuse = FuseOptions::none();
  expect_close(run(*cpu, squeezes(), plain), expected);
  for (const char* rule : {"squeeze from norm", "squeeze+pool", "squeeze+dropout"}) {
    Variant without;
    without.network.fuse.without = {rule};
    expect_close(run(*cpu, squeezes(), without), expected);
  }
}

TEST(SqueezeExcite, SlicesOfTheBatchChangeNothingButRounding) {
  auto cpu = make_cpu_device(2);
  const Outcome whole = run(*cpu, squeezes(), Variant{});
  for (const int slice : {1, 2}) {
    Variant sliced;
    sliced.slice = slice;
    expect_close(run(*cpu, squeezes(), sliced), whole);
  }
}

TEST(SqueezeExcite, SharedMemoryAndViewsChangeNothing) {
  auto cpu = make_cpu_device(1);
  for (const Mode mode : {Mode::train, Mode::eval}) {
    Variant shared, roomy, copies;
    shared.mode = roomy.mode = copies.mode = mode;
    roomy.network.reuse = copies.network.views = false;
    const Outcome expected = run(*cpu, squeezes(), shared);
    expect_same(run(*cpu, squeezes(), roomy), expected);
    expect_close(run(*cpu, squeezes(), copies), expected);
  }
}

TEST(SqueezeExcite, SimulatedDeviceEqualsTheCpu) {
  auto cpu = make_cpu_device(1);
  const Outcome expected = run(*cpu, squeezes(), Variant{});
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    auto simulated = make_simulated_device(seed);
    expect_same(run(*simulated, squeezes(), Variant{}), expected);
  }
}

// What a resumed run relies on: the masks are those of the step in device memory, and of nothing before it.
TEST(Dropout, DrawsByStepAndSeed) {
  auto cpu = make_cpu_device(1);
  Variant later, other;
  later.step = 8;
  other.network.seed = 4;
  const Outcome first = run(*cpu, squeezes(), Variant{});
  expect_same(run(*cpu, squeezes(), Variant{}), first);
  EXPECT_NE(run(*cpu, squeezes(), later).logits, first.logits);
  EXPECT_NE(run(*cpu, squeezes(), other).logits, first.logits);
}

TEST(Dropout, IsTheIdentityOutsideTraining) {
  auto cpu = make_cpu_device(1);
  Variant evaluation, verifier;
  evaluation.mode = Mode::eval;
  verifier.mode = Mode::train_without_dropout;
  const std::vector<float> expected = run(*cpu, squeezes(), verifier).logits;
  expect_close(run(*cpu, squeezes(), evaluation).logits, expected, "logits");
  evaluation.step = 8;
  expect_close(run(*cpu, squeezes(), evaluation).logits, expected, "logits");
}

// Where y and dx are multiples of x and dy by the same factors, the mask was the same: y of ones, dx of ones.
TEST(Dropout, BackwardHasTheMaskOfForward) {
  for (const char* op : {"dropout", "spatial_dropout"}) {
    Graph g = model("  c: {op: conv, in: input, filters: 32, kernel: 1, bias: true}\n  d: {op: " + std::string(op) +
                    ", in: c, rate: 0.25}\n");
    auto cpu = make_cpu_device(1);
    const Variant setup;
    Network network(std::move(g), *cpu, setup.network);
    auto stream = cpu->make_stream();
    network.parameters().write(0, ParamField::weight, std::vector<float>(32, 0), *stream);
    network.parameters().write(1, ParamField::weight, std::vector<float>(32, 1), *stream);
    const int64_t step = 2;
    network.step_counter(&step);
    Program& p = network.program(2, Mode::train);
    std::memset(p.image().data, 0, p.image().elements() * sizeof(float));
    p.pack(*stream);
    p.forward(*stream, 6);
    const TensorView y = p.value(p.graph().output), dy = p.gradient(p.graph().output),
                     dx = p.gradient(p.graph().find("c"));
    ASSERT_EQ(dx.data, dy.data);
    const std::vector<float> values(y.as<float>(), y.as<float>() + y.elements());
    std::fill_n(dy.as<float>(), dy.elements(), 1.f);
    p.backward(*stream, false);
    EXPECT_EQ(std::vector<float>(dx.as<float>(), dx.as<float>() + dx.elements()), values);
    std::vector<double> kept(32);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_TRUE(values[i] == 0 || values[i] == 1 / 0.75f) << values[i];
      kept[i % 32] += values[i] > 0;
    }
    for (const double k : kept) {  // of 2 samples of 128 pixels
      if (std::string(op) == "dropout")
        EXPECT_NEAR(k / 256, 0.75, 0.15);
      else
        EXPECT_TRUE(k == 0 || k == 128 || k == 256) << k;
    }
  }
}

// y = x, with sums that nobody computes; or reads those of its input.
struct FakeOp : OpBase<FakeOp> {
  FakeOp(size_t bytes, AuxUse use) : bytes(bytes), use(use) {}
  std::string_view kind() const override { return "fake"; }
  Inference infer(const std::vector<Shape>& inputs) override {
    Inference r;
    r.shape = inputs[0];
    r.params.push_back({"w", {1}, Init::zeros, 1, 1, true});
    return r;
  }
  size_t aux_bytes() const override { return bytes; }
  AuxUse reads_aux(size_t) const override { return use; }
  void forward(const OpRun&) override {}
  size_t bytes;
  AuxUse use;
};

TEST(Plan, SideOutputsLiveUntilTheirLastReader) {
  const auto graph_with = [](AuxUse near, AuxUse far) {
    Graph g;
    g.input = g.add("input", std::make_unique<InputOp>(4, 4, 1), {});
    const int a = g.add("a", std::make_unique<FakeOp>(1000, AuxUse::none), {g.input});
    const int b = g.add("b", std::make_unique<FakeOp>(0, near), {a});
    const int c = g.add("c", std::make_unique<FakeOp>(0, AuxUse::none), {b});
    const int d = g.add("d", std::make_unique<FakeOp>(0, far), {a});
    g.output = g.add("e", std::make_unique<AddOp>(), {c, d});
    g.heads = {{g.output, 1}};
    g.infer(1);
    return g;
  };
  const auto side = [&](AuxUse near, AuxUse far, bool training) -> std::pair<int, int> {
    const Plan plan = make_plan(graph_with(near, far), {training, true, true}, DType::f32);
    if (plan.nodes[1].aux < 0) return {-1, -1};
    const PlanBuffer& b = plan.buffers[plan.nodes[1].aux];
    EXPECT_EQ(b.bytes, 1000u);
    return {b.first, b.last};
  };
  using Steps = std::pair<int, int>;
  EXPECT_EQ(side(AuxUse::none, AuxUse::none, true), Steps(-1, -1));
  EXPECT_EQ(side(AuxUse::forward, AuxUse::none, true), Steps(1, 2));
  EXPECT_EQ(side(AuxUse::forward, AuxUse::forward, true), Steps(1, 4));
  EXPECT_EQ(side(AuxUse::forward_and_backward, AuxUse::forward, true), Steps(1, 12 - 2));
  EXPECT_EQ(side(AuxUse::forward_and_backward, AuxUse::none, false), Steps(1, 2));
}

TEST(Plan, DropoutOverwritesWhatNobodyElseReads) {
  Graph g = model(
      "  c: {op: upsample, in: input}\n"
      "  d: {op: dropout, in: c, rate: 0.5}\n"
      "  e: {op: dropout, in: d, rate: 0.5}\n"
      "  f: {op: dropout, in: e, rate: 0.5}\n"
      "  y: {op: add, in: [e, f]}\n");
  g.infer(1);
  const auto buffer = [&](const Plan& plan, const char* name) { return plan.nodes[g.find(name)].value.buffer; };
  const Plan plan = make_plan(g, {.training = false}, DType::f32);
  EXPECT_EQ(buffer(plan, "c"), buffer(plan, "d"));
  EXPECT_EQ(buffer(plan, "d"), buffer(plan, "e"));
  EXPECT_NE(buffer(plan, "e"), buffer(plan, "f"));  // the sum reads e after f is made
  const Plan roomy = make_plan(g, {.training = false, .reuse = false}, DType::f32);
  EXPECT_NE(buffer(roomy, "c"), buffer(roomy, "d"));
}

}  // namespace
}  // namespace regolith
