// What `engine_run --explain` prints.
#pragma once

#include <string>

#include "engine/run/network.h"

namespace regolith {

// The graph after fusion with shapes, parameters, FLOPs, providers, the arena's map, and the memory that training and
// evaluation of batches of that size take. `moments`: fp32 numbers of the optimizer for each weight.
std::string explain(Network& network, int batch, int moments = 2);

}  // namespace regolith
