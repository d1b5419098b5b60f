// What `engine_run --explain` prints.
#pragma once

#include <string>

#include "engine/run/network.h"
#include "engine/train/exchange.h"

namespace regolith {

// The graph after fusion with shapes, parameters, FLOPs, providers, the arena's map, the memory that training and
// evaluation of batches of that size take, and what a training step launches and moves (report/traffic.h). `moments`:
// fp32 numbers of the optimizer for each weight.
std::string explain(Network& network, int batch, int moments = 2);

// What ranks give each other in a step of `accumulate` batches. Empty: there is one.
struct ExchangeOptions {
  int ranks = 1, accumulate = 1;
  Reduce reduce = Reduce::automatic;
  bool sync_batch_norm = false;
};
std::string explain_exchange(Network& network, int batch, const ExchangeOptions& options);

}  // namespace regolith
