// A run that goes on: with what, what it refuses, what it says; and what is found before the work begins.
#include <chrono>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/io/npy.h"
#include "engine/io/safetensors.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

class CliResume : public Cli {
 protected:
  void first(std::vector<std::string> words = {}) const {
    words.insert(words.begin(), {"tiny.yaml", "train.epochs=1", "train.panels=0"});
    const Outcome o = run(words);
    ASSERT_EQ(o.code, 0) << o.err;
  }
  std::string resumed(std::vector<std::string> words) const {
    words.insert(words.end(), {"--resume", "runs/tiny"});
    const Outcome o = run(words);
    EXPECT_EQ(o.code, 0) << o.err;
    return o.out;
  }
  std::vector<double> history(const std::string& key) const {
    std::istringstream lines(folder_.read("runs/tiny/history.jsonl"));
    std::vector<double> values;
    for (std::string line; std::getline(lines, line);) values.push_back(json::parse(line).at(key));
    return values;
  }
};

TEST_F(CliResume, TheFolderAloneSays) {
  first();
  const std::string before = folder_.read("runs/tiny/config.yaml");
  EXPECT_THAT(before, ::testing::StartsWith("# Regolith "));
  EXPECT_THAT(resumed({"train.epochs=2"}), HasSubstr("changed: train.epochs: 1 -> 2\n"));
  EXPECT_EQ(folder_.read("runs/tiny/config-1.yaml"), before);
  EXPECT_THAT(folder_.read("runs/tiny/config.yaml"), HasSubstr("epochs: 2\n"));
  EXPECT_FALSE(folder_.has("runs/tiny/lock"));
  ASSERT_EQ(run({"tiny.yaml", "train.panels=0", "run.name=whole"}).code, 0);
  EXPECT_TRUE(folder_.read("runs/tiny/last.safetensors") == folder_.read("runs/whole/last.safetensors"));
  EXPECT_THAT(resumed({}), ::testing::AllOf(HasSubstr("nothing is left to train"), Not(HasSubstr("changed"))));
  EXPECT_FALSE(folder_.has("runs/tiny/config-2.yaml"));
  refuses({"--resume", "runs/none"}, {"runs/none: there is no such folder"});
}

TEST_F(CliResume, RefusesAnotherExperimentByItsKey) {
  first();
  const std::string before = folder_.read("runs/tiny/last.safetensors");
  for (const auto& [word, part] : std::vector<std::pair<std::string, std::string>>{
           {"run.seed=8", "run.seed: 7 -> 8"},
           {"data.split.seed=9", "data.split.seed: 7 -> 9"},
           {"data.normalise.scale=1", "data.normalise.scale: 0.00392156862745098 -> 1"},
           {"data.oversample={class: 1}", "data.oversample: off -> {"},
           {"data.clean.drop_duplicates=true", "data.clean.drop_duplicates: false -> true"},
           {"train.batch=8", "train.batch: 4 -> 8"},
           {"train.steps_per_epoch=3", "train.steps_per_epoch: 5 -> 3"},
           {"optimizer.sgd={}", "optimizer: adamw -> sgd"},
           {"model.nodes.e.momentum=0.5", "model.nodes.e: nothing -> momentum"},
           {"data.synthetic.count=25", "other data: images, masks, split differ (data.synthetic.count: 24 -> 25)"},
           {"data.synthetic.seed=25", "other data: images, masks"}})
    refuses({word, "train.epochs=2", "--resume", "runs/tiny"}, {"runs/tiny/last.safetensors: ", part});
  EXPECT_TRUE(folder_.read("runs/tiny/last.safetensors") == before);
  EXPECT_FALSE(folder_.has("runs/tiny/config-1.yaml"));
}

TEST_F(CliResume, WhatMayChangeTakesEffectAndIsSaid) {
  first();
  const std::string out = resumed({"tiny.yaml", "optimizer.adamw.lr=1e-4", "run.threads=1", "train.panels=0",
                                   "data.split.seed=7", "run.output=elsewhere"});
  EXPECT_THAT(out, HasSubstr("changed: run.threads: 2 -> 1; results differ by rounding\n"));
  EXPECT_THAT(out, HasSubstr("changed: optimizer.adamw.lr: 0.01 -> 1.0e-04\n"));
  EXPECT_THAT(out, HasSubstr("learning rate of step 5: 1e-04; the rate of the checkpoint's own configuration: 0.01\n"));
  EXPECT_THAT(out, Not(HasSubstr("changed: data")));
  EXPECT_EQ(history("lr"), (std::vector<double>{0.01, 1e-4}));
  const std::string cosine = resumed({"schedule.cosine={}", "train.epochs=3"});
  EXPECT_THAT(cosine, HasSubstr("changed: schedule: reduce_on_plateau -> cosine\n"));
  EXPECT_THAT(cosine, HasSubstr("learning rate of step 10: "));
}

TEST_F(CliResume, AnotherLossOrMonitorMeasuresAnew) {
  first({"loss.dice={}"});
  const std::string out = resumed({"tiny.yaml", "train.panels=0"});
  EXPECT_THAT(
      out, HasSubstr(
               "changed: loss: dice -> focal\nchanged: train.epochs: 1 -> 2\nanother loss or monitor: the best value"));
  EXPECT_EQ(load_checkpoint(folder_ / "runs/tiny/best.safetensors").meta("epoch"), "2");
}

TEST_F(CliResume, AFinishedRunUnderAnotherConfigurationKeepsIt) {
  first();
  const std::string before = folder_.read("runs/tiny/config.yaml");
  resumed({"loss.dice={}"});
  EXPECT_EQ(folder_.read("runs/tiny/config-1.yaml"), before);
  EXPECT_THAT(folder_.read("runs/tiny/config.yaml"), HasSubstr("dice"));
  const std::string scores = folder_.read("runs/tiny/scores.json");
  EXPECT_THAT(resumed({}), Not(HasSubstr("changed")));
  EXPECT_EQ(folder_.read("runs/tiny/scores.json"), scores);
}

TEST_F(CliResume, MorePatienceGoesOn) {
  const std::vector<std::string> words{"tiny.yaml", "train.epochs=9", "optimizer.adamw.lr=1e-12", "train.panels=0"};
  std::vector<std::string> impatient = words;
  impatient.push_back("train.early_stopping={patience: 2, min_delta: 0.5}");
  ASSERT_EQ(run(impatient).code, 0);
  EXPECT_EQ(history("epoch").size(), 3U);
  EXPECT_THAT(resumed({"train.early_stopping.patience=4"}), HasSubstr("resuming runs/tiny at epoch 4"));
  EXPECT_EQ(history("epoch").size(), 5U);
}

TEST_F(CliResume, WhatTheFolderLacksIsSaidBeforeTheWork) {
  first();
  const std::string best = "runs/tiny/best.safetensors", good = folder_.read(best);
  folder_.write(best, good.substr(0, 100));
  refuses({"--resume", "runs/tiny", "train.epochs=2"}, {best + ": ", "truncated"});
  EXPECT_EQ(history("epoch").size(), 1U);
  std::filesystem::remove(folder_ / best);
  const std::string anew = "best.safetensors is missing: the best value and the waiting for a better one start anew\n";
  EXPECT_THAT(resumed({}), ::testing::AllOf(HasSubstr(anew), HasSubstr("no weights are the best by val_loss")));
  std::filesystem::remove(folder_ / "runs/tiny/history.jsonl");
  EXPECT_THAT(resumed({"train.epochs=2", "optimizer.adamw.lr=5"}),  // worse than the epoch that is lost
              ::testing::AllOf(HasSubstr(anew), HasSubstr("history.jsonl lacks 1 of the 1 epochs before\n")));
  EXPECT_TRUE(folder_.has(best));
}

TEST_F(CliResume, OneProcessAtATime) {
  Child child(folder_.path(), {"engine_run", "tiny.yaml", "train.epochs=100000"});
  ASSERT_TRUE(child.wait_for(" 2/100000 "));
  refuses({"--resume", "runs/tiny"}, {"runs/tiny: is in use by process "});
  child.signal(SIGKILL);
  child.wait();
  EXPECT_TRUE(folder_.has("runs/tiny/lock"));
  EXPECT_THAT(resumed({"train.epochs=1", "train.panels=0"}), HasSubstr("nothing is left to train"));
}

TEST_F(CliResume, ACheckpointOfAnEarlierVersionIsNamedSo) {
  first();
  Checkpoint c = load_checkpoint(folder_ / "runs/tiny/last.safetensors");
  c.metadata.erase("config");
  save_checkpoint(folder_ / "runs/tiny/last.safetensors", c);
  refuses({"--resume", "runs/tiny"}, {"was written by an earlier version", "start anew"});
}

TEST_F(CliResume, WeightsThatWereNeverTheBestAreNotListedAndDataMayMove) {
  const std::vector<uint8_t> images(12 * 16 * 32, 100), masks(images.size(), 0);
  write_npz(folder_ / "empty.npz", std::vector{npz_entry("image", {12, 16, 32}, images.data()),
                                               npz_entry("mask", {12, 16, 32}, masks.data())});
  const Outcome o = run({"tiny.yaml", "data.npz=empty.npz", "loss.cross_entropy={}", "train.panels=0",
                         "train.early_stopping.monitor=val_miou_foreground"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out,
              HasSubstr("no weights are the best by val_miou_foreground; the scores are those of the last ones\n"));
  EXPECT_THAT(o.out, HasSubstr("warning: class 1 (soil) has no pixels in the training images\n"));
  EXPECT_THAT(o.out, Not(HasSubstr("best.safetensors")));

  // Data may move: its contents say whether it is the same.
  std::filesystem::create_directory(folder_ / "elsewhere");
  std::filesystem::rename(folder_ / "empty.npz", folder_ / "elsewhere/empty.npz");
  const std::string moved = "data.npz=elsewhere/empty.npz";
  EXPECT_THAT(resumed({moved, "train.panels=0"}), HasSubstr("nothing is left to train"));
  ASSERT_EQ(run({"runs/tiny/config.yaml", moved, "run.name=again"}).code, 0);
  EXPECT_TRUE(folder_.read("runs/tiny/last.safetensors") == folder_.read("runs/again/last.safetensors"));
}

TEST_F(CliResume, ErrorsComeBeforeTheWork) {
  folder_.write("bad.npz", "these are not arrays at all");
  folder_.write("file", "precious");
  refuses({"tiny.yaml", "data.npz=bad.npz", "loss.focal.exclude=[9]"}, {"command line: loss.focal.exclude"});
  refuses({"tiny.yaml", "data.npz=bad.npz", "run.output=file/runs"}, {"file/runs: ", "is not a folder"});
  refuses({"tiny.yaml", "data.npz=bad.npz"}, {"bad.npz: not an .npz file"});
  refuses({"tiny.yaml", "data.synthetic.count=4"},
          {"tiny.yaml:8:", "schedule.reduce_on_plateau: needs validation images"});
  using Clock = std::chrono::steady_clock;
  for (const char* word : {"train.batch=1e300", "optimizer.adamw.lr=.nan", "train.epochs=", "loss.focal.alpha={a: 1}",
                           "run.output=$HOME/runs", "run.output=~you/runs", "data.npz=$X.npz", "run.name=\xe9",
                           "model.nodes.e.kernel=0", "model.nodes.e.in=logits", "profile={stop: 3}"}) {
    const auto began = Clock::now();
    refuses({"tiny.yaml", word, "data.synthetic.count=100000"}, {});
    EXPECT_LT(std::chrono::duration<double>(Clock::now() - began).count(), 2) << word;
  }
  EXPECT_FALSE(folder_.has("runs"));
}

TEST_F(CliResume, KeysWithoutEffectAreSaid) {
  const Outcome o = run({"tiny.yaml", "train.epochs=1", "train.panels=0", "profile={}", "schedule.warmup_steps=99",
                         "train.early_stopping={}", "data.classes.names=[a, b, c, d, e]", "train.validate_every=2"});
  ASSERT_EQ(o.code, 0) << o.err;
  for (const char* key : {"profile: steps 10 to 14", "schedule.warmup_steps: 99", "train.early_stopping.patience: ",
                          "schedule.reduce_on_plateau.patience: ", "train.validate_every: "})
    EXPECT_THAT(o.out, HasSubstr(std::string("warning: ") + key));
}

}  // namespace
}  // namespace regolith::testing
