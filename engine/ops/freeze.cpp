#include "engine/ops/freeze.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/ops/conv.h"
#include "engine/ops/dropout.h"
#include "engine/ops/norm.h"

namespace regolith {
namespace {

class Freezer {
 public:
  Freezer(Graph& graph, Checkpoint& weights) : graph_(graph), weights_(weights) {}

  std::vector<std::string> run() {
    graph_.infer(1);
    std::set<std::string> gone = parameter_names();
    drop_heads();
    drop_unread();
    drop_dropout();
    fold_norms();
    graph_.infer(1);
    for (const std::string& kept : parameter_names()) gone.erase(kept);
    for (const std::string& name : gone) weights_.tensors.erase(name);
    return std::move(log_);
  }

 private:
  std::set<std::string> parameter_names() const {
    std::set<std::string> names;
    for (const Parameter& p : graph_.params) names.insert(p.name);
    return names;
  }

  void drop_heads() {
    for (const LossHead& head : graph_.heads)
      if (head.node != graph_.output) log_.push_back("loss head: " + graph_.nodes[head.node].name + " is none");
    graph_.heads = {{graph_.output, 1}};
  }

  void drop_unread() {
    for (int i = static_cast<int>(graph_.nodes.size()) - 1; i >= 0; --i) {
      if (i == graph_.output || i == graph_.input || !graph_.consumers()[i].empty()) continue;
      log_.push_back("unread: " + graph_.nodes[i].name + " is gone");
      graph_.erase(i);
    }
  }

  void drop_dropout() {
    for (int i = static_cast<int>(graph_.nodes.size()) - 1; i >= 0; --i) {
      if (dynamic_cast<DropoutOp*>(graph_.nodes[i].op.get()) == nullptr) continue;
      log_.push_back("dropout: " + graph_.nodes[i].name + " is gone");
      bypass(i);
    }
  }

  void fold_norms() {
    for (int i = static_cast<int>(graph_.nodes.size()) - 1; i >= 0; --i) {
      const auto* norm = dynamic_cast<BatchNormOp*>(graph_.nodes[i].op.get());
      if (norm == nullptr) continue;
      const int producer = graph_.nodes[i].inputs[0];
      auto* conv = dynamic_cast<ConvBase*>(graph_.nodes[producer].op.get());
      if (conv == nullptr || graph_.sole_reader(producer) != i) continue;
      log_.push_back("folded norm: " + graph_.nodes[producer].name + " takes " + graph_.nodes[i].name);
      fold(graph_.nodes[producer].name, *conv, graph_.nodes[i].name, norm->epsilon());
      bypass(i);
    }
  }

  // Whatever reads node i reads its input instead.
  void bypass(int i) {
    const int input = graph_.nodes[i].inputs[0];
    for (Node& n : graph_.nodes) std::replace(n.inputs.begin(), n.inputs.end(), i, input);
    if (graph_.output == i) graph_.output = graph_.heads[0].node = input;
    graph_.erase(i);
  }

  void fold(const std::string& name, ConvBase& conv, const std::string& norm, double epsilon) {
    const auto channels = static_cast<size_t>(conv.attributes().filters);
    const auto read = [&](const std::string& tensor) {
      weights_.tensor(tensor, DType::f32, std::vector{static_cast<int64_t>(channels)});
      return weights_.floats(tensor);
    };
    const std::vector<float> gamma = read(norm + "/gamma"), beta = read(norm + "/beta"),
                             mean = read(norm + "/running_mean"), variance = read(norm + "/running_variance");
    std::vector<float> bias = conv.attributes().bias ? read(name + "/bias") : std::vector<float>(channels);
    std::vector<double> scale(channels);
    for (size_t k = 0; k < channels; ++k) {
      scale[k] = gamma[k] / std::sqrt(variance[k] + epsilon);
      bias[k] = static_cast<float>((static_cast<double>(bias[k]) - mean[k]) * scale[k] + beta[k]);
    }
    const std::string kernel_name = name + "/kernel";
    const auto param = std::find_if(graph_.params.begin(), graph_.params.end(),
                                    [&](const Parameter& p) { return p.name == kernel_name; });
    weights_.tensor(kernel_name, DType::f32, param->spec.shape);
    std::vector<float> kernel = weights_.floats(kernel_name);
    // (K,R,S,C) of a convolution, (C,R,S,K) of a transposed one
    const size_t run = conv.filters_first() ? kernel.size() / channels : 1;
    for (size_t i = 0; i < kernel.size(); ++i) kernel[i] = static_cast<float>(kernel[i] * scale[i / run % channels]);
    weights_.set<float>(kernel_name, param->spec.shape, kernel);
    weights_.set<float>(name + "/bias", {static_cast<int64_t>(channels)}, bias);
    conv.attributes().bias = true;
  }

  Graph& graph_;
  Checkpoint& weights_;
  std::vector<std::string> log_;
};

}  // namespace

std::vector<std::string> freeze(Graph& graph, Checkpoint& weights) { return Freezer(graph, weights).run(); }

}  // namespace regolith
