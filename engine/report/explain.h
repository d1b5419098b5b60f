#pragma once

#include <string>

#include "engine/run/network.h"

namespace regolith {

// The graph after fusion with shapes, parameters, FLOPs, providers, and the arena's map: what `--explain` prints.
std::string explain(Network& network, int batch);

}  // namespace regolith
