#include <numeric>

#include "deploy/onnx/lower.h"
#include "engine/base/error.h"
#include "engine/ops/basic.h"
#include "engine/ops/conv.h"
#include "engine/ops/resample.h"

namespace regolith {
namespace {

// By which a map changes for a pixel of the image more; up 0: it does not.
struct Growth {
  int64_t up = 1, down = 1;
  void reduce() {
    const int64_t common = std::gcd(up, down);
    up /= common, down /= common;
  }
};

struct Stride {
  int down = 1, up = 1;
};
Stride stride_of(const Op& op, int axis) {
  if (const auto* conv = dynamic_cast<const ConvOp*>(&op)) return {.down = conv->attributes().stride[axis]};
  if (const auto* transposed = dynamic_cast<const ConvTransposeOp*>(&op))
    return {.up = transposed->attributes().stride[axis]};
  if (const auto* pool = dynamic_cast<const MaxPoolOp*>(&op)) return {.down = pool->stride()};
  if (const auto* resize = dynamic_cast<const ResizeOp*>(&op)) return {.up = resize->factor()};
  return {.up = op.kind() == "global_avg_pool" ? 0 : 1};
}

// The least growth of the image that every stride divides where it gets to.
int step_of(const Graph& graph, int axis) {
  int64_t step = 1;
  std::vector<Growth> growths;
  for (const Node& node : graph.nodes) {
    Growth g;
    for (const int in : node.inputs)
      if (growths[in].up != 0 || in == node.inputs[0]) g = growths[in];
    const Stride s = stride_of(*node.op, axis);
    if (g.up != 0) step = std::lcm(step, s.down * g.down / std::gcd(g.up, s.down * g.down));
    g.up *= s.up, g.down *= s.down;
    g.reduce();
    growths.push_back(g);
  }
  return static_cast<int>(step);
}

}  // namespace

std::array<int, 2> onnx_size_steps(const Graph& graph) {
  const std::array<int, 2> steps{step_of(graph, 0), step_of(graph, 1)};
  const Shape image = graph.nodes[graph.input].shape();
  Graph larger = graph;
  larger.nodes[graph.input].op = std::make_unique<InputOp>(image.H + steps[0], image.W + steps[1], image.C);
  const auto refuse = [&](const Node& node, const std::string& why) {
    throw GraphError("--dynamic size: the network takes images of " + size_text({image.H, image.W}) + " only: node " +
                     node.name + " (" + std::string(node.op->kind()) + ") " + why + "; leave `size` out");
  };
  for (const Node& node : graph.nodes)
    if (node.op->kind() == "resize") refuse(node, "makes maps of one size");
  try {
    larger.infer(1);
  } catch (const GraphError& e) {
    throw GraphError("--dynamic size: the network takes images of " + size_text({image.H, image.W}) +
                     " only; leave `size` out. One of " + size_text({image.H + steps[0], image.W + steps[1]}) + ": " +
                     e.what());
  }
  for (size_t i = 0; i < graph.nodes.size(); ++i)
    for (size_t p = 0; p < graph.nodes[i].inferred.params.size(); ++p)
      if (const ParamSpec& spec = graph.nodes[i].inferred.params[p];
          spec.shape != larger.nodes[i].inferred.params[p].shape)
        refuse(graph.nodes[i], "has a weight for every position, " + spec.name + " " + shape_text(spec.shape));
  return steps;
}

}  // namespace regolith
