// Losses of heads that the model does not have, or that are its output, are refused by their key.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/experiment.h"
#include "engine/base/error.h"

namespace regolith {
namespace {

std::string refusal(const std::string& loss, const std::string& heads) {
  const std::string text = "run: {device: cpu}\nloss: " + loss +
                           "\nmodel:\n"
                           "  input: {height: 16, width: 32, channels: 1}\n"
                           "  nodes:\n"
                           "    e: {block: conv_norm, in: input, filters: 4}\n"
                           "    side: {op: conv, in: e, filters: 5, kernel: 1}\n"
                           "    logits: {op: conv, in: side, filters: 5, kernel: 1}\n" +
                           heads;
  Experiment experiment(read_run_config(Yaml::load_string(text, "h.yaml"), ConfigUse::network));
  try {
    experiment.loss({});
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

TEST(Heads, AreThoseOfTheModel) {
  const std::string both = "  heads: {side: 0.5, logits: 1}\n";
  EXPECT_EQ(refusal("{heads: {side: {dice: {}}}}", both), "");
  EXPECT_THAT(refusal("{heads: {sde: {dice: {}}}}", both),
              testing::StartsWith("h.yaml:2:21: loss.heads.sde: is no head of the model; its other heads: side"));
  EXPECT_THAT(refusal("{heads: {logits: {dice: {}}}}", both),
              testing::StartsWith("h.yaml:2:24: loss.heads.logits: is the output, whose loss is `loss` itself"));
  EXPECT_THAT(refusal("{heads: {side: {dice: {}}}}", ""), testing::HasSubstr("the model has none but its output"));
  EXPECT_THAT(refusal("{heads: {side: {dice: {exclude: [7]}}}}", both),
              testing::HasSubstr("loss.heads.side.dice.exclude: class 7 is not one of 0..4"));
}

}  // namespace
}  // namespace regolith
