// Rewrites a graph so that fewer passes over memory compute the same.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "engine/graph/graph.h"

namespace regolith {

struct FuseOptions {
  bool enabled = true;
  std::set<std::string> without;  // rules that are switched off one by one, as the tests of a rule do
  bool has(const std::string& rule) const { return enabled && !without.contains(rule); }
  static FuseOptions none() { return {.enabled = false, .without = {}}; }
};

// Returns a line per rewrite: "norm+relu: e1/1/norm takes e1/1/relu". Rules, in their order: "cancelled bias",
// "norm+residual", "norm+relu", "norm+dropout", "conv+residual", "conv+relu", "padding taps" (of ASPP: not multiplied),
// "squeeze+pool", "squeeze+dropout", "squeeze from norm", "norm from conv". `inference`: with those that have no
// backward, "conv+residual" and "norm from conv". Programs that train have the rules "bias sums" (graph/plan.h) and
// "norms in convolutions" (Program::put_norms_into_convolutions()) besides.
std::vector<std::string> fuse(Graph& graph, const FuseOptions& options = {}, bool inference = false);

}  // namespace regolith
