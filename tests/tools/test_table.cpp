// engine_table as its user meets it: runs, failures, interruption, sweeps, hidden labels.
#include <omp.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/io/npy.h"
#include "engine/io/safetensors.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

class TableOfRuns : public Cli {
 protected:
  TableOfRuns() { folder_.write("other.yaml", std::string("extends: tiny.yaml\nrun: {precision: bf16}\n")); }
  // engine_table on tiny.yaml unless `words` begin with others.
  Outcome table(std::vector<std::string> words) const {
    words.insert(words.begin(), {"engine_table", "--output", "t"});
    return run(words);
  }
  std::string data_of(const std::string& run) const {
    const Checkpoint last = load_checkpoint(folder_ / ("t/" + run + "/last.safetensors"), Loading::when_used);
    return json::parse(last.meta("run")).at("data").dump();
  }
};

TEST_F(TableOfRuns, GoesOnPastAFailureAndRunsNothingTwice) {
  folder_.write("bad.yaml", "extends: tiny.yaml\ntrain: {init: {from: missing.safetensors}}\n");
  folder_.write("broken.yaml", "extends: tiny.yaml\ntrian: {}\n");
  const std::vector<std::string> words{"bad.yaml", "broken.yaml", "tiny.yaml", "--seeds", "2", "train.epochs=1"};
  const Outcome o = table(words);
  EXPECT_EQ(o.code, 1) << o.out;
  EXPECT_EQ(o.err, "");
  for (const char* text :
       {"bad-seed7: failed: ", "missing.safetensors", "did you mean 'train'", "tiny-seed8: finished"})
    EXPECT_THAT(o.out, HasSubstr(text));
  for (const char* file : {"t/table.md", "t/table.csv", "t/table.html"}) {
    EXPECT_THAT(folder_.read(file), HasSubstr("missing.safetensors")) << file;
    EXPECT_THAT(folder_.read(file), HasSubstr("trian")) << file;
  }
  const std::string csv = folder_.read("t/table.csv");
  EXPECT_THAT(csv, HasSubstr("\ntiny,run,7,finished,"));
  EXPECT_THAT(csv, HasSubstr("test iou big_rock"));
  EXPECT_THAT(csv, HasSubstr("\ntiny,spread,"));
  EXPECT_EQ(data_of("tiny-seed7"), data_of("tiny-seed8"));
  EXPECT_NE(folder_.read("t/tiny-seed7/best.safetensors"), folder_.read("t/tiny-seed8/best.safetensors"));

  const auto written = fs::last_write_time(folder_ / "t/tiny-seed7/last.safetensors");
  const Outcome again = table(words);
  EXPECT_EQ(again.code, 1);
  EXPECT_THAT(again.out, Not(HasSubstr("tiny-seed7: ")));
  EXPECT_EQ(fs::last_write_time(folder_ / "t/tiny-seed7/last.safetensors"), written);
  EXPECT_EQ(folder_.read("t/table.csv"), csv);

  const Outcome more = table({"tiny.yaml", "--seeds", "3", "train.epochs=1"});
  EXPECT_EQ(more.code, 0) << more.out;
  EXPECT_THAT(more.out, HasSubstr("tiny-seed9: finished"));
  EXPECT_THAT(more.out, Not(HasSubstr("tiny-seed8: begins")));
  refuses({"engine_table", "--output", "t", "tiny.yaml", "train.epochs=2"},
          {"holds runs of another tiny", "train.epochs: 1 -> 2", "--output"});
}

TEST_F(TableOfRuns, TheScoresAreThoseOfTheRuns) {
  const Outcome o =
      table({"tiny.yaml", "other.yaml", "--seeds", "1", "--jobs", "2", "train.epochs=1", "--score", "miou"});
  ASSERT_EQ(o.code, 0) << o.out << o.err;
  const json scores = json::parse(folder_.read("t/tiny-seed7/scores.json"));
  char test[32], validation[32];
  std::snprintf(test, sizeof test, "%.2f", 100 * scores.at("miou").get<double>());
  std::snprintf(validation, sizeof validation, "%.2f", 100 * scores.at("validation").at("miou").get<double>());
  EXPECT_THAT(o.out, ::testing::ContainsRegex("\ntiny +" + std::string(validation) + " +" + test + " "));
  EXPECT_THAT(o.out, HasSubstr("\nother "));
  EXPECT_EQ(scores.at("parameters"), 8 * (9 + 1) + 8 * 4 + 5 * (8 + 1));
  // As the run's own history has it for the best epoch, by the same weights.
  std::istringstream lines(folder_.read("t/tiny-seed7/history.jsonl"));
  const json epoch = json::parse(lines);
  EXPECT_EQ(epoch.at("val_miou"), scores.at("validation").at("miou"));
}

TEST_F(TableOfRuns, CtrlCReachesTheRunsAndTheSameCommandGoesOn) {
  const std::vector<std::string> words{"engine_table",    "--output", "t", "tiny.yaml", "--seeds", "2",
                                       "train.epochs=150"};
  Child child(folder_.path(), words);
  ASSERT_TRUE(child.wait_for("tiny-seed7: begins"));
  for (int i = 0; i < 6000 && !folder_.has("t/tiny-seed7/last.safetensors"); ++i) ::usleep(10000);
  refuses(words, {"t: is in use by process"});
  child.signal(SIGINT);
  const Outcome o = child.wait();
  EXPECT_EQ(o.code, 128 + SIGINT) << o.out << o.err;
  EXPECT_THAT(o.out, HasSubstr("interrupted"));
  EXPECT_FALSE(folder_.has("t/tiny-seed7/scores.json"));
  EXPECT_FALSE(folder_.has("t/tiny-seed8"));
  const Outcome again = run(words);
  EXPECT_EQ(again.code, 0) << again.out << again.err;
  EXPECT_THAT(again.out, HasSubstr("tiny-seed7: goes on"));
  EXPECT_THAT(again.out, HasSubstr("tiny-seed8: finished"));
  EXPECT_THAT(folder_.read("t/tiny-seed7.log"), HasSubstr("interrupted after"));
}

TEST_F(TableOfRuns, ARunThatIsKilledIsAFailureAndGoesOnLater) {
  std::vector<std::string> words{"engine_table", "--output", "t", "tiny.yaml", "--seeds", "1", "train.epochs=100000"};
  Child child(folder_.path(), words);
  ASSERT_TRUE(child.wait_for("tiny-seed7: begins"));
  for (int i = 0; i < 6000 && !folder_.has("t/tiny-seed7/last.safetensors"); ++i) ::usleep(10000);
  ::kill(std::stoi(folder_.read("t/tiny-seed7/lock")), SIGKILL);
  const Outcome o = child.wait();
  EXPECT_EQ(o.code, 1) << o.out;
  EXPECT_THAT(o.out, HasSubstr("tiny-seed7: failed: ended by signal 9; see t/tiny-seed7.log"));
  Child again(folder_.path(), words);
  EXPECT_TRUE(again.wait_for("tiny-seed7: goes on"));
}

TEST_F(TableOfRuns, RunsAtOnceShareTheProcessors) {
  const Outcome o = table({"tiny.yaml", "--seeds", "2", "--jobs", "2", "train.epochs=1", "run.threads=auto"});
  ASSERT_EQ(o.code, 0) << o.out << o.err;
  const std::string threads = "\n  threads: " + std::to_string(std::max(1, omp_get_max_threads() / 2)) + "\n";
  for (const char* run : {"t/tiny-seed7", "t/tiny-seed8"})
    EXPECT_THAT(folder_.read(run + std::string("/config.yaml")), HasSubstr(threads));
}

TEST_F(TableOfRuns, HalvingStopsTheWorstAndTrainsTheBestAsIfAlone) {
  folder_.write("s.yaml",
                "extends: tiny.yaml\nschedule: {cosine: {}}\ntrain: {epochs: 3}\n"
                "sweep: {optimizer.adamw.lr: [1.0e-7, 1.0e-2, 2.0e-7], halving: {first_epochs: 1}}\n");
  const Outcome o = table({"s.yaml", "--seeds", "1"});
  ASSERT_EQ(o.code, 0) << o.out << o.err;
  EXPECT_THAT(o.out, HasSubstr("after 1 epochs 1 of 3 rows"));
  EXPECT_THAT(folder_.read("t/table.md"), HasSubstr("stopped by halving after 1 epochs"));
  int finished = 0;
  for (const std::string lr : {"1.0e-7", "1.0e-2", "2.0e-7"}) {
    const std::string name = "s-lr=" + lr + "-seed7";
    ASSERT_TRUE(folder_.has("t/" + name)) << o.out;
    if (!folder_.has("t/" + name + "/scores.json")) continue;
    ++finished;
    const Outcome alone = run({"t/s-lr=" + lr + ".yaml", "run.name=alone"});
    ASSERT_EQ(alone.code, 0) << alone.err;
    EXPECT_EQ(folder_.read("runs/alone/last.safetensors"), folder_.read("t/" + name + "/last.safetensors"));
  }
  EXPECT_EQ(finished, 1);
  const Outcome again = table({"s.yaml", "--seeds", "1"});
  EXPECT_EQ(again.code, 0);
  EXPECT_THAT(again.out, Not(HasSubstr("-seed7: ")));
  refuses({"s.yaml"}, {"sweep", "engine_table"});
}

TEST_F(TableOfRuns, APausedRunGoesOnUnderTheSameSchedule) {
  const Outcome paused = run({"tiny.yaml", "--until", "1"});
  EXPECT_EQ(paused.code, 0) << paused.err;
  EXPECT_THAT(paused.out, HasSubstr("paused after 5 steps"));
  EXPECT_FALSE(folder_.has("runs/tiny/scores.json"));
  ASSERT_EQ(run({"--resume", "runs/tiny", "--until", "1"}).code, 0);  // nothing to do
  ASSERT_EQ(run({"--resume", "runs/tiny"}).code, 0);
  ASSERT_EQ(run({"tiny.yaml", "run.name=whole"}).code, 0);
  EXPECT_EQ(folder_.read("runs/tiny/last.safetensors"), folder_.read("runs/whole/last.safetensors"));
  EXPECT_EQ(folder_.read("runs/tiny/scores.json"), folder_.read("runs/whole/scores.json"));
}

TEST_F(TableOfRuns, HiddenLabelsAreScored) {
  constexpr int64_t N = 20, M = 4, H = 16, W = 32;
  std::vector<uint8_t> training(N * 2 * H * W), test(M * H * W), labels(M * H * W);
  for (size_t i = 0; i < training.size(); ++i)
    training[i] = i / (H * W) % 2 == 0 ? (i * 37 % 251) : (i / 5 % 4);  // image, mask
  for (size_t i = 0; i < test.size(); ++i) test[i] = i * 37 % 251, labels[i] = i / 5 % 4;
  write_npz(folder_ / "mars.npz", std::vector{npz_entry("training_set", {N, 2, H, W}, training.data()),
                                              npz_entry("test_set", {M, H, W}, test.data())});
  write_npz(folder_ / "labels.npz", std::vector{npz_entry("y", {M, H, W}, labels.data())});
  write_npz(folder_ / "few.npz", std::vector{npz_entry("y", {M - 1, H, W}, labels.data())});
  const std::vector<std::string> words{
      "engine_table",   "--output",         "t", "tiny.yaml", "--seeds", "1", "--hidden", "labels.npz",
      "train.epochs=1", "data.npz=mars.npz"};
  std::vector<std::string> few = words;
  few[7] = "few.npz";
  refuses(few, {"few.npz", "(3, 16, 32)"});
  EXPECT_FALSE(folder_.has("t/tiny-seed7"));
  refuses({"engine_table", "tiny.yaml", "--hidden", "labels.npz"}, {"--hidden", "data.npz"});
  const Outcome o = run(words);
  ASSERT_EQ(o.code, 0) << o.out << o.err;
  EXPECT_THAT(o.out, HasSubstr("hidden"));
  const json hidden = json::parse(folder_.read("t/tiny-seed7/eval-hidden/scores.json"));
  int64_t pixels = 0;
  for (const int64_t n : hidden.at("confusion")) pixels += n;
  EXPECT_EQ(pixels, M * H * W);
  char score[32];
  std::snprintf(score, sizeof score, "%.2f", 100 * hidden.at("miou_foreground").get<double>());
  EXPECT_THAT(folder_.read("t/table.md"), HasSubstr(std::string("| ") + score + " |"));
  // The truth as engine_eval reads it from one file gives the same.
  write_npz(folder_ / "both.npz",
            std::vector{npz_entry("image", {M, H, W}, test.data()), npz_entry("mask", {M, H, W}, labels.data())});
  ASSERT_EQ(run({"engine_eval", "t/tiny-seed7", "--input", "both.npz", "--output", "e", "--all-classes", "--precision",
                 "fp32"})
                .code,
            0);
  EXPECT_EQ(json::parse(folder_.read("e/scores.json")).at("confusion"), hidden.at("confusion"));
  const auto scored = fs::last_write_time(folder_ / "t/tiny-seed7/eval-hidden/scores.json");
  ASSERT_EQ(run(words).code, 0);
  EXPECT_EQ(fs::last_write_time(folder_ / "t/tiny-seed7/eval-hidden/scores.json"), scored);
}

}  // namespace
}  // namespace regolith::testing
