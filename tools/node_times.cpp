#include "tools/node_times.h"

#include "engine/base/text.h"

namespace regolith {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

std::string fixed(double x, int digits, const char* unit) { return x == 0 ? "" : format("%.*f%s", digits, x, unit); }

void NodeTimes::begin(const Node&, bool) {
  stream_.synchronize();
  began_ = Clock::now();
}

void NodeTimes::end(const Node& node, bool backward) {
  stream_.synchronize();
  const auto [place, first] = index_.try_emplace(node.name, times.size());
  if (first) times.push_back({&node});
  Time& t = times[place->second];
  t.ms[backward] += milliseconds(Clock::now() - began_);
  const bool both = !node.inputs.empty() && node.inputs[0] != graph_.input;  // the image has no gradient
  t.macs[backward] += static_cast<double>(node.inferred.macs) * (backward && both ? 2 : 1);
  t.bytes[backward] += bytes(node, backward);
}

// What the node must move: forward its inputs, its output and its weights; backward the output's gradient, what was
// saved, the inputs' gradients, the weights and theirs in fp32. A concat moves nothing: its parts are in place.
double NodeTimes::bytes(const Node& node, bool backward) const {
  if (node.inputs.empty() || node.op->kind() == "concat") return 0;
  const double output = static_cast<double>(node.shape().elements());
  const auto input = [&](size_t k) {  // graph_ is of one image
    return static_cast<double>(graph_.nodes[node.inputs[k]].shape().elements()) * node.shape().N;
  };
  double maps = output, weights = 0, trained = 0;
  for (const int p : node.params) {
    const ParamSpec& spec = graph_.params[p].spec;
    weights += static_cast<double>(spec.elements());
    if (graph_.trains(p)) trained += static_cast<double>(spec.elements());
  }
  const std::vector<bool>& wanted = wanted_[graph_.find(node.name)];
  const std::vector<bool>& saves = node.inferred.saves_input;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    if (!backward || (k < saves.size() && saves[k])) maps += input(k);
    if (backward && wanted[k]) maps += input(k);
  }
  if (backward && node.inferred.saves_output) maps += output;
  return element_ * (maps + weights) + (backward ? sizeof(float) * trained : 0);
}

}  // namespace regolith
