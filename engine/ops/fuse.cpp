#include "engine/ops/fuse.h"

#include <algorithm>

#include "engine/ops/aspp.h"
#include "engine/ops/conv.h"
#include "engine/ops/dropout.h"
#include "engine/ops/norm.h"
#include "engine/ops/resample.h"
#include "engine/ops/squeeze_excite.h"

namespace regolith {
namespace {

class Fuser {
 public:
  Fuser(Graph& graph, const FuseOptions& options, bool inference)
      : graph_(graph), options_(options), inference_(inference) {}

  std::vector<std::string> run() {
    if (options_.has("cancelled bias")) drop_cancelled_biases();
    merge_all("norm+residual", [&](int i) { return norm_residual(i); });
    merge_all("norm+relu", [&](int i) { return norm_activation(i); });
    merge_all("norm+dropout", [&](int i) {
      auto* norm = op<NormOp>(i);
      return norm == nullptr ? -1 : take_dropout(i, norm->epilogue.dropout);
    });
    if (inference_) merge_all("conv+residual", [&](int i) { return conv_residual(i); });
    merge_all("conv+relu", [&](int i) { return conv_activation(i); });
    if (!options_.has("padding taps")) keep_padding_taps();
    merge_all("squeeze+pool", [&](int i) { return squeeze_pool(i); });
    merge_all("squeeze+dropout", [&](int i) {
      auto* squeeze = plain_squeeze(i);
      return squeeze == nullptr ? -1 : take_dropout(i, squeeze->epilogue.dropout);
    });
    if (options_.has("squeeze from norm")) squeezes_from_norms();
    if (inference_ && options_.has("norm from conv")) norms_from_convs();
    return std::move(log_);
  }

 private:
  // `merged_into(i)`: the node that node i's op was changed to do the work of; -1 where the rule does not apply.
  template <class F>
  void merge_all(const std::string& rule, F&& merged_into) {
    if (!options_.has(rule)) return;
    for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
      const int later = merged_into(i);
      if (later < 0) continue;
      merge(i, later, rule);
      i = -1;  // the numbers have changed
    }
  }
  template <class T>
  T* op(int i) {
    return dynamic_cast<T*>(graph_.nodes[i].op.get());
  }
  // Moves the op of node i to the place of `later`, with i's input and what else `later` read.
  void merge(int i, int later, const std::string& rule) {
    Node& from = graph_.nodes[i];
    Node& to = graph_.nodes[later];
    log_.push_back(rule + ": " + from.name + " takes " + to.name);
    to.op = std::move(from.op);
    std::erase(to.inputs, i);
    to.inputs.insert(to.inputs.begin(), from.inputs.begin(), from.inputs.end());
    to.name = from.name;  // the parameters keep their names
    to.where = from.where;
    graph_.erase(i);
  }

  // The node that reads i alone, where it is a ReLU.
  int sole_relu(int i) const {
    const int reader = graph_.sole_reader(i);
    return reader >= 0 && graph_.nodes[reader].op->is_relu() ? reader : -1;
  }

  // The node that reads i alone, where it is dropout, which `epilogue` then does.
  int take_dropout(int i, DropoutEpilogue& epilogue) {
    const int reader = epilogue ? -1 : graph_.sole_reader(i);
    const auto* dropout = reader < 0 ? nullptr : op<DropoutOp>(reader);
    if (dropout == nullptr || dropout->rate() == 0) return -1;
    epilogue = {dropout->rate(), dropout->spatial(), graph_.nodes[reader].name};  // its random numbers, fused or not
    return reader;
  }

  // norm -> add: the norm adds the other input, if that is one add of two.
  int norm_residual(int i) {
    auto* norm = op<NormOp>(i);
    if (norm == nullptr || norm->epilogue.residual || norm->epilogue.relu) return -1;
    const int add = graph_.sole_reader(i);
    if (add < 0 || !graph_.nodes[add].op->is_sum() || graph_.nodes[add].inputs.size() != 2) return -1;
    norm->epilogue.residual = true;
    return add;
  }

  int norm_activation(int i) {
    auto* norm = op<NormOp>(i);
    const int relu = norm == nullptr || norm->epilogue.relu ? -1 : sole_relu(i);
    if (relu >= 0) norm->epilogue.relu = true;
    return relu;
  }

  // Of two convolutions that are added, that of the larger kernel takes the other.
  int conv_residual(int i) {
    auto* conv = op<ConvOp>(i);
    const int add =
        conv == nullptr || conv->attributes().relu || conv->attributes().residual ? -1 : graph_.sole_reader(i);
    if (add < 0 || !graph_.nodes[add].op->is_sum() || graph_.nodes[add].inputs.size() != 2) return -1;
    const auto& inputs = graph_.nodes[add].inputs;
    const int other = inputs[0] == i ? inputs[1] : inputs[0];
    auto* other_conv = graph_.sole_reader(other) == add ? op<ConvOp>(other) : nullptr;
    if (other_conv != nullptr && other_conv->attributes().kernel > conv->attributes().kernel) return -1;
    conv->attributes().residual = true;
    return add;
  }

  int conv_activation(int i) {
    auto* conv = op<ConvOp>(i);
    const int relu = conv == nullptr || conv->attributes().relu ? -1 : sole_relu(i);
    if (relu >= 0) conv->attributes().relu = true;
    return relu;
  }

  // The squeeze of node i where it has no epilogue yet.
  SqueezeExciteOp* plain_squeeze(int i) {
    auto* squeeze = op<SqueezeExciteOp>(i);
    return squeeze == nullptr || squeeze->epilogue.pool || squeeze->epilogue.dropout ? nullptr : squeeze;
  }

  int squeeze_pool(int i) {
    auto* squeeze = plain_squeeze(i);
    const int reader = squeeze == nullptr ? -1 : graph_.sole_reader(i);
    const auto* pool = reader < 0 ? nullptr : op<MaxPoolOp>(reader);
    if (pool == nullptr || !pool->halves()) return -1;
    squeeze->epilogue.pool = true;
    return reader;
  }

  void squeezes_from_norms() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      auto* squeeze = op<SqueezeExciteOp>(static_cast<int>(i));
      auto* norm = squeeze == nullptr ? nullptr : op<GroupNormOp>(graph_.nodes[i].inputs[0]);
      if (norm == nullptr) continue;
      norm->emits_statistics = squeeze->reads_statistics = true;
      log_.push_back("squeeze from norm: " + graph_.nodes[i].name + " takes the sums of " +
                     graph_.nodes[graph_.nodes[i].inputs[0]].name);
    }
  }

  void norms_from_convs() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      auto* norm = op<GroupNormOp>(static_cast<int>(i));
      auto* conv = norm == nullptr ? nullptr : op<ConvOp>(graph_.nodes[i].inputs[0]);
      if (conv == nullptr) continue;
      norm->takes_sums = conv->attributes().emits_sums = true;
      log_.push_back("norm from conv: " + graph_.nodes[i].name + " takes the sums of " +
                     graph_.nodes[graph_.nodes[i].inputs[0]].name);
    }
  }

  // A batch norm subtracts the mean, and with it any bias before it: that bias has a gradient of exactly zero.
  // A frozen one subtracts its running mean.
  void drop_cancelled_biases() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      auto* conv = op<ConvOp>(static_cast<int>(i));
      const int reader = conv == nullptr ? -1 : graph_.sole_reader(static_cast<int>(i));
      if (reader >= 0 && op<BatchNormOp>(reader) != nullptr && !graph_.is_frozen(reader))
        conv->attributes().bias_cancels = true;
    }
  }

  // ASPP leaves them out by itself, once it knows the map's size.
  void keep_padding_taps() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i)
      if (auto* aspp = op<AsppOp>(static_cast<int>(i))) aspp->attributes().prune = false;
  }

  Graph& graph_;
  const FuseOptions& options_;
  bool inference_;
  std::vector<std::string> log_;
};

}  // namespace

std::vector<std::string> fuse(Graph& graph, const FuseOptions& options, bool inference) {
  return Fuser(graph, options, inference).run();
}

}  // namespace regolith
