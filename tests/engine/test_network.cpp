// What the programs of one network share.
#include <gtest/gtest.h>

#include <numeric>

#include "engine/ops/basic.h"
#include "engine/run/network.h"
#include "models/reader.h"

namespace regolith {
namespace {

// y is not computed; it counts how often its copy of the weights is written.
struct CountingOp : OpBase<CountingOp> {
  explicit CountingOp(int& packs) : packs(packs) {}
  std::string_view kind() const override { return "counting"; }
  Inference infer(const std::vector<Shape>& inputs) override {
    Inference r;
    r.shape = inputs[0];
    r.params.push_back({"w", {16}, Init::zeros, 1, 1, true});
    return r;
  }
  std::vector<Prepacked> prepacked() const override { return {{"turned", 64}, {"not needed", 0}}; }
  void prepack_weights(const OpRun& run) override {
    EXPECT_NE(run.packed[0], nullptr);
    EXPECT_EQ(run.packed[1], nullptr);
    ++packs;
  }
  void forward(const OpRun&) override {}
  int& packs;
};

TEST(Prepacked, ProgramsShareOneCopyThatIsWrittenOncePerGeneration) {
  auto cpu = make_cpu_device(1);
  int packs = 0;
  Graph g;
  g.input = g.add("image", std::make_unique<InputOp>(4, 4, 1), {});
  g.output = g.add("y", std::make_unique<CountingOp>(packs), {g.input});
  g.heads = {{g.output, 1}};
  Network network(std::move(g), *cpu, {});
  auto stream = cpu->make_stream();
  const std::vector<Program*> programs{&network.program(2, Mode::train), &network.program(4, Mode::train),
                                       &network.program(4, Mode::eval)};
  EXPECT_EQ(&network.program(2, Mode::train), programs[0]);  // still the same, though the arena has grown
  EXPECT_EQ(network.parameters().prepacked_bytes(), 64U);
  for (Program* p : programs) p->pack(*stream);
  EXPECT_EQ(packs, 1);
  network.parameters().mark_dirty();
  for (Program* p : programs) p->pack(*stream);
  EXPECT_EQ(packs, 2);
}

// Convolutions that oneDNN and Winograd's algorithm compute: what a program reads is what another one has packed.
TEST(Prepacked, OneProgramReadsWhatAnotherHasPacked) {
  const Yaml model = Yaml::load_string(
      "input: {height: 32, width: 32, channels: 32}\n"
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 32}\n"
      "  b: {op: conv, in: a, filters: 32, stride: 2}\n"
      "  p: {op: aspp, in: b, filters: 32, rates: [2, 18]}\n",
      "model.yaml");
  auto cpu = make_cpu_device(2);
  auto stream = cpu->make_stream();
  const auto logits = [&](Network& network) {
    Program& p = network.program(3, Mode::eval);
    const TensorView x = p.image(), y = p.value(p.graph().output);
    std::iota(x.as<float>(), x.as<float>() + x.elements(), 0.0f);
    p.pack(*stream);
    p.forward(*stream);
    return std::vector<float>(y.as<float>(), y.as<float>() + y.elements());
  };
  Network alone(read_model(model), *cpu, {}), shared(read_model(model), *cpu, {});
  shared.program(2, Mode::train);
  const size_t bytes = shared.parameters().prepacked_bytes();
  shared.parameters().initialise(1, *stream);
  logits(shared);
  EXPECT_EQ(shared.parameters().prepacked_bytes(), bytes) << "evaluation reads other layouts than training";
  alone.parameters().initialise(2, *stream);
  shared.parameters().initialise(2, *stream);
  shared.program(2, Mode::train).pack(*stream);
  EXPECT_EQ(logits(shared), logits(alone));
}

// A bias before a batch norm is left out with the statistics of the batch, but the running mean has it.
TEST(Training, RunningMeansHaveTheBiasThatABatchNormTakesOut) {
  const Yaml model = Yaml::load_string(
      "input: {height: 8, width: 8, channels: 16}\n"
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 16}\n"
      "  norm: {op: batch_norm, in: a, momentum: 0.5}\n",
      "model.yaml");
  auto cpu = make_cpu_device(2);
  auto stream = cpu->make_stream();
  struct Result {
    std::vector<float> y, mean, evaluated;
    int left_out = 0;
  };
  const auto result = [&](bool fuse) {
    NetworkOptions options;
    if (!fuse) options.fuse = FuseOptions::none();
    Network network(read_model(model), *cpu, options);
    Parameters& parameters = network.parameters();
    parameters.initialise(3, *stream);
    int mean = -1;
    for (size_t i = 0; i < parameters.entries().size(); ++i) {
      const auto& e = parameters.entries()[i];
      std::vector<float> bias(16);
      std::iota(bias.begin(), bias.end(), 5.0f);
      if (e.name == "a/bias") parameters.write(static_cast<int>(i), ParamField::weight, bias, *stream);
      if (e.name == "norm/running_mean") mean = static_cast<int>(i);
    }
    parameters.refresh_compute_copy(*stream);
    const auto run = [&](Mode mode) {
      Program& p = network.program(2, mode);
      const TensorView x = p.image(), y = p.value(p.graph().output);
      for (int64_t i = 0; i < x.elements(); ++i) x.as<float>()[i] = static_cast<float>(i % 11) / 11;
      p.pack(*stream);
      p.forward(*stream);
      return std::vector<float>(y.as<float>(), y.as<float>() + y.elements());
    };
    Result r;
    r.y = run(Mode::train);
    r.mean = parameters.read(mean, ParamField::weight, *stream);
    r.evaluated = run(Mode::eval);
    r.left_out = network.program(2, Mode::train).graph().nodes[1].op->left_out_bias();
    return r;
  };
  const Result fused = result(true), plain = result(false);
  EXPECT_EQ(fused.left_out, 1);
  EXPECT_EQ(plain.left_out, -1);
  for (size_t c = 0; c < 16; ++c) EXPECT_NEAR(fused.mean[c], plain.mean[c], 1e-5) << c;
  EXPECT_GT(fused.mean[15], 5);
  for (size_t i = 0; i < fused.y.size(); ++i) {
    ASSERT_NEAR(fused.y[i], plain.y[i], 2e-4) << i;
    ASSERT_NEAR(fused.evaluated[i], plain.evaluated[i], 2e-4) << i;
  }
}

// Without training a parameter that is packed is in memory while it is, and is there again for another layout.
TEST(Inference, KeepsOnlyWhatIsReadBesideTheCopies) {
  const Yaml model = Yaml::load_string(
      "input: {height: 32, width: 32, channels: 32}\n"
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 32}\n"
      "  b: {op: conv, in: a, filters: 32, stride: 2}\n"
      "  p: {op: aspp, in: b, filters: 32, rates: [2, 18]}\n"
      "  u: {op: conv_transpose, in: p, filters: 16, kernel: 2, stride: 2}\n",
      "model.yaml");
  auto cpu = make_cpu_device(2);
  auto stream = cpu->make_stream();
  NetworkOptions options;
  options.training = false;
  Network network(read_model(model), *cpu, options), training(read_model(model), *cpu, {});
  Parameters& parameters = network.parameters();
  EXPECT_EQ(parameters.bytes(), 0U);
  for (Network* n : {&network, &training}) n->parameters().initialise(4, *stream);
  const auto logits = [&](Network& of, int N) {
    Program& p = of.program(N, Mode::eval);
    const TensorView x = p.image(), y = p.value(p.graph().output);
    for (int64_t i = 0; i < x.elements(); ++i) x.as<float>()[i] = static_cast<float>(i % 7) - 3;
    p.pack(*stream);
    p.forward(*stream);
    return std::vector<float>(y.as<float>(), y.as<float>() + y.elements());
  };
  for (const int N : {4, 1, 4}) {
    const std::vector<float> actual = logits(network, N), expected = logits(training, N);
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-4) << i;
  }
  EXPECT_LT(parameters.bytes(), training.parameters().bytes() / 8);
  std::vector<float> kernel = parameters.read(0, ParamField::weight, *stream);
  for (float& w : kernel) w *= 2;
  const std::vector<float> before = logits(network, 4);
  parameters.write(0, ParamField::weight, kernel, *stream);
  EXPECT_NE(logits(network, 4), before);
}

}  // namespace
}  // namespace regolith
