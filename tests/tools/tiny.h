// A run so small that it takes a moment, and the fixture of the tests that start programs on it.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/tools/child.h"

namespace regolith::testing {

// The layers after `e` work with batch statistics, which a resumed run must bring along.
inline constexpr const char* kTiny =
    "run: {name: tiny, seed: 7, device: cpu, precision: fp32, threads: 2}\n"
    "data:\n"
    "  synthetic: {count: 24, height: 16, width: 32}\n"
    "  classes: {names: [background, soil, bedrock, sand, big_rock]}\n"
    "  augment: {flip: horizontal, translation: 0.1}\n"
    "loss: {focal: {exclude: [0]}}\n"
    "optimizer: {adamw: {lr: 1.0e-2}}\n"
    "schedule: {reduce_on_plateau: {factor: 0.5, patience: 1, min_delta: 0.01}}\n"
    "train: {batch: 4, epochs: 2, panels: 2}\n"
    "model:\n"
    "  input: {height: 16, width: 32, channels: 1}\n"
    "  nodes:\n"
    "    e: {block: conv_norm, in: input, filters: 8, kernel: 3, norm: batch}\n"
    "    logits: {op: conv, in: e, filters: 5, kernel: 1}\n";

class Cli : public ::testing::Test {
 protected:
  Cli() { folder_.write("tiny.yaml", kTiny); }

  // engine_run, or the program that is named first.
  Outcome run(std::vector<std::string> words, long file_limit = -1) const {
    if (words.empty() || !words[0].starts_with("engine_")) words.insert(words.begin(), "engine_run");
    return Child(folder_.path(), words, file_limit).wait();
  }
  // That it was refused with one line on stderr that holds all of `parts`.
  void refuses(const std::vector<std::string>& words, const std::vector<std::string>& parts,
               long file_limit = -1) const {
    const Outcome o = run(words, file_limit);
    const std::string program = !words.empty() && words[0].starts_with("engine_") ? words[0] : "engine_run";
    SCOPED_TRACE(::testing::PrintToString(words));
    EXPECT_THAT(o.code, ::testing::AllOf(::testing::Gt(0), ::testing::Lt(126))) << o.out;
    EXPECT_THAT(o.err, ::testing::StartsWith(program + ": "));
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
    EXPECT_THAT(o.err, ::testing::EndsWith("\n"));
    for (const std::string& part : parts) EXPECT_THAT(o.err, ::testing::HasSubstr(part));
  }

  TemporaryFolder folder_;
};

}  // namespace regolith::testing
