// A training run from its configuration to its last table: data, epochs, validation, checkpoints, early stopping, test.
#pragma once

#include <atomic>
#include <string>

#include "engine/config/run_config.h"

namespace regolith {

struct FitOptions {
  std::string resume;   // a run folder to go on in; empty: a new one
  std::string command;  // that started the run, without --resume: for the advice how to go on
  // Set by a signal: the step is finished, last.safetensors written.
  const std::atomic<bool>* interrupted = nullptr;
};

struct FitResult {
  std::string folder;
  bool interrupted = false;
};

// A word of a command line so that a shell reads it back as it was.
std::string shell_word(const std::string& word);

// Prints as it goes. Throws what the parts throw; what was written before stays.
FitResult fit(const config::RunConfig& config, const FitOptions& options);

}  // namespace regolith
