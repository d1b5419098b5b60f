#include "engine/report/explain.h"

#include <algorithm>
#include <map>
#include <utility>

#include "engine/base/text.h"
#include "engine/report/table.h"
#include "engine/report/traffic.h"

namespace regolith {
namespace {

std::string where_it_lives(const Plan& plan, const Placement& p, const Shape& s) {
  if (!p) return "";
  const PlanBuffer& b = plan.buffers[p.buffer];
  std::string text = "@" + std::to_string(b.offset / 1024) + "K";
  if (p.pitch != s.C) text += " slice " + std::to_string(p.channel) + ":" + std::to_string(p.channel + s.C);
  return text;
}

}  // namespace

std::string explain(Network& network, int batch, int moments) {
  const int slice = network.micro_batch_size(batch);
  Program& program = network.program(slice, Mode::train);
  const bool whole = network.options().couples_images;  // as Evaluator::evaluate() has it
  const Program& evaluation = network.program(whole ? batch : network.prediction_slice(batch), Mode::eval);
  const Graph& g = program.graph();
  const Plan& plan = program.plan();

  Table table({"node", "op", "attributes", "output", "parameters", "MFLOP", "provider", "value", "gradient"},
              "llllrrlll", false);
  double flops = 0;
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& n = g.nodes[i];
    int64_t params = 0;
    for (int p : n.params) params += g.params[p].spec.elements();
    const double mflop = 2e-6 * static_cast<double>(n.inferred.macs) / slice;
    flops += mflop;
    table.add({n.name, std::string(n.op->kind()), n.op->describe(), size_text({n.shape().H, n.shape().W, n.shape().C}),
               params > 0 ? thousands(params) : "", mflop > 0 ? format("%.1f", mflop) : "",
               n.inferred.macs > 0 ? n.op->provider() : "", where_it_lives(plan, plan.nodes[i].value, n.shape()),
               where_it_lives(plan, plan.nodes[i].grad, n.shape())});
  }
  std::string text = table.text() + "\n";
  for (const Node& n : g.nodes)
    if (!n.inferred.note.empty()) text += n.name + ": " + n.inferred.note + "\n";
  for (const std::string& f : network.fusions()) text += "fused  " + f + "\n";

  text += "\nparameters   " + thousands(g.parameter_count()) + "\n";
  text += "FLOPs        " +
          format("%.2f GFLOP forward per image, %.2f per training step and image\n", flops / 1e3, 3 * flops / 1e3);
  text += "device       " + network.device().name() + "\n";
  text += "precision    " + std::string(name_of(network.options().precision)) + "\n";
  text +=
      "batch        " + std::to_string(batch) + (slice < batch ? " in slices of " + std::to_string(slice) : "") + "\n";
  const Parameters& parameters = network.parameters();
  std::map<std::pair<std::string, std::string>, size_t> copies;  // by node and layout: the two programs share them
  for (const Program* p : {&std::as_const(program), &evaluation})
    for (const Node& n : p->graph().nodes)
      for (const Prepacked& copy : n.op->prepacked()) copies[{n.name, copy.layout}] = copy.bytes;
  size_t prepacked = 0;
  for (const auto& [key, bytes] : copies) prepacked += bytes;
  text += "arena        " + mebibytes(network.arena_bytes(), 1) + " (" + mebibytes(plan.no_reuse, 1) +
          " without reuse); prepacked weights " + mebibytes(static_cast<double>(prepacked), 1) +
          "; weights, gradients and moments " + mebibytes(parameters.bytes_with_moments(moments), 1) + "\n";
  text += "concat       " + std::to_string(plan.concat_copies) + " copies; " + std::to_string(plan.extra_adds) +
          " gradients added in a pass of their own\n";
  const std::vector<BiasSums>& sums = program.shared_sums();
  const auto zero = std::count_if(sums.begin(), sums.end(), [](const BiasSums& s) { return s.zero; });
  text += "biases       " + std::to_string(sums.size() - zero) + " gradients from the sums of the op behind, " +
          std::to_string(zero) + " zero by definition\n";
  text += "largest      " + largest_buffers(plan) + "\n";
  const Traffic step = traffic_of_step(program, (batch + slice - 1) / slice, moments);
  text += format("training step: %lld launches, %.2f GB\n", static_cast<long long>(step.launches), step.bytes / 1e9);
  if (network.device().kind() == DeviceKind::cpu) {
    const GpuStep gpu = step_on_gpu(network, batch, moments);
    text += format("on a GPU     %lld launches, %.2f GB; arena %s\n", static_cast<long long>(gpu.traffic.launches),
                   gpu.traffic.bytes / 1e9, mebibytes(gpu.arena_bytes, 1).c_str());
  }
  const std::string problem = network.shortage(program, network.arena_bytes(), prepacked);
  return problem.empty() ? text : text + "does not fit " + problem + "\n";
}

std::string explain_exchange(Network& network, int batch, const ExchangeOptions& options) {
  if (options.ranks < 2) return "";
  const auto parts = static_cast<int>(divide_batch(batch, network.micro_batch_size(batch), options.ranks).size());
  Owners owners;
  for (int b = 0; b < options.accumulate; ++b)
    for (int r = 0; r < options.ranks; ++r) owners.insert(owners.end(), share_of(parts, r, options.ranks).count, r);
  const int64_t weights = network.parameters().trained_size();
  const Exchange::Bytes bytes = Exchange::bytes_of(weights, owners, options.reduce);
  const auto kib = [](double b) { return format("%.1f KiB", b / 1024); };
  std::string text = "exchange     " + std::to_string(options.ranks) + " ranks; each gives " +
                     kib(static_cast<double>(bytes.gradients)) + " of gradients in a step (" +
                     names_of(bytes.reduce)[static_cast<int>(bytes.reduce)] + "; the weights, padded, are " +
                     kib(static_cast<double>(weights) * sizeof(float)) + ")";
  if (options.sync_batch_norm) {
    int64_t norms = 0, floats = 0;
    const Graph& graph = network.graph();
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      if (!graph.nodes[i].op->couples_batch() || graph.is_frozen(static_cast<int>(i))) continue;
      ++norms;
      floats += 4 * graph.nodes[i].shape().C + 1;  // moments and pixels; two sums in backward
    }
    text += " and " + kib(static_cast<double>(floats) * sizeof(float) * options.accumulate) + " of statistics of " +
            std::to_string(norms) + " batch norms";
  }
  return text + "\n";
}

}  // namespace regolith
