// One run: the options of all its parts, read from YAML. Each part declares its own (engine/config/fields.h); here they
// are put together. `engine_run --help-config` prints every key.
#pragma once

#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "app/sweep.h"
#include "data/clean.h"
#include "data/pseudo.h"
#include "data/sampling.h"
#include "data/sources.h"
#include "data/split.h"
#include "engine/config/yaml.h"
#include "engine/run/network.h"
#include "engine/train/device_data.h"
#include "engine/train/ema.h"
#include "engine/train/exchange.h"
#include "engine/train/initial_weights.h"
#include "engine/train/optimizer.h"
#include "engine/train/schedule.h"
#include "losses/loss.h"

namespace regolith {

enum class DeviceChoice { automatic, cpu, cuda };

struct RunOptions {
  std::string name = "run", output = "runs";
  uint64_t seed = 42;
  DeviceChoice device = DeviceChoice::automatic;
  Precision precision = Precision::automatic;
  int threads = 0;  // 0: auto
  bool deterministic = true, cuda_graph = true, tensorboard = false;
  int devices = 1;
  Reduce reduce = Reduce::automatic;
};

struct DataOptions {
  DataSource source;
  NpzNames arrays;
  ClassOptions classes;
  CleanRule clean;
  SplitShares split;
  std::optional<Oversample> oversample;
  std::optional<Balance> balance;
  std::optional<HardExamples> hard_examples;
  std::optional<PseudoLabels> pseudo;
  std::optional<kernels::Augment> augment;
  Normalise normalise;
  Streaming streaming = Streaming::automatic;
};

struct TrainOptions {
  int batch = 32;
  int per_device_batch = 0;  // 0: none; else batch is that of all ranks, by RunConfig::settle_batch()
  int accumulate = 1, epochs = 100;
  bool sync_batch_norm = false;
  int64_t steps_per_epoch = 0;  // 0: auto, the training set once
  int slices = 0;               // micro-batches of a step; 0: auto
  std::optional<EmaSpec> ema;
  std::optional<EarlyStoppingSpec> early_stopping;
  int validate_every = 1, panels = 8;
  bool drop_last = false;
  double checkpoint_minutes = 10;  // 0: off
  InitSpec init;
};
struct GraphOptions {
  bool fuse = true, plan = true, views = true;
};
struct ProfileOptions {
  int64_t start = 10, steps = 5;
};
// What others published for this network, in percent as they wrote it; kNone, 0: not published.
struct Reference {
  static constexpr double kNone = std::numeric_limits<double>::infinity();
  std::string name = "reference";
  double validation = kNone, test = kNone, hidden = kNone;
  int64_t parameters = 0;
  double epoch_seconds = kNone;
};

struct RunConfig {
  RunOptions run;
  DataOptions data;
  LossSpec loss;
  OptimizerSpec optimizer;
  ScheduleSpec schedule;
  TrainOptions train;
  ConvChoice conv;
  GraphOptions graph;
  std::optional<ProfileOptions> profile;
  std::optional<Reference> reference;
  std::optional<SweepSpec> sweep;  // for engine_table, which leaves it out of its runs; not in to_yaml()
  Yaml model;                      // read by models/
  Yaml yaml;                       // the whole, for errors that are found later

  // For as many ranks as there turn out to be; a run's config.yaml holds the batch that it had. Throws ConfigError for
  // more images than a step can have.
  void settle_batch(int ranks);
  bool has_given_parts() const;  // by the source, or by data.split.files
  bool may_validate() const;     // there can be validation images
  // Throws ConfigError by the first key that needs validation images; `why` says that there are none.
  void refuse_without_validation(const std::string& why) const;
  // What says which weights are the best.
  std::string monitor() const { return train.early_stopping ? train.early_stopping->monitor : "val_loss"; }
  bool watches_ema() const { return train.ema && train.ema->watch == EmaSpec::Watch::ema; }
  // Every key with its value; reads back as the same run. Without whole paths: the same wherever its files stand.
  std::string to_yaml(bool whole_paths = true) const;
  // Throws ConfigError with the place of a key of `section` that its part refuses.
  [[noreturn]] void fail(const std::string& section, const OptionError& error) const;
};

// What the caller is going to do: with `network` alone there need not be any data (--explain, engine_verify).
enum class ConfigUse { network, training };

// Throws ConfigError: "file:line:column: key.path: what was expected". Relative paths of a file are looked for beside
// that file, then in the working folder; those of the command line in the working folder.
RunConfig load_run_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, ConfigUse use);
RunConfig read_run_config(const Yaml& yaml, ConfigUse use);
std::optional<SweepSpec> read_sweep(const Yaml& yaml);  // yaml: the value of the key `sweep`

std::string help_config();  // every key with type, range, default and meaning

}  // namespace regolith
