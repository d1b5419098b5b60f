// A network as a list of nodes in the order in which they run. Built from YAML, validated, inferred, fused; then
// planned and run. Every phase is a function that a test can call on a CPU.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/graph/op.h"

namespace regolith {

struct Node {
  std::string name;   // path of the YAML: "e1/1/conv"
  std::string where;  // file:line:column of the YAML that asked for it
  std::unique_ptr<Op> op;
  std::vector<int> inputs;  // nodes before this one
  Inference inferred;
  std::vector<int> params;  // of Graph::params

  const Shape& shape() const { return inferred.shape; }
};

struct Parameter {
  std::string name;  // "e1/1/conv/kernel"
  ParamSpec spec;
};

// A node whose value is compared with the masks.
struct LossHead {
  int node = -1;
  float weight = 1;
};

class Graph {
 public:
  Graph() = default;
  Graph(const Graph& other) { *this = other; }
  Graph& operator=(const Graph& other);
  Graph(Graph&&) = default;
  Graph& operator=(Graph&&) = default;

  // The node's number. Throws GraphError for a name taken or an input that does not exist.
  int add(std::string name, std::unique_ptr<Op> op, std::vector<int> inputs, std::string where = "");
  int find(const std::string& name) const;  // -1: no such node

  // Fills in shapes and parameters, for a batch of N. Throws GraphError naming the node and its place in the YAML.
  void infer(int N);
  void infer_node(int i, int N);  // the same for the last node added

  std::vector<std::vector<int>> consumers() const;
  int64_t parameter_count() const;  // as Keras counts: running statistics included

  std::vector<Node> nodes;
  std::vector<Parameter> params;  // in node order
  int input = -1;                 // the image
  int output = -1;                // logits
  std::vector<LossHead> heads;    // at least the output
  int classes() const { return nodes[output].shape().C; }
};

// Rewrites the graph so that fewer passes over memory do the same. Each rewrite has a name and can be switched off.
struct FuseOptions {
  bool norm_activation = true;  // norm, then ReLU: one pass
  bool norm_residual = true;    // norm, then the add of a residual (then ReLU): one pass
  bool conv_activation = true;  // convolution with bias, then ReLU: the convolution's epilogue
  bool cancelled_bias = true;   // a bias before a batch norm: its gradient is zero, and not computed
  bool padding_taps = true;     // taps of ASPP that see only padding: not multiplied
  bool squeeze_norm = true;     // squeeze of a group norm's output: the norm sums it up in its own pass
  bool squeeze_pool = true;     // squeeze and excitation, then max pooling of 2x2: pooled as it is scaled
  bool squeeze_dropout = true;  // squeeze and excitation, then dropout: dropped as it is scaled
  static FuseOptions none() { return {false, false, false, false, false, false, false, false}; }
};
// One line per rewrite: "norm+relu: e1/1/norm takes e1/1/relu".
std::vector<std::string> fuse(Graph& graph, const FuseOptions& options);

}  // namespace regolith
