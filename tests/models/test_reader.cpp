// The language of model files: sub-networks with open inputs, repeats, defaults, heads; and what it says of mistakes,
// each time in one message with file, line, column and node.
#include "models/reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/experiment.h"
#include "engine/base/error.h"
#include "places.h"
#include "tests/support/message.h"

namespace regolith {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Nodes start in line 3.
Graph model(const std::string& nodes, const std::string& rest = "", const std::string& size = "16, width: 16") {
  return read_model(Yaml::load_string("input: {height: " + size + "}\nnodes:\n" + nodes + rest, "model.yaml"));
}

using testing::message;
std::string message(const std::string& nodes, const std::string& rest = "", const std::string& size = "16, width: 16") {
  return message([&] { model(nodes, rest, size); });
}

std::vector<std::string> names(const Graph& g) {
  std::vector<std::string> all;
  for (const Node& n : g.nodes) all.push_back(n.name);
  return all;
}
std::vector<std::string> inputs(const Graph& g, const std::string& node) {
  std::vector<std::string> all;
  for (int i : g.nodes[g.find(node)].inputs) all.push_back(g.nodes[i].name);
  return all;
}

const std::string kUp =
    "nets:\n"
    "  up:\n"
    "    inputs: [below, skips...]\n"
    "    params: {filters: 4}\n"
    "    nodes:\n"
    "      up: {op: conv, in: below, filters: $filters, kernel: 1}\n"
    "      join: {op: concat, in: [skips, up]}\n";

TEST(Reader, AnOpenInputStandsForAllThatIsGiven) {
  const Graph g = model(
      "  a: {op: conv, in: input, filters: 2}\n"
      "  b: {op: conv, in: input, filters: 3}\n"
      "  one: {net: up, in: [a, b]}\n"
      "  two: {net: up, in: [one, b, a], filters: 8}\n",
      kUp);
  EXPECT_THAT(inputs(g, "one/join"), ElementsAre("b", "one/up"));
  EXPECT_THAT(inputs(g, "two/join"), ElementsAre("b", "a", "two/up"));
  EXPECT_EQ(g.nodes[g.find("one/up")].shape().C, 4);  // the parameter's default
  EXPECT_EQ(g.nodes[g.output].shape().C, 3 + 2 + 8);
}

TEST(Reader, AnOpenInputWantsOneAtLeastAndANodeOfItsOwnWhereOneIsMeant) {
  EXPECT_EQ(message("  a: {net: up, in: input}\n", kUp),
            "model.yaml:3:20: nodes.a.in: sub-network up takes 2 or more inputs, not 1");
  const std::string output = "    output: skips\n";
  EXPECT_EQ(message("  a: {net: up, in: [input, input, input]}\n", kUp + output),
            "model.yaml:11:13: nets.up.output: stands for 2 nodes; expected one");
}

TEST(Reader, ARepeatedNetReadsItself) {
  const std::string net =
      "nets:\n"
      "  step: {inputs: [x], params: {filters: null}, nodes: {c: {op: conv, in: x, filters: $filters}, r: {op: relu, "
      "in: c}}}\n";
  const Graph g = model("  a: {net: step, in: input, filters: 4, repeat: 3}\n  y: {op: add, in: [a, a.c]}\n", net);
  EXPECT_THAT(names(g), ElementsAre("input", "a/1/c", "a/1/r", "a/2/c", "a/2/r", "a/3/c", "a/3/r", "y"));
  EXPECT_THAT(inputs(g, "a/2/c"), ElementsAre("a/1/r"));
  EXPECT_THAT(inputs(g, "y"), ElementsAre("a/3/r", "a/3/c"));  // names from outside mean the last
  EXPECT_THAT(message("  a: {net: step, in: input, filters: 4, repeat: 0}\n", net), StartsWith("model.yaml:3:49: "));
  EXPECT_THAT(message("  a: {net: step, in: input}\n", net), AllOf(StartsWith("model.yaml:3:"), HasSubstr("filters")));
}

TEST(Reader, NamesInsideNestedNetsAreReadFromOutside) {
  const std::string nets =
      "nets:\n"
      "  inner: {inputs: [x], nodes: {c: {op: conv, in: x, filters: 3}, r: {op: relu, in: c}}}\n"
      "  outer: {inputs: [x], nodes: {i: {net: inner, in: x}, j: {net: inner, in: i.c}}}\n";
  const Graph g = model("  o: {net: outer, in: input}\n  y: {op: concat, in: [o, o.i, o.i.c, o.j.c]}\n", nets);
  EXPECT_THAT(inputs(g, "y"), ElementsAre("o/j/r", "o/i/r", "o/i/c", "o/j/c"));
  EXPECT_THAT(inputs(g, "o/j/c"), ElementsAre("o/i/c"));
  EXPECT_EQ(message("  o: {net: outer, in: input}\n  y: {op: relu, in: o.i.d}\n", nets),
            "model.yaml:4:21: nodes.y.in: there is no node 'o.i.d' here; did you mean 'o.i.c'?");
  EXPECT_THAT(message("  o: {net: self, in: input}\n", "nets: {self: {inputs: [x], nodes: {s: {net: self, in: x}}}}\n"),
              HasSubstr("does one use itself?"));
}

TEST(Reader, DefaultsHoldWhereAKeyIsTakenAndNetsMayHaveTheirOwn) {
  const Graph g = model(
      "  a: {op: conv, in: input, filters: 2}\n"
      "  n: {net: one, in: a}\n"
      "  y: {op: conv, in: n, filters: 2, kernel: 3}\n",
      "defaults: {kernel: 5, groups: 2}\n"
      "nets: {one: {inputs: [x], defaults: {kernel: 1}, nodes: {c: {op: conv, in: x, filters: 2}, g: {op: group_norm, "
      "in: c}}}}\n");
  EXPECT_EQ(g.nodes[g.find("a")].inferred.params[0].shape, (std::vector<int64_t>{2, 5, 5, 1}));
  EXPECT_EQ(g.nodes[g.find("n/c")].inferred.params[0].shape, (std::vector<int64_t>{2, 1, 1, 2}));
  EXPECT_EQ(g.nodes[g.find("y")].inferred.params[0].shape, (std::vector<int64_t>{2, 3, 3, 2}));
}

TEST(Reader, NodesAreReadInTheOrderOfTheirInputsAndNullTakesThemAway) {
  const Graph g =
      model("  y: {op: add, in: [n.c, b]}\n  gone: off\n  b: {op: relu, in: n}\n  n: {net: one, in: input}\n",
            "nets: {one: {inputs: [x], nodes: {r: {op: relu, in: c}, c: {op: conv, in: x, filters: 2}}}}\n"
            "heads: {y: 1, b: null}\n");
  EXPECT_THAT(names(g), ElementsAre("input", "n/c", "n/r", "b", "y"));
  EXPECT_EQ(g.nodes[g.output].name, "y");
  EXPECT_THAT(message("  a: {op: relu, in: b}\n  b: {op: relu, in: a}\n"),
              HasSubstr("model.yaml:4:21: nodes.b.in: 'a' reads this node: nodes cannot stand in a circle"));
  EXPECT_THAT(message("  a: {op: relu, in: b}\n  b: null\n"), HasSubstr("nodes.a.in: there is no node 'b' here"));
  const Yaml base =
      Yaml::load_string("input: {height: 8, width: 8}\nnodes: {p: {op: max_pool, in: input}}", "base.yaml");
  EXPECT_THAT(message([&] { read_model(base.with_overrides({"nodes.p.block=conv_norm"})); }),
              HasSubstr("nodes.p.block: excludes 'op', which is set at base.yaml:2:17; a node of another kind"));
}

TEST(Reader, ADefaultThatNothingTakesIsAMistake) {
  EXPECT_EQ(message("  a: {op: conv, in: input, filters: 2}\n", "defaults: {kernl: 3}\n"),
            "model.yaml:4:12: defaults.kernl: no node takes a key of that name; did you mean 'kernel'?");
}

TEST(Reader, TheKeysOfOpsAndBlocksAreThoseThatTheyAskFor) {
  EXPECT_EQ(message("  a: {op: conv, in: input, filterz: 2}\n"),
            "model.yaml:3:28: nodes.a.filterz: unknown key; did you mean 'filters'?");
  EXPECT_EQ(message("  a: {op: relu, in: input, rate: 0.5}\n"),
            "model.yaml:3:28: nodes.a.rate: unknown key; known here: op, in");
  // Asked for after a norm was chosen, and only where a rate is given.
  EXPECT_EQ(message("  a: {block: se_conv, in: input, filters: 32, norm: none, momentun: 0.9}\n"),
            "model.yaml:3:59: nodes.a.momentun: unknown key; did you mean 'momentum'?");
  const std::string help = help_models();
  for (const char* part :
       {"model.nodes.NAME{op: add}: 2 or more inputs\n    the sum of maps of one shape\n",
        "model.nodes.NAME{op: conv}: 1 input\n    convolution\n"
        "model.nodes.NAME{op: conv}.filters: integer 1..65536 (required)\n    channels of the output\n"
        "model.nodes.NAME{op: conv}.kernel: integer 1..255, or two = 3\n",
        "{op: aspp}.rates: list of integers 1..1024 = [6, 12, 18]\n", "{op: dropout}.rate: number 0..1 (required)\n",
        "{block: se_conv}.ratio: integer 1..65536 = 16\n", "{block: residual}.momentum: number 0..1 = 0.99\n",
        "{block: residual}.norm: group|batch|none = group\n", "{block: transformer}.rate: number 0..1 = 0\n"})
    EXPECT_THAT(help, HasSubstr(part));
}

TEST(Reader, HeadsCompareTheirOwnNodesWithTheMasks) {
  const std::string nodes =
      "  x: {op: conv, in: input, filters: 4}\n"
      "  half: {op: max_pool, in: x}\n"
      "  early: {op: conv, in: x, filters: 5, kernel: 1}\n"
      "  small: {op: conv, in: half, filters: 5, kernel: 1}\n"
      "  logits: {op: conv, in: x, filters: 5}\n";
  const Graph g = model(
      "  x: {op: conv, in: input, filters: 4}\n"
      "  early: {op: conv, in: x, filters: 5, kernel: 1}\n"
      "  logits: {op: conv, in: x, filters: 5}\n",
      "heads: {early: 0.5, logits: 1}\n");
  ASSERT_EQ(g.heads.size(), 2u);
  EXPECT_EQ(g.nodes[g.heads[0].node].name, "early");
  EXPECT_EQ(g.heads[0].weight, .5f);
  EXPECT_EQ(g.nodes[g.output].name, "logits");
  EXPECT_EQ(message(nodes, "heads: {early: 1, small: 1, logits: 1}\n"),
            "model.yaml:8:19: heads.small: is 1x8x8x5; the output, with the same masks, is 1x16x16x5");
  EXPECT_EQ(message(nodes, "heads: {earl: 1, small: 1}\n"),
            "model.yaml:8:9: heads.earl: there is no node of that name; did you mean 'early'?");
  EXPECT_THAT(message(nodes, "heads: {early: -1, small: 1}\n"), StartsWith("model.yaml:8:16: heads.early: "));
}

TEST(BadInput, NumbersThatDoNotFitNameTheNode) {
  const auto block = [](const std::string& attributes) { return message("  e1: {block: " + attributes + "}\n"); };
  EXPECT_EQ(block("se_conv, in: input, filters: 8, ratio: 16, groups: 4"),
            "model.yaml:3:3: node e1/1/se (squeeze_excite): a ratio of 16 leaves nothing of 8 channels; set `ratio` to "
            "8 or less");
  EXPECT_EQ(block("residual, in: input, filters: 12, groups: 8"),
            "model.yaml:3:3: node e1/1/norm1 (group_norm): 8 groups do not divide 12 channels; set `groups` to a "
            "divisor");
  EXPECT_EQ(block("conv_norm, in: input, filters: 8, kernel: 2, dilation: 3"),
            "model.yaml:3:3: node e1/1/conv (conv): dilation 3 on the even kernel 2x2 has no centre; use an odd kernel "
            "or dilation 1");
  // Of one value each, a norm gives beta alone: in the default norm of a block over a pooled map, too.
  const std::string pooled = "  g: {op: global_avg_pool, in: input}\n  c: {op: conv, in: g, filters: 8}\n  n: ";
  EXPECT_THAT(
      message(pooled + "{block: conv_norm, in: g, filters: 8, kernel: 1}\n"),
      StartsWith("model.yaml:5:3: node n/1/norm (group_norm): has groups of a single value (8 groups, an input of "
                 "1x1x8)"));
  EXPECT_THAT(message(pooled + "{op: group_norm, in: c, groups: 8}\n"), HasSubstr("Set fewer `groups`"));
  EXPECT_THAT(message(pooled + "{op: group_norm, in: c, groups: 4}\n"), ::testing::Not(HasSubstr("single value")));
  EXPECT_THAT(message("  n: {op: layer_norm, in: input}\n"), HasSubstr("pixels of a single channel"));
}

// Three levels of an encoder, and back.
const std::string kLevels =
    "  a: {op: conv, in: input, filters: 2}\n"
    "  p: {op: max_pool, in: a}\n"
    "  q: {op: max_pool, in: p}\n"
    "  r: {op: max_pool, in: q}\n"
    "  y: {op: upsample, in: r, factor: 8}\n";

TEST(BadInput, SizesThatTheLevelsDoNotDivideAreToldWhichDo) {
  EXPECT_EQ(
      message(kLevels, "", "60, width: 128"),
      "model.yaml:6:3: node r (max_pool): a map of 15x32 is not covered by windows of 2x2, stride 2; input.height "
      "must be a multiple of 8: 56 or 64, not 60");
  EXPECT_THAT(message(kLevels, "", "60, width: 130"),
              AllOf(HasSubstr("input.height must be a multiple of 8: 56 or 64, not 60"),
                    HasSubstr("input.width must be a multiple of 8: 128 or 136, not 130")));
  EXPECT_THAT(message(kLevels, "", "5, width: 128"), HasSubstr("input.height must be a multiple of 8: 8, not 5"));
  // Strides that round up, and a skip that does not fit what comes back.
  EXPECT_THAT(message("  a: {op: conv, in: input, filters: 2, stride: 3}\n"
                      "  u: {op: conv_transpose, in: a, filters: 2, stride: 3}\n"
                      "  y: {op: concat, in: [u, input]}\n",
                      "", "16, width: 16"),
              AllOf(StartsWith("model.yaml:5:3: node y (concat)"),
                    HasSubstr("input.height must be a multiple of 3: 15 or 18, not 16; input.width must be")));
  // Not valid sizes of anything: the size is not what is wrong.
  EXPECT_THAT(message("  a: {op: conv, in: input, filters: 2}\n  y: {op: add, in: [a, input]}\n"),
              ::testing::Not(HasSubstr("input.height")));
}

TEST(BadInput, NetworksOfTheStudyNameTheSizesThatFit) {
  const auto read = [](const std::string& name, const std::string& height) {
    return message([&] {
      read_model(Yaml::load(std::string(REGOLITH_SOURCE_DIR) + "/configs/models/" + name + ".yaml")
                     .with_overrides({"model.input.height=" + height})
                     .at("model"));
    });
  };
  EXPECT_THAT(read("unet", "66"), HasSubstr("input.height must be a multiple of 4: 64 or 68, not 66"));
  EXPECT_THAT(read("se_unet", "66"), HasSubstr("input.height must be a multiple of 8: 64 or 72, not 66"));
  EXPECT_THAT(read("double_unet", "66"), HasSubstr("input.height must be a multiple of 16: 64 or 80, not 66"));
}

TEST(BadInput, ALossThatExcludesEveryClassIsFoundAtItsPlace) {
  Experiment run(read_run_config(Yaml::load_string("model:\n"
                                                   "  input: {height: 8, width: 8}\n"
                                                   "  nodes: {logits: {op: conv, in: input, filters: 3}}\n"
                                                   "loss: {focal: {exclude: [0, 1, 2]}}\n",
                                                   "run.yaml"),
                                 ConfigUse::network));
  EXPECT_EQ(message([&] { run.loss({}); }),
            "run.yaml:4:25: loss.focal.exclude: excludes all 3 classes; leave at least one to learn from");
}

}  // namespace
}  // namespace regolith
