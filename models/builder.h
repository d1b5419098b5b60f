// Blocks: small pieces of network that a model's YAML names. A block is a function that adds nodes to a graph.
#pragma once

#include <string>
#include <vector>

#include "engine/graph/attributes.h"
#include "engine/graph/graph.h"
#include "engine/ops/conv.h"

namespace regolith {

// Adds nodes under a path: in the block "e1", add("conv", ...) makes the node "e1/conv".
class Builder {
 public:
  Builder(Graph& graph, std::string path, std::string where)
      : graph_(graph), path_(std::move(path)), where_(std::move(where)) {}
  Builder inside(const std::string& name) const { return Builder(graph_, path_ + "/" + name, where_); }
  // name "": the node has the block's own path.
  int add(const std::string& name, std::unique_ptr<Op> op, std::vector<int> inputs) const;
  // The channels of a node that is there already.
  int channels(int node) const;

  int conv(const std::string& name, int x, const ConvAttributes& conv) const;
  int norm(const std::string& name, int x, const Attributes& a) const;  // x itself with `norm: none`
  int relu(const std::string& name, int x) const;
  int dropout(const std::string& name, int x, const Attributes& a) const;  // x itself where `rate` is not there, or 0
  int add_up(const std::string& name, std::vector<int> inputs) const;

 private:
  Graph& graph_;
  std::string path_, where_;
};

struct BlockEntry {
  std::string kind;
  std::string summary;
  int min_inputs, max_inputs;
  int (*build)(const Builder&, const Attributes&, const std::vector<int>& inputs);  // returns its output node
  std::vector<AttributeKey> keys = {};                                              // filled in by the registry
};

const std::vector<BlockEntry>& block_registry();

}  // namespace regolith
