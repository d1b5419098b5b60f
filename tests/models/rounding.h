// How far a network that computes in bf16 may be from one that does not: an estimate of its rounding errors, from the
// graph alone.
#pragma once

#include <map>
#include <string>

#include "engine/graph/graph.h"

namespace regolith::golden {

struct Rounding {
  double logits = 0;                         // error relative to their length
  std::map<std::string, double> parameters;  // the same of each parameter's gradient
};

// `graph`: as read from YAML, before fusion. u: the relative error of one rounding, root mean square.
Rounding estimate_rounding(const Graph& graph, double u);

}  // namespace regolith::golden
