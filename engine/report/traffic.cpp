#include "engine/report/traffic.h"

#include <utility>

#include "engine/tensor/planned_device.h"
#include "kernels/channel_sum.h"

namespace regolith {
namespace {

class Model {
 public:
  explicit Model(const Program& program)
      : graph_(program.graph()),
        plan_(program.plan()),
        element_(size_of(program.options().type)),
        late_sums_(program.options().plan.late_sums) {}

  Traffic passes() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      forward(static_cast<int>(i));
      if (plan_.nodes[i].backward) backward(static_cast<int>(i));
    }
    add_sums();
    for (const LossHead& h : graph_.heads) add(2, 2 * map(h.node));  // the pixels' losses, and their sum
    return total_;
  }

  // The norm of the gradient and the factor that it gives, the weights, the end of the step.
  Traffic update(int moments) const {
    int64_t trained = 0;
    for (size_t p = 0; p < graph_.params.size(); ++p)
      if (graph_.trains(static_cast<int>(p))) trained += graph_.params[p].spec.elements();
    const size_t copy = element_ < sizeof(float) ? element_ : 0;
    return {4, static_cast<double>(trained) * static_cast<double>((2 + 2 * (1 + moments)) * sizeof(float) + copy)};
  }

 private:
  double map(int i) const { return static_cast<double>(graph_.nodes[i].shape().elements() * element_); }
  double weights(const Node& n) const {
    int64_t elements = 0;
    for (const int p : n.params) elements += graph_.params[p].spec.elements();
    return static_cast<double>(elements);
  }
  static bool same(const Placement& a, int buffer, int channel) { return a.buffer == buffer && a.channel == channel; }
  void add_sums() { add((std::exchange(sums_, 0) + kernels::kMostSums - 1) / kernels::kMostSums, 0); }
  void add(int launches, double bytes) { total_.launches += launches, total_.bytes += bytes; }

  void forward(int i) {
    const Node& n = graph_.nodes[i];
    if (n.op->joins_channels()) {
      const Placement& y = plan_.nodes[i].value;
      int channel = y.channel;
      for (const int in : n.inputs) {
        if (!same(plan_.nodes[in].value, y.buffer, channel)) add(1, 2 * map(in));
        channel += graph_.nodes[in].shape().C;
      }
      return;
    }
    const Passes p = n.op->forward_passes();
    add(p.launches, p.y * map(i) + weights(n) * static_cast<double>(element_) + p.bytes);
    for (size_t k = 0; k < n.inputs.size(); ++k) add(0, (k == 0 ? p.x : p.others) * map(n.inputs[k]));
  }

  void backward(int i) {
    const Node& n = graph_.nodes[i];
    const NodePlan& at = plan_.nodes[i];
    const bool hands_on = n.op->joins_channels() || n.op->is_sum();  // dx is dy or its channels: a copy at most
    if (!hands_on) {
      const Passes p = n.op->backward_passes(at.wants_dx);
      const LateSums late = n.op->late_sums();
      sums_ += p.sums;
      if (late == LateSums::after_op || !late_sums_) add_sums();
      add(p.launches, p.dy * map(i) + weights(n) * static_cast<double>(element_ + sizeof(float)) + p.bytes);
      if (n.inferred.saves_output) add(0, p.y * map(i));
      for (size_t k = 0; k < n.inputs.size(); ++k)
        if (n.inferred.saves_input[k]) add(0, (k == 0 ? p.x : p.others) * map(n.inputs[k]));
    }
    int channel = at.grad.channel;
    for (size_t k = 0; k < n.inputs.size(); ++k) {
      const int in = n.inputs[k], from = channel;
      if (n.op->joins_channels()) channel += graph_.nodes[in].shape().C;
      if (!at.wants_dx[k] || (k == 0 && n.op->leaves_gradient())) continue;
      const double write = (at.accumulate[k] ? 2 : 1) * map(in);  // 2: read before
      if (hands_on) {
        if (!same(plan_.nodes[in].grad, at.grad.buffer, from)) add(1, map(in) + write);
      } else if (at.temp[k] < 0) {
        add(0, write);
      } else {
        add(1, 2 * map(in) + write);
      }
    }
  }

  const Graph& graph_;
  const Plan& plan_;
  size_t element_;
  bool late_sums_;
  int sums_ = 0;  // that wait
  Traffic total_;
};

}  // namespace

GpuStep step_on_gpu(const Network& network, int batch, int moments) {
  const auto device = make_planned_device();
  ProgramOptions options = network.program_options(batch, Mode::train);
  options.conv.provider = "auto";
  const Program program(network.graph(), *device, options);
  return {traffic_of_step(program, 1, moments), program.plan().bytes};
}

Traffic traffic_of_step(const Program& program, int slices, int moments) {
  Model model(program);
  const Traffic passes = model.passes(), update = model.update(moments);
  return {slices * passes.launches + update.launches, slices * passes.bytes + update.bytes};
}

}  // namespace regolith
