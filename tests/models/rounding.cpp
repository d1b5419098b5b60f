#include "rounding.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace regolith::golden {
namespace {

// Every map is followed by two numbers, as in the mean-field theory of wide random networks (Poole et al. 2016; Yang et
// al. 2019, "A mean field theory of batch normalization"): `noise`, the square of its error's length relative to its
// own, and `common`, the share of its mean square that is the same in all pixels.
struct Signal {
  double noise = 0, common = 0;
};

constexpr double kPi = std::numbers::pi;

// What ReLU makes of `common` (Cho and Saul 2009, the arc-cosine kernel of order 1): 1 / pi of 0. Errors pass by: half
// of the signal's square stays, and half of theirs.
double common_after_relu(double c) { return (std::sqrt(1 - c * c) + c * (kPi - std::acos(c))) / kPi; }

// Signs that errors turn: the angle between a normal vector and the same with errors, over pi, is the share of elements
// that have another sign. Their whole gradient is wrong, in the half that passes.
double turned(double noise) { return 2 / kPi * std::sqrt(noise); }

Signal mean_of(const std::vector<Signal>& in) {
  Signal s;
  for (const Signal& x : in) {
    s.noise += x.noise / static_cast<double>(in.size());
    s.common += x.common / static_cast<double>(in.size());
  }
  return s;
}

Signal forward(const Node& node, const std::vector<Signal>& in, double r) {
  const std::string_view kind = node.op->kind();
  Signal s = mean_of(in);
  if (kind == "input") return {r, .75};
  if (kind == "concat" || kind == "max_pool" || kind == "dropout" || kind == "spatial_dropout") return s;
  if (kind == "relu") return {s.noise, common_after_relu(s.common)};
  if (kind == "conv") return {s.noise + 2 * r, s.common};            // its weights, its sums
  if (kind == "conv_transpose") return {s.noise + 3 * r, s.common};  // and those again where the bias comes after
  if (kind == "group_norm" || kind == "batch_norm") {
    // The mean goes, with its share of the signal; the errors stay. (All of it where a group is one channel, as in most
    // of these networks; of a wider group less.)
    return {s.noise / (1 - s.common) + r, 0};
  }
  if (kind == "softmax") return {2 * s.noise + r, s.common};
  if (kind == "multiply") return {in[0].noise + in[1].noise + r, s.common};
  if (kind == "squeeze_excite") return {s.noise + 3 * r, s.common};
  if (kind == "attention_gate") return {in[0].noise + s.noise / 4 + 3 * r, in[0].common};
  if (kind == "aspp") return {s.noise + 4 * r, s.common};
  return {s.noise + r, s.common};  // add, upsample
}

}  // namespace

Rounding estimate_rounding(const Graph& graph, double u) {
  const double r = u * u;
  std::vector<Signal> y(graph.nodes.size());
  for (size_t i = 0; i < y.size(); ++i) {
    std::vector<Signal> in;
    for (int k : graph.nodes[i].inputs) in.push_back(y[k]);
    y[i] = forward(graph.nodes[i], in, r);
  }
  // Noise of the gradients. Of a softmax it is that of the logits, of which the mean square is about 2.
  std::vector<double> dy(y.size(), 0.);
  for (const LossHead& head : graph.heads) dy[head.node] = 2 * y[head.node].noise + r;
  Rounding result;
  result.logits = std::sqrt(y[graph.output].noise);
  for (size_t i = y.size(); i-- > 0;) {
    const Node& node = graph.nodes[i];
    const std::string_view kind = node.op->kind();
    double x = 0, other = 0;
    for (int k : node.inputs) x = std::max(x, y[k].noise);
    if (kind == "relu" || kind == "max_pool") other = turned(x);
    if (kind == "multiply" || kind == "softmax" || kind == "squeeze_excite") other = 2 * x;
    if (kind == "attention_gate") other = turned(x) + x;
    for (int p : node.params) {
      const std::string& name = graph.params[p].name;
      const bool sum_of_dy = name.ends_with("bias") || name.ends_with("beta");
      result.parameters[name] = std::sqrt(dy[i] + other + (sum_of_dy ? 0 : x + r));
    }
    for (int k : node.inputs) dy[k] = std::max(dy[k], dy[i] + other + 2 * r);
  }
  return result;
}

}  // namespace regolith::golden
