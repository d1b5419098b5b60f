// A run that a signal meets at any of its steps, in a validation or in the test, and that then goes on.
#include "app/training.h"

#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "engine/io/safetensors.h"
#include "engine/report/history.h"

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
  fs::path folder_ = fs::path(testing::TempDir()) / "regolith_training";
};

TEST_F(TrainingTest, GoesOnFromWhereverASignalMetIt) {
  int things = 0;
  ASSERT_TRUE(run("whole", false, -1, &things));
  EXPECT_EQ(things, 1 + 3 * 3 + 1);
  for (int at = 0; at < things; ++at) {
    const std::string name = "r" + std::to_string(at);
    ASSERT_FALSE(run(name, false, at)) << at;
    ASSERT_TRUE(run(name, true, -1)) << at;
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
