// Runs that begin with other weights, and parameters that are not trained.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>

#include "app/training.h"
#include "engine/train/weights.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
using Weights = std::map<std::string, std::vector<float>>;

constexpr const char* kConfig =
    "run: {name: r, seed: 7, device: cpu, precision: fp32, threads: 1}\n"
    "data: {synthetic: {count: 24, height: 16, width: 32}}\n"
    "train: {batch: 8, epochs: 1, panels: 0}\n"
    "model:\n"
    "  input: {height: 16, width: 32, channels: 1}\n"
    "  nodes:\n"
    "    e: {block: conv_norm, in: input, filters: 4, norm: batch}\n"
    "    d: {block: conv_norm, in: e, filters: 6, norm: batch}\n"
    "    logits: {op: conv, in: d, filters: 5, kernel: 1}\n";

// The weights as training begins. Optionally a "signal" after so many steps.
class Watcher : public Listener {
 public:
  Watcher(Weights& weights, Interrupts& interrupts, int steps)
      : weights_(weights), interrupts_(interrupts), steps_(steps) {}
  void begin(Training& training, bool) override {
    Network& network = training.experiment().network();
    const auto& entries = network.parameters().entries();
    for (size_t i = 0; i < entries.size(); ++i)
      weights_[entries[i].name] =
          network.parameters().read(static_cast<int>(i), ParamField::weight, training.trainer().stream());
  }
  void step(Training&, const StepProgress&) override {
    if (--steps_ == 0) interrupts_.signal = SIGINT;
  }

 private:
  Weights& weights_;
  Interrupts& interrupts_;
  int steps_;
};

class InitTest : public testing::Test {
 protected:
  InitTest() { fs::create_directories(folder_); }
  ~InitTest() override { fs::remove_all(folder_); }

  std::string path(const std::string& file) const { return (folder_ / file).string(); }
  RunConfig config(std::vector<std::string> overrides, ConfigUse use) const {
    overrides.push_back("run.output=" + folder_.string());
    return read_run_config(Yaml::load_string(kConfig, "r.yaml").with_overrides(overrides), use);
  }
  // The weights that the run begins with.
  Weights run(const std::string& name, std::vector<std::string> overrides, bool resume = false, int steps = -1) {
    overrides.push_back("run.name=" + name);
    Experiment experiment(config(overrides, ConfigUse::training));
    Interrupts interrupts;
    Weights weights;
    Listeners listeners = all_listeners(experiment);
    listeners.push_back(std::make_unique<Watcher>(weights, interrupts, steps));
    Training(experiment, {resume ? path(name) : "", "engine_run", &interrupts}, std::move(listeners)).run();
    return weights;
  }
  Weights read(const std::string& file) const {
    const Checkpoint checkpoint = load_checkpoint(path(file));
    Weights weights;
    for (const auto& [name, tensor] : checkpoint.tensors) weights[name] = checkpoint.floats(name);
    return weights;
  }
  std::string text(const std::string& file) const {
    std::ifstream in(folder_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // What a network of the configuration begins with, without data.
  Weights begin(const std::vector<std::string>& overrides, std::string* summary = nullptr) {
    Experiment experiment(config(overrides, ConfigUse::network));
    Network& network = experiment.network();
    const auto stream = experiment.device().make_stream();
    network.parameters().initialise(7, *stream);
    const std::optional<InitialWeights> initial = experiment.initial_weights();
    if (initial) initial->apply(network, *stream);
    if (summary != nullptr) *summary = initial->summary();
    Weights weights;
    const auto& entries = network.parameters().entries();
    for (size_t i = 0; i < entries.size(); ++i)
      weights[entries[i].name] = network.parameters().read(static_cast<int>(i), ParamField::weight, *stream);
    return weights;
  }
  // The message of the error, which must say all of `words`.
  template <class E>
  void expect_error(const std::vector<std::string>& overrides, const std::vector<std::string>& words) {
    try {
      begin(overrides);
      FAIL() << "no error";
    } catch (const E& e) {
      for (const std::string& word : words) EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  }
  fs::path folder_ = fs::path(testing::TempDir()) / ("regolith_init." + std::to_string(::getpid()));
};

TEST_F(InitTest, BeginsWithTheBestWeightsOfARun) {
  run("base", {});
  const Weights best = read("base/best.safetensors");
  EXPECT_EQ(run("folder", {"train.init.from=" + path("base")}), best);
  EXPECT_EQ(run("file", {"train.init.from=" + path("base/best.safetensors"), "run.seed=8", "run.precision=bf16"}),
            best);
  EXPECT_EQ(begin({"train.init.from=" + path("base/last.safetensors")}).size(), best.size());  // moments are no weights
  EXPECT_NE(text("folder/init.txt").find("taken: e/1/norm/running_variance\n"), std::string::npos);
  EXPECT_FALSE(fs::exists(path("base/init.txt")));
}

TEST_F(InitTest, ShapeTakesWhatFits) {
  run("base", {});
  const Weights best = read("base/best.safetensors"), fresh = begin({"model.nodes.logits.filters=3"});
  const std::vector<std::string> here{"model.nodes.logits.filters=3", "train.init.from=" + path("base")};
  expect_error<CheckpointError>(here, {"best.safetensors", "2 differences, first logits/kernel: (5, 1, 1, 6) there",
                                       "(3, 1, 1, 6) here", "train.init.match=shape"});
  std::string summary;
  auto shape = here;
  shape.push_back("train.init.match=shape");
  const Weights weights = begin(shape, &summary);
  for (const auto& [name, values] : weights)
    EXPECT_EQ(values, name.starts_with("logits/") ? fresh.at(name) : best.at(name)) << name;
  EXPECT_NE(summary.find("taken: 12 (e 6, d 6)"), std::string::npos) << summary;
  EXPECT_NE(summary.find("of another shape: logits/kernel ((5, 1, 1, 6) there"), std::string::npos) << summary;
  // Of another number of nodes, on either side.
  const std::string more = "model.nodes.x={op: conv, in: input, filters: 2}";
  expect_error<CheckpointError>({"model.nodes.logits.in=e", "model.nodes.d=off", "train.init.from=" + path("base")},
                                {"differences, first logits/kernel", "match=shape"});
  begin({"model.nodes.logits.bias=false", "train.init.match=shape", "train.init.from=" + path("base")}, &summary);
  EXPECT_NE(summary.find("left in the file: logits/bias"), std::string::npos) << summary;
}

TEST_F(InitTest, AGreyImageInMoreChannelsGivesTheSame) {
  run("base", {});
  const std::vector<float> one = read("base/best.safetensors").at("e/1/conv/kernel");  // (4,3,3,1)
  std::string summary;
  const Weights three =
      begin({"model.input.channels=3", "train.init.match=shape", "train.init.from=" + path("base")}, &summary);
  EXPECT_NE(summary.find("e/1/conv/kernel (1 -> 3 channels)"), std::string::npos) << summary;
  const std::vector<float>& kernel = three.at("e/1/conv/kernel");  // (4,3,3,3)
  ASSERT_EQ(kernel.size(), 3 * one.size());
  for (size_t i = 0; i < kernel.size(); ++i) EXPECT_FLOAT_EQ(kernel[i], one[i / 3] / 3);
  EXPECT_EQ(with_channels({1, 2, 3, 10, 20, 30}, 3, 1), (std::vector<float>{6, 60}));
  EXPECT_EQ(with_channels({1, 2, 3}, 3, 2), (std::vector<float>{3, 3}));
  expect_error<CheckpointError>({"model.input.channels=3", "train.init.from=" + path("base")},
                                {"1 differences, first e/1/conv/kernel: 1 -> 3 channels"});
}

TEST_F(InitTest, WhatIsNotThereIsNoSilentFreshStart) {
  run("base", {"model.nodes.e.filters=3", "model.nodes.d.filters=7"});
  fs::rename(path("base/best.safetensors"), path("other.safetensors"));
  expect_error<ConfigError>({"train.init.from=" + path("base")}, {"train.init.from", "without best.safetensors"});
  expect_error<ConfigError>({"train.init.from=" + path("nothing")}, {"train.init.from", "no such file or folder"});
  const std::string names = "model.nodes={a: {op: conv, in: input, filters: 5}}";
  expect_error<CheckpointError>({names, "train.init.match=shape", "train.init.from=" + path("other.safetensors")},
                                {"none of this network's 2 parameters", "first a/kernel: not there"});
}

TEST_F(InitTest, PatternsThatNameNothingAreErrors) {
  expect_error<ConfigError>({"train.init.freeze=[e/*, f/*]"},
                            {"train.init.freeze", "'f/*' names no parameter", "did you mean"});
  expect_error<ConfigError>({"train.init.freeze='*/running_mean'"}, {"running statistics alone"});
  expect_error<ConfigError>({"train.init.freeze=['e/*', '*']"}, {"leaves nothing to train"});
}

TEST_F(InitTest, FrozenParametersStayAsTheyAre) {
  run("base", {});
  const std::vector<std::string> frozen{"train.init.from=" + path("base"), "train.init.freeze=e/*", "train.epochs=2"};
  const Weights before = run("r", frozen), after = read("r/last.safetensors");
  for (const auto& [name, values] : before) {
    EXPECT_EQ(values == after.at(name), name.starts_with("e/") || name == "d/1/conv/bias") << name;
    EXPECT_EQ(after.contains("optimizer/0/" + name), name.find("running") == name.npos && !name.starts_with("e/"))
        << name;
  }
  run("stopped", frozen, false, 2);
  fs::remove_all(path("base"));  // what began it is not read again
  run("stopped", frozen, true);
  EXPECT_TRUE(text("stopped/last.safetensors") == text("r/last.safetensors"));
  EXPECT_TRUE(text("stopped/best.safetensors") == text("r/best.safetensors"));
  run("r", {"train.init.freeze=e/*", "train.epochs=3"}, true);
  const auto refused = [&](const std::vector<std::string>& overrides, const std::string& change) {
    try {
      run("r", overrides, true);
      FAIL() << "no error";
    } catch (const CheckpointError& e) {
      EXPECT_NE(std::string(e.what()).find(change), std::string::npos) << e.what();
    }
  };
  refused({"train.epochs=4"}, "train.init.freeze: [\"e/*\"] -> []");
  refused({"train.init.freeze=e/*", "train.epochs=4", "train.init.from=" + path("stopped")}, "train.init.from: ");
}

TEST_F(InitTest, ANormThatIsFrozenLetsTheBiasBeforeItLearn) {
  const Weights before = run("r", {"train.init.freeze='*/norm/*'"}), after = read("r/last.safetensors");
  for (const auto& [name, values] : before)
    EXPECT_EQ(values == after.at(name), name.find("/norm/") != name.npos) << name;
}

TEST_F(InitTest, ClippingDoesNotCountWhatIsFrozen) {
  for (const char* type : {"fp32", "bf16"}) {
    const std::string precision = type;
    const Weights before = run(precision,
                               {"train.init.freeze=logits/*", "train.steps_per_epoch=1", "optimizer={sgd: {lr: 1}}",
                                "optimizer.clip_norm=0.001", "run.precision=" + precision}),
                  after = read(precision + "/last.safetensors");
    double squares = 0;
    for (const auto& [name, values] : before) {
      const std::vector<float>& now = after.at(name);
      if (name.find("running") != name.npos) continue;
      EXPECT_EQ(values == now, name.starts_with("logits/") || name.ends_with("conv/bias")) << name;
      for (size_t i = 0; i < values.size(); ++i) squares += std::pow(double{now[i]} - double{values[i]}, 2);
    }
    EXPECT_NEAR(std::sqrt(squares), 0.001, 1e-5) << precision;
  }
}

TEST_F(InitTest, ALossOverFrozenLayersAloneIsNoTrouble) {
  const Weights before = run("r", {"model.nodes.side={op: conv, in: e, filters: 5, kernel: 1}", "model.output=logits",
                                   "model.heads={side: 0.5, logits: 0.5}", "train.init.freeze=[e/*, side/*]"}),
                after = read("r/last.safetensors");
  EXPECT_EQ(before.at("side/kernel"), after.at("side/kernel"));
  EXPECT_NE(before.at("logits/kernel"), after.at("logits/kernel"));
}

TEST_F(InitTest, FreezingChangesNoOtherGradient) {
  constexpr const char* kModel =
      "model={input: {height: 16, width: 32, channels: 1}, nodes: {"
      "e: {block: se_conv, in: input, filters: 16, kernel: 3, ratio: 4, repeat: 2, norm: group}, "
      "p: {op: max_pool, in: e}, b: {block: residual, in: p, filters: 32, kernel: 3, norm: group}, "
      "u: {op: conv_transpose, in: b, filters: 16, stride: 2}, g: {op: attention_gate, in: [e, u], filters: 8}, "
      "c: {op: concat, in: [u, g]}, d: {block: conv_norm, in: c, filters: 16, kernel: 3, norm: group}, "
      "side: {op: conv, in: e, filters: 5, kernel: 1}, logits: {op: conv, in: d, filters: 5, kernel: 1}}, "
      "output: logits, heads: {side: 0.5, logits: 0.5}}";
  std::vector<float> images(4 * 16 * 32);
  std::vector<uint8_t> masks(images.size());
  for (size_t i = 0; i < images.size(); ++i) images[i] = std::sin(0.1f * i * i), masks[i] = i % 5;
  const auto gradients = [&](const std::string& freeze, const std::string& precision) {
    Experiment experiment(
        config({kModel, "train.init.freeze=" + freeze, "run.precision=" + precision}, ConfigUse::network));
    Network& network = experiment.network();
    const auto stream = experiment.device().make_stream();
    network.parameters().initialise(7, *stream);
    const Loss loss = experiment.loss(std::vector<double>(5, 0.2));
    Evaluator evaluator(network, *stream, loss, experiment.trainer_options());
    Weights all{{"logits", evaluator.gradients(images, masks, 4, Mode::train_without_dropout).logits}};
    const auto& entries = network.parameters().entries();
    for (size_t i = 0; i < entries.size(); ++i)
      if (entries[i].trained()) all[entries[i].name] = evaluator.read_gradient(static_cast<int>(i));
    return all;
  };
  for (const char* precision : {"fp32", "bf16"}) {
    const Weights all = gradients("[]", precision);
    for (const char* freeze :
         {"[e/*]", "[e/1/conv/*]", "[e/*, side/*]", "[e/1/*, u/*, d/*]", "[b/*, g/*, '*/bias']", "['*/kernel']"}) {
      const Weights some = gradients(freeze, precision);
      EXPECT_LT(some.size(), all.size()) << freeze;
      for (const auto& [name, values] : some) EXPECT_EQ(values, all.at(name)) << freeze << " " << name;
    }
  }
}

TEST_F(InitTest, FrozenLayersTakeNoBackwardAndNoMoments) {
  const auto bytes = [&](const std::string& freeze) {
    Experiment experiment(config({"train.init.freeze=" + freeze}, ConfigUse::network));
    Network& network = experiment.network();
    size_t backward = 0;
    for (const NodePlan& node : network.program(4, Mode::train).plan().nodes) backward += node.backward;
    return std::pair{backward, network.parameters().bytes_with_moments(2)};
  };
  const auto [nodes, memory] = bytes("[]");
  const auto [fewer, less] = bytes("e/*");
  EXPECT_EQ(fewer, nodes - 2);  // convolution, and norm with ReLU
  EXPECT_LT(less, memory);
}

}  // namespace
}  // namespace regolith
