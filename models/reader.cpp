#include "models/reader.h"

#include <algorithm>
#include <map>

#include "engine/graph/registry.h"
#include "engine/ops/basic.h"
#include "kernels/core/error.h"
#include "models/builder.h"

namespace regolith {
namespace {

// Names that `in:` can say in one list of nodes, and the nodes they stand for.
using Scope = std::map<std::string, int>;

std::vector<std::string> names_of(const Scope& scope) {
  std::vector<std::string> names;
  for (const auto& [name, id] : scope) names.push_back(name);
  return names;
}

int look_up(const Scope& scope, const Yaml& reference) {
  const std::string name = reference.as<std::string>();
  const auto it = scope.find(name);
  if (it == scope.end())
    reference.fail("there is no node '" + name + "' before this one" + did_you_mean(name, names_of(scope)));
  return it->second;
}

std::vector<std::string> kinds(const auto& registry) {
  std::vector<std::string> names;
  for (const auto& e : registry) names.push_back(e.kind);
  return names;
}

class Reader {
 public:
  explicit Reader(const Yaml& model) : model_(model) {}

  Graph read() {
    model_.expect_keys({"name", "input", "defaults", "nets", "nodes", "output", "heads"});
    const Yaml input = model_.at("input");
    input.expect_keys({"height", "width", "channels"});
    const auto size = [&](const char* key, int fallback) {
      const Yaml v = input.find(key);
      return v || fallback == 0 ? static_cast<int>(input.at(key).as_int(1, 1 << 14)) : fallback;
    };
    Scope scope;
    const Builder root(graph_, "input", input.position().text());
    scope["input"] =
        root.add("", std::make_unique<InputOp>(size("height", 0), size("width", 0), size("channels", 1)), {});
    graph_.input = scope["input"];
    const int last = read_nodes(model_.at("nodes"), "", scope, {model_.find("defaults")}, nullptr, 0);
    graph_.output = model_.find("output") ? look_up(scope, model_.at("output")) : last;
    read_heads(scope);
    check_used();
    return std::move(graph_);
  }

 private:
  void read_heads(const Scope& scope) {
    const Yaml heads = model_.find("heads");
    if (!heads) {
      graph_.heads = {{graph_.output, 1.0f}};
      return;
    }
    for (const auto& [name, weight, position] : heads.items()) {
      const auto it = scope.find(name);
      if (it == scope.end())
        heads.fail_key(name, "there is no node of that name" + did_you_mean(name, names_of(scope)));
      if (graph_.nodes[it->second].shape().C != graph_.classes())
        heads.fail_key(name, "has " + std::to_string(graph_.nodes[it->second].shape().C) +
                                 " channels; the output has " + std::to_string(graph_.classes()));
      graph_.heads.push_back({it->second, static_cast<float>(weight.as_double(0))});
    }
  }

  void check_used() const {
    std::vector<bool> used(graph_.nodes.size());
    used[graph_.output] = true;
    for (const LossHead& h : graph_.heads) used[h.node] = true;
    for (int i = static_cast<int>(used.size()) - 1; i >= 0; --i) {
      if (!used[i])
        throw GraphError(graph_.nodes[i].where + ": node " + graph_.nodes[i].name +
                         ": nothing reads it; name it as `output` or in `heads`, or remove it");
      for (int in : graph_.nodes[i].inputs) used[in] = true;
    }
  }

  // The last node of the list.
  int read_nodes(const Yaml& nodes, const std::string& path, Scope& scope, const std::vector<Yaml>& defaults,
                 const Attributes::Params* params, int depth) {
    int last = -1;
    for (const auto& [name, spec, position] : nodes.items()) {
      if (scope.contains(name)) nodes.fail_key(name, "there is a node of that name already");
      if (name.find_first_of("/.$") != std::string::npos)
        nodes.fail_key(name, "a node's name has no '/', '.' or '$': those make paths");
      const Attributes a(spec, defaults, params);
      const std::vector<int> inputs = read_inputs(a, scope);
      last = read_node(name, position, path + name, a, inputs, scope, defaults, depth);
      scope[name] = last;
    }
    if (last < 0) nodes.fail("expected at least one node");
    return last;
  }

  std::vector<int> read_inputs(const Attributes& a, const Scope& scope) {
    std::vector<int> inputs;
    const Yaml in = a.resolve(a.node().at("in"));
    if (in.is_list()) {
      for (const Yaml& e : in.elements()) inputs.push_back(look_up(scope, a.resolve(e)));
    } else {
      inputs.push_back(look_up(scope, in));
    }
    return inputs;
  }

  int read_node(const std::string& name, const Yaml::Position& position, const std::string& path, const Attributes& a,
                const std::vector<int>& inputs, Scope& scope, const std::vector<Yaml>& defaults, int depth) {
    const Yaml& spec = a.node();
    const std::vector<std::string> ways{"op", "block", "net"};
    const std::string way = spec.one_of(ways);
    if (way.empty()) spec.fail("expected one of op, block or net");
    const Yaml kind = spec.at(way);
    const std::string kind_name = kind.as<std::string>();
    const Builder b(graph_, path, position.text());
    const auto check = [&](const auto& entry) {
      std::vector<std::string> keys = entry.keys;
      keys.insert(keys.end(), {way, "in"});
      spec.expect_keys(keys);
      const int n = static_cast<int>(inputs.size());
      if (n < entry.min_inputs || n > entry.max_inputs)
        spec.find("in").fail(entry.kind + " takes " + std::to_string(entry.min_inputs) +
                             (entry.max_inputs == entry.min_inputs ? "" : " or more") + " inputs, not " +
                             std::to_string(n));
    };
    if (way == "op") {
      const OpEntry* entry = find_op(kind_name);
      if (entry == nullptr)
        kind.fail("there is no op '" + kind_name + "'" + did_you_mean(kind_name, kinds(op_registry())));
      check(*entry);
      return b.add("", entry->parse(a), inputs);
    }
    if (way == "block") {
      const BlockEntry* entry = find_block(kind_name);
      if (entry == nullptr)
        kind.fail("there is no block '" + kind_name + "'" + did_you_mean(kind_name, kinds(block_registry())));
      check(*entry);
      return entry->build(b, a, inputs);
    }
    return read_net(name, path, a, kind, inputs, scope, defaults, depth);
  }

  int read_net(const std::string& name, const std::string& path, const Attributes& a, const Yaml& kind,
               const std::vector<int>& inputs, Scope& scope, const std::vector<Yaml>& defaults, int depth) {
    if (depth > 16) kind.fail("sub-networks are nested more than 16 deep: does one use itself?");
    const std::string net_name = kind.as<std::string>();
    const Yaml nets = model_.find("nets");
    std::vector<std::string> known;
    if (nets)
      for (const auto& item : nets.items()) known.push_back(item.key);
    const Yaml net = nets ? nets.find(net_name) : Yaml{};
    if (!net) kind.fail("there is no sub-network '" + net_name + "'" + did_you_mean(net_name, known));
    net.expect_keys({"inputs", "params", "defaults", "nodes", "output"});

    Scope inner;
    const auto input_names = net.at("inputs").as<std::vector<std::string>>();
    if (input_names.size() != inputs.size())
      a.node().find("in").fail("sub-network " + net_name + " takes " + std::to_string(input_names.size()) +
                               " inputs, not " + std::to_string(inputs.size()));
    for (size_t i = 0; i < inputs.size(); ++i) inner[input_names[i]] = inputs[i];

    Attributes::Params params;
    std::vector<std::string> allowed{"net", "in"};
    if (const Yaml declared = net.find("params")) {
      for (const auto& item : declared.items()) {
        const Yaml given = a.node().find(item.key);
        params[item.key] = given ? a.resolve(given) : item.value;
        if (!params[item.key]) a.node().at(item.key);  // `name: null` declares a parameter without a default
        allowed.push_back(item.key);
      }
    }
    a.node().expect_keys(allowed);
    std::vector<Yaml> inner_defaults{net.find("defaults")};
    inner_defaults.insert(inner_defaults.end(), defaults.begin(), defaults.end());
    const int last = read_nodes(net.at("nodes"), path + "/", inner, inner_defaults, &params, depth + 1);
    for (const auto& [inner_name, id] : inner) {
      if (std::find(input_names.begin(), input_names.end(), inner_name) == input_names.end())
        scope[name + "." + inner_name] = id;
    }
    return net.find("output") ? look_up(inner, net.at("output")) : last;
  }

  const Yaml& model_;
  Graph graph_;
};

}  // namespace

Graph read_model(const Yaml& model) { return Reader(model).read(); }

std::string help_models() {
  std::string text;
  const auto list = [&](const char* title, const auto& registry) {
    text += std::string(title) + "\n";
    for (const auto& e : registry) {
      text += "  " + e.kind + std::string(e.kind.size() < 18 ? 18 - e.kind.size() : 1, ' ') + e.summary + "\n";
      std::string names;
      for (const auto& k : e.keys) names += (names.empty() ? "" : ", ") + k;
      if (!names.empty()) text += std::string(20, ' ') + "keys: " + names + "\n";
    }
  };
  list("Blocks (model.nodes.NAME.block)", block_registry());
  list("Operations (model.nodes.NAME.op)", op_registry());
  return text;
}

}  // namespace regolith
