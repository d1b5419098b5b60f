#include "engine/graph/plan.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "engine/base/text.h"

namespace regolith {
namespace {

class Planner {
 public:
  Planner(const Graph& graph, const PlanOptions& options, DType type)
      : graph_(graph),
        options_(options),
        type_(type),
        n_(static_cast<int>(graph.nodes.size())),
        consumers_(graph.consumers()) {
    plan_.nodes.resize(n_);
    for (const LossHead& h : graph.heads) head_.push_back(h.node);
  }

  Plan run() {
    if (options_.training) decide_backward();
    place_values();
    if (options_.training) place_gradients();
    place_private_memory();
    plan_.bytes = assign_offsets(plan_.buffers, options_.reuse);
    for (const PlanBuffer& b : plan_.buffers) plan_.no_reuse += aligned(b.bytes);
    return std::move(plan_);
  }

 private:
  int backward_step(int i) const { return 2 * n_ - i; }
  const Node& node(int i) const { return graph_.nodes[i]; }
  bool is_head(int i) const { return std::find(head_.begin(), head_.end(), i) != head_.end(); }

  int new_buffer(std::string name, size_t bytes, int first, int last) {
    plan_.buffers.push_back({std::move(name), bytes, first, last, 0});
    return static_cast<int>(plan_.buffers.size()) - 1;
  }
  void extend(int buffer, int step) {
    PlanBuffer& b = plan_.buffers[buffer];
    b.first = std::min(b.first, step);
    b.last = std::max(b.last, step);
  }
  size_t map_bytes(int i) const { return node(i).shape().elements() * size_of(type_); }

  void decide_backward() {
    const auto wanted = wanted_gradients(graph_);
    for (int i = 0; i < n_; ++i) {
      NodePlan& p = plan_.nodes[i];
      p.backward = !wanted[i].empty();
      p.wants_dx = wanted[i];
      p.wants_dx.resize(node(i).inputs.size(), false);
    }
  }

  // Last step at which the value of node i is read.
  int last_use(int i) const {
    int last = i;
    if (is_head(i) || i == graph_.output) last = n_;
    for (int c : consumers_[i]) {
      last = std::max(last, node(c).op->leaves_value() ? last_use(c) : c);
      if (!plan_.nodes[c].backward) continue;
      for (size_t k = 0; k < node(c).inputs.size(); ++k)
        if (node(c).inputs[k] == i && node(c).inferred.saves_input[k]) last = std::max(last, backward_step(c));
    }
    if (plan_.nodes[i].backward && node(i).inferred.saves_output) {
      last = std::max(last, backward_step(i));
      if (node(i).op->leaves_gradient()) last = std::max(last, backward_step(node(i).inputs[0]));  // who reads it there
    }
    return last;
  }

  // Last step at which the auxiliary output of node i is read; i: nobody reads it.
  int last_aux_use(int i) const {
    int last = i;
    for (int c : consumers_[i]) {
      for (size_t k = 0; k < node(c).inputs.size(); ++k) {
        const AuxUse use = node(c).inputs[k] == i ? node(c).op->reads_aux(k) : AuxUse::none;
        if (use == AuxUse::none) continue;
        const bool again = use == AuxUse::forward_and_backward && plan_.nodes[c].backward;
        last = std::max(last, again ? backward_step(c) : c);
      }
    }
    return last;
  }

  // When the op that wrote input 0 of node i runs backward, or, where that leaves its gradient, the one before it.
  int aux_reader_step(int i) const {
    if (node(i).inputs.empty()) return backward_step(i);
    const int before = node(i).inputs[0];
    return node(before).op->leaves_gradient() ? aux_reader_step(before) : backward_step(before);
  }

  bool may_be_strided(int i) const {
    return node(i).op->writes_strided() &&
           std::all_of(consumers_[i].begin(), consumers_[i].end(), [&](int c) { return node(c).op->reads_strided(); });
  }

  // The op that may put its output into the memory of node i's value; -1: there is none.
  int overwriting_reader(int i) const {
    if (!options_.reuse || consumers_[i].empty() || i == graph_.input || is_head(i) || i == graph_.output) return -1;
    const int heir = consumers_[i].back();
    const Node& reader = node(heir);
    if (!reader.op->forward_in_place() || reader.inputs[0] != i || node(i).shape() != reader.shape()) return -1;
    if (last_use(i) != heir) return -1;
    const bool slice = plan_.nodes[heir].value.pitch != reader.shape().C;
    return slice && !may_be_strided(i) ? -1 : heir;
  }

  void place_values() {
    std::vector<int> parent(n_, -1), at(n_, 0);
    if (options_.views) {
      for (int k = 0; k < n_; ++k) {
        if (!node(k).op->joins_channels()) continue;
        int channel = 0;
        for (int i : node(k).inputs) {
          if (parent[i] < 0 && may_be_strided(i)) parent[i] = k, at[i] = channel;
          channel += node(i).shape().C;
        }
      }
    }
    for (int i = n_ - 1; i >= 0; --i) {  // parents come after their parts
      if (node(i).op->leaves_value()) continue;
      Placement& p = plan_.nodes[i].value;
      if (const int heir = parent[i] < 0 ? overwriting_reader(i) : -1; heir >= 0) {
        p = plan_.nodes[heir].value;
        extend(p.buffer, i);
      } else if (parent[i] >= 0) {
        p = {plan_.nodes[parent[i]].value.buffer, at[i], node(parent[i]).shape().C};
        extend(p.buffer, i);
        extend(p.buffer, last_use(i));
      } else {
        p = {new_buffer(node(i).name, map_bytes(i), i, last_use(i)), 0, node(i).shape().C};
      }
    }
    for (int i = 0; i < n_; ++i)
      if (node(i).op->leaves_value()) plan_.nodes[i].value = plan_.nodes[node(i).inputs[0]].value;
    for (int k = 0; k < n_; ++k) {
      if (!node(k).op->joins_channels()) continue;
      for (int i : node(k).inputs) plan_.concat_copies += parent[i] != k;
    }
  }

  // What gives node v a gradient, as (consumer, its input), in the order of the backward pass.
  std::vector<std::pair<int, int>> givers_of(int v) const {
    std::vector<std::pair<int, int>> givers;
    for (int c = n_ - 1; c > v; --c) {
      for (size_t k = 0; k < node(c).inputs.size(); ++k)
        if (node(c).inputs[k] == v && plan_.nodes[c].backward && plan_.nodes[c].wants_dx[k])
          givers.emplace_back(c, static_cast<int>(k));
    }
    return givers;
  }

  // A gradient's memory: a slice of a concat's gradient, or the memory of the gradient of the op that first gives
  // it, or a buffer of its own. Those that are given first are placed first: then all that may share a sum's gradient
  // have it before one of them is overwritten.
  void place_gradients() {
    givers_.resize(n_);
    std::vector<int> order;
    for (int v = n_ - 1; v >= 0; --v) {
      if (!plan_.nodes[v].backward) continue;
      givers_[v] = givers_of(v);
      order.push_back(v);
    }
    const auto given = [&](int v) { return is_head(v) ? n_ : givers_[v].front().first; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return given(a) > given(b); });
    for (const int v : order) {
      NodePlan& p = plan_.nodes[v];
      const auto& givers = givers_[v];
      const int first = is_head(v) ? n_ : backward_step(givers.front().first);
      if (!is_head(v)) p.grad = shared_gradient(v, givers.front());
      if (p.grad) {
        extend(p.grad.buffer, backward_step(v));
      } else {
        p.grad = {new_buffer("d(" + node(v).name + ")", map_bytes(v), first, backward_step(v)), 0, node(v).shape().C};
      }
      placed_.push_back(v);
      bool written = is_head(v);
      for (auto [c, k] : givers) {
        NodePlan& giver = plan_.nodes[c];
        giver.accumulate.resize(node(c).inputs.size(), false);
        giver.temp.resize(node(c).inputs.size(), -1);
        giver.accumulate[k] = written;
        const Op& op = *node(c).op;
        const bool slice = p.grad.pitch != node(v).shape().C;
        if ((written && !op.accumulates()) || (slice && !op.reads_strided())) {
          giver.temp[k] =
              new_buffer("part of d(" + node(v).name + ")", map_bytes(v), backward_step(c), backward_step(c));
          ++plan_.extra_adds;
        }
        if (op.joins_channels()) plan_.concat_copies += p.grad.buffer != giver.grad.buffer;
        written = true;
      }
    }
    for (int i = 0; i < n_; ++i) {  // the op before a norm may read that of the norm's residual
      const std::vector<int>& inputs = node(i).inputs;
      for (size_t k = 1; k < inputs.size(); ++k)
        if (node(i).op->leaves_gradient() && plan_.nodes[inputs[k]].grad)
          extend(plan_.nodes[inputs[k]].grad.buffer, backward_step(inputs[0]));
    }
  }

  // The node whose backward is the first to change the gradient of v after it was given; -1: none does.
  int first_change(int v) const {
    if (givers_[v].size() > 1) return givers_[v][1].first;
    return node(v).op->overwrites_dy() ? v : -1;
  }

  // Whether the gradient of v may be at `p`, in the memory of the gradient of c, after c has run: nobody else reads it
  // there, or, where c has not changed it (`kept`), before it is changed.
  bool may_take(int v, int c, const Placement& p, bool kept) const {
    return std::all_of(placed_.begin(), placed_.end(), [&](int u) {
      const Placement& g = plan_.nodes[u].grad;
      const bool apart = g.buffer != p.buffer || g.channel + node(u).shape().C <= p.channel ||
                         p.channel + node(v).shape().C <= g.channel;
      return u >= c || apart || (kept && first_change(u) < v && first_change(v) < u);
    });
  }

  Placement shared_gradient(int v, std::pair<int, int> giver) const {
    const auto [c, k] = giver;
    const Node& consumer = node(c);
    const bool joins = consumer.op->joins_channels(), kept = joins || consumer.op->is_sum();
    Placement p = plan_.nodes[c].grad;
    if (consumer.op->leaves_gradient() && k == 0) {  // v's op reads it there, later
      return may_take(v, c, p, true) ? p : Placement{};
    } else if (joins) {
      if (!options_.views) return {};
      for (int j = 0; j < k; ++j) p.channel += node(consumer.inputs[j]).shape().C;
    } else if (!options_.reuse || !consumer.op->backward_in_place() || node(v).shape() != consumer.shape()) {
      return {};
    }
    if (p.pitch != node(v).shape().C && !node(v).op->writes_strided()) return {};
    if (!kept && k != 0) return {};
    if (givers_[v].size() > 1 && givers_[v][1].first == c && !joins) return {};  // an addend twice: dy is added to dx
    return may_take(v, c, p, kept) ? p : Placement{};
  }

  void place_private_memory() {
    for (int i = 0; i < n_; ++i) {
      NodePlan& p = plan_.nodes[i];
      p.accumulate.resize(node(i).inputs.size(), false);
      p.temp.resize(node(i).inputs.size(), -1);
      const auto take = [&](const char* what, size_t bytes, int first, int last) {
        return bytes == 0 ? -1 : new_buffer(node(i).name + what, bytes, first, last);
      };
      p.saved = take(" saved", node(i).inferred.saved_bytes + node(i).op->saved_memory(), i,
                     p.backward ? backward_step(i) : i);
      if (const int last = last_aux_use(i); last > i) p.aux = take(" aux", node(i).op->aux_bytes(), i, last);
      if (p.backward) p.dx_aux = take(" dx aux", node(i).op->dx_aux_bytes(), backward_step(i), aux_reader_step(i));
      p.forward_workspace = take(" workspace", node(i).op->forward_workspace(), i, i);
      const bool kept = options_.late_sums && node(i).op->late_sums() == LateSums::after_pass;
      if (p.backward)
        p.backward_workspace =
            take(" workspace", node(i).op->backward_workspace(), backward_step(i), backward_step(kept ? 0 : i));
    }
  }

  const Graph& graph_;
  const PlanOptions& options_;
  DType type_;
  int n_;
  std::vector<std::vector<int>> consumers_;
  std::vector<int> head_;
  std::vector<std::vector<std::pair<int, int>>> givers_;  // per node
  std::vector<int> placed_;                               // nodes whose gradient has its place
  Plan plan_;
};

}  // namespace

std::vector<std::vector<bool>> wanted_gradients(const Graph& graph) {
  const int n = static_cast<int>(graph.nodes.size());
  std::vector<bool> trains(n), reaches(n);  // something before it is trained; a loss comes after it
  for (int i = 0; i < n; ++i) {
    for (int p : graph.nodes[i].params) trains[i] = trains[i] || graph.trains(p);
    for (int in : graph.nodes[i].inputs) trains[i] = trains[i] || trains[in];
  }
  for (const LossHead& h : graph.heads) reaches[h.node] = true;
  std::vector<std::vector<bool>> wanted(n);
  for (int i = n - 1; i >= 0; --i) {
    if (!reaches[i]) continue;
    for (int in : graph.nodes[i].inputs) reaches[in] = true;
    if (!trains[i]) continue;
    for (int in : graph.nodes[i].inputs) wanted[i].push_back(trains[in]);
  }
  return wanted;
}

std::vector<BiasSums> bias_sums(const Graph& graph) {
  const auto wanted = wanted_gradients(graph);
  std::set<std::pair<int, size_t>> taken;  // a giver writes the sums of an input once
  std::vector<BiasSums> found;
  for (int i = 0; i < static_cast<int>(graph.nodes.size()); ++i) {
    const Node& node = graph.nodes[i];
    const int bias = node.op->bias_parameter();
    if (bias < 0 || wanted[i].empty() || !graph.trains(node.params[bias])) continue;
    int at = i, reader = graph.sole_reader(i);
    while (reader >= 0 && graph.nodes[reader].op->is_sum()) at = reader, reader = graph.sole_reader(at);
    if (reader < 0) continue;
    const std::vector<int>& inputs = graph.nodes[reader].inputs;
    const size_t k = std::find(inputs.begin(), inputs.end(), at) - inputs.begin();
    const GradientSums sums = graph.nodes[reader].op->gradient_sums(k);
    if (sums == GradientSums::none || (sums == GradientSums::known && !taken.insert({reader, k}).second)) continue;
    found.push_back({i, reader, k, sums == GradientSums::zero});
  }
  return found;
}

size_t assign_offsets(std::vector<PlanBuffer>& buffers, bool reuse) {
  std::vector<int> order(buffers.size()), placed;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return buffers[a].bytes > buffers[b].bytes; });
  size_t total = 0;
  for (int i : order) {
    PlanBuffer& b = buffers[i];
    std::vector<const PlanBuffer*> neighbours;  // placed, and alive at the same time, by offset
    for (int j : placed) {
      const PlanBuffer& other = buffers[j];
      if (!reuse || (other.first <= b.last && b.first <= other.last)) neighbours.push_back(&other);
    }
    std::sort(neighbours.begin(), neighbours.end(), [](auto* x, auto* y) { return x->offset < y->offset; });
    size_t at = 0;
    for (const PlanBuffer* other : neighbours) {
      if (at + aligned(b.bytes) <= other->offset) break;
      at = std::max(at, other->offset + aligned(other->bytes));
    }
    b.offset = at;
    total = std::max(total, at + aligned(b.bytes));
    placed.push_back(i);
  }
  return total;
}

std::string largest_buffers(const Plan& plan) {
  std::vector<PlanBuffer> b = plan.buffers;
  std::stable_sort(b.begin(), b.end(), [](const auto& x, const auto& y) { return x.bytes > y.bytes; });
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min<size_t>(3, b.size()); ++i)
    names.push_back(b[i].name + " " + mebibytes(static_cast<double>(b[i].bytes), 1));
  return join(names);
}

Plan make_plan(const Graph& graph, const PlanOptions& options, DType type) {
  return Planner(graph, options, type).run();
}

}  // namespace regolith
