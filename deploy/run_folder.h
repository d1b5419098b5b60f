// A run's folder as those find it who apply its network.
#pragma once

#include <string>
#include <vector>

#include "app/run_config.h"
#include "data/sources.h"
#include "engine/io/safetensors.h"

namespace regolith {

struct TrainedRun {
  std::string folder;
  RunConfig config;
  std::string weights_file;
  Checkpoint weights;  // without an optimizer's state; tensors are left in the file until they are used

  // What images and masks of other files are read by.
  SourceContext source_context(int channels, int classes) const;
};

// weights: best, last, or a .safetensors file. overrides: key.path=value. Throws IoError for a folder that is none of a
// run, and for weights that are not there; ConfigError, CheckpointError.
TrainedRun open_run(const std::string& folder, const std::string& weights = "best",
                    const std::vector<std::string>& overrides = {});

// The configuration of a run whose data with truth is to be read again, by a processor. Throws ConfigError.
RunConfig training_config(const std::string& folder);

}  // namespace regolith
