// The forward pass of a frozen network, timed.
#pragma once

#include <string>

#include "app/run_config.h"

namespace regolith {

struct PredictionProfile {
  int batch = 32, slice = 0, steps = 10, warmup = 2;  // slice 0: the network's choice
  std::string weights;                                // a .safetensors file; empty: fresh ones
  std::string json_file;                              // "" for none
};

// Prints the median from bytes in device memory to logits, a table of the nodes, and what is in memory. Returns the
// exit code of the program.
int profile_prediction(RunConfig config, const PredictionProfile& options);

}  // namespace regolith
