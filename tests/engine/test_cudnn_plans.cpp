// cuDNN has a plan, within the workspace cap, for every convolution of the four networks at batch 128, in every
// direction and precision, on devices that need not be there; and those that the networks choose are precompiled.
// Prints engines and workspaces.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/conv/cudnn_graph.h"
#include "engine/io/atomic_file.h"
#include "engine/run/network.h"
#include "models/reader.h"
#include "places.h"
#include "tests/support/described_device.h"

namespace regolith {
namespace {

using cudnn::Direction;

// A convolution with padding "same" over maps of H x W, as the networks have them.
ConvShape same(int H, int W, int C, int K, int kernel, int dilation = 1, int stride = 1) {
  ConvShape s{128, H, W, C, K, kernel, kernel, {stride, stride}, {dilation, dilation}};
  const auto total = [&](int in) {
    return std::max(((in + stride - 1) / stride - 1) * stride + (kernel - 1) * dilation + 1 - in, 0);
  };
  s.pad_before = {total(H) / 2, total(W) / 2};
  s.pad_after = {total(H) - total(H) / 2, total(W) - total(W) / 2};
  return s;
}
// The transposed convolution from C channels on H x W to K on 2H x 2W: the adjoint of this one.
ConvShape transposed(int H, int W, int C, int K, int kernel) { return same(2 * H, 2 * W, K, C, kernel, 1, 2); }

struct Layers {
  const char* name;
  std::vector<ConvShape> shapes;
};
void PrintTo(const Layers& n, std::ostream* out) { *out << n.name; }
const Layers kNetworks[] = {
    {"unet",
     {same(64, 128, 1, 32, 3), same(64, 128, 32, 32, 3), same(32, 64, 32, 64, 3), same(32, 64, 64, 64, 3),
      same(16, 32, 64, 128, 3), same(16, 32, 128, 128, 3), same(32, 64, 192, 64, 3), same(64, 128, 96, 32, 3),
      same(64, 128, 32, 5, 1)}},
    {"unet_plus_plus",
     {same(64, 128, 1, 64, 2), same(64, 128, 64, 64, 2), same(64, 128, 1, 64, 1), same(32, 64, 64, 128, 2),
      same(32, 64, 128, 128, 2), same(32, 64, 64, 128, 1), same(16, 32, 128, 256, 2), same(16, 32, 256, 256, 2),
      same(16, 32, 128, 256, 1), transposed(16, 32, 256, 128, 2), transposed(32, 64, 128, 64, 2),
      same(64, 128, 64, 5, 1)}},
    {"double_unet",
     {same(64, 128, 5, 32, 3),   same(64, 128, 1, 32, 1),    same(64, 128, 5, 32, 1),     same(32, 64, 32, 64, 1),
      same(16, 32, 64, 128, 1),  same(8, 16, 128, 256, 3),   same(8, 16, 256, 256, 3),    same(8, 16, 128, 256, 1),
      same(4, 8, 256, 512, 1),   same(4, 8, 256, 512, 3, 6), same(4, 8, 256, 512, 3, 12), same(4, 8, 256, 512, 3, 18),
      same(1, 1, 256, 512, 1),   same(4, 8, 2560, 512, 1),   same(8, 16, 768, 256, 3),    same(8, 16, 768, 256, 1),
      same(16, 32, 384, 128, 3), same(16, 32, 384, 128, 1),  same(32, 64, 192, 64, 1),    same(64, 128, 96, 32, 1)}},
    {"se_unet",
     {same(8, 16, 128, 256, 3), transposed(8, 16, 256, 128, 3), transposed(16, 32, 128, 64, 3),
      same(16, 32, 128, 128, 1), same(32, 64, 64, 64, 1), same(64, 128, 32, 32, 1), same(32, 64, 64, 32, 1)}},
};

// Without a driver cuDNN's engines that are compiled at run time need the stub of its library. A test only: the
// programs of the project never load it.
void load_stub_driver() {
  if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == nullptr) dlopen(REGOLITH_CUDA_STUB, RTLD_NOW | RTLD_GLOBAL);
}

struct Arithmetic {
  const char* name;
  DType type;
  bool tf32 = false;
};
const Arithmetic kPrecisions[] = {
    {"fp32", DType::f32}, {"tf32", DType::f32, true}, {"fp16", DType::f16}, {"bf16", DType::bf16}};

std::string description_of(const std::string& device) {
  load_stub_driver();
  return read_text(REGOLITH_SOURCE_DIR "/tests/data/devices/" + device + ".json");
}
std::shared_ptr<const cudnn::Target> target_of(const std::string& device) {
  return cudnn::Target::described(description_of(device));
}

class CudnnPlans : public testing::TestWithParam<std::tuple<const char*, Layers>> {};

TEST_P(CudnnPlans, EveryConvolutionHasOne) {
  const auto& [device, network] = GetParam();
  const auto target = target_of(device);
  for (const ConvShape& shape : network.shapes) {
    for (const Arithmetic& p : kPrecisions) {
      const auto expect_plan = [&](const char* name, Direction direction, bool epilogue) {
        const ConvRequest request{.shape = shape, .type = p.type, .tf32 = p.tf32, .bias = epilogue, .relu = epilogue};
        const cudnn::ConvGraph graph(target, request, direction, p.type, {1, 1});
        const std::string what = std::string(device) + ' ' + p.name + ' ' + name + ' ' + to_string(shape);
        ASSERT_FALSE(graph.plans().empty()) << what << ": " << graph.refusal();
        const cudnn::Plan& plan = graph.plans().front();
        EXPECT_LE(plan.workspace, kWorkspaceLimit) << what;
        EXPECT_FALSE(plan.compiled) << what << ": is compiled at run time";
        std::printf("%s: %s, %zu bytes\n", what.c_str(), plan.engine.c_str(), plan.workspace);
      };
      expect_plan("forward", Direction::forward, false);
      expect_plan("forward+bias+relu", Direction::forward, true);
      if (shape.C > 1) expect_plan("dgrad", Direction::dgrad, false);  // the image has no gradient
      expect_plan("wgrad", Direction::wgrad, false);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Devices, CudnnPlans,
                         testing::Combine(testing::Values("a100", "h200", "b200"), testing::ValuesIn(kNetworks)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name;
                         });

// The plans of all convolutions of a compiled network, as --explain names them; `compiled`: at run time.
struct Chosen {
  size_t plans = 0, compiled = 0;
  void add(const Program& program) {
    for (const Node& node : program.graph().nodes) {
      const std::string text = node.op->provider();
      for (size_t at = text.find("eng"); at != std::string::npos; at = text.find("eng", at + 1)) ++plans;
      const char* const late = "compiled at run time";
      for (size_t at = text.find(late); at != std::string::npos; at = text.find(late, at + 1)) {
        ++compiled;
        ADD_FAILURE() << node.name << ": " << text;
      }
    }
  }
};

class CudnnNetworks : public testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(CudnnNetworks, NoPlanIsCompiledAtRunTime) {
  const auto& [name, model] = GetParam();
  const auto device = make_described_device(name, description_of(name));
  const auto read = [&, model = model] {
    return read_model(Yaml::load(REGOLITH_SOURCE_DIR "/configs/models/" + std::string(model) + ".yaml").at("model"));
  };
  for (const int N : {32, 128}) {
    Chosen training, inference;
    NetworkOptions options;
    options.precision = Precision::bf16;
    options.reserve = false;
    Network trains(read(), *device, options);
    training.add(trains.program(N, Mode::train));
    training.add(trains.program(N, Mode::eval));
    options.training = false;
    Network predicts(read(), *device, options);
    inference.add(predicts.program(N, Mode::eval));
    std::printf("%s %s, batch %d: %zu plans in training, %zu in inference, compiled at run time %zu and %zu\n", name,
                model, N, training.plans, inference.plans, training.compiled, inference.compiled);
    EXPECT_GT(inference.plans, 0U);
    EXPECT_GT(training.plans, 3 * inference.plans);
  }
}
INSTANTIATE_TEST_SUITE_P(Devices, CudnnNetworks,
                         testing::Combine(testing::Values("a100", "h200", "b200"),
                                          testing::Values("unet", "unet_plus_plus", "double_unet", "se_unet")),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
                         });

// A network of one convolution of each kind that asks for plans, not of the tiles.
Graph small_network() {
  return read_model(
      Yaml::load_string("input: {height: 32, width: 32, channels: 32}\n"
                        "nodes:\n"
                        "  a: {op: conv, in: input, filters: 64}\n"
                        "  u: {op: conv_transpose, in: a, filters: 32, stride: 2}\n"
                        "  b: {op: conv, in: u, filters: 32, kernel: 5}\n",
                        "model.yaml"));
}
using Choices = std::map<std::string, std::string>;
// After training and evaluation of it were compiled, on a device of its own, where these stood.
Choices chosen_from(const Choices& before, bool deterministic = true) {
  const auto device = make_described_device("h200", description_of("h200"));
  device->choices() = before;
  NetworkOptions options;
  options.precision = Precision::bf16;
  options.reserve = false;
  options.deterministic = deterministic;
  Network network(small_network(), *device, options);
  network.program(8, Mode::train);
  network.program(8, Mode::eval);
  return device->choices();
}

TEST(CudnnChoices, ArePartOfTheRun) {
  const Choices first = chosen_from({});
  EXPECT_EQ(first.size(), 8U) << "three directions each, but the image's gradient: evaluation adds none";
  EXPECT_EQ(chosen_from({}), first);

  // As if each graph had taken its second plan, by whatever reason.
  const auto target = target_of("h200");
  Choices others = first;
  const ConvRequest a{
      .shape = {8, 32, 32, 32, 64, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, .type = DType::bf16, .bias = true};
  const cudnn::ConvGraph graph(target, a, Direction::forward, DType::bf16);
  const std::string text = text_of(a, Direction::forward, DType::bf16);
  ASSERT_TRUE(first.contains(text)) << text;
  EXPECT_EQ(first.at(text), graph.plans()[0].engine);
  others[text] = graph.plans()[1].engine;
  EXPECT_EQ(chosen_from(others), others);

  // One that this cuDNN has not: the first again, which stands there then.
  Choices unknown = first;
  unknown[text] = "eng999_k2=1";
  EXPECT_EQ(chosen_from(unknown), first);
}

TEST(CudnnChoices, AStoredPlanIsBuiltAlone) {
  const auto target = target_of("h200");
  const ConvRequest request{.shape = same(32, 64, 64, 64, 3), .type = DType::bf16};
  const cudnn::ConvGraph all(target, request, Direction::wgrad, DType::bf16);
  ASSERT_GT(all.plans().size(), 3U);
  const std::string third = all.plans()[2].engine;
  const cudnn::ConvGraph one(target, request, Direction::wgrad, DType::bf16, {}, third);
  ASSERT_EQ(one.plans().size(), 1U);
  EXPECT_EQ(one.plans()[0].engine, third);
  EXPECT_EQ(one.plans()[0].workspace, all.plans()[2].workspace);
  const cudnn::ConvGraph none(target, request, Direction::wgrad, DType::bf16, {}, "eng999");
  EXPECT_EQ(none.plans()[0].engine, all.plans()[0].engine);
}

TEST(CudnnNetworks, AskForNoMoreDirectionsThanTheyRun) {
  const auto device = make_described_device("h200", description_of("h200"));
  const Yaml model = Yaml::load_string(
      "input: {height: 32, width: 32, channels: 32}\n"
      "nodes:\n"
      "  a: {op: conv, in: input, filters: 32}\n"
      "  norm: {op: batch_norm, in: a}\n"
      "  u: {op: conv_transpose, in: norm, filters: 32, stride: 2}\n"
      "  b: {op: conv, in: u, filters: 32, bias: false}\n"
      "  relu: {op: relu, in: b}\n"
      "  c: {op: conv, in: relu, filters: 32}\n",
      "model.yaml");
  NetworkOptions options;
  options.precision = Precision::bf16;
  options.conv.provider = "cudnn";  // not the tiles
  options.reserve = false;
  Network network(read_model(model), *device, options);
  const auto provider = [&](const char* node, Mode mode) {
    const Graph& graph = network.program(8, mode).graph();
    return graph.nodes[graph.find(node)].op->provider();
  };
  // A transposed convolution runs forward as the dgrad of its adjoint, whose forward is its gradient.
  EXPECT_THAT(provider("u", Mode::eval), testing::MatchesRegex("cudnn dgrad eng[^,]*"));
  EXPECT_THAT(provider("u", Mode::train), testing::MatchesRegex("cudnn eng[^,]*, dgrad eng[^,]*, wgrad eng[^,]*"));
  EXPECT_THAT(provider("c", Mode::eval), testing::MatchesRegex("cudnn eng[^,]*"));
  EXPECT_THAT(provider("b", Mode::eval), testing::Not(testing::HasSubstr("run time"))) << "ReLU without a bias";
  // With the statistics of the batch the bias before a batch norm is left out: the graph has other engines.
  const std::string with = provider("a", Mode::eval), without = provider("a", Mode::train);
  EXPECT_NE(without.substr(0, with.size()), with);
  EXPECT_EQ(provider("c", Mode::train).substr(0, with.size()), with) << "one graph for training and evaluation";
}

TEST(CudnnGraph, WithoutTf32NoTensorCoreIsUsed) {
  const auto target = target_of("a100");
  ConvRequest request{.shape = same(32, 64, 64, 64, 3)};
  const auto engines = [&] {
    std::vector<std::string> names;
    const cudnn::ConvGraph graph(target, request, Direction::forward, DType::f32, {100, 100});
    for (const auto& plan : graph.plans()) names.push_back(plan.engine);
    return names;
  };
  const auto exact = engines();
  request.tf32 = true;
  const auto rounded = engines();
  EXPECT_FALSE(exact.empty());
  EXPECT_GT(rounded.size(), exact.size());
  for (const auto& name : exact) EXPECT_NE(std::find(rounded.begin(), rounded.end(), name), rounded.end()) << name;
}

TEST(CudnnGraph, DeterminismLeavesEnginesOut) {
  const auto target = target_of("h200");
  ConvRequest request{.shape = same(64, 128, 32, 32, 3), .type = DType::f32, .tf32 = true};
  const auto count = [&] {
    return cudnn::ConvGraph(target, request, Direction::wgrad, DType::f32, {100, 100}).plans().size();
  };
  const size_t deterministic = count();
  request.deterministic = false;
  EXPECT_LT(deterministic, count());
  EXPECT_GT(deterministic, 0u);
}

TEST(CudnnGraph, PaddingMayDiffer) {  // one more column than row, and not the same before and after
  const auto target = target_of("h200");
  ConvRequest request{.shape = same(32, 64, 64, 64, 2), .type = DType::bf16};
  request.shape.pad_before = {0, 2};
  for (const auto direction : {Direction::forward, Direction::dgrad, Direction::wgrad}) {
    const cudnn::ConvGraph graph(target, request, direction, DType::bf16, {1, 1});
    EXPECT_FALSE(graph.plans().empty()) << graph.refusal();
  }
}

TEST(CudnnGraph, ABadDescriptionIsRefused) {
  load_stub_driver();
  EXPECT_THROW(cudnn::Target::described("{}"), DeviceError);
}

}  // namespace
}  // namespace regolith
