// The moving average of the weights beside a training, against plain loops in double.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "engine/base/error.h"
#include "engine/train/trainer.h"
#include "engine/train/weights.h"
#include "kernels/core/random.h"
#include "losses/loss.h"
#include "models/reader.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

constexpr int kH = 8, kW = 8, kCount = 6;

struct Data {
  std::vector<uint8_t> images, masks;
  Data() {
    for (uint32_t i = 0; i < kCount * kH * kW; ++i) {
      const Philox r = philox(7, i, 0, 0, 0);
      images.push_back(static_cast<uint8_t>(r.v[0] >> 24));
      masks.push_back(static_cast<uint8_t>(r.v[1] % 3));
    }
  }
  DataView view() const { return {images.data(), masks.data(), kCount, kH, kW, 1}; }
};

Graph network_graph(bool freeze) {
  Graph graph =
      read_model(Yaml::load_string("input: {height: 8, width: 8}\n"
                                   "nodes:\n"
                                   "  a: {block: conv_norm, in: input, filters: 4, kernel: 3, norm: batch}\n"
                                   "  b: {block: conv_norm, in: a, filters: 4, kernel: 3, norm: batch}\n"
                                   "  logits: {op: conv, in: b, filters: 3, kernel: 1}\n",
                                   "small.yaml"));
  if (freeze) graph.frozen = {"a/1/conv/kernel"};
  return graph;
}

using Values = std::vector<std::vector<float>>;  // of every parameter

struct Bench {
  explicit Bench(std::unique_ptr<Device> on, std::optional<EmaSpec> ema, bool capture = true, bool freeze = false,
                 int accumulate = 1)
      : device(std::move(on)), network(network_graph(freeze), *device, options()) {
    TrainerOptions o;
    o.batch = 3;
    o.steps_per_epoch = 1;
    o.ema = ema;
    o.capture = capture;
    o.accumulate = accumulate;
    trainer.emplace(network, loss, device_data, kCount, o);
    network.parameters().initialise(5, trainer->stream());
  }
  static NetworkOptions options() {
    NetworkOptions o;
    o.conv.provider = "reference";
    return o;
  }
  void step() {
    std::vector<int32_t> order(kCount);
    for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index((i + steps) % kCount, false);
    ++steps;
    trainer->run_epoch(
        order, [](int64_t) { return 1e-2; }, [](const StepReport&) { return true; });
  }
  Values weights() {
    Values all;
    for (int i = 0; i < parameters(); ++i)
      all.push_back(network.parameters().read(i, ParamField::weight, trainer->stream()));
    return all;
  }
  Values average() {
    Values all;
    for (int i = 0; i < parameters(); ++i) all.push_back(trainer->ema()->read(i));
    return all;
  }
  Evaluation evaluate() { return trainer->evaluate({0, 1, 2, 3, 4, 5}, true); }
  int parameters() { return static_cast<int>(network.parameters().entries().size()); }

  std::unique_ptr<Device> device;
  const Data data;
  const Loss loss{LossSpec{CrossEntropy{}}, 3};
  Network network;
  DeviceData device_data{*device, data.view(), 3};
  std::optional<Trainer> trainer;
  int steps = 0;
};

// Once a step, however many batches it accumulates. (Keras averages after each of them.)
TEST(Ema, IsTheAverageOfTheWeightsAndRunningStatistics) {
  for (const auto& [warm_up, accumulate] : {std::pair{true, 1}, {false, 1}, {false, 2}}) {
    const double decay = warm_up ? 0.3 : 0.8;  // 0.3: reached after the second step
    Bench run(make_cpu_device(1), EmaSpec{.decay = decay, .warm_up = warm_up}, true, false, accumulate);
    std::vector<std::vector<double>> expected;
    for (int t = 1; t <= 5; ++t) {
      run.step();
      const Values now = run.weights(), average = run.average();
      const double keep = t == 1 ? 0 : warm_up ? std::min(decay, (1. + t) / (10. + t)) : decay;
      if (t == 1) expected.assign(now.size(), {});
      for (size_t i = 0; i < now.size(); ++i) {
        expected[i].resize(now[i].size());
        for (size_t j = 0; j < now[i].size(); ++j) {
          double& e = expected[i][j];
          e = keep * e + (1 - keep) * now[i][j];
          ASSERT_TRUE(std::abs(average[i][j] - e) <= 1e-6 * (1 + std::abs(e)))
              << "step " << t << ", " << run.network.parameters().entries()[i].name << "[" << j << "]";
        }
      }
      EXPECT_EQ(average == now, t == 1);
    }
  }
}

TEST(Ema, LeavesTheTrainingAsItIs) {
  Bench with(make_cpu_device(1), EmaSpec{}), without(make_cpu_device(1), {});
  for (int i = 0; i < 4; ++i) with.step(), without.step();
  EXPECT_EQ(with.weights(), without.weights());
  EXPECT_EQ(without.trainer->ema(), nullptr);
  EXPECT_EQ(without.trainer->ema_bytes(), 0u);
}

TEST(Ema, ASkippedStepLeavesItAlone) {
  Bench run(make_cpu_device(1), EmaSpec{.decay = .5, .warm_up = false});
  run.step(), run.step();
  const Values before = run.average();
  std::vector<float> broken = run.network.parameters().read(0, ParamField::weight, run.trainer->stream());
  broken[0] = NAN;
  run.network.parameters().write(0, ParamField::weight, broken, run.trainer->stream());
  run.step();
  EXPECT_EQ(run.trainer->state().skipped, 1);
  EXPECT_EQ(run.average(), before);
}

// The network evaluates with the average, and has its weights back afterwards, bit for bit.
TEST(Ema, IsEvaluatedInPlace) {
  for (const int device : {0, 1, 2}) {
    const auto on = [&] { return device == 0 ? make_cpu_device(1) : make_simulated_device(device); };
    Bench run(on(), EmaSpec{.decay = .9, .warm_up = false});
    for (int i = 0; i < 4; ++i) run.step();
    const Values weights = run.weights(), average = run.average();
    const Evaluation raw = run.evaluate();
    double averaged = 0;
    {
      const Trainer::Averaged guard(*run.trainer);
      EXPECT_EQ(run.weights(), average);
      averaged = run.evaluate().loss;
    }
    EXPECT_EQ(run.weights(), weights);
    EXPECT_EQ(run.average(), average);
    EXPECT_EQ(run.evaluate().loss, raw.loss);
    EXPECT_NE(averaged, raw.loss);

    Bench other(on(), {});  // a network that has these weights as its own
    for (int i = 0; i < other.parameters(); ++i)
      other.network.parameters().write(i, ParamField::weight, average[i], other.trainer->stream());
    other.network.parameters().refresh_compute_copy(other.trainer->stream());
    EXPECT_EQ(other.evaluate().loss, averaged);
  }
}

TEST(Ema, NoAverageBeforeTheFirstUpdate) {
  Bench run(make_cpu_device(1), EmaSpec{});
  const Values fresh = run.weights();
  const Trainer::Averaged guard(*run.trainer);
  EXPECT_EQ(run.weights(), fresh);
}

TEST(Ema, CapturedStepsEqualTheCpus) {
  Bench cpu(make_cpu_device(1), EmaSpec{});
  for (int i = 0; i < 4; ++i) cpu.step();
  for (const bool capture : {true, false}) {
    Bench simulated(make_simulated_device(3), EmaSpec{}, capture);
    for (int i = 0; i < 4; ++i) simulated.step();
    EXPECT_EQ(simulated.weights(), cpu.weights());
    EXPECT_EQ(simulated.average(), cpu.average());
  }
}

TEST(Ema, FrozenParametersHaveNone) {
  Bench run(make_cpu_device(1), EmaSpec{.decay = .5, .warm_up = false}, true, true);
  for (int i = 0; i < 3; ++i) run.step();
  int frozen = 0;
  for (int i = 0; i < run.parameters(); ++i) frozen += !run.trainer->ema()->averages(i);
  EXPECT_EQ(frozen, 1);
  const Values weights = run.weights();
  const Trainer::Averaged guard(*run.trainer);
  const Values average = run.weights();
  int others = 0;  // those that moved: not the biases that a norm takes out
  for (int i = 0; i < run.parameters(); ++i) {
    if (!run.trainer->ema()->averages(i)) {
      EXPECT_EQ(average[i], weights[i]);
    }
    others += average[i] != weights[i];
  }
  EXPECT_GE(others, 8);
}

// A checkpoint keeps it; in one without, it begins at the weights.
TEST(Ema, GoesOnFromACheckpoint) {
  const EmaSpec spec{.decay = .9};
  Bench whole(make_cpu_device(1), spec), first(make_cpu_device(1), spec), plain(make_cpu_device(1), {});
  for (int i = 0; i < 5; ++i) whole.step();
  for (int i = 0; i < 2; ++i) first.step(), plain.step();
  const auto restored = [](Bench& from, Bench& to) {
    const std::string path = testing::TempDir() + "regolith_ema.safetensors";
    save_checkpoint(path, save_training(from.network, *from.trainer));
    load_training(to.network, *to.trainer, load_checkpoint(path));
    to.steps = from.steps;
  };
  Bench second(make_cpu_device(1), spec), begun(make_cpu_device(1), spec), without(make_cpu_device(1), {});
  restored(first, second);
  restored(plain, begun);
  restored(first, without);
  EXPECT_EQ(begun.average(), begun.weights());
  EXPECT_EQ(without.weights(), first.weights());
  for (int i = 0; i < 3; ++i) second.step();
  EXPECT_EQ(second.weights(), whole.weights());
  EXPECT_EQ(second.average(), whole.average());
}

}  // namespace
}  // namespace regolith
