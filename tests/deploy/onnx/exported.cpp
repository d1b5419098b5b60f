#include "exported.h"

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "deploy/onnx/check.h"
#include "engine/io/atomic_file.h"
#include "engine/ops/freeze.h"
#include "engine/run/network.h"
#include "engine/train/weights.h"
#include "models/reader.h"
#include "places.h"

namespace regolith::testing {

OnnxImages::OnnxImages(int N, int H, int W, int C) : N(N), H(H), W(W), C(C), bytes(static_cast<size_t>(N) * H * W * C) {
  std::mt19937 random(static_cast<unsigned>(N * H + W));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
}

std::vector<float> OnnxImages::planes() const {
  std::vector<float> to;
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c)
      for (int p = 0; p < H * W; ++p) to.push_back(bytes[(static_cast<size_t>(n) * H * W + p) * C + c]);
  return to;
}

Checkpoint random_weights(const Yaml& model) {
  Graph graph = read_model(model.at("model"));
  graph.infer(1);
  Checkpoint weights;
  std::mt19937 random(7);
  std::uniform_real_distribution<float> even(-1, 1);
  for (const Parameter& p : graph.params) {
    const std::string leaf = p.name.substr(p.name.rfind('/') + 1);
    const bool around_one = leaf == "gamma" || leaf == "running_variance";
    const float width =
        leaf == "kernel" ? std::sqrt(6 / static_cast<float>(p.spec.elements() / p.spec.shape[0])) : 0.4F;
    std::vector<float> values(static_cast<size_t>(p.spec.elements()));
    for (float& x : values) x = (around_one ? 1.0F : 0.0F) + width * even(random);
    weights.set<float>(p.name, p.spec.shape, std::span<const float>(values));
  }
  return weights;
}

std::vector<float> engine_logits(const Yaml& model, const Checkpoint& weights, const OnnxImages& images,
                                 const OnnxCard& card) {
  const auto cpu = make_cpu_device(2);
  const auto stream = cpu->make_stream();
  NetworkOptions options;
  options.training = false;
  Network network(read_model(model.at("model")), *cpu, options);
  load_weights(network, weights, *stream);
  Program& program = network.program(images.N, Mode::eval);
  std::transform(images.bytes.begin(), images.bytes.end(), program.image().as<float>(),
                 [&](uint8_t b) { return (static_cast<float>(b) - card.offset) / card.divisor; });
  program.pack(*stream);
  program.forward(*stream);
  const TensorView y = program.value(program.graph().output);
  return {y.as<float>(), y.as<float>() + y.elements()};
}

OnnxExport::OnnxExport() : folder_((std::filesystem::temp_directory_path() / "regolith_onnx_XXXXXX").string()) {
  if (::mkdtemp(folder_.data()) == nullptr) throw std::runtime_error("cannot make " + folder_);
  ::setenv("PYTHONPATH", REGOLITH_PYTHON_PACKAGES, 0);
}
OnnxExport::~OnnxExport() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void OnnxExport::SetUp() {
  static const bool there = std::system("python3 -c 'import onnx, onnxruntime' 2>/dev/null") == 0;
  if (!there) GTEST_SKIP() << "python3 has no onnxruntime; tools/setup.sh --tests installs it";
}

std::string OnnxExport::write(const std::string& name, const Yaml& model, const Checkpoint& weights,
                              const OnnxOptions& options, const OnnxCard& card) const {
  Graph graph = read_model(model.at("model"));
  graph.infer(1);
  Checkpoint frozen = weights;
  freeze(graph, frozen);
  graph.infer(1);
  const std::string file = folder_ + "/" + name + ".onnx";
  write_file_atomically(file, to_onnx(graph, frozen, card, options));
  return file;
}

void OnnxExport::expect_same_logits(const std::string& file, const Yaml& model, const Checkpoint& weights,
                                    int N) const {
  const Yaml input = model.at("model").at("input");
  const auto size = [&](const char* key) { return static_cast<int>(input.at(key).as_int()); };
  const OnnxImages images(N, size("height"), size("width"), size("channels"));
  SCOPED_TRACE(file + ", " + size_text({N, images.H, images.W}));
  const std::vector<float> ours = engine_logits(model, weights, images);
  const NpyArray array = run_onnx(file, images.entry(images.planes())).read("logits");
  const std::vector<float> theirs = array.as_f32();
  ASSERT_EQ(array.shape.size(), 4U);
  ASSERT_EQ(ours.size(), theirs.size());
  const int64_t K = array.shape[1], pixels = array.shape[2] * array.shape[3];
  float largest = 1;
  for (const float x : ours) largest = std::max(largest, std::abs(x));
  int64_t same = 0;
  for (int64_t p = 0; p < N * pixels; ++p) {
    const float* const our = ours.data() + p * K;
    std::vector<float> their(static_cast<size_t>(K));
    for (int64_t k = 0; k < K; ++k) {
      their[k] = theirs[(p / pixels * K + k) * pixels + p % pixels];
      ASSERT_NEAR(our[k], their[k], 1e-4F * largest) << "pixel " << p << ", class " << k;
    }
    same += std::max_element(our, our + K) - our == std::max_element(their.begin(), their.end()) - their.begin();
  }
  EXPECT_GE(static_cast<double>(same), 0.9999 * static_cast<double>(N * pixels));
}

void OnnxExport::expect_valid_files() const {
  const std::string command =
      "python3 -c 'import sys, onnx, onnx.checker\n"
      "for file in sys.argv[1:]:\n"
      "  onnx.checker.check_model(file, full_check=True)' '" +
      folder_ + "'/*.onnx";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

Yaml small_model(const std::string& nodes, int H, int W, int C) {
  return Yaml::load_string("model:\n  input: {height: " + std::to_string(H) + ", width: " + std::to_string(W) +
                               ", channels: " + std::to_string(C) + "}\n  nodes:\n" + nodes,
                           "model.yaml");
}

Yaml with_size(const Yaml& model, int H, int W) {
  return model.with_overrides({"model.input.height=" + std::to_string(H), "model.input.width=" + std::to_string(W)});
}

Yaml network_file(const std::string& name) {
  return Yaml::load(std::filesystem::path(REGOLITH_SOURCE_DIR) / "configs/models" / (name + ".yaml"));
}

}  // namespace regolith::testing
