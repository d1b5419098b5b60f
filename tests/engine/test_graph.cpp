// The graph's phases without running anything: inference, fusion, plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/graph/plan.h"
#include "engine/ops/fuse.h"
#include "models/reader.h"
#include "places.h"
#include "tests/support/message.h"

namespace regolith {
namespace {

using testing::message;

Graph model(const std::string& nodes, const std::string& rest = "") {
  return read_model(Yaml::load_string("input: {height: 16, width: 16}\nnodes:\n" + nodes + rest, "model.yaml"));
}

Graph unet() { return read_model(Yaml::load(REGOLITH_SOURCE_DIR "/configs/models/unet.yaml").at("model")); }

TEST(Models, UnetHasTheParametersOfTheStudy) {
  Graph g = unet();
  g.infer(1);
  EXPECT_EQ(g.parameter_count(), 473669);
  EXPECT_EQ(g.nodes[g.output].shape(), (Shape{1, 64, 128, 5}));
}

TEST(Models, NamesFollowTheYaml) {
  Graph g = unet();
  g.infer(1);
  std::vector<std::string> names;
  for (const Parameter& p : g.params) names.push_back(p.name);
  for (const char* name :
       {"e1/1/conv/kernel", "e1/1/conv/bias", "b/2/norm/gamma", "b/2/norm/running_mean", "logits/bias"})
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
}

TEST(Models, ErrorsSayWhere) {
  EXPECT_EQ(message([] { model("  a: {op: conf, in: input, filters: 3}\n"); }),
            "model.yaml:3:11: nodes.a.op: there is no op 'conf'; did you mean 'conv'?");
  EXPECT_THAT(message([] { model("  a: {op: conv, in: inpt, filters: 3}\n"); }),
              ::testing::HasSubstr("did you mean 'input'?"));
  EXPECT_THAT(message([] { model("  a: {block: conv_nrm, in: input, filters: 3}\n"); }),
              ::testing::HasSubstr("there is no block 'conv_nrm'; did you mean 'conv_norm'?"));
  EXPECT_THAT(message([] { model("  a: {op: conv, in: input, filter: 3}\n"); }), ::testing::HasSubstr("filters"));
  EXPECT_THAT(message([] { model("  a: {op: conv, in: input}\n"); }), ::testing::HasSubstr("filters"));
  EXPECT_THAT(message([] { model("  a: {op: conv, in: input, filters: 0}\n"); }),
              ::testing::HasSubstr("model.yaml:3:"));
  const std::string odd = message([] { model("  a: {op: max_pool, in: input, pool: 3}\n"); });
  EXPECT_THAT(odd, ::testing::HasSubstr("model.yaml:3:"));
  EXPECT_THAT(odd, ::testing::HasSubstr("node a (max_pool): a map of 16x16"));
  EXPECT_THAT(
      message([] { model("  a: {op: conv, in: input, filters: 6}\n  b: {op: group_norm, in: a, groups: 4}\n"); }),
      ::testing::HasSubstr("4 groups do not divide 6 channels"));
  EXPECT_THAT(message([] { model("  a: {op: conv, in: input, filters: 6, kernel: 2, dilation: 2}\n"); }),
              ::testing::HasSubstr("even kernel"));
  EXPECT_THAT(
      message([] { model("  a: {op: conv, in: input, filters: 6}\n  b: {op: conv, in: input, filters: 2}\n"); }),
      ::testing::HasSubstr("node a: nothing reads it"));
}

TEST(Models, SubNetworksTakeInputsAndParameters) {
  Graph g = model(
      "  one: {net: twice, in: input, width: 4}\n"
      "  two: {net: twice, in: one}\n"
      "  sum: {op: add, in: [one.first, one]}\n"
      "  y: {op: concat, in: [sum, two]}\n",
      "nets:\n"
      "  twice:\n"
      "    inputs: [x]\n"
      "    params: {width: 8}\n"
      "    nodes:\n"
      "      first: {op: conv, in: x, filters: $width}\n"
      "      second: {op: conv, in: first, filters: $width}\n");
  g.infer(1);
  EXPECT_EQ(g.nodes[g.find("one/second")].shape().C, 4);
  EXPECT_EQ(g.nodes[g.find("two/first")].shape().C, 8);
  EXPECT_EQ(g.nodes[g.output].shape().C, 12);
  EXPECT_THAT(message([] {
                model("  a: {net: n, in: input, size: 3}\n",
                      "nets: {n: {inputs: [x], params: {width: 8}, nodes: {c: {op: conv, in: x, filters: $widht}}}}\n");
              }),
              ::testing::HasSubstr("size"));
}

TEST(Fusion, NormsTakeActivationsAndResiduals) {
  Graph g = model(
      "  a: {op: conv, in: input, filters: 4}\n"
      "  n: {op: group_norm, in: a, groups: 2}\n"
      "  r: {op: relu, in: n}\n"
      "  b: {op: conv, in: r, filters: 4}\n"
      "  m: {op: group_norm, in: b, groups: 2}\n"
      "  s: {op: add, in: [m, r]}\n"
      "  t: {op: relu, in: s}\n"
      "  c: {op: conv, in: t, filters: 4}\n"
      "  d: {op: relu, in: c}\n"
      "  y: {op: conv, in: d, filters: 2}\n");
  const Graph before = g;
  const auto log = fuse(g, FuseOptions{});
  EXPECT_THAT(log, ::testing::UnorderedElementsAre("norm+residual: m takes s", "norm+relu: n takes r",
                                                   "norm+relu: m takes t", "conv+relu: c takes d"));
  EXPECT_EQ(g.nodes.size(), before.nodes.size() - 4);
  Graph plain = before;
  EXPECT_TRUE(fuse(plain, FuseOptions::none()).empty());
  g.infer(2);
  plain.infer(2);
  ASSERT_EQ(g.params.size(), plain.params.size());
  for (size_t i = 0; i < g.params.size(); ++i) EXPECT_EQ(g.params[i].name, plain.params[i].name);
}

TEST(Plan, BuffersThatLiveTogetherDoNotOverlap) {
  std::vector<PlanBuffer> b{{"a", 1000, 0, 3}, {"b", 300, 1, 2}, {"c", 5000, 2, 2}, {"d", 700, 4, 9}, {"e", 256, 3, 4}};
  const size_t bytes = assign_offsets(b, true);
  for (size_t i = 0; i < b.size(); ++i) {
    EXPECT_EQ(b[i].offset % 256, 0u);
    EXPECT_LE(b[i].offset + b[i].bytes, bytes);
    for (size_t j = 0; j < i; ++j) {
      const bool together = b[i].first <= b[j].last && b[j].first <= b[i].last;
      const bool apart = b[i].offset + b[i].bytes <= b[j].offset || b[j].offset + b[j].bytes <= b[i].offset;
      EXPECT_TRUE(!together || apart) << b[i].name << " and " << b[j].name;
    }
  }
  EXPECT_LT(bytes, assign_offsets(b, false));
}

}  // namespace
}  // namespace regolith
