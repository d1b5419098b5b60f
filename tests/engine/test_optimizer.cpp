// The optimizer over several steps against plain loops in double, on the CPU and on the simulated device.
#include "engine/train/optimizer.h"
#include "tests/support/simulated_device.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/base/error.h"

namespace regolith {
namespace {

constexpr int64_t kCount = 20011;  // more than one block of the norm, and no whole number of vectors

std::vector<float> normal(uint64_t seed, double sigma) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> draw(0, static_cast<float>(sigma));
  std::vector<float> v(kCount);
  for (float& x : v) x = draw(engine);
  return v;
}

struct Bench {
  Bench(std::unique_ptr<Device> on, const OptimizerSpec& spec, DType precision)
      : device(std::move(on)),
        stream(device->make_stream()),
        optimizer(*device, *stream, spec, kCount, precision),
        weights(*device, kCount * sizeof(float)),
        gradient(*device, kCount * sizeof(float)),
        copy(*device, kCount * sizeof(bf16)),
        type(precision) {}

  void upload(DeviceBuffer& to, const std::vector<float>& from) {
    device->upload(to.as(), from.data(), from.size() * sizeof(float), *stream);
    stream->synchronize();
  }
  template <class T>
  std::vector<T> download(const void* from) {
    std::vector<T> v(kCount);
    device->download(v.data(), from, kCount * sizeof(T), *stream);
    stream->synchronize();
    return v;
  }
  std::vector<float> values() { return download<float>(weights.as()); }
  void step(const std::vector<float>& g) {
    upload(gradient, g);
    optimizer.update(*stream, weights.as<float>(), gradient.as<float>(), type == DType::f32 ? nullptr : copy.as());
  }

  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceStream> stream;
  Optimizer optimizer;
  DeviceBuffer weights, gradient, copy;
  DType type;
};

double norm(const std::vector<float>& g) {
  double sum = 0;
  for (const float x : g) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

void expect_near(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance) {
  double worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]) / (1 + std::abs(expected[i]));
    worst = error <= worst ? worst : error;  // NaN is kept
  }
  EXPECT_LE(worst, tolerance);
}

class OptimizerOn : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Device> device() {
    const std::string name = GetParam();
    if (name == "checked") return make_cpu_device(1, Execution::checked);
    if (name == "simulated") return make_simulated_device(5);
    return make_cpu_device(2);
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, OptimizerOn, ::testing::Values("fast", "checked", "simulated"),
                         [](const auto& info) { return info.param; });

// An epsilon that is large beside the gradients shows where it stands.
TEST_P(OptimizerOn, AdamWMatchesItsFormulas) {
  for (const AdamW::Preset preset : {AdamW::Preset::keras, AdamW::Preset::torch}) {
    const AdamW spec{.preset = preset, .lr = .01, .eps = 1e-2, .weight_decay = .1};
    const bool hat = preset == AdamW::Preset::keras;
    const double clip = 30;
    Bench b(device(), {spec, clip}, DType::bf16);
    const std::vector<float> start = normal(1, 1);
    b.upload(b.weights, start);
    std::vector<double> w(start.begin(), start.end()), m(kCount), v(kCount);
    bool clipped = false, unclipped = false;
    for (int t = 1; t <= 4; ++t) {
      const double rate = .01 / t;
      const std::vector<float> g = normal(static_cast<uint64_t>(t) + 1, t % 2 ? .1 : .5);
      b.optimizer.set_learning_rate(*b.stream, rate);
      b.step(g);
      const double factor = norm(g) > clip ? clip / norm(g) : 1;
      (factor < 1 ? clipped : unclipped) = true;
      for (size_t i = 0; i < w.size(); ++i) {
        const double x = g[i] * factor;
        m[i] = .9 * m[i] + .1 * x;
        v[i] = .999 * v[i] + .001 * x * x;
        w[i] -= rate * spec.weight_decay * w[i];
        const double c2 = 1 - std::pow(.999, t), eps = hat ? spec.eps / std::sqrt(c2) : spec.eps;
        w[i] -= rate * m[i] / (1 - std::pow(.9, t)) / (std::sqrt(v[i] / c2) + eps);
      }
      const StepState s = b.optimizer.read_state(*b.stream);
      EXPECT_NEAR(s.gradient_norm, norm(g), 1e-6 * norm(g));
      EXPECT_EQ(s.updates, t);
    }
    EXPECT_TRUE(clipped && unclipped);
    const std::vector<float> result = b.values();
    expect_near(result, w, 1e-6);
    const std::vector<bf16> copy = b.download<bf16>(b.copy.as());
    for (size_t i = 0; i < result.size(); ++i) ASSERT_EQ(copy[i].bits, bf16(result[i]).bits) << i;
  }
}

// The weights of 0.5 after each of three steps with one gradient, as Keras 3.15.1 prints them
// (tests/golden/keras_adamw.py); and PyTorch's formula.
TEST(OptimizerPresets, AreKerassAndPyTorchs) {
  struct Vector {
    float gradient;
    std::array<float, 3> weights;
  };
  const Vector keras[] = {{1e-7f, {0.499673456f, 0.499225497f, 0.498686492f}},
                          {1e-6f, {0.497577488f, 0.494467974f, 0.490910441f}},
                          {1e-4f, {0.490286589f, 0.480485857f, 0.470646054f}},
                          {-0.5f, {0.509979844f, 0.519959331f, 0.529938459f}}};
  AdamW spec;
  spec.lr = 1e-2;
  for (const Vector& v : keras) {
    Bench b(make_cpu_device(1), {spec}, DType::f32);
    b.upload(b.weights, std::vector<float>(kCount, 0.5f));
    for (const float expected : v.weights) {
      b.step(std::vector<float>(kCount, v.gradient));
      EXPECT_NEAR(b.values()[0], expected, 4e-7) << v.gradient;  // Keras corrects the bias in float32
    }
  }
  // The share of the learning rate that a first gradient of 1e-7 moves a weight by.
  const auto first = [](AdamW adamw) {
    adamw.eps = 1e-7;
    adamw.weight_decay = 0;
    Bench b(make_cpu_device(1), {adamw}, DType::f32);
    b.upload(b.weights, std::vector<float>(kCount, 0));
    b.step(std::vector<float>(kCount, 1e-7f));
    return -b.values()[0] / adamw.lr;
  };
  EXPECT_NEAR(first(spec), 0.0307, 1e-4);
  EXPECT_NEAR(first(spec.use(AdamW::Preset::torch)), 0.5, 1e-4);
}

TEST_P(OptimizerOn, SgdMatchesItsFormulas) {
  for (const bool nesterov : {false, true}) {
    Bench b(device(), {Sgd{.lr = .1, .momentum = .8, .weight_decay = .01, .nesterov = nesterov}}, DType::f32);
    EXPECT_EQ(b.optimizer.moments(), 1);
    const std::vector<float> start = normal(1, 1);
    b.upload(b.weights, start);
    std::vector<double> w(start.begin(), start.end()), m(kCount);
    for (uint64_t t = 1; t <= 3; ++t) {
      const std::vector<float> g = normal(t + 1, .5);
      b.step(g);
      for (size_t i = 0; i < w.size(); ++i) {
        const double x = g[i] + .01 * w[i];
        m[i] = .8 * m[i] + x;
        w[i] -= .1 * (nesterov ? x + .8 * m[i] : m[i]);
      }
    }
    expect_near(b.values(), w, 1e-6);
  }
}

// fp16: the gradients come times the loss scale; one infinite or NaN element skips the step and halves the scale.
TEST_P(OptimizerOn, SkipsStepsThatAreNotFinite) {
  Bench b(device(), {AdamW{}}, DType::f16);
  b.upload(b.weights, normal(1, 1));
  StepState s = b.optimizer.read_state(*b.stream);
  EXPECT_EQ(s.loss_scale, 65536);
  std::vector<float> g = normal(2, 65536);
  b.step(g);
  s = b.optimizer.read_state(*b.stream);
  EXPECT_NEAR(s.gradient_norm, norm(g) / 65536, 1e-5 * s.gradient_norm);
  EXPECT_EQ(s.gradient_scale, 1.f / 65536);
  const std::vector<float> weights = b.values(), m = b.download<float>(b.optimizer.moment(0)),
                           v = b.download<float>(b.optimizer.moment(1));
  for (const float bad : {NAN, -INFINITY}) {
    std::vector<float> broken = g;
    broken[kCount - 1] = bad;
    b.step(broken);
  }
  s = b.optimizer.read_state(*b.stream);
  EXPECT_EQ(s.finite, 0);
  EXPECT_EQ(s.step, 3);
  EXPECT_EQ(s.updates, 1);
  EXPECT_EQ(s.skipped, 2);
  EXPECT_EQ(s.skipped_in_a_row, 2);
  EXPECT_EQ(s.loss_scale, 16384);
  EXPECT_EQ(b.values(), weights);
  EXPECT_EQ(b.download<float>(b.optimizer.moment(0)), m);
  EXPECT_EQ(b.download<float>(b.optimizer.moment(1)), v);
  s.clean_steps = 1999;  // the 2000th doubles the scale
  b.optimizer.write_state(*b.stream, s);
  b.step(g);
  s = b.optimizer.read_state(*b.stream);
  EXPECT_EQ(s.loss_scale, 32768);
  EXPECT_EQ(s.clean_steps, 0);
  EXPECT_EQ(s.skipped_in_a_row, 0);
  EXPECT_NE(b.values(), weights);
}

TEST(StepState, SurvivesACheckpoint) {
  StepState s;
  s.step = 12345678901;
  s.updates = 7;
  s.skipped = 3;
  s.clean_steps = 5;
  s.learning_rate = 4e-4f;
  s.loss_scale = 32768;
  const StepState back = step_state_from_json(nlohmann::json::parse(to_json(s).dump()));
  EXPECT_EQ(to_json(back), to_json(s));
  EXPECT_EQ(back.step, s.step);
  EXPECT_EQ(back.learning_rate, s.learning_rate);
  EXPECT_THROW(step_state_from_json({{"step", 1}}), CheckpointError);
}

}  // namespace
}  // namespace regolith
