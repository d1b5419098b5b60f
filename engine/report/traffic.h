// What a training step launches and moves, by a model of the fused graph and its plan: the kernels that a GPU would
// run, maps read from memory and written to it whole. Counted, so that a change of the graph shows without a GPU.
#pragma once

#include "engine/run/network.h"

namespace regolith {

struct Traffic {
  int64_t launches = 0;
  double bytes = 0;
};

// A step of `slices` passes of the program; the optimizer keeps `moments` numbers in fp32 for each weight.
Traffic traffic_of_step(const Program& program, int slices, int moments);

// The same of a batch on a GPU that need not be there.
struct GpuStep {
  Traffic traffic;
  size_t arena_bytes = 0;
};
GpuStep step_on_gpu(const Network& network, int batch, int moments);

}  // namespace regolith
