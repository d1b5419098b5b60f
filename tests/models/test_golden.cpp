// The base U-Net against PyTorch in float64 (tools/golden/make_golden.py): logits, loss, gradients, ten steps of AdamW.
#include <gtest/gtest.h>

#include <cmath>
#include <span>

#include "data/npy.h"
#include "models/reader.h"
#include "places.h"
#include "tools/session.h"

namespace regolith {
namespace {

using Values = std::vector<double>;
constexpr int kBatch = 4, kHeight = 8, kWidth = 16, kPixels = kBatch * kHeight * kWidth;
constexpr size_t kSketch = 2048;

const NpzReader& golden() {
  static const NpzReader npz(std::string(REGOLITH_SOURCE_DIR) + "/tests/models/golden/unet.npz");
  return npz;
}

// The formulas of make_golden.py.
std::vector<uint64_t> hashes(const std::string& name, size_t count) {
  uint64_t seed = 0xcbf29ce484222325;
  for (unsigned char c : name) seed = (seed ^ c) * 0x100000001b3;
  std::vector<uint64_t> h(count);
  for (size_t i = 0; i < count; ++i) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15 + seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    h[i] = z ^ (z >> 31);
  }
  return h;
}

std::vector<float> fill(const Parameters::Entry& p) {
  const std::string leaf = p.name.substr(p.name.rfind('/') + 1);
  const bool kernel = leaf == "kernel";
  const double centre = leaf == "gamma" || leaf == "running_variance" ? 1 : 0;
  const double width = kernel ? std::sqrt(6. / static_cast<double>(p.elements / p.shape[0])) : .25;
  std::vector<float> w(p.elements);
  const auto h = hashes(p.name, w.size());
  for (size_t i = 0; i < w.size(); ++i)
    w[i] = static_cast<float>(centre + width * (static_cast<double>(h[i] >> 11) / 0x1p52 - 1));
  return w;
}

Values sketch(const std::string& name, const Values& v) {
  if (v.size() <= kSketch) return v;
  const auto h = hashes("sketch of " + name, v.size());
  Values s(kSketch);
  for (size_t i = 0; i < v.size(); ++i) s[h[i] % kSketch] += h[i] >> 63 ? -v[i] : v[i];
  return s;
}

template <class T>
Values doubles(const std::vector<T>& v) {
  return {v.begin(), v.end()};
}

double norm(const Values& v) {
  double s = 0;
  for (double x : v) s += x * x;
  return std::sqrt(s);
}

Values minus(Values a, const Values& b) {
  if (a.size() != b.size()) throw std::logic_error("arrays of different size");
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

// NaN stays NaN, which no comparison below takes for small.
double largest(const Values& v) {
  double m = 0;
  for (double x : v) m = std::abs(x) <= m ? m : std::abs(x);
  return m;
}

bool ends_with(const std::string& s, const std::string& end) {
  return s.size() >= end.size() && s.compare(s.size() - end.size(), end.size(), end) == 0;
}

// What is tested: a loss, and how the engine runs.
struct Setting {
  std::string name, loss;
  std::vector<std::string> overrides;
};

// A network with the golden weights, and its trainer.
struct Lab {
  explicit Lab(const Setting& s)
      : config(config::load_run_config(std::string(REGOLITH_SOURCE_DIR) + "/configs/models/unet.yaml", keys(s),
                                       config::ConfigUse::network)),
        device(open_device(config.run)),
        network(read_model(config.model), *device, network_options(config, *device)),
        trainer(network, loss_function(config.loss, network.graph(), Values(5, .2)), trainer_options(config, {})) {
    Parameters& p = network.parameters();
    for (size_t i = 0; i < p.entries().size(); ++i)
      p.write(static_cast<int>(i), 'w', fill(p.entries()[i]), trainer.stream());
    p.refresh_low(trainer.stream());
  }

  static std::vector<std::string> keys(const Setting& s) {
    std::vector<std::string> k{"model.input.height=8", "model.input.width=16", "run.device=cpu", "train.batch=4",
                               "optimizer={adamw: {lr: 4.0e-4}}"};
    k.push_back(s.loss == "focal" ? "loss={focal: {gamma: 2, alpha: 0.25, exclude: [0], reduction: mean_elements}}"
                                  : "loss={cross_entropy: {reduction: mean_pixels}}");
    k.insert(k.end(), s.overrides.begin(), s.overrides.end());
    return k;
  }

  Trainer::BatchResult gradients(Mode mode) {
    std::vector<float> x = golden().read("images").as_f32();
    std::vector<uint8_t> y = golden().read("masks").as_u8();
    x.resize(kPixels);
    y.resize(kPixels);
    for (float& v : x) v /= 255;
    return trainer.gradients(x, y, kBatch, mode);
  }

  config::RunConfig config;
  std::unique_ptr<Device> device;
  Network network;
  Trainer trainer;
};

struct Bounds {
  double logits, largest_logit, loss, gradient;
};

void expect_batch(const Setting& setting, const Bounds& bounds) {
  Lab lab(setting);
  const Values expected = golden().read("logits").as_f64(), eval = golden().read("logits_eval").as_f64();
  const auto scalar = [&](const char* name) { return golden().read(setting.loss + "/" + name).at(0); };
  {
    const auto r = lab.gradients(Mode::eval);
    EXPECT_LE(norm(minus(doubles(r.logits), eval)), bounds.logits * norm(eval));
    EXPECT_LE(std::abs(r.loss / scalar("loss_eval") - 1), bounds.loss);
  }
  const auto r = lab.gradients(Mode::train_without_dropout);
  const Values difference = minus(doubles(r.logits), expected);
  EXPECT_LE(norm(difference), bounds.logits * norm(expected));
  EXPECT_LE(largest(difference), bounds.largest_logit * largest(expected));
  EXPECT_LE(std::abs(r.loss / scalar("loss") - 1), bounds.loss);

  Parameters& p = lab.network.parameters();
  std::vector<Values> want(p.entries().size());
  double whole = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!p.entries()[i].trainable) continue;
    want[i] = golden().read(setting.loss + "/grad/" + p.entries()[i].name).as_f64();
    whole = std::hypot(whole, norm(want[i]));
  }
  for (size_t i = 0; i < want.size(); ++i) {
    const std::string& name = p.entries()[i].name;
    if (!p.entries()[i].trainable) continue;
    const Values got = sketch(name, doubles(p.read(static_cast<int>(i), 'g', lab.trainer.stream())));
    // The gradient of a bias before a batch norm is zero, but for rounding.
    const double scale = ends_with(name, "conv/bias") ? whole : norm(want[i]);
    EXPECT_LE(norm(minus(got, want[i])), bounds.gradient * scale) << name << ", of norm " << norm(want[i]);
  }
}

// Ten steps on ten batches in the order given, through the training loop itself.
void expect_steps(const Setting& setting, double bound, double bound_of_statistics) {
  Lab lab(setting);
  Dataset data{.count = 10 * kBatch,
               .height = kHeight,
               .width = kWidth,
               .images = golden().read("images").as_u8(),
               .masks = golden().read("masks").as_u8(),
               .source = {},
               .origin = "golden"};
  std::vector<int32_t> order;
  for (int64_t i = 0; i < data.count; ++i) order.push_back(kernels::order_entry(i, false));
  lab.trainer.set_training_data(view(data), data.count);
  Values losses;
  lab.trainer.run_epoch(
      order, [](int64_t) { return 4e-4; },
      [&](const StepReport& r) {
        losses.push_back(r.loss);
        return true;
      });
  const Values expected = golden().read(setting.loss + "/losses").as_f64();
  EXPECT_EQ(losses.size(), expected.size());
  for (size_t i = 0; i < std::min(losses.size(), expected.size()); ++i)
    EXPECT_LE(std::abs(losses[i] / expected[i] - 1), bound) << "step " << i + 1 << ": " << losses[i];
  const auto& entries = lab.network.parameters().entries();
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].trainable) continue;
    const Values want = golden().read(setting.loss + "/after/" + entries[i].name).as_f64();
    const Values got = doubles(lab.network.parameters().read(static_cast<int>(i), 'w', lab.trainer.stream()));
    EXPECT_LE(norm(minus(got, want)), bound_of_statistics * norm(want)) << entries[i].name;
  }
}

class Golden : public testing::TestWithParam<Setting> {};
class GoldenSteps : public Golden {};
class GoldenBf16 : public Golden {};

TEST_P(Golden, LogitsLossAndGradientsAreThoseOfPyTorch) { expect_batch(GetParam(), {1e-5, 1e-5, 1e-5, 1e-3}); }
TEST_P(GoldenSteps, TenStepsHaveTheLossesOfPyTorch) { expect_steps(GetParam(), 1e-4, 1e-3); }

// Rounding to bf16 has a relative error of 2^-9 at most and 1e-3 in the mean square. Between image and logits lie 11
// convolutions, each with three roundings (weights, its output, the norm's), which add up as squares to 6e-3; norms of
// channels whose mean is larger than their spread double it. Backward adds as much, and errors of 1e-2 put 0.4% of the
// activations of a layer on the other side of their ReLU: 6% of a gradient's length in each of up to 10 layers, 20% in
// all. A loss is a mean of many pixels, and the training corrects its own errors: 1e-2. Bounds are two to three times
// these estimates.
TEST_P(GoldenBf16, StaysWithinItsRounding) {
  expect_batch(GetParam(), {3.6e-2, 7e-2, 2e-2, .4});
  expect_steps(GetParam(), 3e-2, 3e-2);
}

const std::string kFp32 = "run.precision=fp32";
const Setting kFusionOff{"fusion_off", "focal", {kFp32, "graph.fuse=false"}},
    kViewsOff{"views_off", "focal", {kFp32, "graph.views=false"}},
    kReference{"reference", "focal", {kFp32, "conv.provider=reference"}}, kFocal{"focal", "focal", {kFp32}};
const auto name = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Unet, Golden,
                         testing::Values(kFocal, Setting{"cross_entropy", "cross_entropy", {kFp32}}, kFusionOff,
                                         kViewsOff, Setting{"plan_off", "focal", {kFp32, "graph.plan=false"}},
                                         kReference),
                         name);
INSTANTIATE_TEST_SUITE_P(Unet, GoldenSteps, testing::Values(kFocal, kFusionOff, kViewsOff, kReference), name);
INSTANTIATE_TEST_SUITE_P(Unet, GoldenBf16, testing::Values(Setting{"focal", "focal", {"run.precision=bf16"}}), name);

}  // namespace
}  // namespace regolith
