// The ops that YAML can name. An op is added by its file in engine/ops and one line in registry.cpp.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/graph/attributes.h"
#include "engine/graph/op.h"

namespace regolith {

struct OpEntry {
  std::string kind;               // "max_pool"
  std::string summary;            // one line of documentation
  std::vector<std::string> keys;  // attributes that it reads
  int min_inputs = 1, max_inputs = 1;
  std::function<std::unique_ptr<Op>(const Attributes&)> parse;
};

const std::vector<OpEntry>& op_registry();
const OpEntry* find_op(std::string_view kind);  // null: there is none

}  // namespace regolith
