// What a run keeps of itself, so that it goes on as the same experiment or not at all.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/experiment.h"
#include "engine/io/safetensors.h"

namespace regolith {

extern const char* const kVersion;  // of the engine

// The configuration as it runs: device, precision and threads as they were chosen.
RunConfig chosen(Experiment& experiment);
// The same as last.safetensors keeps it: the same bytes whatever the run is called, and wherever its files stand.
std::string kept_config(RunConfig chosen);
// To config.yaml of the run's folder. Where one stands there that says something else, it becomes config-1.yaml, ...
void write_config(const std::string& folder, const RunConfig& chosen, const Device& device);

// What the device was, and what was chosen on it; "" on the CPU, where threads and precision tell all.
std::string kept_device(Device& device);

// 64 bits each of images, masks and split.
nlohmann::json digests(const ExperimentData& data);

// "optimizer.adamw.lr: 0.001 -> 0.01"; where a choice or a node has gone, of the key that held it: "optimizer: adamw ->
// sgd".
struct Change {
  std::string key, before, now;
  std::string text() const { return key + ": " + before + " -> " + now; }
};

// Every key that says something else, but those that only the beginning of a run, its name and its folder depend on.
std::vector<Change> changes_between(const RunConfig& before, const RunConfig& now);

// What last.safetensors of a run folder holds, and what the configuration to go on with says otherwise.
struct EarlierRun {
  Checkpoint checkpoint;
  nlohmann::json state;  // of the loop and its listeners
  RunConfig config;      // as it ran
  std::vector<Change> changes;
  bool best_is_missing = false;                // the weights that the best value is of
  std::map<std::string, std::string> choices;  // Device::choices() as it ran

  bool changed(const char* section) const;
  // Whether the best value counts on: its weights are there, the loss and the monitor the same.
  bool same_score(const RunConfig& now) const;
  std::string report(const RunConfig& now) const;  // a line for each change, "" without
  // A line where the device has chosen other kernels by now, "" where it has not.
  std::string report_choices(Device& device) const;
  // Throws CheckpointError where images, masks or split are others.
  void check_data(const nlohmann::json& digests) const;
};
// Throws IoError where there is no such folder.
void check_run_folder(const std::string& folder);
// Throws CheckpointError, naming what differs, where the network is another one or the changes make it another
// experiment; IoError where a file cannot be read: best.safetensors too, which the end of the run needs.
EarlierRun load_earlier_run(const std::string& folder, Network& network, const RunConfig& now);

}  // namespace regolith
