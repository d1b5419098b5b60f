#include "engine/run/program.h"

#include <algorithm>
#include <set>

#include "engine/base/error.h"
#include "kernels/add.h"
#include "kernels/channel_sum.h"

namespace regolith {

Program::Program(Graph graph, Device& device, const ProgramOptions& options)
    : graph_(std::move(graph)), device_(device), options_(options) {
  graph_.infer(options.N);
  const auto wanted = wanted_gradients(graph_);
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    Node& node = graph_.nodes[i];
    CompileContext c{options, device, options.batch_statistics, wanted[i]};
    c.needs_dx.resize(node.inputs.size(), false);
    if (graph_.is_frozen(static_cast<int>(i))) c.batch_statistics = false;
    try {
      node.op->compile(c);
    } catch (const GraphError& e) {
      throw GraphError((node.where.empty() ? "" : node.where + ": ") + "node " + node.name + ": " + e.what());
    }
  }
  if (!options.training) leave_norms_to_readers();
  if (options.training && options.bias_sums) share_bias_sums();
  leave_biases_to_sums();
  if (options.training && options.norms_in_convolutions) put_norms_into_convolutions();
  options_.plan.late_sums = device.kind() != DeviceKind::cpu;
  plan_ = make_plan(graph_, options_.plan, options.type);
}

bool Program::may_leave_to_readers(int node, const std::vector<int>& readers) const {
  const auto applies = [&](int c) {
    const Node& reader = graph_.nodes[c];
    return reader.op->applies_norm() && reader.inputs[0] == node &&
           std::count(reader.inputs.begin(), reader.inputs.end(), node) == 1;
  };
  return graph_.nodes[node].op->may_leave_to_readers() && !graph_.is_head(node) && !readers.empty() &&
         std::all_of(readers.begin(), readers.end(), applies);
}

void Program::leave_norms_to_readers() {
  const auto consumers = graph_.consumers();
  for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
    Op& norm = *graph_.nodes[i].op;
    if (!may_leave_to_readers(i, consumers[i])) continue;
    norm.leave_to_readers();
    for (int c : consumers[i]) graph_.nodes[c].op->apply_norm(norm.reading());
  }
}

// Whether the norm is the first to give its residual a gradient, and the next to do so and the residual's own backward
// come later than that of `reader`; or the latter comes before, but leaves it as it is (the plan keeps its memory).
bool Program::keeps_residual_gradient(int norm, int reader, const std::vector<std::vector<bool>>& gradients) const {
  const int residual = graph_.nodes[norm].inputs[1];
  if (!gradients[norm][1] || graph_.is_head(residual)) return false;
  const Op& op = *graph_.nodes[residual].op;
  if (residual > reader && !(op.takes_norms() && !op.overwrites_dy())) return false;
  for (int c = static_cast<int>(graph_.nodes.size()) - 1; c >= reader; --c) {
    const std::vector<int>& inputs = graph_.nodes[c].inputs;
    for (size_t k = 0; k < gradients[c].size(); ++k)
      if (inputs[k] == residual && gradients[c][k] && (c != norm || k != 1)) return false;
  }
  return true;
}

void Program::put_norms_into_convolutions() {
  const auto consumers = graph_.consumers();
  const auto gradients = wanted_gradients(graph_);
  for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
    Op& norm = *graph_.nodes[i].op;
    if (!norm.is_norm()) continue;
    const int input = graph_.nodes[i].inputs[0];
    Op& before = *graph_.nodes[input].op;
    NormReading reading = norm.reading();
    const int reader = graph_.sole_reader(i);
    const bool gives =
        !gradients[i].empty() && gradients[i][0] && graph_.sole_reader(input) == i && before.takes_gradient();
    const bool plain = reading.per_image && reading.relu && !reading.residual && reading.rate == 0;
    const bool squeezed = gives && plain && reader >= 0 && before.takes_squeezed_gradient() &&
                          graph_.nodes[reader].op->may_squeeze_norm();
    const bool left = squeezed || may_leave_to_readers(i, consumers[i]);
    if (left) {
      norm.leave_to_readers();
      for (int c : consumers[i]) graph_.nodes[c].op->apply_norm(reading);
    }
    if (before.takes_norms() && norm.takes_moments()) {
      before.give_moments();
      norm.take_moments();
    }
    if (squeezed) {
      norm.take_sums(true);
      reading = graph_.nodes[reader].op->reading();
    } else if (left && reader >= 0 && !gradients[reader].empty() && gradients[reader][0]) {
      graph_.nodes[reader].op->give_sums();
      norm.take_sums(false);
      reading.relu = false, reading.rate = 0;  // the reader has masked its dx
    }
    if (gives) {
      if (reading.residual) reading.masked = keeps_residual_gradient(i, input, gradients);
      if (reading.masked && reading.per_image && reader >= 0 && graph_.nodes[reader].op->may_leave_gradient()) {
        graph_.nodes[reader].op->leave_gradient();
        norm.take_squeeze();
      }
      norm.leave_gradient();
      before.take_gradient(reading);
      graph_.nodes[input].inferred.saves_output = true;
    }
  }
}

void Program::share_bias_sums() {
  shared_sums_ = bias_sums(graph_);
  for (const BiasSums& s : shared_sums_) {
    graph_.nodes[s.node].op->leave_bias_gradient();
    if (!s.zero) graph_.nodes[s.giver].op->give_gradient_sums(s.input);
  }
}

void Program::leave_biases_to_sums() {
  std::set<int> taken;  // a sum adds one bias
  for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
    Op& op = *graph_.nodes[i].op;
    const int reader = graph_.sole_reader(i);
    if (reader < 0) continue;
    if (op.may_leave_bias() && graph_.nodes[reader].op->is_sum() && taken.insert(reader).second) op.leave_bias();
    if (op.left_out_bias() < 0) continue;
    const std::vector<int>& inputs = graph_.nodes[reader].inputs;
    const auto input = std::find(inputs.begin(), inputs.end(), i) - inputs.begin();
    left_biases_.push_back({i, reader, static_cast<size_t>(input)});
  }
}

size_t Program::missing_prepacked(const Parameters& parameters) const {
  size_t bytes = 0;
  for (const Node& node : graph_.nodes)
    for (const Prepacked& p : node.op->prepacked())
      if (!parameters.has_prepacked(node.name, p)) bytes += p.bytes;
  return bytes;
}

void* Program::buffer(int index, void* arena) const {
  return index < 0 ? nullptr : static_cast<unsigned char*>(arena) + plan_.buffers[index].offset;
}

TensorView Program::place(const Placement& p, int node, void* arena) const {
  if (!p) return {};
  const Shape& s = graph_.nodes[node].shape();
  TensorView m{buffer(p.buffer, arena), s.N, s.H, s.W, s.C, p.pitch, options_.type};
  m.data = m.as<unsigned char>() + p.channel * size_of(options_.type);
  return m;
}

void Program::bind(void* arena, Parameters& parameters, const int64_t* step) {
  const int n = static_cast<int>(graph_.nodes.size());
  runs_.assign(n, {});
  gradients_.assign(n, {});
  prepacked_.assign(n, {});
  parameters_ = &parameters;
  for (int i = 0; i < n; ++i) {
    const Node& node = graph_.nodes[i];
    const NodePlan& p = plan_.nodes[i];
    OpRun& run = runs_[i];
    run.y = place(p.value, i, arena);
    run.dy = place(p.grad, i, arena);
    run.accumulate = p.accumulate;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const int in = node.inputs[k];
      run.x.push_back(place(plan_.nodes[in].value, in, arena));
      const bool aux = node.op->reads_aux(k) != AuxUse::none;
      run.x_aux.push_back(aux ? static_cast<const float*>(buffer(plan_.nodes[in].aux, arena)) : nullptr);
      TensorView dx = p.backward && p.wants_dx[k] ? place(plan_.nodes[in].grad, in, arena) : TensorView{};
      gradients_[i].push_back(dx);
      if (p.temp[k] >= 0) {  // written there whole, then added
        dx.data = buffer(p.temp[k], arena);
        dx.pitch = dx.C;
        run.accumulate[k] = false;
      }
      run.dx.push_back(dx);
    }
    run.dx_sums.resize(node.inputs.size());
    run.x_bias.resize(node.inputs.size());
    run.saved = buffer(p.saved, arena);
    run.aux = static_cast<float*>(buffer(p.aux, arena));
    run.dx_aux = static_cast<float*>(buffer(p.dx_aux, arena));
    if (!node.inputs.empty()) run.before = &runs_[node.inputs[0]];
    if (const int reader = graph_.sole_reader(i); reader >= 0) run.behind = &runs_[reader];
    for (const Prepacked& p : node.op->prepacked()) {
      if (p.bytes > 0) prepacked_[i].push_back(&parameters.prepacked(node.name, p));
      run.packed.push_back(p.bytes > 0 ? prepacked_[i].back()->memory.as() : nullptr);
    }
    run.dropout = options_.dropout;
    run.trains = !graph_.is_frozen(i);
    const std::string draws_as = node.op->random_name();
    run.seed = options_.seed * 0x9E3779B97F4A7C15ull ^ name_hash(draws_as.empty() ? node.name : draws_as);
    run.step = step;
  }
  for (const BiasSums& s : shared_sums_) {
    const Node& node = graph_.nodes[s.node];
    if (!s.zero) runs_[s.giver].dx_sums[s.input] = parameters.view(node.params[node.op->bias_parameter()]).grad;
  }
  for (int i = 0; i < n; ++i) view_parameters(i);
  arena_ = arena;
  packed_generation_ = 0;
}

void Program::view_parameters(size_t node) {
  runs_[node].params.clear();
  for (int param : graph_.nodes[node].params) runs_[node].params.push_back(parameters_->view(param));
  for (const LeftBias& b : left_biases_)
    if (b.node == static_cast<int>(node))
      runs_[b.reader].x_bias[b.input] = runs_[node].params[graph_.nodes[node].op->left_out_bias()].master;
}

void Program::pack(DeviceStream& stream) {
  const int64_t generation = parameters_->generation();
  if (packed_generation_ == generation) return;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const Node& node = graph_.nodes[i];
    const auto is_stale = [&](const auto* copy) { return copy->generation != generation; };
    const bool stale = std::any_of(prepacked_[i].begin(), prepacked_[i].end(), is_stale);
    for (size_t k = 0; k < node.params.size(); ++k)
      if (const bool read = node.op->forward_reads(k); read || stale) parameters_->load(node.params[k], read, stream);
    view_parameters(i);
    if (!stale) continue;
    runs_[i].stream = &stream;
    node.op->prepack_weights(runs_[i]);
    for (auto* copy : prepacked_[i]) copy->generation = generation;
    for (int param : node.params) parameters_->unload(param, stream);
    view_parameters(i);
  }
  packed_generation_ = generation;
}

void Program::forward(DeviceStream& stream, int first_sample) {
  for (size_t i = 0; i < runs_.size(); ++i) {
    const Node& node = graph_.nodes[i];
    OpRun& run = runs_[i];
    run.stream = &stream;
    run.first_sample = first_sample;
    run.ranks = ranks_;
    run.workspace = buffer(plan_.nodes[i].forward_workspace, arena_);
    if (observer_ != nullptr) observer_->begin(node, false);
    node.op->forward(run);
    if (observer_ != nullptr) observer_->end(node, false);
  }
}

void Program::backward(DeviceStream& stream, bool accumulate, const std::function<void(int node)>& done) {
  struct Waiting {
    DeviceStream& stream;
    std::vector<PartialSums> sums{};
    ~Waiting() { stream.pending = nullptr; }
  } waiting{stream};
  for (int i = static_cast<int>(runs_.size()) - 1; i >= 0; --i) {
    const NodePlan& p = plan_.nodes[i];
    if (!p.backward) continue;
    const Node& node = graph_.nodes[i];
    OpRun& run = runs_[i];
    run.stream = &stream;
    run.accumulate_grads = accumulate;
    run.workspace = buffer(p.backward_workspace, arena_);
    if (observer_ != nullptr) observer_->begin(node, true);
    const LateSums late = node.op->late_sums();
    stream.pending = late == LateSums::none ? nullptr : &waiting.sums;
    node.op->backward(run);
    if (done || late == LateSums::after_op || !options_.plan.late_sums) kernels::pending_sums(stream, {&waiting.sums});
    for (size_t k = 0; k < run.dx.size(); ++k) {
      if (p.temp[k] >= 0)
        kernels::add_forward(stream, {.a = run.dx[k], .b = {}, .y = gradients_[i][k], .accumulate = p.accumulate[k]});
    }
    if (observer_ != nullptr) observer_->end(node, true);
    if (done) done(i);
  }
  kernels::pending_sums(stream, {&waiting.sums});
}

}  // namespace regolith
