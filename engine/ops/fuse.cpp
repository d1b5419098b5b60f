#include <algorithm>

#include "engine/graph/graph.h"
#include "engine/ops/aspp.h"
#include "engine/ops/conv.h"
#include "engine/ops/dropout.h"
#include "engine/ops/norm.h"
#include "engine/ops/resample.h"
#include "engine/ops/squeeze_excite.h"

namespace regolith {
namespace {

// A graph being rewritten: nodes that were merged away are skipped, and `stand_in` says who speaks for them.
class Fuser {
 public:
  Fuser(Graph& graph, const FuseOptions& options) : graph_(graph), options_(options) {}

  std::vector<std::string> run() {
    if (options_.cancelled_bias) drop_cancelled_biases();
    if (options_.norm_residual) each([&](int i) { return norm_residual(i); });
    if (options_.norm_activation) each([&](int i) { return norm_activation(i); });
    if (options_.conv_activation) each([&](int i) { return conv_activation(i); });
    if (!options_.padding_taps) keep_padding_taps();
    if (options_.squeeze_pool) each([&](int i) { return squeeze_pool(i); });
    if (options_.squeeze_dropout) each([&](int i) { return squeeze_dropout(i); });
    if (options_.squeeze_norm) squeezes_from_norms();
    return std::move(log_);
  }

 private:
  template <class F>
  void each(F&& rewrite) {
    for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i)
      if (rewrite(i)) i = -1;  // the numbers have changed
  }
  template <class T>
  T* op(int i) {
    return dynamic_cast<T*>(graph_.nodes[i].op.get());
  }
  bool is_head(int i) const {
    return i == graph_.output ||
           std::any_of(graph_.heads.begin(), graph_.heads.end(), [&](const LossHead& h) { return h.node == i; });
  }
  // The only node that reads i; -1 where there are several, or i is an output.
  int sole_reader(int i) const {
    if (is_head(i)) return -1;
    int reader = -1, count = 0;
    for (size_t c = 0; c < graph_.nodes.size(); ++c)
      for (int in : graph_.nodes[c].inputs)
        if (in == i) reader = static_cast<int>(c), ++count;
    return count == 1 ? reader : -1;
  }

  // Moves the op of node i to the place of `later`, whose only purpose was to finish i's work.
  void merge(int i, int later, std::vector<int> inputs, const std::string& rule) {
    Node& from = graph_.nodes[i];
    Node& to = graph_.nodes[later];
    log_.push_back(rule + ": " + from.name + " takes " + to.name);
    to.op = std::move(from.op);
    to.inputs = std::move(inputs);
    to.name = from.name;  // the parameters keep their names
    to.where = from.where;
    remove(i);
  }

  void remove(int i) {
    graph_.nodes.erase(graph_.nodes.begin() + i);
    const auto shift = [&](int& n) { n -= n > i; };
    for (Node& n : graph_.nodes)
      for (int& in : n.inputs) shift(in);
    shift(graph_.input);
    shift(graph_.output);
    for (LossHead& h : graph_.heads) shift(h.node);
  }

  // norm -> add: the norm adds the other input, if that is one add of two.
  bool norm_residual(int i) {
    auto* norm = op<NormOp>(i);
    if (norm == nullptr || norm->epilogue.residual || norm->epilogue.relu) return false;
    const int add = sole_reader(i);
    if (add < 0 || graph_.nodes[add].op->kind() != "add" || graph_.nodes[add].inputs.size() != 2) return false;
    const std::vector<int>& in = graph_.nodes[add].inputs;
    const int other = in[0] == i ? in[1] : in[0];
    norm->epilogue.residual = true;
    merge(i, add, {graph_.nodes[i].inputs[0], other}, "norm+residual");
    return true;
  }

  bool norm_activation(int i) {
    auto* norm = op<NormOp>(i);
    if (norm == nullptr || norm->epilogue.relu) return false;
    const int relu = sole_reader(i);
    if (relu < 0 || graph_.nodes[relu].op->kind() != "relu") return false;
    norm->epilogue.relu = true;
    merge(i, relu, graph_.nodes[i].inputs, "norm+relu");
    return true;
  }

  bool conv_activation(int i) {
    auto* conv = op<ConvOp>(i);
    if (conv == nullptr || conv->attributes().relu) return false;
    const int relu = sole_reader(i);
    if (relu < 0 || graph_.nodes[relu].op->kind() != "relu") return false;
    conv->attributes().relu = true;
    merge(i, relu, graph_.nodes[i].inputs, "conv+relu");
    return true;
  }

  bool squeeze_pool(int i) {
    auto* squeeze = op<SqueezeExciteOp>(i);
    if (squeeze == nullptr || squeeze->epilogue.pool || squeeze->epilogue.dropout()) return false;
    const int reader = sole_reader(i);
    const auto* pool = reader < 0 ? nullptr : op<MaxPoolOp>(reader);
    if (pool == nullptr || !pool->halves()) return false;
    squeeze->epilogue.pool = true;
    merge(i, reader, graph_.nodes[i].inputs, "squeeze+pool");
    return true;
  }

  bool squeeze_dropout(int i) {
    auto* squeeze = op<SqueezeExciteOp>(i);
    if (squeeze == nullptr || squeeze->epilogue.pool || squeeze->epilogue.dropout()) return false;
    const int reader = sole_reader(i);
    const auto* dropout = reader < 0 ? nullptr : op<DropoutOp>(reader);
    if (dropout == nullptr || dropout->rate() == 0) return false;
    squeeze->epilogue.rate = dropout->rate();
    squeeze->epilogue.spatial = dropout->spatial();
    squeeze->epilogue.dropout_name = graph_.nodes[reader].name;  // its random numbers, fused or not
    merge(i, reader, graph_.nodes[i].inputs, "squeeze+dropout");
    return true;
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

  // A batch norm subtracts the mean, and with it any bias before it: that bias has a gradient of exactly zero.
  void drop_cancelled_biases() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      auto* conv = op<ConvOp>(static_cast<int>(i));
      const int reader = conv == nullptr ? -1 : sole_reader(static_cast<int>(i));
      if (reader >= 0 && op<BatchNormOp>(reader) != nullptr) conv->attributes().bias_cancels = true;
    }
  }

  // ASPP leaves them out by itself, once it knows the map's size.
  void keep_padding_taps() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i)
      if (auto* aspp = op<AsppOp>(static_cast<int>(i))) aspp->attributes().prune = false;
  }

  Graph& graph_;
  const FuseOptions& options_;
  std::vector<std::string> log_;
};

}  // namespace

std::vector<std::string> fuse(Graph& graph, const FuseOptions& options) { return Fuser(graph, options).run(); }

}  // namespace regolith
