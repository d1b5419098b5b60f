#include "models/reader.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/ops/basic.h"
#include "engine/ops/registry.h"
#include "models/builder.h"

namespace regolith {
namespace {

// Names that `in:` can say in one list of nodes, and the nodes they stand for: one, or all that a sub-network's last
// input takes ("skips...").
using Scope = std::map<std::string, std::vector<int>>;
constexpr std::string_view kRest = "...";

std::vector<std::string> names_of(const Scope& scope) {
  std::vector<std::string> names;
  for (const auto& [name, id] : scope) names.push_back(name);
  return names;
}

const std::vector<int>& look_up(const Scope& scope, const Yaml& reference) {
  const std::string name = reference.as<std::string>();
  const auto it = scope.find(name);
  if (it == scope.end()) reference.fail("there is no node '" + name + "' here" + did_you_mean(name, names_of(scope)));
  return it->second;
}

int look_up_one(const Scope& scope, const Yaml& reference) {
  const std::vector<int>& nodes = look_up(scope, reference);
  if (nodes.size() != 1) reference.fail("stands for " + std::to_string(nodes.size()) + " nodes; expected one");
  return nodes[0];
}

std::vector<std::string> kinds(const auto& registry) {
  std::vector<std::string> names;
  for (const auto& e : registry) names.push_back(e.kind);
  return names;
}

struct Size {
  int height, width;
};

constexpr int kLargest = 1 << 14;  // of an input's height and width

Size input_size(const Yaml& model) {
  const Yaml input = model.at("input");
  return {static_cast<int>(input.at("height").as_int(1, kLargest)),
          static_cast<int>(input.at("width").as_int(1, kLargest))};
}

class Reader {
 public:
  // `size` instead of what the model says.
  Reader(const Yaml& model, Size size) : model_(model), size_(size) {}

  Graph read() {
    model_.expect_keys({"name", "input", "defaults", "nets", "nodes", "output", "heads"});
    const Yaml input = model_.at("input");
    input.expect_keys({"height", "width", "channels"});
    const Yaml channels = input.find("channels");
    Scope scope;
    const Builder root(graph_, "input", input.position().text());
    graph_.input = root.add("",
                            std::make_unique<InputOp>(size_.height, size_.width,
                                                      channels ? static_cast<int>(channels.as_int(1, kLargest)) : 1),
                            {});
    scope["input"] = {graph_.input};
    const int last = read_nodes(model_.at("nodes"), "", scope, {model_.find("defaults")}, nullptr, 0);
    graph_.output = model_.find("output") ? look_up_one(scope, model_.at("output")) : last;
    read_heads(scope);
    check_used();
    check_defaults(model_.find("defaults"));
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
      if (weight.is_off()) continue;
      const auto it = scope.find(name);
      if (it == scope.end())
        heads.fail_key(name, "there is no node of that name" + did_you_mean(name, names_of(scope)));
      const int node = it->second[0];  // of the model's own nodes: each stands for one
      const Shape &shape = graph_.nodes[node].shape(), &output = graph_.nodes[graph_.output].shape();
      if (shape != output)
        heads.fail_key(name, "is " + to_string(shape) + "; the output, with the same masks, is " + to_string(output));
      graph_.heads.push_back({node, static_cast<float>(weight.as_double(0, 1e6)), name});
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

  // A default that nothing takes is a mistake, not a wish.
  void check_defaults(const Yaml& defaults) const {
    if (!defaults) return;
    for (const auto& [name, value, position] : defaults.items()) {
      if (!taken_.contains(name))
        defaults.fail_key(name, "no node takes a key of that name" +
                                    did_you_mean(name, std::vector<std::string>(taken_.begin(), taken_.end())));
    }
  }

  // The node of the list that is read last. They are read in the order in which they stand, but for those that another
  // reads: they come before it. `NAME: null` takes a node of a file that this one extends away.
  int read_nodes(const Yaml& nodes, const std::string& path, Scope& scope, const std::vector<Yaml>& defaults,
                 const Attributes::Params* params, int depth) {
    std::vector<Yaml::Item> waiting = nodes.items();
    std::erase_if(waiting, [](const Yaml::Item& item) { return item.value.is_off(); });
    std::set<std::string> open;
    int last = -1;
    const std::function<void(std::string)> read = [&](const std::string& wanted) {
      const auto found = std::ranges::find(waiting, wanted, &Yaml::Item::key);
      if (found == waiting.end()) return;
      const auto [name, spec, position] = *found;
      waiting.erase(found);
      if (scope.contains(name)) nodes.fail_key(name, "there is a node of that name already");
      if (name.find_first_of("/.$") != std::string::npos)
        nodes.fail_key(name, "a node's name has no '/', '.' or '$': those make paths");
      open.insert(name);
      const Attributes a(spec, defaults, params);
      std::vector<int> inputs;
      const Yaml in = a.resolve(spec.at("in"));
      for (const Yaml& element : in.is_list() ? in.elements() : std::vector<Yaml>{in}) {
        const Yaml reference = a.resolve(element);
        const std::string text = reference.as<std::string>(), node = text.substr(0, text.find('.'));
        if (!scope.contains(node)) read(node);
        if (open.contains(node)) reference.fail("'" + node + "' reads this node: nodes cannot stand in a circle");
        const std::vector<int>& from = look_up(scope, reference);
        inputs.insert(inputs.end(), from.begin(), from.end());
      }
      last = read_node(name, position, path + name, a, inputs, scope, defaults, depth);
      scope[name] = {last};
      open.erase(name);
    };
    while (!waiting.empty()) read(waiting.front().key);
    if (last < 0) nodes.fail("expected at least one node");
    return last;
  }

  int read_node(const std::string& name, const Yaml::Position& position, const std::string& path, const Attributes& a,
                const std::vector<int>& inputs, Scope& scope, const std::vector<Yaml>& defaults, int depth) {
    const Yaml& spec = a.node();
    const std::vector<std::string> ways{"op", "block", "net"};
    const std::string way = spec.one_of(ways);
    if (way.empty()) spec.fail("expected one of op, block or net");
    for (const std::string& other : ways)
      if (const Yaml replaced = spec.find(other); other != way && replaced.exists())
        spec.fail_key(way, "excludes '" + other + "', which is set at " + replaced.position().text() +
                               "; a node of another kind needs another name, and `" + name + ": null` takes this away");
    const Yaml kind = spec.at(way);
    const std::string kind_name = kind.as<std::string>();
    const Builder b(graph_, path, position.text());
    // What the registry has of that kind, once the keys and the number of inputs are found to be right.
    const auto entry_of = [&](const auto& registry) -> const auto& {
      const auto* entry = find_entry(registry, kind_name);
      if (entry == nullptr)
        kind.fail("there is no " + way + " '" + kind_name + "'" + did_you_mean(kind_name, kinds(registry)));
      std::vector<std::string> keys;
      for (const AttributeKey& k : entry->keys) keys.push_back(k.name);
      taken_.insert(keys.begin(), keys.end());
      keys.insert(keys.end(), {way, "in"});
      spec.expect_keys(keys);
      const int n = static_cast<int>(inputs.size());
      if (n < entry->min_inputs || n > entry->max_inputs)
        spec.find("in").fail(entry->kind + " takes " + std::to_string(entry->min_inputs) +
                             (entry->max_inputs == entry->min_inputs ? "" : " or more") + " inputs, not " +
                             std::to_string(n));
      return *entry;
    };
    if (way == "op") return b.add("", entry_of(op_registry()).parse(a), inputs);
    if (way == "block") return entry_of(block_registry()).build(b, a, inputs);
    return read_net(name, path, a, kind, inputs, scope, defaults, depth);
  }

  // A sub-network used `repeat` times reads itself: as ITS/1, ITS/2, ... the first input of each is the one before.
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

    Attributes::Params params;
    std::vector<std::string> allowed{"net", "in", "repeat"};
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

    const Yaml given_repeat = a.node().find("repeat");
    const int64_t repeat = given_repeat ? a.resolve(given_repeat).as_int(1, 1024) : 1;
    std::vector<int> from = inputs;
    for (int64_t i = 1; i <= repeat; ++i) {
      Scope inner = bind_inputs(net, net_name, a, from);
      const Scope outer = inner;
      const std::string own = repeat == 1 ? path : path + "/" + std::to_string(i);
      const int last = read_nodes(net.at("nodes"), own + "/", inner, inner_defaults, &params, depth + 1);
      from[0] = net.find("output") ? look_up_one(inner, net.at("output")) : last;
      for (const auto& [inner_name, nodes] : inner)
        if (!outer.contains(inner_name)) scope[name + "." + inner_name] = nodes;
    }
    return from[0];
  }

  // The names of a sub-network's inputs, and what they stand for in one use. "rest..." takes any number, at least one.
  Scope bind_inputs(const Yaml& net, const std::string& net_name, const Attributes& a, const std::vector<int>& inputs) {
    Scope scope;
    const auto names = net.at("inputs").as<std::vector<std::string>>();
    const bool open = !names.empty() && names.back().ends_with(kRest);
    if (open ? inputs.size() < names.size() : inputs.size() != names.size())
      a.node().find("in").fail("sub-network " + net_name + " takes " + std::to_string(names.size()) +
                               (open ? " or more" : "") + " inputs, not " + std::to_string(inputs.size()));
    for (size_t i = 0; i < names.size(); ++i) {
      const bool rest = open && i + 1 == names.size();
      const std::string name = rest ? names[i].substr(0, names[i].size() - kRest.size()) : names[i];
      scope[name] = rest ? std::vector(inputs.begin() + static_cast<long>(i), inputs.end()) : std::vector{inputs[i]};
    }
    return scope;
  }

  const Yaml& model_;
  Size size_;
  Graph graph_;
  std::set<std::string> taken_;  // keys of the ops and blocks that the model uses: what `defaults` may name
};

constexpr int kFarthest = 512;  // that another length of the input is looked for

// One side of the input: which lengths near `given` fit, where that one does not; "" where it does.
std::string lengths_that_fit(const std::string& key, int given, const std::function<bool(int)>& fits) {
  if (fits(given)) return "";
  const auto next = [&](int from, int step) {
    for (int n = from + step; n >= 1 && n <= kLargest && std::abs(n - from) <= kFarthest; n += step)
      if (fits(n)) return n;
    return 0;
  };
  const int below = next(given, -1), above = next(given, 1), second = next(above, 1);
  if (above == 0 || second == 0) return "";
  const int period = second - above;
  return "; " + key + " must be " + (above % period == 0 ? "a multiple of " + std::to_string(period) + ": " : "") +
         (below > 0 ? std::to_string(below) + " or " : "") + std::to_string(above) + ", not " + std::to_string(given);
}

// What to say of a network that cannot be built: "; input.height must be a multiple of 8: 56 or 64, not 60", if it can
// be with a larger input; "" if that is not what is wrong.
std::string sizes_that_fit(const Yaml& model) {
  const Size given = input_size(model);
  const auto fits = [&](int height, int width) {
    try {
      Reader(model, {height, width}).read();
      return true;
    } catch (const GraphError&) {
      return false;
    }
  };
  for (int step = 2; step <= kFarthest; ++step) {
    const Size up{(given.height + step - 1) / step * step, (given.width + step - 1) / step * step};
    if (!fits(up.height, up.width)) continue;
    return lengths_that_fit("input.height", given.height, [&](int n) { return fits(n, up.width); }) +
           lengths_that_fit("input.width", given.width, [&](int n) { return fits(up.height, n); });
  }
  return "";
}

}  // namespace

Graph read_model(const Yaml& model) {
  try {
    return Reader(model, input_size(model)).read();
  } catch (const GraphError& e) {
    throw GraphError(e.what() + sizes_that_fit(model));
  }
}

std::string help_models() {
  std::string text;
  const auto key = [&](const std::string& name, const std::string& type, const std::string& doc) {
    text += "model." + name + ": " + type + "\n    " + doc + "\n";
  };
  const std::string size = "integer 1.." + std::to_string(kLargest);
  key("name", "text", "for people");
  key("input.height", size + " (required)", "pixels");
  key("input.width", size + " (required)", "pixels");
  key("input.channels", size + " = 1", "of the images");
  key("defaults", "map", "KEY: VALUE of every node whose op or block takes that key");
  key("nets.NAME", "map", "a sub-network: inputs, params, defaults, nodes, output");
  key("nodes.NAME", "map or off", "one of op, block and net, its inputs `in`, and the keys below; null: not there");
  key("output", "text", "node of the logits; the last one where it is not said");
  key("heads.NAME", "number 0..1000000", "weight of the loss at that node; the output alone where none is said");
  const auto list = [&](const std::string& way, const auto& registry) {
    for (const auto& e : registry) {
      const std::string name = "model.nodes.NAME{" + way + ": " + e.kind + "}";
      text += name + ": " + std::to_string(e.min_inputs) + (e.max_inputs > e.min_inputs ? " or more" : "") +
              (e.max_inputs == 1 ? " input" : " inputs") + "\n    " + e.summary + "\n";
      for (const AttributeKey& k : e.keys) text += name + "." + k.name + ": " + k.type + "\n    " + k.doc + "\n";
    }
  };
  list("block", block_registry());
  list("op", op_registry());
  return text;
}

}  // namespace regolith
