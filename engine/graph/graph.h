// A network as a list of nodes in the order in which they run. Built from YAML, validated, inferred, fused; then
// planned and run. Every phase is a function that a test can call on a CPU.
#pragma once

#include <map>
#include <set>
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
  std::string name = {};  // in the model's `heads`; "": the output, which is the only one
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
  bool is_head(int i) const;  // a loss head or the output
  // The only node that reads i; -1 where there are several, or i is a head.
  int sole_reader(int i) const;
  // Takes node i away, which no node reads any more. Later nodes move up by one.
  void erase(int i);
  int64_t parameter_count() const;  // as Keras counts: running statistics included
  bool trains(int param) const { return params[param].spec.trainable && !frozen.contains(params[param].name); }
  // Whether the node has parameters to train, and all of them are frozen. A batch norm then runs as in inference, as
  // Keras has it: by its running statistics, which stand still.
  bool is_frozen(int node) const;

  std::vector<Node> nodes;
  std::vector<Parameter> params;  // in node order
  int input = -1;                 // the image
  int output = -1;                // logits
  std::vector<LossHead> heads;    // at least the output
  std::set<std::string> frozen;   // names of parameters that training leaves as they are
  int classes() const { return nodes[output].shape().C; }
};

}  // namespace regolith
