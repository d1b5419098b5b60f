// The blocks that models name. Each says which attributes it reads; its nodes are named by what they are.
#include <algorithm>

#include "models/builder.h"

namespace regolith {
namespace {

std::vector<std::string> keys(std::vector<std::string> own) {
  own.insert(own.end(), kConvKeys.begin(), kConvKeys.end());
  own.insert(own.end(), kNormKeys.begin(), kNormKeys.end());
  return own;
}

constexpr int kMost = 1 << 16;

// repeat x (convolution, norm, ReLU)
int conv_norm(const Builder& b, const Attributes& a, const std::vector<int>& in) {
  const int filters = a.integer("filters", 1, kMost), repeat = a.integer("repeat", 1, 64, 1);
  int x = in[0];
  for (int i = 1; i <= repeat; ++i) {
    const Builder unit = b.inside(std::to_string(i));
    x = unit.relu("relu", unit.norm("norm", unit.conv("conv", x, filters, a), a));
  }
  return x;
}

}  // namespace

const std::vector<BlockEntry>& block_registry() {
  static const std::vector<BlockEntry> entries{
      {"conv_norm", "`repeat` times: convolution, norm, ReLU", keys({"filters", "repeat"}), 1, 1, conv_norm},
  };
  return entries;
}

const BlockEntry* find_block(std::string_view kind) {
  const auto& all = block_registry();
  const auto it = std::find_if(all.begin(), all.end(), [&](const BlockEntry& e) { return e.kind == kind; });
  return it == all.end() ? nullptr : &*it;
}

}  // namespace regolith
