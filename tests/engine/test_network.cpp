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

}  // namespace
}  // namespace regolith
