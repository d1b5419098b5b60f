// From the ops of the engine to those of ONNX. README.md says what becomes of each, and why.
#pragma once

#include <string>
#include <vector>

#include "deploy/onnx/builder.h"
#include "engine/graph/graph.h"
#include "engine/io/safetensors.h"

namespace regolith {

// A node of the engine's graph, and what its lowering reads.
struct OnnxLowering {
  OnnxBuilder& onnx;
  const Graph& graph;
  const Checkpoint& weights;
  bool any_batch, any_size;    // the images are of any number, of any size
  const Node* node = nullptr;  // maps NHWC; in ONNX they are NCHW
  std::vector<std::string> x;  // ONNX's names of the inputs

  const Shape& shape(size_t input) const { return graph.nodes[node->inputs[input]].shape(); }
  // A parameter of the node, in C order.
  std::vector<float> values(size_t param) const { return weights.floats(graph.params[node->params[param]].name); }
};

// Adds the nodes that compute `l.node`; returns the name of their output. Throws GraphError for an op without a
// lowering. Expects the graph inferred, and not fused.
std::string lower_to_onnx(const OnnxLowering& l);
bool has_onnx_lowering(std::string_view kind);

// What height and width may grow by for the graph to be the same function of every pixel's surroundings: the padding of
// a strided convolution depends on what the stride leaves over. Throws GraphError where the graph takes one size only.
std::array<int, 2> onnx_size_steps(const Graph& graph);

}  // namespace regolith
