// Softmax, activations, products, pooling and resizing inside a network: shapes, gradients through the planner, errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/base/error.h"
#include "engine/run/program.h"
#include "models/reader.h"
#include "tests/support/fixture.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

Graph model(const std::string& nodes) {
  return read_model(Yaml::load_string("input: {height: 8, width: 16}\nnodes:\n" + nodes, "model.yaml"));
}

// Every activation (relu where it has no kink) and every kind of product, one of them with the image, which wants no
// gradient; and a map times itself.
Graph everything() {
  return model(
      "  a: {op: conv, in: input, filters: 6, kernel: 3}\n"
      "  p: {op: softmax, in: a}\n"
      "  i: {op: relu, in: p}\n"
      "  m: {op: multiply, in: [input, i]}\n"
      "  g: {op: conv, in: m, filters: 1, kernel: 1}\n"
      "  q: {op: sigmoid, in: g}\n"
      "  b: {op: conv, in: input, filters: 6, kernel: 1}\n"
      "  n: {op: multiply, in: [b, q]}\n"
      "  v: {op: global_avg_pool, in: a}\n"
      "  w: {op: sigmoid, in: v}\n"
      "  o: {op: multiply, in: [w, n]}\n"
      "  r: {op: multiply, in: [o, o]}\n"
      "  t: {op: multiply, in: [r, b]}\n"
      "  d: {op: resize, in: t, height: 5, width: 11, mode: bilinear}\n"
      "  e: {op: gelu, in: d}\n"
      "  f: {op: resize, in: e, height: 8, width: 16}\n"
      "  k: {op: resize, in: v, height: 8, width: 16, mode: bilinear}\n"
      "  x: {op: upsample, in: f, mode: bilinear}\n"
      "  y: {op: max_pool, in: x}\n"
      "  c: {op: concat, in: [y, p, k]}\n"
      "  logits: {op: conv, in: c, filters: 5, kernel: 1}\n");
}

// A pass forward and backward in fp32, the loss being the sum of the logits, each times a fixed number.
class Pass {
 public:
  Pass(Device& device, PlanOptions plan) : device_(device), stream_(device.make_stream()) {
    constexpr int N = 2;
    Graph graph = everything();
    graph.infer(N);
    parameters_ = std::make_unique<Parameters>(graph, device, DType::f32, true);
    parameters_->initialise(4, *stream_);
    ProgramOptions options;
    options.N = N;
    options.plan = plan;
    options.conv.provider = "reference";
    program_ = std::make_unique<Program>(std::move(graph), device, options);
    arena_ = DeviceBuffer(device, program_->plan().bytes);
    device.fill(arena_.as(), 0xff, arena_.bytes(), *stream_);  // NaN
    program_->bind(arena_.as(), *parameters_, nullptr);
    testing::Random random(9);
    image_.resize(program_->image().elements());
    dy_.resize(output().elements());
    for (float& v : image_) v = static_cast<float>(random.normal());
    for (float& v : dy_) v = static_cast<float>(random.normal());
  }

  double loss() {
    parameters_->mark_dirty();
    program_->pack(*stream_);
    device_.upload(program_->image().data, image_.data(), image_.size() * sizeof(float), *stream_);
    program_->forward(*stream_);
    std::vector<float> y(dy_.size());
    device_.download(y.data(), output().data, y.size() * sizeof(float), *stream_);
    stream_->synchronize();
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += static_cast<double>(y[i]) * dy_[i];
    return sum;
  }
  std::vector<std::vector<float>> gradients() {
    loss();
    device_.upload(program_->gradient(program_->graph().output).data, dy_.data(), dy_.size() * sizeof(float), *stream_);
    program_->backward(*stream_, false);
    std::vector<std::vector<float>> all;
    for (size_t i = 0; i < parameters_->entries().size(); ++i)
      all.push_back(parameters_->read(static_cast<int>(i), ParamField::gradient, *stream_));
    return all;
  }
  double loss_at(int param, size_t element, float moved) {
    const std::vector<float> weights = parameters_->read(param, ParamField::weight, *stream_);
    std::vector<float> other = weights;
    other[element] += moved;
    parameters_->write(param, ParamField::weight, other, *stream_);
    const double result = loss();
    parameters_->write(param, ParamField::weight, weights, *stream_);
    return result;
  }
  const Program& program() const { return *program_; }
  const Parameters& parameters() const { return *parameters_; }

 private:
  TensorView output() const { return program_->value(program_->graph().output); }
  Device& device_;
  std::unique_ptr<DeviceStream> stream_;
  std::unique_ptr<Parameters> parameters_;
  std::unique_ptr<Program> program_;
  DeviceBuffer arena_;
  std::vector<float> image_, dy_;
};

TEST(PointwiseOps, GradientsMatchFiniteDifferences) {
  const auto cpu = make_cpu_device(1);
  Pass run(*cpu, {});
  const auto gradients = run.gradients();
  for (size_t p = 0; p < gradients.size(); ++p) {
    double largest = 0;
    for (const float g : gradients[p]) largest = std::max(largest, std::abs(static_cast<double>(g)));
    EXPECT_GT(largest, 1e-3) << run.parameters().entries()[p].name;
    for (size_t i = 0; i < gradients[p].size(); i += gradients[p].size() / 4 + 1) {
      const float step = 4e-3f;
      const int param = static_cast<int>(p);
      const double numeric = (run.loss_at(param, i, step) - run.loss_at(param, i, -step)) / (2.0 * step);
      EXPECT_NEAR(gradients[p][i], numeric, 1e-2 * largest) << run.parameters().entries()[p].name << "[" << i << "]";
    }
  }
}

TEST(PointwiseOps, PlansAndDevicesChangeNothing) {
  const auto cpu = make_cpu_device(2), simulated = make_simulated_device(3);
  const auto expected = Pass(*cpu, {}).gradients();
  EXPECT_EQ(Pass(*cpu, {.views = false}).gradients(), expected);
  EXPECT_EQ(Pass(*cpu, {.reuse = false}).gradients(), expected);
  EXPECT_EQ(Pass(*simulated, {}).gradients(), expected);
}

TEST(PointwiseOps, TheImageWantsNoGradient) {
  const auto cpu = make_cpu_device(1);
  Pass run(*cpu, {});
  const int m = run.program().graph().find("m");
  EXPECT_THAT(run.program().plan().nodes[m].wants_dx, ::testing::ElementsAre(false, true));
  EXPECT_EQ(run.program().plan().nodes[m].backward_workspace, -1);
}

std::string message(const std::string& nodes) {
  try {
    model(nodes);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(PointwiseOps, ErrorsNameBothShapes) {
  const std::string filters = "  a: {op: conv, in: input, filters: 6}\n  b: {op: conv, in: input, filters: 5}\n";
  const std::string wrong = message(filters + "  y: {op: multiply, in: [a, b]}\n");
  EXPECT_THAT(wrong, ::testing::HasSubstr("node y (multiply): cannot multiply maps of "));
  EXPECT_THAT(wrong, ::testing::ContainsRegex("[0-9]+x8x16x6 and [0-9]+x8x16x5: give two of one shape"));
  EXPECT_THAT(message(filters + "  p: {op: global_avg_pool, in: a}\n  y: {op: multiply, in: [p, b]}\n"),
              ::testing::ContainsRegex("[0-9]+x1x1x6 and [0-9]+x8x16x5"));
  EXPECT_THAT(message(filters + "  y: {op: multiply, in: [a, b, input]}\n"), ::testing::HasSubstr("model.yaml:5:"));
  EXPECT_THAT(message("  a: {op: conv, in: input, filters: 385}\n  y: {op: softmax, in: a}\n"),
              ::testing::HasSubstr("softmax takes at most 384 channels, not 385"));
  EXPECT_THAT(message("  y: {op: resize, in: input, height: 4}\n"), ::testing::HasSubstr("width"));
  EXPECT_THAT(message("  y: {op: resize, in: input, height: 4, width: 0}\n"), ::testing::HasSubstr("model.yaml:3:"));
  EXPECT_THAT(message("  y: {op: resize, in: input, height: 4, width: 8, mode: cubic}\n"),
              ::testing::HasSubstr("bilinear"));
}

TEST(PointwiseOps, ShapesFollowTheInputs) {
  Graph g = everything();
  g.infer(3);
  EXPECT_EQ(g.nodes[g.find("m")].shape(), (Shape{3, 8, 16, 6}));
  EXPECT_EQ(g.nodes[g.find("o")].shape(), (Shape{3, 8, 16, 6}));
  EXPECT_EQ(g.nodes[g.find("v")].shape(), (Shape{3, 1, 1, 6}));
  EXPECT_EQ(g.nodes[g.find("d")].shape(), (Shape{3, 5, 11, 6}));
  EXPECT_EQ(g.nodes[g.find("x")].shape(), (Shape{3, 16, 32, 6}));
  EXPECT_EQ(g.nodes[g.find("d")].op->describe(), "bilinear to 5x11");
  EXPECT_EQ(g.nodes[g.find("x")].op->describe(), "bilinear x2");
  EXPECT_EQ(g.nodes[g.find("x")].op->kind(), "upsample");
  EXPECT_EQ(g.nodes[g.find("m")].op->describe(), "input 1 repeated over the channels");
  EXPECT_EQ(g.nodes[g.find("o")].op->describe(), "input 1 repeated over the pixels");
}

}  // namespace
}  // namespace regolith
