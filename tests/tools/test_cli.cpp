// engine_run as its user meets it: what it prints and writes, seeds, interruption, how a run goes on.
#include <csignal>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "engine/io/image.h"
#include "engine/io/npy.h"
#include "engine/io/safetensors.h"
#include "places.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using nlohmann::json;
using ::testing::ContainsRegex;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<json> history(const TemporaryFolder& folder, const std::string& run) {
  std::istringstream lines(folder.read(run + "/history.jsonl"));
  std::vector<json> records;
  for (std::string line; std::getline(lines, line);) {
    json record = json::parse(line);
    record.erase("seconds");  // all but the time it took follows from the seed
    record.erase("images_per_second");
    records.push_back(record);
  }
  return records;
}

int lines_with(const std::string& text, const std::string& pattern) {
  const std::regex expression(pattern, std::regex::multiline);
  return static_cast<int>(std::distance(std::sregex_iterator(text.begin(), text.end(), expression), {}));
}

TEST_F(Cli, TrainsToATable) {
  const Outcome o = run({"tiny.yaml"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(o.err, "");
  EXPECT_THAT(o.out, Not(HasSubstr("\r")));
  EXPECT_THAT(o.out, Not(HasSubstr("\x1b")));
  EXPECT_EQ(lines_with(o.out, "^epoch [12]/2 .* loss .* lr .* images/s .* val loss .* val miou "), 2) << o.out;
  for (const char* name : {"miou", "miou_foreground", "miou_keras_ignore0"})
    EXPECT_EQ(lines_with(o.out, std::string("^") + name + " +(0|1)\\.[0-9]{4}$"), 1) << name << "\n" << o.out;
  for (const char* name : {"background", "soil", "bedrock", "sand", "big_rock"})
    EXPECT_EQ(lines_with(o.out, std::string("^") + name + " +[-01]"), 1) << name << "\n" << o.out;
  EXPECT_THAT(o.out,
              ContainsRegex("data [0-9.]+s, compile [0-9.]+s, training [0-9.]+s, test [0-9.]+s; [0-9.]+s in all"));

  const std::string list = o.out.substr(o.out.find("\nwritten\n") + 9);
  std::istringstream words(list.substr(0, list.find("\n\n")));
  std::vector<std::string> written;
  for (std::string path; words >> path;) written.push_back(path);
  EXPECT_THAT(written, ::testing::UnorderedElementsAre(
                           "runs/tiny/config.yaml", "runs/tiny/samples.csv", "runs/tiny/history.jsonl",
                           "runs/tiny/best.safetensors", "runs/tiny/last.safetensors", "runs/tiny/scores.json",
                           "runs/tiny/panels.png", "runs/tiny/history.svg", "runs/tiny/report.html"));
  for (const std::string& path : written) EXPECT_TRUE(folder_.has(path)) << path;

  const std::string samples = folder_.read("runs/tiny/samples.csv");
  EXPECT_THAT(samples, ::testing::StartsWith("row,name,part,times\n"));
  for (const auto& [part, count] : {std::pair{"train,1", 20}, {"validation,0", 2}, {"test,0", 2}})
    EXPECT_EQ(lines_with(samples, std::string(R"(^[0-9]+,"",)") + part + "$"), count) << samples;

  const std::vector<json> records = history(folder_, "runs/tiny");
  ASSERT_EQ(records.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(records[i].at("epoch"), i + 1);
    EXPECT_GT(records[i].at("val_loss"), 0);
    EXPECT_EQ(records[i].at("val_iou").size(), 5U);
  }
  const json scores = json::parse(folder_.read("runs/tiny/scores.json"));
  EXPECT_EQ(scores.at("split"), "test");
  EXPECT_EQ(scores.at("classes").size(), 5U);
  EXPECT_THAT(folder_.read("runs/tiny/panels.png"), ::testing::StartsWith("\x89PNG\r\n\x1a\n"));
  EXPECT_GE(read_image(folder_ / "runs/tiny/panels.png").width, 3 * 32);
  EXPECT_EQ(load_checkpoint(folder_ / "runs/tiny/best.safetensors").tensor("logits/kernel").shape,
            (std::vector<int64_t>{5, 1, 1, 8}));
}

TEST_F(Cli, RunsTheConfigurationThatItWrote) {
  ASSERT_EQ(run({"tiny.yaml", "optimizer.adamw.lr=0.003", "train.epochs=1"}).code, 0);
  const Outcome again = run({"runs/tiny/config.yaml"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("runs/tiny-2/last.safetensors"));
  EXPECT_EQ(folder_.read("runs/tiny-2/config.yaml"), folder_.read("runs/tiny/config.yaml"));
  EXPECT_EQ(folder_.read("runs/tiny-2/last.safetensors"), folder_.read("runs/tiny/last.safetensors"));
}

// What has no truth is in no loss and no score, and whether it is said by the mask or the configuration is the same.
TEST_F(Cli, PixelsWithoutTruthAreCountedNowhere) {
  const int64_t count = 10, pixels = 16 * 32;
  std::vector<uint8_t> images(count * pixels), masks(count * pixels);
  for (size_t i = 0; i < images.size(); ++i) images[i] = i * 37 % 251, masks[i] = i / 5 % 4;
  const auto train = [&](const std::string& name, const std::vector<std::string>& more) {
    write_npz(folder_ / (name + ".npz"), std::vector{npz_entry("image", {count, 16, 32}, images.data()),
                                                     npz_entry("mask", {count, 16, 32}, masks.data())});
    std::vector<std::string> words{"tiny.yaml", "data.npz=" + name + ".npz", "run.name=" + name, "train.epochs=1",
                                   "schedule.constant={}"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = run(words);
    EXPECT_EQ(o.code, 0) << o.err;
    EXPECT_THAT(o.out, HasSubstr("ignored pixels: 64\n"));
    return history(folder_, "runs/" + name);
  };
  for (int64_t i = 0; i < count; ++i) std::fill_n(masks.begin() + i * pixels, 64, 255);
  const std::vector<json> ignored = train("ignored", {"loss.ignore=255"});
  for (int64_t i = 0; i < count; ++i) std::fill_n(masks.begin() + i * pixels, 64, 9);
  EXPECT_EQ(train("mapped", {"data.classes.map={9: ignore}"}), ignored);
  const json scores = json::parse(folder_.read("runs/mapped/scores.json"));
  int64_t counted = 0;
  for (const int64_t n : scores.at("confusion")) counted += n;
  EXPECT_EQ(counted, pixels - 64);
}

TEST_F(Cli, DataThatTellsNothingIsRefusedOrWarnedOf) {
  std::vector<uint8_t> images(4 * 16 * 32), masks(images.size(), 1);
  for (size_t i = 0; i < images.size(); ++i) images[i] = i * 37 % 251, masks[i] = i / 5 % 4;
  const std::vector<uint8_t> none(images.size(), 255);
  write_npz(folder_ / "a.npz",
            std::vector{npz_entry("image", {4, 16, 32}, images.data()), npz_entry("mask", {4, 16, 32}, masks.data()),
                        npz_entry("none", {4, 16, 32}, none.data())});
  const std::string given = "data.arrays.validation={images: none, masks: none}";
  const Outcome o = run({"tiny.yaml", "data.npz=a.npz", given, "loss.ignore=255"});
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.err, HasSubstr("a.npz: no pixel of the validation set has a truth"));
  const std::string fill = "data.augment={rotation: 0.1, mask_fill: constant, mask_fill_value: 200}";
  const Outcome unknown = run({"tiny.yaml", "data.npz=a.npz", "schedule.constant={}", fill});
  EXPECT_EQ(unknown.code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("data.augment.mask_fill_value: is no class, 0 to 4, and no id without truth"));
  EXPECT_EQ(run({"tiny.yaml", "data.npz=a.npz", "schedule.constant={}", fill, "loss.ignore=200"}).code, 0);
  const Outcome dark = run({"tiny.yaml", "data.npz=a.npz", "train.epochs=1", "schedule.constant={}",
                            "data.normalise={low: 0, high: 25500}"});
  EXPECT_EQ(dark.code, 0) << dark.err;
  EXPECT_THAT(dark.out, HasSubstr("warning: the images' bytes only go from 0 to 3: data.normalise"));
}

// 20 images in batches of 16: the second batch holds four.
TEST_F(Cli, TheRateCountsTheImagesThatThereAre) {
  ASSERT_EQ(run({"tiny.yaml", "train.batch=16", "train.epochs=1"}).code, 0);
  const json record = json::parse(folder_.read("runs/tiny/history.jsonl"));
  EXPECT_LT(record.at("images_per_second").get<double>() * record.at("seconds").get<double>(), 28);
}

TEST_F(Cli, OneSeedGivesTheSameBytes) {
  ASSERT_EQ(run({"tiny.yaml", "run.name=a"}).code, 0);
  ASSERT_EQ(run({"tiny.yaml", "run.name=b"}).code, 0);
  ASSERT_EQ(run({"tiny.yaml", "run.name=c", "run.seed=8"}).code, 0);
  for (const std::string file : {"best.safetensors", "last.safetensors", "panels.png"}) {
    EXPECT_EQ(folder_.read("runs/a/" + file), folder_.read("runs/b/" + file)) << file;
    EXPECT_NE(folder_.read("runs/a/" + file), folder_.read("runs/c/" + file)) << file;
  }
  EXPECT_EQ(history(folder_, "runs/a"), history(folder_, "runs/b"));
}

// The run that is interrupted would take hours, so that the signal comes in time on any machine; it then goes on to the
// end of the epoch in which it was interrupted. Epochs are long: the signal meets the middle of one.
class Interrupted : public Cli, public ::testing::WithParamInterface<int> {};

TEST_P(Interrupted, GoesOnAsIfNothingHadHappened) {
  const std::vector<std::string> command{"engine_run", "tiny.yaml", "train.steps_per_epoch=60", "train.epochs=100000"};
  Child child(folder_.path(), command);
  ASSERT_TRUE(child.wait_for("\nepoch"));
  child.signal(GetParam());
  const Outcome o = child.wait();
  ASSERT_EQ(o.code, 128 + GetParam()) << o.out << o.err;
  EXPECT_EQ(o.err, "finishing the step; again to stop at once\n");
  EXPECT_THAT(o.out, HasSubstr("runs/tiny/last.safetensors is written. To go on:\n  "));
  EXPECT_THAT(o.out,
              HasSubstr("engine_run tiny.yaml train.steps_per_epoch=60 train.epochs=100000 --resume runs/tiny\n"));
  std::smatch steps;
  ASSERT_TRUE(std::regex_search(o.out, steps, std::regex("interrupted after ([0-9]+) steps")));
  const int done = std::stoi(steps[1]), epochs = done / 60 + 1;
  const std::string last = "train.epochs=" + std::to_string(epochs);

  const Outcome resumed = run({"tiny.yaml", command[2], last, "--resume", "runs/tiny"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.out, HasSubstr("resuming runs/tiny at epoch " + std::to_string(epochs) + ", step " +
                                     std::to_string(done) + "\n"));
  ASSERT_EQ(run({"tiny.yaml", command[2], last, "run.name=whole"}).code, 0);
  for (const std::string file : {"best.safetensors", "last.safetensors", "panels.png", "scores.json"})
    EXPECT_TRUE(folder_.read("runs/tiny/" + file) == folder_.read("runs/whole/" + file)) << file << " differs";
  const std::vector<json> records = history(folder_, "runs/tiny");
  EXPECT_EQ(records.size(), static_cast<size_t>(epochs));
  EXPECT_EQ(records, history(folder_, "runs/whole"));
}

INSTANTIATE_TEST_SUITE_P(Signals, Interrupted, ::testing::Values(SIGINT, SIGTERM, SIGHUP),
                         [](const auto& info) { return std::string("SIG") + sigabbrev_np(info.param); });

// Nothing has begun while the data is made: nothing is to be finished.
TEST_F(Cli, ASignalWhileTheDataIsMadeEndsItAtOnce) {
  Child child(folder_.path(), {"engine_run", "tiny.yaml", "data.synthetic.count=200000"});
  ASSERT_TRUE(child.wait_until_caught(SIGTERM));
  child.signal(SIGTERM);
  const Outcome o = child.wait();
  EXPECT_EQ(o.code, 143) << o.out;
  EXPECT_EQ(o.err, "interrupted before the first step; nothing is lost\n");
  EXPECT_FALSE(folder_.has("runs"));
}

TEST_F(Cli, TrainsOnWhenNobodyReadsItsLog) {
  Child child(folder_.path(), {"engine_run", "tiny.yaml", "train.epochs=20"});
  ASSERT_TRUE(child.wait_for("run folder runs/tiny\n"));  // written before the first epoch ends
  child.stop_reading();
  EXPECT_EQ(child.wait().code, 0);
  EXPECT_EQ(history(folder_, "runs/tiny").size(), 20U);
}

TEST_F(Cli, ADivergedRunEndsWithItsFirstEpochOfNan) {
  const Outcome o = run({"tiny.yaml", "optimizer={sgd: {lr: 100, momentum: 0.9999}}", "loss={cross_entropy: {}}",
                         "schedule={constant: {}}", "train.epochs=200", "train.batch=32", "model.nodes.e.repeat=2"});
  EXPECT_EQ(o.code, 1) << o.out;
  EXPECT_EQ(lines_with(o.out, "^epoch .* loss nan .* skipped [0-9]+: gradients not finite .* val loss nan "), 1)
      << o.out;
  EXPECT_THAT(o.out, Not(HasSubstr("-nan")));
  EXPECT_THAT(o.err, HasSubstr("the gradients of all steps of an epoch were not finite"));
  EXPECT_TRUE(history(folder_, "runs/tiny").back().at("loss").is_null());
}

// What is wrongly found in class 0 is in no score but miou.
TEST_F(Cli, TwoClassesAndAMonitorThatLeavesOutTheBackground) {
  const std::vector<uint8_t> image(24 * 16 * 32, 100);
  std::vector<uint8_t> mask(image.size());
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 5 == 0;
  write_npz(folder_ / "two.npz",
            std::vector{npz_entry("image", {24, 16, 32}, image.data()), npz_entry("mask", {24, 16, 32}, mask.data())});
  const std::vector<std::string> words{"tiny.yaml", "data={npz: two.npz}", "loss={cross_entropy: {}}",
                                       "model.nodes.logits.filters=2", "train.epochs=1"};
  const Outcome plain = run(words);
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_THAT(plain.out, Not(HasSubstr("everywhere")));
  EXPECT_EQ(lines_with(plain.out, "^epoch .* val loss [^ ]+  val miou [^ ]+$"), 1) << plain.out;
  std::vector<std::string> monitored = words;
  monitored.push_back("train.early_stopping={monitor: val_miou_foreground}");
  const Outcome o = run(monitored);
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(lines_with(o.out, "^warning: train.early_stopping.monitor val_miou_foreground is 1 for "), 1) << o.out;
  EXPECT_EQ(lines_with(o.out, "^epoch .* val miou [^ ]+  val miou_foreground [^ ]+$"), 1) << o.out;
}

// The rate watches its own value, and patience counts validations.
TEST_F(Cli, PatienceCountsValidations) {
  const Outcome o = run({"tiny.yaml", "train.epochs=50", "train.validate_every=2", "optimizer.adamw.lr=1e-12",
                         "train.early_stopping={patience: 2, min_delta: 0.5}"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("stopping early: val_loss has not improved for 2 validations, 4 epochs\n"));
  EXPECT_EQ(history(folder_, "runs/tiny").size(), 6U);
}

TEST_F(Cli, QuotesTheCommandToGoOn) {
  folder_.write("it's tiny.yaml", kTiny);
  Child child(folder_.path(), {"engine_run", "it's tiny.yaml", "train.epochs=100000", "run.name=a b"});
  ASSERT_TRUE(child.wait_for("\nepoch"));
  child.signal(SIGINT);
  EXPECT_THAT(child.wait().out,
              HasSubstr("engine_run 'it'\\''s tiny.yaml' train.epochs=100000 'run.name=a b' --resume 'runs/a b'\n"));
}

TEST_F(Cli, ResumesAFinishedRun) {
  const Outcome first = run({"tiny.yaml"});
  ASSERT_EQ(first.code, 0) << first.err;
  const std::string best = folder_.read("runs/tiny/best.safetensors"),
                    last = folder_.read("runs/tiny/last.safetensors"),
                    records = folder_.read("runs/tiny/history.jsonl");
  const Outcome again = run({"tiny.yaml", "--resume", "runs/tiny"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(
      again.out,
      HasSubstr("runs/tiny is finished after epoch 2: nothing is left to train; a larger train.epochs goes on\n"));
  const auto table = [](const std::string& out) {
    const size_t at = out.find("\n\ntest (");
    return out.substr(at, out.find("\nwritten\n") - at);
  };
  EXPECT_THAT(table(first.out), HasSubstr("miou_foreground"));
  EXPECT_EQ(table(again.out), table(first.out));
  EXPECT_EQ(folder_.read("runs/tiny/best.safetensors"), best);
  EXPECT_EQ(folder_.read("runs/tiny/last.safetensors"), last);
  EXPECT_EQ(folder_.read("runs/tiny/history.jsonl"), records);
  EXPECT_FALSE(folder_.has("runs/tiny-2"));
}

TEST_F(Cli, ARunThatStoppedEarlyIsFinished) {
  const std::vector<std::string> words{"tiny.yaml", "train.epochs=50", "optimizer.adamw.lr=1e-12",
                                       "train.early_stopping={patience: 2, min_delta: 0.5}"};
  const Outcome first = run(words);
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(first.out, HasSubstr("stopping early: val_loss has not improved for 2 epochs\n"));
  EXPECT_EQ(history(folder_, "runs/tiny").size(), 3U);
  std::vector<std::string> resumed = words;
  resumed.insert(resumed.end(), {"--resume", "runs/tiny"});
  const Outcome again = run(resumed);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("runs/tiny is finished, stopped early after epoch 3: nothing is left to train; a "
                                   "larger train.early_stopping.patience goes on\n"));
  EXPECT_EQ(history(folder_, "runs/tiny").size(), 3U);
}

TEST_F(Cli, ExplainsTheBaseNetwork) {
  const Outcome o = run({"--explain", REGOLITH_SOURCE_DIR "/configs/models/unet.yaml", "run.device=cpu"});
  ASSERT_EQ(o.code, 0) << o.err;
  for (const char* part : {"473,669", "logits", "conv", "64x128x32", "arena"}) EXPECT_THAT(o.out, HasSubstr(part));
  EXPECT_FALSE(folder_.has("runs"));
}

// Batches for which the plan is large beside the program and its libraries, CUDA's among them where it is built in:
// about 80 MiB.
TEST_F(Cli, MemoryIsThatOfThePlan) {
  const std::map<std::string, int> batches{{"unet", 16},          {"se_unet", 16},
                                           {"double_unet", 4},    {"unet_plus_plus_full", 4},
                                           {"unet_plus_plus", 4}, {"unet_transformer", 12}};
  for (const auto& entry : std::filesystem::directory_iterator(REGOLITH_SOURCE_DIR "/configs/models")) {
    if (entry.path().extension() != ".yaml") continue;
    const std::string name = entry.path().stem(), batch = std::to_string(batches.at(name));
    SCOPED_TRACE(name);
    const Outcome o = run({entry.path(), "data.synthetic.count=" + std::to_string(2 * batches.at(name)),
                           "run.device=cpu", "run.precision=fp32", "run.name=" + name, "train.batch=" + batch,
                           "train.slices=1", "train.epochs=1", "train.panels=0"});
    ASSERT_EQ(o.code, 0) << o.err;
    std::smatch m;
    ASSERT_TRUE(
        std::regex_search(o.out, m,
                          std::regex("memory: arena ([0-9]+) MiB, data ([0-9]+) MiB, prepacked weights ([0-9]+) "
                                     "MiB, weights, gradients and moments ([0-9]+) MiB; peak of the process "
                                     "([0-9]+) MiB")))
        << o.out;
    EXPECT_GT(std::stoi(m[1]), 150);
    const int promised = std::stoi(m[1]) + std::stoi(m[2]) + std::stoi(m[3]) + std::stoi(m[4]);
    EXPECT_LE(std::stoi(m[5]), 1.3 * promised) << m[0];
  }
}

TEST_F(Cli, Helps) {
  const Outcome keys = run({"--help-config"}), usage = run({"--help"});
  EXPECT_EQ(keys.code, 0);
  for (const char* part : {"run.seed: ", "data.synthetic.count: ", "train.batch: ", "loss.focal.gamma: ", "conv_norm"})
    EXPECT_THAT(keys.out, HasSubstr(part));
  EXPECT_EQ(usage.code, 0);
  for (const char* part : {"--explain", "--resume", "--help-config", "key.path=value"})
    EXPECT_THAT(usage.out, HasSubstr(part));
  EXPECT_EQ(keys.err + usage.err, "");
}

TEST_F(Cli, OverridesReplaceKeys) {
  const Outcome o = run({"tiny.yaml", "train.epochs=1", "run.output=elsewhere", "train.panels=0"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("epoch 1/1 "));
  EXPECT_TRUE(folder_.has("elsewhere/tiny/last.safetensors"));
  EXPECT_FALSE(folder_.has("elsewhere/tiny/panels.png"));
}

// libgomp says here what it has read.
TEST_F(Cli, ThreadsWaitBrieflyUnlessToldOtherwise) {
  const TemporaryFolder folder;
  const auto said = [&](const char* variable, const char* value) {
    if (variable != nullptr) ::setenv(variable, value, 1);
    ::setenv("OMP_DISPLAY_ENV", "verbose", 1);
    const Outcome outcome = Child(folder.path(), {"engine_run", "--help"}).wait();
    if (variable != nullptr) ::unsetenv(variable);
    ::unsetenv("OMP_DISPLAY_ENV");
    return outcome.err;
  };
  const char* const policy = ::getenv("OMP_WAIT_POLICY");  // of this test's own
  const std::string own = policy == nullptr ? "" : policy;
  ::unsetenv("OMP_WAIT_POLICY");
  EXPECT_THAT(said(nullptr, nullptr), HasSubstr("GOMP_SPINCOUNT = '1000'"));
  EXPECT_THAT(said("GOMP_SPINCOUNT", "77"), HasSubstr("GOMP_SPINCOUNT = '77'"));
  EXPECT_THAT(said("OMP_WAIT_POLICY", "active"), Not(HasSubstr("GOMP_SPINCOUNT = '1000'")));
  if (policy != nullptr) ::setenv("OMP_WAIT_POLICY", own.c_str(), 1);
}

// The study's loss experiments and ours: two steps on made up images.
TEST_F(Cli, EveryLossExperimentTrains) {
  const TemporaryFolder folder;
  std::map<double, std::string> losses;
  for (const auto& file : std::filesystem::directory_iterator(REGOLITH_SOURCE_DIR "/configs/losses")) {
    const std::string name = file.path().stem().string();
    const Outcome outcome =
        Child(folder.path(), {"engine_run", file.path().string(), "data.synthetic={count: 20, height: 64, width: 128}",
                              "train.batch=2", "train.epochs=1", "train.steps_per_epoch=2", "train.panels=0",
                              "run.device=cpu", "run.threads=1", "run.name=" + name})
            .wait();
    ASSERT_EQ(outcome.code, 0) << name << ": " << outcome.err;
    const json record = history(folder, "runs/" + name).at(0);
    EXPECT_TRUE(record["loss"].is_number() && record["val_loss"].is_number()) << name << ": " << record;
    const auto [other, is_new] = losses.emplace(record["loss"].get<double>(), name);
    EXPECT_TRUE(is_new) << name << " is trained on the same loss as " << other->second;
  }
  EXPECT_GE(losses.size(), 9U);
}

}  // namespace
}  // namespace regolith::testing
