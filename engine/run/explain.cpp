#include <algorithm>
#include <cstdio>

#include "engine/run/network.h"

namespace regolith {
namespace {

std::string pad(std::string text, size_t width, bool right = false) {
  if (text.size() >= width) return text;
  return right ? std::string(width - text.size(), ' ') + text : text + std::string(width - text.size(), ' ');
}

std::string thousands(int64_t n) {
  std::string digits = std::to_string(n), out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string fixed(double x, const char* format) {
  char text[64];
  std::snprintf(text, sizeof text, format, x);
  return text;
}

std::string size_text(const Shape& s) {
  return std::to_string(s.H) + "x" + std::to_string(s.W) + "x" + std::to_string(s.C);
}

// A table whose columns are as wide as what they hold.
class Columns {
 public:
  explicit Columns(std::vector<std::string> header, std::vector<bool> right)
      : right_(std::move(right)), rows_{std::move(header)} {}
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string text() const {
    std::vector<size_t> width(rows_[0].size());
    for (const auto& r : rows_)
      for (size_t c = 0; c < r.size(); ++c) width[c] = std::max(width[c], r[c].size());
    std::string out;
    for (const auto& r : rows_) {
      std::string line;
      for (size_t c = 0; c < r.size(); ++c) line += (c == 0 ? "" : "  ") + pad(r[c], width[c], right_[c]);
      while (!line.empty() && line.back() == ' ') line.pop_back();
      out += line + "\n";
    }
    return out;
  }

 private:
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

std::string where_it_lives(const Plan& plan, const Placement& p, const Shape& s) {
  if (!p) return "";
  const PlanBuffer& b = plan.buffers[p.buffer];
  std::string text = "@" + std::to_string(b.offset / 1024) + "K";
  if (p.pitch != s.C) text += " slice " + std::to_string(p.channel) + ":" + std::to_string(p.channel + s.C);
  return text;
}

}  // namespace

std::string explain(Network& network, int batch) {
  const int slice = network.micro_batch_size(batch);
  Program& program = network.program(slice, Mode::train, nullptr);
  const Graph& g = program.graph();
  const Plan& plan = program.plan();

  Columns table({"node", "op", "attributes", "output", "parameters", "MFLOP", "provider", "value", "gradient"},
                {false, false, false, false, true, true, false, false, false});
  double flops = 0;
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& n = g.nodes[i];
    int64_t params = 0;
    for (int p : n.params) params += g.params[p].spec.elements();
    const double mflop = 2e-6 * static_cast<double>(n.inferred.macs) / slice;
    flops += mflop;
    table.row({n.name, std::string(n.op->kind()), n.op->describe(), size_text(n.shape()),
               params > 0 ? thousands(params) : "", mflop > 0 ? fixed(mflop, "%.1f") : "",
               n.inferred.macs > 0 ? n.op->provider() : "", where_it_lives(plan, plan.nodes[i].value, n.shape()),
               where_it_lives(plan, plan.nodes[i].grad, n.shape())});
  }
  std::string text = table.text() + "\n";
  for (const Node& n : g.nodes)
    if (!n.inferred.note.empty()) text += n.name + ": " + n.inferred.note + "\n";
  for (const std::string& f : network.fusions()) text += "fused  " + f + "\n";

  const double mib = 1024.0 * 1024.0;
  text += "\nparameters   " + thousands(g.parameter_count()) + "\n";
  text += "FLOPs        " + fixed(flops / 1e3, "%.2f") + " GFLOP forward per image, " + fixed(3 * flops / 1e3, "%.2f") +
          " per training step and image\n";
  text += "device       " + network.device().name() + "\n";
  text += "precision    " + std::string(name_of(network.options().precision)) + "\n";
  text +=
      "batch        " + std::to_string(batch) + (slice < batch ? " in slices of " + std::to_string(slice) : "") + "\n";
  text += "arena        " + fixed(plan.bytes / mib, "%.1f") + " MiB (" + fixed(plan.no_reuse / mib, "%.1f") +
          " MiB without reuse); weights, gradients and moments " +
          fixed((network.parameters().bytes() + network.packed_bytes()) / mib, "%.1f") + " MiB\n";
  text += "concat       " + std::to_string(plan.concat_copies) + " copies; " + std::to_string(plan.extra_adds) +
          " gradients added in a pass of their own\n";

  std::vector<const PlanBuffer*> largest;
  for (const PlanBuffer& b : plan.buffers) largest.push_back(&b);
  std::sort(largest.begin(), largest.end(), [](auto* a, auto* b) { return a->bytes > b->bytes; });
  text += "largest      ";
  for (size_t i = 0; i < std::min<size_t>(3, largest.size()); ++i)
    text += (i == 0 ? "" : ", ") + largest[i]->name + " " + fixed(largest[i]->bytes / mib, "%.1f") + " MiB";
  return text + "\n";
}

}  // namespace regolith
