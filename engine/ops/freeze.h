// Rewrites a graph for inference, and the weights with it.
#pragma once

#include <string>
#include <vector>

#include "engine/graph/graph.h"
#include "engine/io/safetensors.h"

namespace regolith {

// Takes away what prediction does not need: loss heads other than the output, nodes that the output does not read,
// dropout, and each batch norm that alone reads a convolution, which takes it into its kernel and bias:
//   w' = w * gamma / sqrt(variance + epsilon),  b' = (b - mean) * gamma / sqrt(variance + epsilon) + beta
// in double precision. Other norms stay. The tensors of what is gone leave the weights; those that stay keep their
// names, and a convolution without a bias gets one. The graph is as read_model() makes it, not fused; afterwards a
// Network of {.training = false} takes it, and load_weights() the weights: Mode::eval of the two is the same function.
// Returns a line per rewrite: "folded norm: e1/1/conv takes e1/1/norm". Throws CheckpointError where the weights lack a
// tensor that is folded or have it in another shape; then graph and weights are partly rewritten.
std::vector<std::string> freeze(Graph& graph, Checkpoint& weights);

}  // namespace regolith
