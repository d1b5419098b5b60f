// The ops that YAML can name. Each registers itself in its own file:
//
//   std::unique_ptr<Op> parse(const Attributes& a) {
//     return std::make_unique<MaxPoolOp>(a.integer("pool", "height and width of the window", 1, 64, 2), ...);
//   }
//   const RegisterOp max_pool{"max_pool", "max pooling without padding", 1, 1, parse};
//
// Its keys are those that `parse` asks for.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/graph/attributes.h"
#include "engine/graph/op.h"

namespace regolith {

inline constexpr int kAnyInputs = 1 << 20;

struct OpEntry {
  std::string kind;     // "max_pool"
  std::string summary;  // one line of documentation
  int min_inputs, max_inputs;
  std::unique_ptr<Op> (*parse)(const Attributes&);
  std::vector<AttributeKey> keys = {};  // filled in by the registry
};

struct RegisterOp {
  RegisterOp(std::string kind, std::string summary, int min_inputs, int max_inputs,
             std::unique_ptr<Op> (*parse)(const Attributes&));
};

// The `parse` of an op without attributes.
template <class T>
std::unique_ptr<Op> plain(const Attributes&) {
  return std::make_unique<T>();
}

const std::vector<OpEntry>& op_registry();  // by kind

// The entry of a kind in a registry of ops or blocks; null: there is none.
template <class Entry>
const Entry* find_entry(const std::vector<Entry>& registry, std::string_view kind) {
  for (const Entry& e : registry)
    if (e.kind == kind) return &e;
  return nullptr;
}

}  // namespace regolith
