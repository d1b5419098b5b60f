// ASPP by its kernel and by the providers of convolution, with dead taps and without them, against convolutions by
// their definition in double precision.
#include "engine/ops/aspp.h"
#include "tests/support/simulated_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "engine/base/error.h"
#include "engine/graph/graph.h"
#include "engine/report/explain.h"
#include "engine/train/trainer.h"
#include "losses/loss.h"
#include "models/reader.h"
#include "tests/support/conv_oracle.h"
#include "tests/support/message.h"

namespace regolith {
namespace {

using testing::message;

using testing::Buffer;
using testing::ConvOracle;
using testing::Fixture;
using ::testing::HasSubstr;
using testing::Layout;
using testing::Random;
using testing::round_to;
using testing::Values;

struct Problem {
  int N = 3, H = 4, W = 8, C = 32, F = 16;
  AsppAttributes aspp{.filters = 16};
  DType type = DType::f32;
  std::string provider = "auto";
  bool accumulate = false;  // both the gradient of x and those of the parameters
  bool wants_dx = true;
};

struct Outcome {
  std::string provider;
  Values y, dx;
  std::map<std::string, Values> grads;
};

// What a seed draws, rounded to the maps' type where it is stored in it.
struct Tensors {
  Values x, dy, dx;  // dx: what stands there before an accumulation
  std::map<std::string, Values> weights, grads;

  Tensors(const Problem& s, uint64_t seed) {
    Random random(seed);
    const auto draw = [&](size_t n, double sigma, DType type) {
      Values v(n);
      for (double& e : v) e = round_to(type, sigma * random.normal());
      return v;
    };
    const size_t pixels = static_cast<size_t>(s.N) * s.H * s.W;
    x = draw(pixels * s.C, 1, s.type);
    dy = draw(pixels * s.F, 1, s.type);
    dx = draw(pixels * s.C, 1, s.type);
    AsppOp op(s.aspp);
    for (const ParamSpec& p : op.infer({{s.N, s.H, s.W, s.C}}).params) {
      weights[p.name] = draw(p.elements(), p.shape.size() > 1 ? 0.2 : 1, p.shape.size() > 1 ? s.type : DType::f32);
      grads[p.name] = draw(p.elements(), 1, DType::f32);
    }
  }
};

// Runs the op by itself, forward and backward.
Outcome run(Device& device, const Problem& s) {
  const Tensors t(s, 7);
  Fixture fixture(device, s.type, 7);
  AsppOp op(s.aspp);
  const Inference inferred = op.infer({{s.N, s.H, s.W, s.C}});
  const ComputeOptions compute{.type = s.type, .conv = {.provider = s.provider}};
  op.compile({compute, device, true, {s.wants_dx}});
  const Layout of_x{s.N, s.H, s.W, s.C}, of_y{s.N, s.H, s.W, s.F};
  Buffer &x = fixture.input("x", of_x, t.x), &dy = fixture.input("dy", of_y, t.dy), &y = fixture.output("y", of_y);
  Buffer& dx = s.accumulate ? fixture.inout("dx", of_x, t.dx) : fixture.output("dx", of_x);
  OpRun r;
  r.stream = &fixture.stream();
  r.x = {x.map()};
  r.y = y.map();
  r.dy = dy.map();
  r.dx = {s.wants_dx ? dx.map() : TensorView{}};
  r.accumulate = {s.accumulate};
  r.accumulate_grads = s.accumulate;
  r.saved = fixture.workspace(op.saved_memory());
  for (const Prepacked& p : op.prepacked()) r.packed.push_back(p.bytes > 0 ? fixture.workspace(p.bytes) : nullptr);
  std::map<std::string, Buffer*> grads;
  for (const ParamSpec& p : inferred.params) {
    const Layout l{1, 1, 1, static_cast<int>(p.elements())};
    ParamView v;
    v.master = fixture.input(p.name, l, t.weights.at(p.name), DType::f32).as<float>();
    v.compute = s.type == DType::f32 ? v.master : fixture.input(p.name, l, t.weights.at(p.name)).as<void>();
    grads[p.name] = s.accumulate ? &fixture.inout("gradient of " + p.name, l, t.grads.at(p.name), DType::f32)
                                 : &fixture.output("gradient of " + p.name, l, DType::f32);
    v.grad = grads[p.name]->as<float>();
    v.elements = p.elements();
    r.params.push_back(v);
  }
  op.prepack_weights(r);
  r.workspace = fixture.workspace(op.forward_workspace());
  op.forward(r);
  r.workspace = fixture.workspace(op.backward_workspace());
  op.backward(r);
  fixture.stream().synchronize();
  fixture.expect_untouched();
  Outcome o{op.provider(), y.read(), {}, {}};
  if (s.wants_dx) o.dx = dx.read();
  for (const auto& [name, g] : grads) o.grads[name] = g->read();
  return o;
}

// The same by the definition: every tap of every branch, the concatenation, the projection.
Outcome oracle(const Problem& s) {
  const Tensors t(s, 7);
  const int N = s.N, H = s.H, W = s.W, C = s.C, F = s.F;
  struct Branch {
    std::string name;
    ConvOracle conv;
    Values x, z, dz;
  };
  Values mean(static_cast<size_t>(N) * C);
  for (size_t i = 0; i < t.x.size(); ++i) mean[i / (static_cast<size_t>(H) * W * C) * C + i % C] += t.x[i] / (H * W);
  std::vector<Branch> branches{{"branch_1x1", {{N, H, W, C, F, 1, 1}}, t.x, {}, {}}};
  for (int r : s.aspp.rates)
    branches.push_back(
        {"branch_rate_" + std::to_string(r), {{N, H, W, C, F, 3, 3, {1, 1}, {r, r}, {r, r}, {r, r}}}, t.x, {}, {}});
  branches.push_back({"branch_pool", {{N, 1, 1, C, F, 1, 1}}, mean, {}, {}});
  const int J = static_cast<int>(branches.size()) * F;
  const size_t pixels = static_cast<size_t>(N) * H * W;
  const ConvOracle project{{N, H, W, J, F, 1, 1}};
  const auto bias = [&](const std::string& name) { return s.aspp.bias ? t.weights.at(name + "/bias") : Values{}; };
  Values z(pixels * J);
  const auto pixel_of = [&](const Branch& b, size_t p) {
    return b.conv.shape.H == H && b.conv.shape.W == W ? p : p / (static_cast<size_t>(H) * W);
  };
  for (size_t i = 0; i < branches.size(); ++i) {
    Branch& b = branches[i];
    b.z = b.conv.forward(b.x, t.weights.at(b.name + "/kernel"), bias(b.name));
    for (size_t p = 0; p < pixels; ++p)
      for (int f = 0; f < F; ++f) z[p * J + i * F + f] = b.z[pixel_of(b, p) * F + f];
  }
  Outcome o;
  o.y = project.forward(z, t.weights.at("project/kernel"), bias("project"));
  const Values dz = project.dgrad(t.dy, t.weights.at("project/kernel"));
  o.grads["project/kernel"] = project.wgrad(z, t.dy);
  if (s.aspp.bias) o.grads["project/bias"] = project.db(t.dy);
  o.dx = Values(t.x.size());
  for (size_t i = 0; i < branches.size(); ++i) {
    Branch& b = branches[i];
    b.dz = Values(b.z.size());
    for (size_t p = 0; p < pixels; ++p)
      for (int f = 0; f < F; ++f) b.dz[pixel_of(b, p) * F + f] += dz[p * J + i * F + f];
    o.grads[b.name + "/kernel"] = b.conv.wgrad(b.x, b.dz);
    if (s.aspp.bias) o.grads[b.name + "/bias"] = b.conv.db(b.dz);
    const Values db = b.conv.dgrad(b.dz, t.weights.at(b.name + "/kernel"));
    const bool pool = b.name == "branch_pool";
    for (size_t j = 0; j < o.dx.size(); ++j)
      o.dx[j] += pool ? db[j / (static_cast<size_t>(H) * W * C) * C + j % C] / (H * W) : db[j];
  }
  if (s.accumulate) {
    for (size_t j = 0; j < o.dx.size(); ++j) o.dx[j] += t.dx[j];
    for (auto& [name, g] : o.grads)
      for (size_t j = 0; j < g.size(); ++j) g[j] += t.grads.at(name)[j];
  }
  if (!s.wants_dx) o.dx = {};
  return o;
}

// Of all values together; NaN is an error.
void expect_near(const std::string& what, const Values& a, const Values& b, double most) {
  ASSERT_EQ(a.size(), b.size()) << what;
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) error += (a[i] - b[i]) * (a[i] - b[i]), norm += b[i] * b[i];
  EXPECT_TRUE(std::sqrt(error) <= most * std::sqrt(norm) + 1e-12) << what << ": " << std::sqrt(error / norm);
}
void expect_near(const Outcome& a, const Outcome& b, double most) {
  expect_near("y", a.y, b.y, most);
  expect_near("dx", a.dx, b.dx, most);
  ASSERT_EQ(a.grads.size(), b.grads.size());
  for (const auto& [name, g] : b.grads) expect_near(name, a.grads.at(name), g, most);
}
double rounding(DType t) { return t == DType::f32 ? 2e-6 : t == DType::f16 ? 2e-3 : 1e-2; }

struct Machine {
  const char* name;
  std::unique_ptr<Device> (*make)();
  std::string provider, runs;  // asked for; what answers
};
const std::vector<Machine>& machines() {
  static const std::vector<Machine> list{
      {"CPU", [] { return make_cpu_device(2); }, "auto", ""},
      {"CPU, plain loops", [] { return make_cpu_device(2); }, "reference", "reference plain loops"},
      {"checked", [] { return make_cpu_device(1, Execution::checked); }, "auto", "aspp kernel"},
      {"simulated", [] { return make_simulated_device(5); }, "auto", "aspp kernel"},
      {"simulated, plain loops", [] { return make_simulated_device(6); }, "reference", "reference plain loops"},
  };
  return list;
}

TEST(Aspp, EveryPathMatchesTheDefinition) {
  for (const Machine& m : machines())
    for (const bool prune : {true, false})
      for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
        if (type == DType::f16 && std::string(m.name) != "checked") continue;
        auto device = m.make();
        Problem s;
        s.provider = m.provider;
        s.aspp.prune = prune;
        s.type = type;
        SCOPED_TRACE(std::string(m.name) + (prune ? ", pruned " : ", not pruned ") + std::string(name_of(type)));
        const Outcome o = run(*device, s);
        if (m.runs.empty()) {
          EXPECT_NE(o.provider, "aspp kernel");
        } else {
          EXPECT_EQ(o.provider, m.runs);
        }
        expect_near(o, oracle(s), rounding(type));
      }
}

TEST(Aspp, EveryShapeMatchesTheDefinition) {
  std::vector<Problem> list(7);
  list[0].accumulate = true;
  list[1].aspp.bias = false;
  list[2].wants_dx = false;
  list[3].aspp.rates = {12, 2, 6, 5};  // the merged branches are not neighbours
  list[4].H = list[4].W = 1;
  list[5].H = 9, list[5].W = 14, list[5].aspp.rates = {1};
  list[6].H = 14, list[6].W = 3, list[6].aspp.rates = {6, 12}, list[6].accumulate = true;
  for (const Machine& m : machines())
    for (size_t i = 0; i < list.size(); ++i) {
      SCOPED_TRACE(std::string(m.name) + ", shape " + std::to_string(i));
      auto device = m.make();
      Problem s = list[i];
      s.provider = m.provider;
      expect_near(run(*device, s), oracle(s), rounding(s.type));
    }
}

TEST(Aspp, OddChannelsGoToTheProviders) {
  for (const auto& [C, F] : std::vector<std::pair<int, int>>{{20, 12}, {3, 16}, {1, 5}})
    for (const Machine& m : machines()) {
      SCOPED_TRACE(std::string(m.name) + ", " + std::to_string(C) + " channels");
      auto device = m.make();
      Problem s;
      s.C = C;
      s.F = s.aspp.filters = F;
      s.provider = m.provider;
      const Outcome o = run(*device, s);
      EXPECT_NE(o.provider, "aspp kernel");
      expect_near(o, oracle(s), rounding(s.type));
    }
}

TEST(Aspp, DeadTapsChangeNothingAndHaveGradientsOfZero) {
  for (const Machine& m : machines()) {
    SCOPED_TRACE(m.name);
    auto device = m.make();
    Problem s;
    s.provider = m.provider;
    const Outcome pruned = run(*device, s);
    s.aspp.prune = false;
    const Outcome whole = run(*device, s);
    expect_near(pruned, whole, rounding(DType::f32));
    for (const Outcome* o : {&pruned, &whole})
      for (const int rate : s.aspp.rates) {
        const Values& g = o->grads.at("branch_rate_" + std::to_string(rate) + "/kernel");
        for (size_t i = 0; i < g.size(); ++i) {
          const size_t tap = i / s.C % 9;
          const bool dead = tap / 3 != 1 || (rate >= s.W && tap != 4);
          ASSERT_EQ(g[i] == 0, dead) << "rate " << rate << ", tap " << tap << " of output " << i / s.C / 9;
        }
      }
  }
}

Graph model(const std::string& aspp, int height = 4, int width = 8) {
  return read_model(
      Yaml::load_string("input: {height: " + std::to_string(height) + ", width: " + std::to_string(width) +
                            "}\nnodes:\n  c: {op: conv, in: input, filters: 16}\n  a: {op: aspp, in: c, " + aspp +
                            "}\n  logits: {op: conv, in: a, filters: 5, kernel: 1}\n",
                        "small.yaml"));
}

TEST(Aspp, ErrorsSayWhatIsWrongWithTheRates) {
  const auto text = [](const std::string& rates) { return message([&] { model("filters: 16, rates: " + rates); }); };
  EXPECT_THAT(text("[6, 12, 6]"), ::testing::AllOf(HasSubstr("small.yaml:4:"), HasSubstr("rates names 6 twice")));
  EXPECT_THAT(text("[]"), HasSubstr("rates is empty"));
  EXPECT_THAT(text("[1, 2, 3, 4, 5, 6, 7, 8]"), HasSubstr("at most 7"));
  EXPECT_THAT(text("[6, 0]"), HasSubstr("small.yaml:4:"));
  EXPECT_THAT(text("[6, twelve]"), HasSubstr("small.yaml:4:"));
  EXPECT_THAT(message([] { model("rates: [6]"); }), HasSubstr("filters"));
  EXPECT_THAT(message([] {
                AsppOp op({.filters = 4, .rates = {3, -1}});
                op.infer({{1, 4, 4, 3}});
              }),
              HasSubstr("dilation of -1"));
  EXPECT_EQ(text("[6, 12]"), "no error");
}

TEST(Aspp, ParametersAreNamedByTheRates) {
  Graph g = model("filters: 32, rates: [6, 12]");
  g.infer(1);
  std::vector<std::string> names;
  for (const Parameter& p : g.params)
    if (p.name[0] == 'a') names.push_back(p.name);
  EXPECT_THAT(names, ::testing::ElementsAre("a/branch_1x1/kernel", "a/branch_1x1/bias", "a/branch_rate_6/kernel",
                                            "a/branch_rate_6/bias", "a/branch_rate_12/kernel", "a/branch_rate_12/bias",
                                            "a/branch_pool/kernel", "a/branch_pool/bias", "a/project/kernel",
                                            "a/project/bias"));
  const auto shape = [&](const std::string& name) {
    for (const Parameter& p : g.params)
      if (p.name == name) return p.spec.shape;
    return std::vector<int64_t>{};
  };
  EXPECT_EQ(shape("a/branch_rate_12/kernel"), (std::vector<int64_t>{32, 3, 3, 16}));
  EXPECT_EQ(shape("a/branch_pool/kernel"), (std::vector<int64_t>{32, 1, 1, 16}));
  EXPECT_EQ(shape("a/project/kernel"), (std::vector<int64_t>{32, 1, 1, 4 * 32}));
}

TEST(Aspp, NoteAndMultiplicationsSayWhatIsSaved) {
  struct Line {
    int H, W;
    std::string note;
    double factor;
  };
  for (const Line& l : std::vector<Line>{
           {4, 8, "rate 6: 3 of 9 taps, rates 12, 18: centre only; 4.67x fewer multiplications in the branches",
            28. / 6},
           {8, 16,
            "rate 6: all 9 taps, rate 12: 3 of 9 taps, rate 18: centre only; 2.00x fewer multiplications in the "
            "branches",
            2},
           {16, 32, "rates 6, 12: all 9 taps, rate 18: 3 of 9 taps; 1.27x fewer multiplications in the branches",
            28. / 22},
           {32, 64, "rates 6, 12, 18: all 9 taps", 1}}) {
    const int C = 256, F = 512;
    AsppOp pruned({.filters = F}), whole({.filters = F, .prune = false});
    const Inference a = pruned.infer({{2, l.H, l.W, C}}), b = whole.infer({{2, l.H, l.W, C}});
    EXPECT_EQ(a.note, l.note);
    const int64_t rest = int64_t{2} * l.H * l.W * 4 * F * F + int64_t{2} * F * (C + F);  // projection, pooled branch
    EXPECT_DOUBLE_EQ(static_cast<double>(b.macs - rest) / (a.macs - rest), l.factor);
    int64_t parameters = 0;
    for (const ParamSpec& p : a.params) parameters += p.elements();
    EXPECT_EQ(parameters, 5114880);  // 131584 twice, 3 x 1180160, 1311232
  }
}

// A network on the simulated device and on the CPU, trained for a few steps.
struct Training {
  std::vector<double> losses;
  std::map<std::string, std::vector<float>> before, after;
};

Training train(Device& device, const NetworkOptions& options, int slices = 1) {
  constexpr int kH = 4, kW = 8, kCount = 6;
  std::vector<uint8_t> images(kCount * kH * kW), masks(images.size());
  Random random(3);
  for (size_t i = 0; i < images.size(); ++i) images[i] = random.integer(0, 255), masks[i] = random.integer(0, 4);
  NetworkOptions o = options;
  o.micro_batches = slices;
  Network network(model("filters: 16"), device, o);
  TrainerOptions trainer_options;
  trainer_options.batch = 3;
  const LossSpec spec{Focal{2, {.25}, {0}, Reduction::mean_elements}};
  const Loss loss(spec, 5);
  DeviceData data(device, {images.data(), masks.data(), kCount, kH, kW, 1}, trainer_options.batch);
  Trainer trainer(network, loss, data, kCount, trainer_options);
  network.parameters().initialise(5, trainer.stream());
  Training t;
  const auto weights = [&](auto& to) {
    for (size_t i = 0; i < network.parameters().entries().size(); ++i)
      to[network.parameters().entries()[i].name] =
          network.parameters().read(static_cast<int>(i), ParamField::weight, trainer.stream());
  };
  weights(t.before);
  std::vector<int32_t> order(kCount);
  for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index(i, false);
  for (int epoch = 0; epoch < 2; ++epoch)
    trainer.run_epoch(
        order, [](int64_t) { return 1e-2; },
        [&](const StepReport& r) {
          t.losses.push_back(r.loss);
          return true;
        });
  weights(t.after);
  return t;
}

void expect_close(const Training& a, const Training& b, double relative) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i)
    EXPECT_TRUE(std::abs(a.losses[i] - b.losses[i]) <= relative * std::abs(b.losses[i]))
        << "step " << i << ": " << a.losses[i] << " and " << b.losses[i];
}

TEST(Aspp, WeightDecayReachesDeadTaps) {
  auto cpu = make_cpu_device(1);
  const Training t = train(*cpu, {});
  const auto &before = t.before.at("a/branch_rate_12/kernel"), &after = t.after.at("a/branch_rate_12/kernel");
  const double kept = std::pow(1 - 1e-2 * AdamW{}.weight_decay, 4);
  for (size_t i = 0; i < before.size(); ++i) {
    if (i / 16 % 9 == 4) continue;
    ASSERT_NEAR(after[i], kept * before[i], 1e-6 * std::abs(before[i])) << i;
    ASSERT_NE(before[i], 0);
  }
  int moved = 0;
  for (size_t i = 0; i < before.size(); ++i) moved += i / 16 % 9 == 4 && std::abs(after[i] - kept * before[i]) > 1e-4;
  EXPECT_GT(moved, 200);  // of 256 centre taps
}

TEST(Aspp, TrainsAlikeByEveryPath) {
  auto cpu = make_cpu_device(1);
  const Training expected = train(*cpu, {});
  NetworkOptions unpruned, loops;
  unpruned.fuse.without = {"padding taps"};
  loops.conv.provider = "reference";
  expect_close(train(*cpu, unpruned), expected, 1e-4);
  expect_close(train(*cpu, loops), expected, 1e-4);
  expect_close(train(*cpu, {}, 3), expected, 1e-4);
  const Training exact = train(*cpu, loops);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    auto simulated = make_simulated_device(seed);
    const Training kernel = train(*simulated, {});
    expect_close(kernel, expected, 1e-4);
    const Training late = train(*simulated, loops);
    EXPECT_EQ(late.losses, exact.losses);
    EXPECT_EQ(late.after, exact.after);
  }
}

TEST(Aspp, ExplainPrintsTheNote) {
  auto cpu = make_cpu_device(1);
  Network network(model("filters: 16"), *cpu, {});
  EXPECT_THAT(explain(network, 2), HasSubstr("a: rate 6: 3 of 9 taps, rates 12, 18: centre only; 4.67x fewer"));
  NetworkOptions whole;
  whole.fuse.without = {"padding taps"};
  Network other(model("filters: 16"), *cpu, whole);
  EXPECT_THAT(explain(other, 2), HasSubstr("prune: false"));
}

}  // namespace
}  // namespace regolith
