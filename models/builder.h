// Blocks: small pieces of network that a model's YAML names. A block is a function that adds nodes to a graph.
#pragma once

#include <functional>
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

  // conv -> norm -> activation, as the attributes `kernel`, `norm`, `groups`, `epsilon`, `momentum`, `init`, `bias`
  // say.
  int conv(const std::string& name, int x, int filters, const Attributes& a) const;
  int conv(const std::string& name, int x, const ConvAttributes& conv) const;
  int norm(const std::string& name, int x, const Attributes& a) const;
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
  std::vector<std::string> keys;
  int min_inputs = 1, max_inputs = 1;
  std::function<int(const Builder&, const Attributes&, const std::vector<int>& inputs)> build;  // its output node
};

const std::vector<BlockEntry>& block_registry();
const BlockEntry* find_block(std::string_view kind);

// Attribute names that convolutions and norms read, for the `keys` of blocks that hold some.
extern const std::vector<std::string> kConvKeys, kNormKeys;

}  // namespace regolith
