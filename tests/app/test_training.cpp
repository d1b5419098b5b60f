// A run that a signal meets at any of its steps, in a validation or in the test, and that then goes on.
#include "app/training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "engine/io/safetensors.h"
#include "engine/report/history.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig =
    "run: {name: r, seed: 7, device: cpu, precision: fp32, threads: 1}\n"
    "data: {synthetic: {count: 24, height: 16, width: 32}, augment: {flip: horizontal}}\n"
    "schedule: {reduce_on_plateau: {patience: 1, min_delta: 0.01}}\n"
    "train: {batch: 8, epochs: 3, panels: 0, validate_every: 2, ema: {decay: 0.9}}\n"
    "model:\n"
    "  input: {height: 16, width: 32, channels: 1}\n"
    "  nodes:\n"
    "    e: {block: conv_norm, in: input, filters: 4, norm: batch}\n"
    "    d: {op: dropout, in: e, rate: 0.2}\n"
    "    logits: {op: conv, in: d, filters: 5, kernel: 1}\n";

// Sends a "signal" as the n-th thing happens: the beginning, every step, the beginning of the test.
class Interrupter : public Listener {
 public:
  Interrupter(Interrupts& interrupts, int at, int& count) : interrupts_(interrupts), at_(at), count_(count) {}
  void begin(Training&, bool) override { happens(); }
  void step(Training&, const StepProgress&) override { happens(); }
  void before_evaluation(Training&) override { happens(); }

 private:
  void happens() {
    if (count_++ == at_) interrupts_.signal = SIGINT;
  }
  Interrupts& interrupts_;
  int at_, &count_;
};

class TrainingTest : public testing::Test {
 protected:
  TrainingTest() { fs::create_directories(folder_); }
  ~TrainingTest() override { fs::remove_all(folder_); }
  // Whether it came to its end; `at`: what is interrupted, -1 for nothing. things: that happened.
  bool run(const std::string& name, bool resume, int at, int* things = nullptr,
           std::vector<std::string> overrides = {}) {
    overrides.insert(overrides.end(), {"run.output=" + folder_.string(), "run.name=" + name});
    Experiment experiment(
        read_run_config(Yaml::load_string(kConfig, "r.yaml").with_overrides(overrides), ConfigUse::training));
    Interrupts interrupts;
    int count = 0;
    Listeners listeners = all_listeners(experiment);
    listeners.push_back(std::make_unique<Interrupter>(interrupts, at, count));
    TrainingOptions options{resume ? (folder_ / name).string() : "", "engine_run", &interrupts};
    const bool whole = Training(experiment, options, std::move(listeners)).run();
    if (things != nullptr) *things = count;
    return whole;
  }
  std::string read(const std::string& file) const {
    std::ifstream in(folder_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // things: that happen in a run.
  void expect_same_however_interrupted(const std::vector<std::string>& overrides, int expected) {
    int things = 0;
    ASSERT_TRUE(run("whole", false, -1, &things, overrides));
    EXPECT_EQ(things, expected);
    for (int at = 0; at < things; ++at) {
      const std::string name = "r" + std::to_string(at);
      ASSERT_FALSE(run(name, false, at, nullptr, overrides)) << at;
      ASSERT_TRUE(run(name, true, -1, nullptr, overrides)) << at;
      for (const char* file : {"/last.safetensors", "/best.safetensors", "/scores.json"})
        EXPECT_TRUE(read(name + file) == read(std::string("whole") + file)) << at << file;
      std::istringstream lines(read(name + "/history.jsonl")), expected(read("whole/history.jsonl"));
      for (std::string line, other; std::getline(expected, other);) {
        ASSERT_TRUE(std::getline(lines, line)) << at;
        for (const char* key : {"\"loss\"", "\"val_loss\"", "\"val_ema_loss\"", "\"lr\""})
          EXPECT_EQ(line.substr(line.find(key), 20), other.substr(other.find(key), 20)) << at;
      }
    }
  }
  // The "loss" of each epoch, as it is written.
  std::vector<std::string> losses(const std::string& name) const {
    std::vector<std::string> list;
    std::istringstream lines(read(name + "/history.jsonl"));
    for (std::string line; std::getline(lines, line);) list.push_back(line.substr(line.find("\"loss\""), 20));
    return list;
  }
  fs::path folder_ = fs::path(testing::TempDir()) / ("regolith_training." + std::to_string(::getpid()));
};

TEST_F(TrainingTest, GoesOnFromWhereverASignalMetIt) { expect_same_however_interrupted({}, 1 + 3 * 3 + 1); }

// Whose order follows from the losses of the epoch before, which a checkpoint within an epoch keeps beside its own.
TEST_F(TrainingTest, HardExamplesGoOnFromWhereverASignalMetIt) {
  // Images differ by it, and by much from epoch to epoch.
  const std::string focal = "loss.focal={exclude: [0]}", rate = "optimizer.adamw.lr=0.1";
  expect_same_however_interrupted({focal, rate, "data.hard_examples={share: 1}"}, 1 + 3 * 3 + 1);
  ASSERT_TRUE(run("equal", false, -1, nullptr, {focal, rate, "data.hard_examples={share: 0}"}));
  EXPECT_EQ(losses("whole")[0], losses("equal")[0]);
  EXPECT_NE(losses("whole")[1], losses("equal")[1]) << "the second epoch draws by the losses of the first";
}

// However many batches a step takes, an image's loss is kept as its own.
TEST_F(TrainingTest, HardExamplesKnowTheImagesOfAccumulatedBatches) {
  const std::vector<std::string> same{"loss.focal={exclude: [0]}", "data.hard_examples={share: 1}", "train.epochs=1",
                                      "model.nodes.e.norm=group"};
  const auto losses_of = [&](const std::string& name, std::vector<std::string> batches) {
    batches.insert(batches.end(), same.begin(), same.end());
    EXPECT_TRUE(run(name, false, -1, nullptr, batches));
    const Checkpoint last = load_checkpoint((folder_ / name / "last.safetensors").string());
    return nlohmann::json::parse(last.meta("run")).at("image_losses").at("last");
  };
  const nlohmann::json one = losses_of("one", {"train.batch=8"}),
                       two = losses_of("two", {"train.batch=4", "train.accumulate=2"});
  ASSERT_EQ(one.size(), two.size());
  int seen = 0;
  for (size_t i = 0; i < one.size(); ++i) {
    ASSERT_EQ(one[i].is_null(), two[i].is_null()) << i;
    if (one[i].is_null()) continue;
    EXPECT_NEAR(one[i].get<double>(), two[i].get<double>(), 1e-4 * one[i].get<double>()) << i;
    ++seen;
  }
  EXPECT_GE(seen, 16);
}

// What a device was and had chosen is kept with the run, and asked for again; what differs by then is said.
TEST_F(TrainingTest, GoesOnByTheChoicesOfItsDevice) {
  const std::string last = (folder_ / "gpu/last.safetensors").string();
  std::map<std::string, std::string> began_with;
  const auto train = [&](bool resume, const std::map<std::string, std::string>& choices, const char* epochs) {
    Experiment experiment(
        read_run_config(Yaml::load_string(kConfig, "r.yaml")
                            .with_overrides({"run.output=" + folder_.string(), "run.name=gpu", epochs}),
                        ConfigUse::training),
        make_simulated_device(1));
    struct Watch : Listener {
      std::map<std::string, std::string>& seen;
      explicit Watch(std::map<std::string, std::string>& s) : seen(s) {}
      void begin(Training& t, bool) override { seen = t.experiment().device().choices(); }
    };
    Listeners listeners = all_listeners(experiment);
    listeners.push_back(std::make_unique<Watch>(began_with));
    experiment.device().choices() = choices;
    testing::internal::CaptureStdout();
    Training(experiment, {resume ? (folder_ / "gpu").string() : "", "engine_run"}, std::move(listeners)).run();
    return testing::internal::GetCapturedStdout();
  };
  train(false, {{"forward", "eng7"}}, "train.epochs=1");
  EXPECT_THAT(train(true, {}, "train.epochs=2"), testing::Not(testing::HasSubstr("changed: gpu")));
  EXPECT_EQ(began_with, (std::map<std::string, std::string>{{"forward", "eng7"}}));

  Checkpoint c = load_checkpoint(last);
  nlohmann::json device = nlohmann::json::parse(c.meta("device"));
  device["versions"]["gpu"] = "another";
  c.metadata["device"] = device.dump();
  save_checkpoint(last, c);
  EXPECT_THAT(train(true, {}, "train.epochs=3"),
              testing::AllOf(testing::HasSubstr("changed: gpu: another -> simulated; results differ by rounding\n"),
                             testing::Not(testing::HasSubstr("changed: driver"))));
  EXPECT_EQ(nlohmann::json::parse(load_checkpoint(last).meta("device"))["versions"]["gpu"], "simulated");

  c.metadata["device"] = "[]";
  save_checkpoint(last, c);
  EXPECT_THAT([&] { train(true, {}, "train.epochs=4"); },
              testing::ThrowsMessage<CheckpointError>(testing::HasSubstr("what it says of its device")));
  testing::internal::GetCapturedStdout();
}

TEST(EarlierRun, CountsThePlansThatAreNotThereAnyMore) {
  const auto device = make_cpu_device(1);
  EarlierRun run;
  run.choices = {{"a", "eng1"}, {"b", "eng2"}, {"c", "eng3"}};
  device->choices() = {{"a", "eng1"}, {"b", "eng9"}, {"d", "eng4"}};
  EXPECT_EQ(run.report_choices(*device),
            "cuDNN here has not 1 of the 3 plans that the run went by; results differ by rounding\n");
  device->choices()["b"] = "eng2";
  EXPECT_EQ(run.report_choices(*device), "");
}

// One file with all that there is to see, whatever characters its texts have.
TEST_F(TrainingTest, LeavesAPageThatNeedsNothingElse) {
  ASSERT_TRUE(run("<b>&", false, -1));
  const std::string page = read("<b>&/report.html");
  for (const char* text :
       {"<title>&lt;b&gt;&amp;</title>", "3 of 3 epochs", "<h2>Scores</h2>", ">miou_foreground<", "<h2>Confusion</h2>",
        "<h2>Worst and best images</h2>", "src=\"data:image/png;base64,iVBORw0KGgo", "seconds an epoch",
        "reduce_on_plateau:", ">validation IoU by class, ema<", "ema miou_foreground", "ema validation",
        "prefers-color-scheme: dark"})
    EXPECT_THAT(page, testing::HasSubstr(text));
  for (const char* text : {"<b>&", "<script", "src=\"http", "href=", "url("})
    EXPECT_THAT(page, testing::Not(testing::HasSubstr(text)));
  ASSERT_FALSE(run("r", false, 5));
  EXPECT_THAT(read("r/report.html"), testing::HasSubstr("1 of 3 epochs, interrupted"));
}

TEST(EpochTime, NamesTheRemedyOfAPartThatTakesLong) {
  EpochTimes times{.epochs = 2, .training = 10, .read = 3, .augment = 0.5, .compute = 6, .validation = 1};
  const std::string html = epoch_time_html(times, true);
  EXPECT_THAT(html, testing::HasSubstr("<strong>read</strong> takes 27.3% of an epoch."));
  EXPECT_THAT(html, testing::HasSubstr("data.streaming"));
  EXPECT_THAT(html, testing::Not(testing::HasSubstr("<strong>validation")));
  EXPECT_THAT(html, testing::HasSubstr("wait</span></td><td>0.25</td><td>4.5</td>"));
  times.read = 0.1;
  times.augment = 0;
  times.training = 6.2;
  EXPECT_THAT(epoch_time_html(times, false), testing::HasSubstr("No part beside compute"));
  EXPECT_THAT(epoch_time_html(times, false), testing::Not(testing::HasSubstr("augment</span>")));
  EXPECT_THAT(epoch_time_html({}, true), testing::HasSubstr("No epoch was trained"));
}

TEST_F(TrainingTest, AnEpochsPartsAreNoMoreThanTheEpoch) {
  class Times : public Listener {
   public:
    explicit Times(EpochTimes& times) : times_(times) {}
    void end(Training& t, FinalReport&) override { times_ = t.times(); }

   private:
    EpochTimes& times_;
  };
  EpochTimes times;
  Experiment experiment(read_run_config(
      Yaml::load_string(kConfig, "r.yaml").with_overrides({"run.output=" + folder_.string()}), ConfigUse::training));
  Listeners listeners = all_listeners(experiment);
  listeners.push_back(std::make_unique<Times>(times));
  ASSERT_TRUE(Training(experiment, {}, std::move(listeners)).run());
  EXPECT_EQ(times.epochs, 3);
  for (const double part : {times.read, times.augment, times.compute, times.validation, times.checkpoints})
    EXPECT_GT(part, 0);
  EXPECT_LE(times.read + times.augment + times.compute, times.training);
}

TEST_F(TrainingTest, TensorboardIsRefusedWhereItWasNotBuilt) {
  Experiment experiment(read_run_config(Yaml::load_string(kConfig, "r.yaml").with_overrides({"run.tensorboard=true"}),
                                        ConfigUse::training));
  try {
    all_listeners(experiment);
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("run.tensorboard: needs protobuf"));
  }
}

// Both are validated; the weights of the better one by train.ema.watch are kept as the best, and scored.
TEST_F(TrainingTest, TheBestWeightsAreTheAverageOrTheRawOnes) {
  for (const char* watch : {"ema", "raw"}) {
    const std::string name = watch;
    ASSERT_TRUE(run(name, false, -1, nullptr,
                    {"train.ema.watch=" + name, "train.ema.decay=0.5", "train.validate_every=1", "train.epochs=1"}));
    const Checkpoint best = load_checkpoint((folder_ / name / "best.safetensors").string()),
                     last = load_checkpoint((folder_ / name / "last.safetensors").string());
    for (const char* param : {"logits/kernel", "e/1/conv/kernel"}) {
      const std::string prefix = name == "ema" ? "optimizer/ema/" : "";
      ASSERT_TRUE(last.tensors.contains(prefix + param)) << param;
      EXPECT_EQ(best.floats(param), last.floats(prefix + param)) << name << param;
      EXPECT_NE(last.floats(param), last.floats(std::string("optimizer/ema/") + param));
    }
    const EpochRecord record = History::read((folder_ / name / "history.jsonl").string()).at(0);
    EXPECT_NE(value_of(record.validation, "loss"), value_of(record.ema_validation, "loss"));
    const auto state = nlohmann::json::parse(last.meta("run"));
    EXPECT_EQ(state.at("stopping").at("best"),
              value_of(name == "ema" ? record.ema_validation : record.validation, "loss"));
  }
}

}  // namespace
}  // namespace regolith
