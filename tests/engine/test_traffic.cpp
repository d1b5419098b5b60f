// What --explain says that a step launches and moves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/report/explain.h"
#include "engine/report/traffic.h"
#include "engine/tensor/planned_device.h"
#include "models/reader.h"

namespace regolith {
namespace {

Graph model(const std::string& nodes) {
  const std::string channels = nodes.find("wide") == std::string::npos ? "1" : "8";
  return read_model(
      Yaml::load_string("input: {height: 8, width: 16, channels: " + channels + "}\nnodes:\n" + nodes, "model.yaml"));
}

// By the provider `tile`, in 16 bits, which it needs.
NetworkOptions options(bool fused = true, const std::string& provider = "reference") {
  NetworkOptions o;
  if (!fused) o.fuse = FuseOptions::none();
  if (provider == "tile") o.precision = Precision::bf16;
  o.conv.provider = provider;
  return o;
}

// A stream that runs the kernels as a GPU would, and counts them.
class CountingStream : public DeviceStream {
 public:
  Execution execution() const override { return Execution::checked; }
  int processors() const override { return 4; }
  void enqueue(const char*, std::function<void()> work) override {
    ++launches;
    work();
  }
  void record(Event&) override {}
  void wait(Event&) override {}
  void synchronize() override {}
  int64_t launches = 0;
};

int64_t launched(const std::string& nodes, bool fused, const std::string& provider = "reference") {
  auto cpu = make_cpu_device(1, Execution::checked);
  Network network(model(nodes), *cpu, options(fused, provider));
  CountingStream stream;
  network.parameters().initialise(1, stream);
  const int64_t step = 0;
  network.step_counter(&step);
  Program& p = network.program(4, Mode::train);
  cpu->fill(p.image().data, 0, p.image().elements() * size_of(p.image().dtype), stream);
  stream.launches = 0;
  p.pack(stream);
  p.forward(stream);
  const TensorView gradient = p.gradient(p.graph().output);
  cpu->fill(gradient.data, 0, gradient.elements() * size_of(gradient.dtype), stream);
  p.backward(stream, false);
  return stream.launches - 1;  // the gradient's fill
}

// The model counts the sampler as the launch of the input, two for the loss and four for the update.
int64_t modelled(const std::string& nodes, bool fused, const std::string& provider = "reference") {
  auto cpu = make_cpu_device(1, Execution::checked);
  Network network(model(nodes), *cpu, options(fused, provider));
  return traffic_of_step(network.program(4, Mode::train), 1, 2).launches - 1 - 2 - 4;
}

TEST(Traffic, LaunchesAreThoseOfAStep) {
  const std::string common = "  c1: {op: conv, in: input, filters: 16}\n", end = "  l: {op: conv, in: z, filters: 5}\n";
  for (const char* nodes :
       {"  n: {op: batch_norm, in: c1}\n  z: {op: relu, in: n}\n",
        "  n: {op: group_norm, in: c1, groups: 4}\n  r: {op: relu, in: n}\n  z: {op: dropout, in: r, rate: 0.5}\n",
        "  n: {op: group_norm, in: c1, groups: 4}\n  a: {op: add, in: [n, c1]}\n  z: {op: relu, in: a}\n",
        "  b: {op: conv, in: c1, filters: 16}\n  c: {op: conv, in: b, filters: 16}\n  z: {op: add, in: [c1, b, c]}\n",
        "  p: {op: max_pool, in: c1}\n  u: {op: conv_transpose, in: p, filters: 16, stride: 2}\n"
        "  z: {op: concat, in: [u, c1]}\n",
        "  n: {op: group_norm, in: c1, groups: 4}\n  s: {op: squeeze_excite, in: n}\n  p: {op: max_pool, in: s}\n"
        "  z: {op: upsample, in: p}\n",
        "  r: {op: relu, in: c1}\n  s: {op: squeeze_excite, in: r}\n  z: {op: spatial_dropout, in: s, rate: 0.5}\n",
        "  g: {op: conv, in: c1, filters: 16}\n  z: {op: attention_gate, in: [c1, g], filters: 8}\n",
        "  z: {op: aspp, in: c1, filters: 16, rates: [2]}\n",
        "  n: {op: layer_norm, in: c1}\n  z: {op: gelu, in: n}\n"})
    for (const bool fused : {true, false})
      EXPECT_EQ(modelled(common + nodes + end, fused), launched(common + nodes + end, fused))
          << nodes << (fused ? "fused" : "not fused");
}

// By its own kernels, which a GPU takes, in the place of a ReLU: dilations that keep all taps, some, and the centre.
TEST(Traffic, LaunchesAreThoseOfAsppsKernels) {
  const auto more = [](const auto& launches, const std::string& op) {
    const auto of = [&](const std::string& z) {
      return launches(
          "  c1: {op: conv, in: input, filters: 16}\n  z: {in: c1, " + z + "}\n  l: {op: conv, in: z, filters: 5}\n",
          false, "auto");
    };
    return of(op) - of("op: relu");
  };
  for (const std::string rates : {"[2]", "[3, 6, 9, 20, 30]"})
    EXPECT_EQ(more(modelled, "op: aspp, filters: 16, rates: " + rates),
              more(launched, "op: aspp, filters: 16, rates: " + rates))
        << rates;
}

// Norms that convolutions take over, with the moments and the sums that these give and without.
TEST(Traffic, LaunchesAreThoseOfAStepWithNormsInConvolutions) {
  const std::string input = "  c1: {op: conv, in: wide, filters: 16}\n", end = "  l: {op: conv, in: z, filters: 16}\n";
  for (const std::string norm : {"batch_norm", "group_norm, groups: 4"}) {
    for (const std::string& nodes : std::vector<std::string>{
             "  n: {op: " + norm + ", in: c1}\n  z: {op: relu, in: n}\n",
             "  n: {op: " + norm +
                 ", in: wide}\n  r: {op: relu, in: n}\n  b: {op: conv, in: r, filters: 16}\n"
                 "  z: {op: add, in: [b, c1]}\n",
             "  n: {op: " + norm + ", in: c1}\n  r: {op: relu, in: n}\n  z: {op: upsample, in: r}\n",
             "  n: {op: " + norm +
                 ", in: c1}\n  a: {op: add, in: [n, wide]}\n  r: {op: relu, in: a}\n"
                 "  b: {op: conv, in: r, filters: 16}\n  z: {op: add, in: [r, b]}\n",
             "  n: {op: " + norm +
                 ", in: c1}\n  b: {op: conv, in: n, filters: 16}\n  c: {op: conv, in: n, filters: 16}\n"
                 "  z: {op: add, in: [b, c]}\n"}) {
      const std::string all = "  wide: {op: concat, in: [input, input]}\n" + input + nodes + end;
      EXPECT_EQ(modelled(all, true, "tile"), launched(all, true, "tile")) << all;
    }
  }
}

// By hand: maps of 8 channels have M bytes, the image M / 8, those of 2 channels M / 4; 80, 16 and 18 weights.
TEST(Traffic, BytesAreThoseOfTheMapsAndWeights) {
  auto cpu = make_cpu_device(1);
  Network network(model("  c: {op: conv, in: input, filters: 8}\n  n: {op: batch_norm, in: c}\n"
                        "  r: {op: relu, in: n}\n  l: {op: conv, in: r, filters: 2, kernel: 1}\n"),
                  *cpu, options());
  const double M = 4.0 * 8 * 16 * 8 * sizeof(float), image = M / 8, logits = M / 4;
  const double forward = image + (image + M) + 3 * M + (M + logits);
  // The loss reads logits and writes their gradient; that is read for db, dw and dx. The norm's two passes read x and
  // dy and one writes dx; the first convolution has no bias to sum and no dx to write.
  const double backward = 2 * logits + (3 * logits + M + M) + 5 * M + (image + M);
  const double weights = 80 + 32 + 18, read = weights * sizeof(float);  // running statistics too
  const double trained = 80 + 16 + 18, update = 8 * trained * sizeof(float);
  const Traffic t = traffic_of_step(network.program(4, Mode::train), 1, 2);
  EXPECT_EQ(t.bytes, forward + backward + 3 * read + update);
  const Traffic half = traffic_of_step(network.program(2, Mode::train), 2, 2);  // the weights are read for each slice
  EXPECT_EQ(half.bytes, t.bytes + 3 * read);
  EXPECT_EQ(half.launches, 2 * (t.launches - 4) + 4);
  EXPECT_THAT(explain(network, 4),
              ::testing::HasSubstr("\ntraining step: " + std::to_string(t.launches) + " launches, 0.00 GB\n"));
}

// Planned for a GPU, in 16 bits, convolutions take the norms; in fp32 they do not, as on a CPU.
TEST(Traffic, OnAGpuThatNeedNotBeThere) {
  const std::string nodes =
      "  c1: {op: conv, in: input, filters: 32}\n  n1: {op: batch_norm, in: c1}\n  r1: {op: relu, in: n1}\n"
      "  c2: {op: conv, in: r1, filters: 32}\n  n2: {op: batch_norm, in: c2}\n  r2: {op: relu, in: n2}\n"
      "  l: {op: conv, in: r2, filters: 5, kernel: 1}\n";
  auto cpu = make_cpu_device(1);
  NetworkOptions full = options(), half = options();
  half.precision = Precision::bf16;
  half.reserve = false;
  Network in_fp32(model(nodes), *cpu, full), in_bf16(model(nodes), *cpu, half);
  const Traffic own = traffic_of_step(in_fp32.program(4, Mode::train), 1, 2);
  EXPECT_EQ(step_on_gpu(in_fp32, 4, 2).traffic.bytes, own.bytes);
  EXPECT_EQ(step_on_gpu(in_fp32, 4, 2).traffic.launches, own.launches);
  const GpuStep on_gpu = step_on_gpu(in_bf16, 8192, 2);
  const Program& on_cpu = in_bf16.program(8192, Mode::train);
  EXPECT_LT(on_gpu.traffic.bytes, 0.75 * traffic_of_step(on_cpu, 1, 2).bytes);
  EXPECT_LT(on_gpu.arena_bytes, on_cpu.plan().bytes);
  // Of few pixels, what the blocks leave of the weights' gradient would be more than what is saved.
  ProgramOptions few = in_bf16.program_options(8, Mode::train);
  few.conv.provider = "auto";
  const auto planned = make_planned_device();
  const Program of_few(in_bf16.graph(), *planned, few);
  const auto provider = [&](const char* node) {
    return of_few.graph().nodes[of_few.graph().find(node)].op->provider();
  };
  EXPECT_EQ(provider("c1"), "tile with norms");  // of one channel, it has few weights
  EXPECT_EQ(provider("c2"), "reference plain loops");
  EXPECT_THAT(explain(in_bf16, 8192), ::testing::HasSubstr("\non a GPU     "));
}

}  // namespace
}  // namespace regolith
