// The rows of a study, who goes on, and the table; without a run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "app/command_line.h"
#include "engine/base/error.h"
#include "study/study.h"
#include "study/table.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const char* const kConfig =
    "run: {name: r, seed: 7, device: cpu, precision: fp32}\n"
    "data: {synthetic: {count: 24, height: 16, width: 32}}\n"
    "train: {batch: 8, epochs: 9}\n"
    "model:\n"
    "  input: {height: 16, width: 32, channels: 1}\n"
    "  nodes:\n"
    "    logits: {op: conv, in: input, filters: 5, kernel: 1}\n";

class StudyTest : public testing::Test {
 protected:
  StudyTest() { fs::create_directories(folder_); }
  ~StudyTest() override { fs::remove_all(folder_); }
  std::string write(const std::string& name, const std::string& more = "") const {
    std::ofstream(folder_ / name) << kConfig << more;
    return (folder_ / name).string();
  }
  static std::vector<std::string> names(const std::vector<StudyRow>& rows) {
    std::vector<std::string> list;
    for (const StudyRow& row : rows) list.push_back(row.name);
    return list;
  }
  // A run of `epochs` epochs whose validation score rises to `score`; finished where it has test scores.
  static void give(StudyRun& run, double score, int epochs = 2, bool finished = true) {
    for (int i = 1; i <= epochs; ++i) {
      EpochRecord r{.epoch = i,
                    .loss = 1.0 / i,
                    .seconds = 2,
                    .validation = metrics({}, 0, 1.0 / i),
                    .ema_validation = {},
                    .val_iou = {},
                    .val_ema_iou = {}};
      for (Metric& m : r.validation)
        if (m.higher_is_better) m.value = score * i / epochs;
      run.results.history.push_back(r);
    }
    run.results.epochs = epochs;
    run.results.parameters = 1234;
    run.state = finished ? RunState::finished : RunState::paused;
    const EpochRecord& last = run.results.history.back();
    run.results.splits["validation"] = {last.validation, {"<soil>"}, {score}};
    if (finished) run.results.splits["test"] = {last.validation, {"<soil>"}, {score / 2}};
  }
  fs::path folder_ = fs::temp_directory_path() / ("regolith_study_" + std::to_string(::getpid()));
};

TEST_F(StudyTest, SeedsOfARowSeeTheSameImages) {
  const StudyOptions options{.configs = {write("a.yaml"), write("b.yaml")}, .overrides = {}, .seeds = 2};
  const std::vector<StudyRow> rows = study_rows(options);
  EXPECT_THAT(names(rows), ElementsAre("a", "b"));
  ASSERT_TRUE(rows[0].config);
  EXPECT_EQ(rows[0].config->data.split.seed, 7);
  EXPECT_EQ(std::get<Terrain>(rows[0].config->data.source).seed, 7);
  ASSERT_EQ(rows[0].runs.size(), 2u);
  EXPECT_EQ(rows[0].runs[1].name, "a-seed8");
  EXPECT_EQ(rows[0].until, 9);
  const auto given = study_rows({.configs = options.configs, .overrides = {"data.split.seed=3"}});
  EXPECT_EQ(given[1].config->data.split.seed, 3);
  EXPECT_THROW(study_rows({.configs = {"x/a.yaml", "y/a.yaml"}}), UsageError);
}

TEST_F(StudyTest, AConfigurationThatCannotBeReadIsARow) {
  const std::vector<StudyRow> rows = study_rows({.configs = {write("a.yaml", "trian: {}\n"), write("b.yaml")}});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[0].error, HasSubstr("did you mean 'train'"));
  EXPECT_TRUE(rows[1].config);
}

TEST_F(StudyTest, ASweepIsEveryCombination) {
  const std::string sweep =
      "sweep: {optimizer.adamw.lr: [1e-4, 4.0e-4], train: {batch: [4, 8, 16]}, halving: {factor: 2, first_epochs: "
      "3}}\n";
  const std::vector<StudyRow> rows = study_rows({.configs = {write("s.yaml", sweep)}, .seeds = 1});
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows[1].name, "s-lr=1.0e-4-batch=8");
  EXPECT_EQ(rows[1].config->train.batch, 8);
  EXPECT_EQ(rows[3].config->optimizer.lr(), 4e-4);
  EXPECT_EQ(rows[3].until, 3);
  EXPECT_FALSE(rows[3].config->sweep);
}

TEST_F(StudyTest, ARandomSearchIsThatOfItsSeed) {
  const std::string sweep =
      "sweep: {optimizer.adamw.lr: {log_uniform: [1e-5, 1e-1]}, train.batch: [4, 8], samples: 40}\n";
  const std::string file = write("s.yaml", sweep);
  const std::vector<StudyRow> rows = study_rows({.configs = {file}, .seeds = 1});
  ASSERT_EQ(rows.size(), 40u);
  int low = 0;
  std::set<std::string> all;
  for (const StudyRow& row : rows) {
    ASSERT_TRUE(row.config) << row.error;
    const double lr = row.config->optimizer.lr();
    EXPECT_TRUE(lr >= 1e-5 && lr <= 1e-1) << lr;
    low += lr < 1e-3;
    all.insert(row.name);
  }
  EXPECT_EQ(all.size(), 40u);
  EXPECT_TRUE(low >= 10 && low <= 30) << low;  // half of them, by the logarithm
  EXPECT_EQ(names(study_rows({.configs = {file}, .seeds = 2})), names(rows));
  const std::vector<std::string> fewer = names(study_rows({.configs = {file}, .overrides = {"sweep.samples=10"}}));
  EXPECT_TRUE(std::equal(fewer.begin(), fewer.end(), names(rows).begin()));
  EXPECT_NE(names(study_rows({.configs = {file}, .overrides = {"run.seed=8"}})), names(rows));
}

TEST_F(StudyTest, ABadSweepIsRefusedAtItsPlace) {
  const std::vector<std::pair<std::string, std::string>> bad{
      {"{}", "sweep: names no key"},
      {"{samples: 3}", "sweep: names no key"},
      {"{train.batch: 4}", "sweep.train.batch: expected a list"},
      {"{train.batch: []}", "sweep.train.batch: expected a list"},
      {"{train.batch: [4], train: {batch: [8]}}", "sweep.train.batch: this key stands in the sweep twice"},
      {"{run.seed: [1, 2]}", "sweep.run.seed: engine_table itself"},
      {"{optimizer.adamw.lr: {uniform: [1, 2]}}", "sweep.samples: is missing"},
      {"{optimizer.adamw.lr: {log_uniform: [0, 2]}, samples: 2}",
       "lr.log_uniform: expected [low, high] with 0 < low < high"},
      {"{optimizer.adamw.lr: {uniform: [2, 1]}, samples: 2}", "lr.uniform: expected [low, high] with low < high"},
      {"{optimizer.adamw.lr: {uniform: [2]}, samples: 2}", "expected [low, high]"}};
  for (const auto& [text, message] : bad) {
    const std::vector<StudyRow> rows = study_rows({.configs = {write("s.yaml", "sweep: " + text + "\n")}});
    EXPECT_THAT(rows.at(0).error, HasSubstr(message)) << text;
    EXPECT_THAT(rows.at(0).error, HasSubstr("s.yaml:8:")) << text;
  }
  try {
    load_run_config(write("s.yaml", "sweep: {train.batch: [4, 8]}\n"), {}, ConfigUse::training);
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr("engine_table"));
  }
}

TEST_F(StudyTest, TheBestRowsGoOn) {
  const std::string sweep = "sweep: {train.batch: [1, 2, 4, 8], halving: {first_epochs: 2}}\n";
  std::vector<StudyRow> rows = study_rows({.configs = {write("s.yaml", sweep)}, .seeds = 2});
  const std::vector<double> score{0.2, 0.6, 0.4, 0.9};
  for (size_t r = 0; r < 4; ++r)
    for (StudyRun& run : rows[r].runs) give(run, score[r], 2, false);
  const std::string metric = "miou_foreground";
  EXPECT_THAT(survivors(rows, {0, 1, 2, 3}, 2, metric, 3), ElementsAre(1, 3));
  EXPECT_THAT(survivors(rows, {0, 1, 2, 3}, 2, metric, 4), ElementsAre(3));
  rows[3].runs[1].state = RunState::failed;
  EXPECT_THAT(survivors(rows, {0, 1, 2, 3}, 2, metric, 4), ElementsAre(1));
  EXPECT_THAT(survivors(rows, {0, 3}, 1, metric, 3), ElementsAre(0));
  rows[0].runs[0].results.history[0].validation[2].value = NAN;  // of epoch 1
  EXPECT_THAT(survivors(rows, {0, 2}, 1, metric, 2), ElementsAre(2));
}

// A run that watches the average of its weights is ranked by it too.
TEST_F(StudyTest, TheBestRowsAreThoseOfTheWatchedWeights) {
  const std::string sweep = "sweep: {train.ema.watch: [raw, ema], halving: {first_epochs: 2}}\n";
  std::vector<StudyRow> rows = study_rows({.configs = {write("s.yaml", sweep)}, .seeds = 1});
  ASSERT_EQ(rows.size(), 2u);
  for (StudyRow& row : rows) {
    StudyRun& run = row.runs[0];
    give(run, 0.5, 2, false);
    for (EpochRecord& r : run.results.history) {
      r.ema_validation = metrics({}, 0, 0.1 * static_cast<double>(r.epoch));  // the first epoch's is the best
      for (Metric& m : r.ema_validation)
        if (m.higher_is_better) m.value = r.epoch == 1 ? 0.7 : 0.6;
    }
  }
  const std::vector<EpochRecord>& raw = rows[0].runs[0].results.history;
  EXPECT_EQ(best_record(raw, *rows[0].config)->epoch, 2);
  EXPECT_EQ(best_record(raw, *rows[1].config)->epoch, 1);
  EXPECT_THAT(survivors(rows, {0, 1}, 2, "miou_foreground", 2), ElementsAre(1));
}

TEST(MeanSpread, CountsNumbersOnly) {
  const MeanSpread m = mean_spread({1, NAN, 3});
  EXPECT_EQ(m.mean, 2);
  EXPECT_DOUBLE_EQ(m.spread, std::sqrt(2.0));
  EXPECT_EQ(m.count, 2);
  EXPECT_TRUE(std::isnan(mean_spread({5}).spread));
  EXPECT_TRUE(std::isnan(mean_spread({}).mean));
  EXPECT_EQ(spread_text(mean_spread({0.25, 0.35}), 100, "%.2f"), "30.00 ± 7.07");
  EXPECT_EQ(spread_text(mean_spread({0.25}), 100, "%.2f"), "25.00");
}

TEST_F(StudyTest, TheTableHoldsScoresFailuresAndTheReference) {
  const std::string reference = "reference: {name: 'U-Net | <study>', test: 45.32, parameters: 473669}\n";
  const StudyOptions options{.configs = {write("a.yaml", reference), write("b.yaml")}, .overrides = {}, .seeds = 2};
  std::vector<StudyRow> rows = study_rows(options);
  give(rows[0].runs[0], 0.5);
  give(rows[0].runs[1], 0.6);
  rows[1].runs[0].state = RunState::failed;
  rows[1].runs[0].message = "no <memory> | left";
  EXPECT_EQ(table_text(rows, options),
            "miou_foreground in percent, mean and spread over seeds\n"
            "configuration        validation          test  parameters  s/epoch    runs  note\n"
            "-----------------  ------------  ------------  ----------  -------  ------  --------------------------\n"
            "a                  55.00 ± 7.07  55.00 ± 7.07       1,234    2 ± 0       2\n"
            "  U-Net | <study>             -         45.32     473,669        -          as published\n"
            "b                             -             -           -        -  0 of 2  1 waiting\n"
            "  b-seed7                                                                   failed: no <memory> | left\n");
  EXPECT_THAT(table_markdown(rows, options), HasSubstr("| *U-Net \\| &lt;study>* | - | 45.32 | 473,669 | - |"));
  const std::string csv = table_csv(rows, options);
  EXPECT_THAT(csv, HasSubstr("configuration,kind,seed,state,parameters,epochs,epoch_seconds,validation loss,"));
  EXPECT_THAT(csv, HasSubstr("\na,run,7,finished,1234,2,2,0.500000,0.500000,"));
  EXPECT_THAT(csv, HasSubstr("test iou <soil>"));
  EXPECT_THAT(csv, HasSubstr("\na,mean,,,1234,2,2,0.500000,0.550000,"));
  EXPECT_THAT(csv, HasSubstr("\nb,run,7,failed,"));
  const std::string html = table_html(rows, options);
  for (const char* text : {"U-Net | &lt;study&gt;", "no &lt;memory&gt; | left", "<th>&lt;soil&gt;</th>", "55.00 ± 7.07",
                           "href=\"a-seed7/report.html\"", "validation miou_foreground", "prefers-color-scheme: dark"})
    EXPECT_THAT(html, HasSubstr(text));
  for (const char* text : {"<soil>", "<script", "http://", "https://", "nan"}) EXPECT_THAT(html, Not(HasSubstr(text)));
}

}  // namespace
}  // namespace regolith
