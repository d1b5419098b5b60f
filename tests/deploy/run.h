// Run folders of small networks, made by hand.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "app/experiment.h"
#include "engine/io/atomic_file.h"
#include "engine/train/weights.h"
#include "models/reader.h"

namespace regolith::testing {

// A folder that goes with its owner.
struct Folder {
  std::filesystem::path path;
  explicit Folder(const std::string& name)
      : path(std::filesystem::temp_directory_path() / (name + "." + std::to_string(::getpid()))) {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

// One convolution of 1x1, so that each pixel is a function of itself alone.
inline const char* const kPixelModel = R"(
model:
  name: pixel
  input: {height: 16, width: 24, channels: 1}
  nodes:
    a: {op: conv, in: input, filters: 8, kernel: 1}
    r: {op: relu, in: a}
    logits: {op: conv, in: r, filters: 3, kernel: 1}
)";

// Writes config.yaml and best.safetensors; `change` may alter the weights of seed `seed` before.
inline std::string make_run(const Folder& folder, const std::string& name, const std::string& yaml, uint64_t seed = 1,
                            const std::function<void(Checkpoint&)>& change = {}) {
  const std::string run = folder / name;
  std::filesystem::create_directories(run);
  write_file_atomically(run + "/config.yaml", yaml);
  RunConfig config = load_run_config(run + "/config.yaml", {"run.seed=" + std::to_string(seed)}, ConfigUse::network);
  Experiment experiment(std::move(config));
  const auto stream = experiment.device().make_stream();
  experiment.network().parameters().initialise(seed, *stream);
  Checkpoint weights = save_weights(experiment.network(), *stream);
  for (auto& [name, tensor] : weights.tensors) {
    const std::vector<float> values = tensor.source();
    weights.set<float>(name, tensor.shape, values);
    tensor.source = {};
  }
  if (change) change(weights);
  save_checkpoint(run + "/best.safetensors", weights);
  return run;
}

// Weights of the pixel model with which class 1 is right below the middle grey, class 2 above it.
inline void know_greys(Checkpoint& c) {
  for (auto& [name, tensor] : c.tensors) {
    std::vector<float> values = c.floats(name);
    std::fill(values.begin(), values.end(), 0.f);
    if (name == "a/kernel") values[0] = 1;                          // (8, 1, 1, 1): the grey value
    if (name == "logits/kernel") values[8] = -20, values[16] = 20;  // (3, 1, 1, 8)
    if (name == "logits/bias") values[1] = 10, values[2] = -10;
    c.set<float>(name, tensor.shape, values);
  }
}

}  // namespace regolith::testing
