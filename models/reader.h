// From the YAML of a model to a graph.
//
//   model:
//     input: {height: 64, width: 128, channels: 1}
//     defaults: {norm: group, kernel: 3}           # for every node that takes such a key
//     nets:                                         # sub-networks, used by {net: NAME, in: [...], PARAM: VALUE}
//       encoder: {inputs: [x], params: {width: 32}, nodes: {...}, output: NODE}
//     nodes:
//       e1: {block: conv_norm, in: input, filters: 32, repeat: 2}
//       p1: {op: max_pool, in: e1}
//     output: logits                                # default: the last node
//     heads: {x01: 0.5, logits: 1}                  # losses; default: the output, weight 1
#pragma once

#include "engine/config/yaml.h"
#include "engine/graph/graph.h"

namespace regolith {

// Throws ConfigError or GraphError with file:line:column. The graph is neither inferred nor fused.
Graph read_model(const Yaml& model);

// Blocks and ops with their attributes, for --help-config.
std::string help_models();

}  // namespace regolith
