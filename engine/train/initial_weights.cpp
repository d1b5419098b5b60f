#include "engine/train/initial_weights.h"

#include <fnmatch.h>

#include <algorithm>
#include <utility>

#include "engine/base/text.h"
#include "engine/train/weights.h"

namespace regolith {
namespace {

constexpr size_t kFewNames = 6;  // so many are listed as they are

// Patterns that would name something, for a pattern that names nothing.
std::vector<std::string> possible_patterns(const Graph& graph) {
  std::set<std::string> patterns;
  for (size_t p = 0; p < graph.params.size(); ++p) {
    const std::string& name = graph.params[p].name;
    if (!graph.params[p].spec.trainable) continue;
    patterns.insert({name, "*" + name.substr(name.rfind('/'))});
    for (size_t at = name.find('/'); at != name.npos; at = name.find('/', at + 1))
      patterns.insert(name.substr(0, at) + "/*");
  }
  return {patterns.begin(), patterns.end()};
}

}  // namespace

std::set<std::string> frozen_parameters(const Graph& graph, const std::vector<std::string>& patterns) {
  std::set<std::string> frozen;
  size_t trainable = 0;
  for (const Parameter& p : graph.params) trainable += p.spec.trainable;
  for (size_t i = 0; i < patterns.size(); ++i) {
    const std::string key = "init.freeze." + std::to_string(i);
    bool any = false, statistics = false;
    for (const Parameter& p : graph.params) {
      if (fnmatch(patterns[i].c_str(), p.name.c_str(), 0) != 0) continue;
      (p.spec.trainable ? any : statistics) = true;
      if (p.spec.trainable) frozen.insert(p.name);
    }
    if (!any)
      throw OptionError(
          "train", key,
          "'" + patterns[i] + "' names " +
              (statistics ? "running statistics alone; they stand still where gamma and beta of their "
                            "norm are frozen"
                          : "no parameter of this model" + did_you_mean(patterns[i], possible_patterns(graph)) +
                                " (e1/* names all of node e1, */bias every bias)"));
    if (frozen.size() == trainable)
      throw OptionError("train", key, "'" + patterns[i] + "' leaves nothing to train; leave a pattern out");
  }
  return frozen;
}

std::vector<float> with_channels(const std::vector<float>& kernel, int64_t before, int64_t channels) {
  std::vector<float> fitted;
  fitted.reserve(kernel.size() / before * channels);
  for (auto tap = kernel.begin(); tap != kernel.end(); tap += before) {  // of one filter: (before)
    double sum = 0;
    for (int64_t c = 0; c < before; ++c) sum += tap[c];
    fitted.insert(fitted.end(), channels, static_cast<float>(sum / static_cast<double>(channels)));
  }
  return fitted;
}

std::string listed(const std::string& what, const std::vector<std::string>& names) {
  if (names.empty()) return "";
  std::string text = "  " + what + ": ";
  if (names.size() <= kFewNames) return text + join(names) + "\n";
  std::vector<std::pair<std::string, int>> groups;  // in the order of the names
  for (const std::string& name : names) {
    const std::string group = name.substr(0, name.find('/'));
    const auto at = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == group; });
    ++(at == groups.end() ? groups.emplace_back(group, 0) : *at).second;
  }
  std::vector<std::string> counts;
  for (const auto& [group, count] : groups) counts.push_back(group + " " + std::to_string(count));
  return text + std::to_string(names.size()) + " (" + join(counts) + ")\n";
}

InitialWeights::InitialWeights(Network& network, Checkpoint checkpoint, InitSpec::Match match)
    : checkpoint_(std::move(checkpoint)) {
  const Graph& graph = network.graph();
  std::set<std::string> of_image;  // kernels that read it
  for (const Node& node : graph.nodes)
    if (node.op->kind() == "conv" && node.inputs[0] == graph.input) of_image.insert(node.name + "/kernel");
  std::vector<std::string> known;
  for (const Parameters::Entry& e : network.parameters().entries()) {
    compare(e, of_image.contains(e.name));
    known.push_back(e.name);
  }
  for (const auto& [name, tensor] : checkpoint_.tensors)
    if (!is_moment(name) && std::find(known.begin(), known.end(), name) == known.end()) left_.push_back(name);
  std::vector<std::string> others;  // what strict does not take
  size_t anew = 0;
  for (const Item& item : items_) {
    if (item.origin == Origin::taken) continue;
    others.push_back(item.name + (item.origin == Origin::missing ? ": not there" : ": " + item.shapes));
    anew += item.origin != Origin::adapted;
  }
  for (const std::string& name : left_) others.push_back(name + ": not of this network" + did_you_mean(name, known));
  if (anew == items_.size())
    throw CheckpointError(checkpoint_.origin + ": none of this network's " + std::to_string(anew) +
                          " parameters is there in its shape, so it would begin anew; first " + others[0]);
  if (match == InitSpec::Match::strict && !others.empty())
    throw CheckpointError(checkpoint_.origin + ": is of another network: " + std::to_string(others.size()) +
                          " differences, first " + others[0] +
                          "; train.init.match=shape takes those that fit and makes the rest anew");
}

void InitialWeights::compare(const Parameters::Entry& e, bool reads_image) {
  const auto found = checkpoint_.tensors.find(e.name);
  if (found == checkpoint_.tensors.end()) {
    items_.push_back({e.name, Origin::missing});
    return;
  }
  const std::vector<int64_t>& shape = found->second.shape;
  checkpoint_.tensor(e.name, DType::f32, shape);  // throws for another type
  const bool fits = shape.size() == 4 && std::equal(shape.begin(), shape.begin() + 3, e.shape.begin()) && shape[3] > 0;
  if (shape == e.shape)
    items_.push_back({e.name, Origin::taken});
  else if (reads_image && fits)
    items_.push_back(
        {e.name, Origin::adapted, std::to_string(shape[3]) + " -> " + std::to_string(e.shape[3]) + " channels"});
  else
    items_.push_back({e.name, Origin::other_shape, shape_text(shape) + " there, " + shape_text(e.shape) + " here"});
}

void InitialWeights::apply(Network& network, DeviceStream& stream) const {
  for (size_t i = 0; i < items_.size(); ++i) {
    if (items_[i].origin != Origin::taken && items_[i].origin != Origin::adapted) continue;
    std::vector<float> values = checkpoint_.floats(items_[i].name);
    if (items_[i].origin == Origin::adapted)
      values = with_channels(values, checkpoint_.tensor(items_[i].name).shape[3],
                             network.parameters().entries()[i].shape[3]);
    network.parameters().write(static_cast<int>(i), ParamField::weight, values, stream);
  }
  network.parameters().refresh_compute_copy(stream);
}

std::vector<std::string> InitialWeights::names(Origin origin) const {
  std::vector<std::string> names;
  for (const Item& item : items_)
    if (item.origin == origin) names.push_back(item.name + (item.shapes.empty() ? "" : " (" + item.shapes + ")"));
  return names;
}

std::string InitialWeights::summary() const {
  std::string text = "weights from " + checkpoint_.origin + "\n";
  for (const auto& [origin, what] : kOrigins) text += listed(what, names(origin));
  return text + listed("left in the file", left_);
}

std::string InitialWeights::list() const {
  std::string text = "# weights from " + checkpoint_.origin + "\n";
  for (const auto& [origin, what] : kOrigins)
    for (const std::string& name : names(origin)) text += std::string(what) + ": " + name + "\n";
  for (const std::string& name : left_) text += "left in the file: " + name + "\n";
  return text;
}

}  // namespace regolith
