#include "engine/ops/registry.h"

#include <algorithm>

namespace regolith {
namespace {

std::vector<OpEntry>& registered() {
  static std::vector<OpEntry> entries;
  return entries;
}

}  // namespace

RegisterOp::RegisterOp(std::string kind, std::string summary, int min_inputs, int max_inputs,
                       std::unique_ptr<Op> (*parse)(const Attributes&)) {
  registered().push_back({std::move(kind), std::move(summary), min_inputs, max_inputs, parse});
}

const std::vector<OpEntry>& op_registry() {
  static const std::vector<OpEntry> sorted = [] {
    std::vector<OpEntry> entries = registered();
    std::sort(entries.begin(), entries.end(), [](const OpEntry& a, const OpEntry& b) { return a.kind < b.kind; });
    for (OpEntry& e : entries) e.parse(Attributes(e.keys));
    return entries;
  }();
  return sorted;
}

}  // namespace regolith
