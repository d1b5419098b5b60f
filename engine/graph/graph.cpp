#include "engine/graph/graph.h"

#include <algorithm>

#include "engine/base/error.h"

namespace regolith {

Graph& Graph::operator=(const Graph& other) {
  if (this == &other) return *this;
  nodes.clear();
  for (const Node& n : other.nodes) nodes.push_back({n.name, n.where, n.op->clone(), n.inputs, n.inferred, n.params});
  params = other.params;
  input = other.input;
  output = other.output;
  heads = other.heads;
  frozen = other.frozen;
  return *this;
}

int Graph::add(std::string name, std::unique_ptr<Op> op, std::vector<int> inputs, std::string where) {
  const std::string at = where.empty() ? "" : where + ": ";
  if (find(name) >= 0) throw GraphError(at + "node " + name + ": there is a node of that name already");
  for (int i : inputs) {
    if (i < 0 || i >= static_cast<int>(nodes.size()))
      throw GraphError(at + "node " + name + ": an input that comes before it is missing");
  }
  nodes.push_back({std::move(name), std::move(where), std::move(op), std::move(inputs), {}, {}});
  return static_cast<int>(nodes.size()) - 1;
}

int Graph::find(const std::string& name) const {
  for (size_t i = 0; i < nodes.size(); ++i)
    if (nodes[i].name == name) return static_cast<int>(i);
  return -1;
}

void Graph::infer(int N) {
  params.clear();
  for (size_t i = 0; i < nodes.size(); ++i) infer_node(static_cast<int>(i), N);
}

void Graph::infer_node(int i, int N) {
  Node& node = nodes[i];
  std::vector<Shape> shapes;
  for (int in : node.inputs) shapes.push_back(nodes[in].shape());
  if (node.inputs.empty()) shapes = {{N, 0, 0, 0}};  // the batch is what an input node needs to know
  try {
    node.inferred = node.op->infer(shapes);
  } catch (const GraphError& e) {
    const std::string at = node.where.empty() ? "" : node.where + ": ";
    throw GraphError(at + "node " + node.name + " (" + std::string(node.op->kind()) + "): " + e.what());
  }
  node.inferred.saves_input.resize(node.inputs.size(), false);
  node.params.clear();
  for (const ParamSpec& p : node.inferred.params) {
    node.params.push_back(static_cast<int>(params.size()));
    params.push_back({node.name + "/" + p.name, p});
  }
}

std::vector<std::vector<int>> Graph::consumers() const {
  std::vector<std::vector<int>> result(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i)
    for (int in : nodes[i].inputs) result[in].push_back(static_cast<int>(i));
  return result;
}

bool Graph::is_head(int i) const {
  return i == output || std::any_of(heads.begin(), heads.end(), [&](const LossHead& h) { return h.node == i; });
}

int Graph::sole_reader(int i) const {
  if (is_head(i)) return -1;
  const std::vector<int> readers = consumers()[i];
  return readers.size() == 1 ? readers[0] : -1;
}

void Graph::erase(int i) {
  nodes.erase(nodes.begin() + i);
  const auto shift = [&](int& n) { n -= n > i; };
  for (Node& n : nodes)
    for (int& in : n.inputs) shift(in);
  shift(input);
  shift(output);
  for (LossHead& h : heads) shift(h.node);
}

int64_t Graph::parameter_count() const {
  int64_t n = 0;
  for (const Parameter& p : params) n += p.spec.elements();
  return n;
}

bool Graph::is_frozen(int node) const {
  const std::vector<int>& own = nodes[node].params;
  return std::any_of(own.begin(), own.end(), [&](int p) { return params[p].spec.trainable; }) &&
         std::none_of(own.begin(), own.end(), [&](int p) { return trains(p); });
}

}  // namespace regolith
