#include "golden.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "models/reader.h"
#include "places.h"
#include "rounding.h"
#include "tests/support/simulated_device.h"

namespace regolith::golden {
namespace {

constexpr size_t kSketch = 512;

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

}  // namespace

Bounds fp32_bounds() {
  return {1e-5, 1e-5, 1e-5, [](const std::string&) { return 1e-3; }, 1e-3};
}

// Rounding a value m * 2^e, m in [1, 2), errs by up to half a last place, 2^-8 * 2^e, evenly, and the values of a map
// spread over m as 1 / m: the mean squares are (2^-7)^2 / 12 and 3 / (2 log 2). The bounds are twice the estimate of
// the logits' error, and half more than that of a gradient. The largest error of a map is, like its largest value, a
// few times its mean. A loss is a mean over logits.
Bounds bf16_bounds(const Graph& graph) {
  const double u = 0x1p-7 / std::sqrt(12 * 3 / (2 * std::log(2.)));
  const Rounding r = estimate_rounding(graph, u);
  return {2 * r.logits, 4 * r.logits, 2 * r.logits,
          [r](const std::string& parameter) { return 1.5 * r.parameters.at(parameter); }, 1e-2};
}

namespace {
std::string source(const char* folder, const std::string& file) {
  return std::filesystem::path(REGOLITH_SOURCE_DIR) / folder / file;
}
}  // namespace

Fixture::Fixture(const Setting& setting)
    : setting_(setting),
      npz_(source("tests/models/golden", setting.file + ".npz")),
      batch_(static_cast<int>(read("logits").shape[0])),
      height_(static_cast<int>(read("images").shape[1])),
      width_(static_cast<int>(read("images").shape[2])),
      experiment_(configuration(), setting.way == "simulated" ? make_simulated_device(42) : nullptr),
      network_(experiment_.network()),
      loss_(experiment_.loss(Values(5, .2))),
      stream_(experiment_.device().make_stream()),
      evaluator_(network_, *stream_, loss_, experiment_.trainer_options()) {
  Parameters& p = network_.parameters();
  for (size_t i = 0; i < p.entries().size(); ++i)
    p.write(static_cast<int>(i), ParamField::weight, fill(p.entries()[i]), *stream_);
  p.refresh_compute_copy(*stream_);
}

RunConfig Fixture::configuration() const {
  std::vector<std::string> keys{"run.device=cpu",
                                "optimizer={adamw: {preset: torch, eps: 1.0e-7, weight_decay: 0.004, lr: 4.0e-4}}",
                                "train.batch=" + std::to_string(batch_),
                                "model.input.height=" + std::to_string(height_),
                                "model.input.width=" + std::to_string(width_),
                                setting_.loss == "focal" ? "loss={focal: {gamma: 2, alpha: 0.25, exclude: [0], "
                                                           "reduction: mean_elements}}"
                                                         : "loss={cross_entropy: {reduction: mean_pixels}}"};
  keys.insert(keys.end(), setting_.overrides.begin(), setting_.overrides.end());
  const Yaml yaml = setting_.model.empty()
                        ? Yaml::load(source("configs/models", setting_.file + ".yaml"))
                        : Yaml::load_string("model:\n  input: {channels: 1}\n" + setting_.model, setting_.file);
  return read_run_config(yaml.with_overrides(keys), ConfigUse::network);
}

Graph Fixture::graph() const {
  Graph g = read_model(experiment_.config.model);
  g.infer(batch_);
  return g;
}

Evaluator::BatchResult Fixture::gradients(Mode mode) {
  std::vector<float> x = read("images").as_f32();
  std::vector<uint8_t> y = read("masks").bytes;
  x.resize(static_cast<size_t>(batch_) * height_ * width_);
  y.resize(x.size());
  for (float& v : x) v /= 255;
  return evaluator_.gradients(x, y, batch_, mode);
}

void Fixture::expect_batch(const Bounds& bounds) {
  const auto expect = [&](Mode mode, const std::string& suffix) {
    const auto r = gradients(mode);
    const Values want = read("logits" + suffix).as_f64(), difference = minus(doubles(r.logits), want);
    EXPECT_LE(norm(difference), bounds.logits * norm(want)) << "logits" << suffix;
    EXPECT_LE(largest(difference), bounds.largest_logit * largest(want)) << "logits" << suffix;
    EXPECT_LE(std::abs(r.loss / read_of_loss("loss" + suffix).as_f64()[0] - 1), bounds.loss) << "loss" << suffix;
  };
  expect(Mode::eval, "_eval");
  expect(Mode::train_without_dropout, "");

  Parameters& p = network_.parameters();
  std::vector<Values> want(p.entries().size());
  double whole = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!p.entries()[i].trainable) continue;
    want[i] = read_of_loss("grad/" + p.entries()[i].name).as_f64();
    whole = std::hypot(whole, norm(want[i]));
  }
  for (size_t i = 0; i < want.size(); ++i) {
    const std::string& name = p.entries()[i].name;
    if (!p.entries()[i].trainable) continue;
    const Values got = sketch(name, doubles(evaluator_.read_gradient(static_cast<int>(i))));
    // The gradient of a bias before a norm over its channel is zero, but for rounding.
    const double scale = std::max(norm(want[i]), bounds.shortest_gradient * whole);
    EXPECT_LE(norm(minus(got, want[i])), bounds.gradient(name) * scale)
        << name << ", of length " << norm(want[i]) << " in " << whole;
    // Where rounding leaves no direction, a length is left.
    if (norm(want[i]) == scale) {
      EXPECT_GE(norm(got), scale / 3) << name;
    }
  }
}

void Fixture::expect_steps(double bound, double bound_of_statistics) {
  const Values expected = read_of_loss("losses").as_f64();
  Dataset data;
  data.count = static_cast<int64_t>(expected.size()) * batch_;
  data.height = height_;
  data.width = width_;
  data.images = read("images").bytes;
  data.masks = read("masks").bytes;
  data.origin = "golden";
  std::vector<int32_t> order;
  for (int64_t i = 0; i < data.count; ++i) order.push_back(kernels::sample_index(i, false));
  DeviceData device_data(experiment_.device(), data.view(), batch_);
  Trainer trainer(network_, loss_, device_data, data.count, experiment_.trainer_options());
  Values losses;
  trainer.run_epoch(
      order, [](int64_t) { return 4e-4; },
      [&](const StepReport& r) {
        losses.push_back(r.loss);
        return true;
      });
  EXPECT_EQ(losses.size(), expected.size());
  for (size_t i = 0; i < std::min(losses.size(), expected.size()); ++i)
    EXPECT_LE(std::abs(losses[i] / expected[i] - 1), bound) << "step " << i + 1 << ": " << losses[i];
  const auto& entries = network_.parameters().entries();
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].trainable) continue;
    const Values want = read_of_loss("after/" + entries[i].name).as_f64();
    const Values got = doubles(network_.parameters().read(static_cast<int>(i), ParamField::weight, *stream_));
    EXPECT_LE(norm(minus(got, want)), bound_of_statistics * norm(want)) << entries[i].name;
  }
}

}  // namespace regolith::golden
