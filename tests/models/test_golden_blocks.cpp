// Every block, and every op that networks share, alone between two convolutions, against PyTorch in float64. The twins
// are in tests/golden/make_golden.py, by the same names.
#include <gtest/gtest.h>

#include "golden.h"

namespace regolith::golden {
namespace {

struct Block {
  const char* name;
  const char* nodes;  // from the map `stem` to the map that the logits read
};
void PrintTo(const Block& block, std::ostream* out) { *out << block.name; }

const std::vector<Block> kBlocks{
    {"conv_norm",
     "stem: {op: conv, in: input, filters: 12}\n"
     "x: {block: conv_norm, in: stem, filters: 20, kernel: 3, repeat: 2}"},
    {"conv_norm_batch",
     "stem: {op: conv, in: input, filters: 12}\n"
     "x: {block: conv_norm, in: stem, filters: 20, kernel: 2, norm: batch}"},
    {"residual",
     "stem: {op: conv, in: input, filters: 16}\n"
     "x: {block: residual, in: stem, filters: 16, kernel: 2, repeat: 2}"},
    {"residual_strided",
     "stem: {op: conv, in: input, filters: 16}\n"
     "x: {block: residual, in: stem, filters: 24, groups: 8, repeat: 2, stride: 2}\n"
     "up: {op: upsample, in: x, mode: bilinear}"},
    {"residual_bare",
     "stem: {op: conv, in: input, filters: 16}\n"
     "x: {block: residual, in: stem, filters: 32, norm: batch, shortcut: conv}"},
    {"squeeze_excite",
     "stem: {op: conv, in: input, filters: 24}\n"
     "x: {op: squeeze_excite, in: stem, ratio: 4}"},
    {"se_conv",
     "stem: {op: conv, in: input, filters: 12}\n"
     "x: {block: se_conv, in: stem, filters: 32, repeat: 2, ratio: 8}"},
    {"attention_gate",
     "stem: {op: conv, in: input, filters: 16}\n"
     "signal: {op: conv, in: input, filters: 24}\n"
     "x: {op: attention_gate, in: [stem, signal], filters: 12}"},
    {"aspp",
     "stem: {op: conv, in: input, filters: 16}\n"
     "x: {op: aspp, in: stem, filters: 32, rates: [6, 12, 18]}"},
    {"aspp_small",
     "stem: {op: conv, in: input, filters: 16}\n"
     "x: {op: aspp, in: stem, filters: 32, rates: [6, 12, 18]}"},
    {"aspp_whole",
     "stem: {op: conv, in: input, filters: 16}\n"
     "x: {op: aspp, in: stem, filters: 32, rates: [1, 2, 3]}"},
    {"transformer",
     "stem: {op: conv, in: input, filters: 32}\n"
     "x: {block: transformer, in: stem, heads: 2, mlp_ratio: 3, repeat: 2}"},
    {"conv_transpose_2",
     "stem: {op: conv, in: input, filters: 12}\n"
     "x: {op: conv_transpose, in: stem, filters: 8, kernel: 2, stride: 2}\n"
     "half: {op: max_pool, in: x}"},
    {"conv_transpose_3",
     "stem: {op: conv, in: input, filters: 12}\n"
     "x: {op: conv_transpose, in: stem, filters: 8, kernel: 3, stride: 2}\n"
     "half: {op: max_pool, in: x}"},
    {"conv_dilated",
     "stem: {op: conv, in: input, filters: 12}\n"
     "x: {op: conv, in: stem, filters: 8, dilation: 2}"},
    {"conv_strided",
     "stem: {op: conv, in: input, filters: 12}\n"
     "x: {op: conv, in: stem, filters: 8, kernel: 2, stride: 2}\n"
     "up: {op: upsample, in: x}"},
};

Setting setting(const Block& block, const std::string& precision) {
  const std::string nodes = block.nodes;
  // The logits read the last node.
  const size_t line = nodes.rfind('\n') + 1;
  const std::string last = nodes.substr(line, nodes.find(':', line) - line);
  std::string model = "  nodes:\n";
  for (size_t at = 0; at < nodes.size();) {
    const size_t end = std::min(nodes.find('\n', at), nodes.size());
    model += "    " + nodes.substr(at, end - at) + "\n";
    at = end + 1;
  }
  model += "    logits: {op: conv, in: " + last + ", filters: 5, kernel: 1}\n";
  return {std::string("block_") + block.name, model, "cross_entropy", "", {"run.precision=" + precision}};
}

class GoldenBlocks : public testing::TestWithParam<Block> {};

TEST_P(GoldenBlocks, AreThoseOfPyTorch) { Fixture(setting(GetParam(), "fp32")).expect_batch(fp32_bounds()); }

TEST_P(GoldenBlocks, StayWithinTheRoundingOfBf16) {
  Fixture fixture(setting(GetParam(), "bf16"));
  fixture.expect_batch(bf16_bounds(fixture.graph()));
}

INSTANTIATE_TEST_SUITE_P(, GoldenBlocks, testing::ValuesIn(kBlocks), [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace regolith::golden
