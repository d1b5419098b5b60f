#include "deploy/onnx/check.h"

#include <fcntl.h>
#include <onnx.pb.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/base/error.h"

extern char** environ;

namespace regolith {
namespace {

constexpr const char* kPython = R"(
import sys
import numpy, onnxruntime
_, model, images, outputs = sys.argv
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
results = session.run(None, dict(numpy.load(images)))
numpy.savez(outputs, **{o.name: r for o, r in zip(session.get_outputs(), results)})
)";

struct Folder {
  std::string path = (std::filesystem::temp_directory_path() / "regolith_onnx_XXXXXX").string();
  Folder() {
    if (::mkdtemp(path.data()) == nullptr) throw IoError("cannot make a folder like " + path);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string operator/(const char* name) const { return path + "/" + name; }
};

// The exit status; -1 where there is no such program. stderr goes to a file.
int run(const std::vector<std::string>& words, const std::string& errors) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT, 0600);
  pid_t child = -1;
  const int failed = ::posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  int status = -1;
  if (failed != 0) return -1;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

// The last line that says something.
std::string last_line(const std::string& file) {
  std::ifstream in(file);
  std::string line, last;
  while (std::getline(in, line))
    if (line.find_first_not_of(" \t\r") != line.npos) last = line;
  return last;
}

// What the comparison has to know of a file.
struct Reading {
  bool bytes = false;
  int64_t images = 1;
  std::string output;
  std::vector<int> excluded;
};

Reading read(const std::string& file, const Graph& graph) {
  const auto refuse = [&](const std::string& why) { throw IoError(file + ": " + why); };
  onnx::ModelProto model;
  std::ifstream in(file, std::ios::binary);
  if (!in) refuse("cannot be opened");
  if (!model.ParseFromIstream(&in) || model.graph().input_size() != 1) refuse("is no ONNX file of this program");
  Reading r;
  for (const auto& entry : model.metadata_props())
    if (entry.key() == "regolith.excluded_classes")
      r.excluded = nlohmann::json::parse(entry.value()).get<std::vector<int>>();
  const onnx::TypeProto::Tensor& image = model.graph().input(0).type().tensor_type();
  r.bytes = image.elem_type() == onnx::TensorProto::UINT8;
  const Shape map = graph.nodes[graph.input].shape();
  const std::vector<int64_t> expected =
      r.bytes ? std::vector<int64_t>{0, map.H, map.W, map.C} : std::vector<int64_t>{0, map.C, map.H, map.W};
  if (image.shape().dim_size() != 4) refuse("is no ONNX file of this program");
  r.images = image.shape().dim(0).has_dim_param() ? 2 : image.shape().dim(0).dim_value();
  for (int i = 1; i < 4; ++i)
    if (const auto& dim = image.shape().dim(i); !dim.has_dim_param() && dim.dim_value() != expected[i])
      refuse("is of another network: its images are not of " + size_text({map.H, map.W, map.C}));
  r.output = model.graph().output(model.graph().output_size() - 1).name();
  return r;
}

// (N,H,W,K) of (N,H,W,C) images.
std::vector<float> logits_of(Network& network, const std::vector<float>& images, int N) {
  Program& program = network.program(N, Mode::eval);
  const auto stream = network.device().make_stream();
  std::copy(images.begin(), images.end(), program.image().as<float>());
  program.pack(*stream);
  program.forward(*stream);
  const TensorView y = program.value(program.graph().output);
  return {y.as<float>(), y.as<float>() + y.elements()};
}

}  // namespace

NpzReader run_onnx(const std::string& file, NpzEntry image) {
  const Folder folder;
  const std::string in = folder / "in.npz", out = folder / "out.npz", errors = folder / "errors";
  image.name = "image";
  write_npz(in, std::vector{image});
  const int code = run({"python3", "-c", kPython, file, in, out}, errors);
  if (code < 0) throw IoError("ONNX Runtime is run by python3, which is not there");
  const std::string said = code == 0 ? "" : last_line(errors);
  if (said.starts_with("ModuleNotFoundError") || said.starts_with("ImportError"))
    throw IoError("python3 cannot run ONNX Runtime: " + said +
                  "; install the packages onnxruntime and numpy, or name their folder in PYTHONPATH");
  if (code != 0) throw IoError(file + ": ONNX Runtime: " + said);
  return NpzReader(out);
}

OnnxCheck check_onnx(const std::string& file, Network& network, float divisor, float offset) {
  const Graph& graph = network.graph();
  const Shape image = graph.nodes[graph.input].shape(), map = graph.nodes[graph.output].shape();
  const Reading r = read(file, graph);
  const int N = static_cast<int>(r.images), K = map.C;
  std::mt19937 random(1);
  std::vector<uint8_t> bytes(static_cast<size_t>(N) * image.H * image.W * image.C);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  std::vector<float> images;
  for (const uint8_t b : bytes) images.push_back((static_cast<float>(b) - offset) / divisor);
  std::vector<float> planes(bytes.size());  // (N,C,H,W)
  const int64_t pixels = static_cast<int64_t>(image.H) * image.W;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const int64_t c = static_cast<int64_t>(i) % image.C, p = static_cast<int64_t>(i) / image.C;
    planes[(p / pixels * image.C + c) * pixels + p % pixels] = bytes[i];
  }
  const NpzReader outputs = run_onnx(file, r.bytes ? npz_entry("", {N, image.H, image.W, image.C}, bytes.data())
                                                   : npz_entry("", {N, image.C, image.H, image.W}, planes.data()));
  const std::vector<float> logits = logits_of(network, images, N), theirs = outputs.read(r.output).as_f32();

  OnnxCheck check{.output = r.output};
  const bool classes = r.output == "classes", plain = r.output == "logits";
  if (theirs.size() != (classes ? logits.size() / K : logits.size()))
    throw IoError(file + ": is of another network: its " + r.output + " are not of " + size_text({N, map.H, map.W, K}));
  double largest = 1;
  if (plain)
    for (const float x : logits) largest = std::max<double>(largest, std::abs(x));
  const int64_t per_image = static_cast<int64_t>(map.H) * map.W, count = N * per_image;
  int64_t same = 0;
  for (int64_t p = 0; p < count; ++p) {
    std::vector<double> ours(logits.begin() + p * K, logits.begin() + (p + 1) * K);
    if (!plain) {
      for (const int c : r.excluded) ours.at(c) = -1e9;
      double sum = 0;
      const double most = *std::max_element(ours.begin(), ours.end());
      for (double& x : ours) sum += x = std::exp(x - most);
      for (double& x : ours) x /= sum;
    }
    const auto their = [&](int64_t k) { return theirs[(p / per_image * K + k) * per_image + p % per_image]; };
    int64_t best = 0;
    for (int64_t k = 0; k < K && !classes; ++k) {
      const double d = std::abs(ours[k] - their(k)) / largest;
      check.difference = d <= check.difference ? check.difference : d;  // NaN stays
      if (their(k) > their(best)) best = k;
    }
    if (classes) best = static_cast<int64_t>(theirs[p]);
    same += std::max_element(ours.begin(), ours.end()) - ours.begin() == best;
  }
  check.agreeing = static_cast<double>(same) / static_cast<double>(count);
  return check;
}

}  // namespace regolith
