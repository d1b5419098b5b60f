// Group norm and batch norm against plain loops in double precision. One description serves both: batch norm is the
// norm of one sample with every channel a group.
#include <algorithm>
#include <cmath>

#include "kernels/conv_tile.h"
#include "kernels/norm.h"
#include "tests/support/cases.h"
#include "tests/support/dropout_oracle.h"

namespace regolith::testing {
namespace {

constexpr int64_t kDropoutStep = 11;

struct Norm {
  std::string name;
  int N, H, W, C, groups;  // groups 0: batch norm
  bool relu = true, residual = false;
  bool slices = false;      // of wider parents, all of them
  bool accumulate = false;  // all gradients
  bool sums = false;        // group norm's third output
  bool x_sums = false;      // group norm by the sums of its input
  bool affine = false;      // group norm's coefficients in place of y
  bool bias_sums = false;   // the gradients of biases before it
  bool strips = false;      // the moments of x, and in backward the sums of dy, are given strip by strip
  bool on_load = false;     // coefficients in place of y, and of dx
  bool squeezed = false;    // a squeeze behind left its gradient
  bool training = true;     // batch norm
  bool x_bias = false;      // batch norm of an x that lacks its bias
  float rate = 0;           // of dropout
  bool spatial = false;
  int64_t step = -1;      // of batch norm's running statistics; -1: without one
  bool dx = true;         // wanted
  bool in_place = false;  // y over x; dx over dy, or dresidual over it where the residual is wanted
  double offset = 0;      // of x: what a careless variance loses
  bool large = false;

  DropoutDraws draws(const int64_t* at = nullptr) const { return {rate, spatial, 0x123456789abcdefull, at, 5}; }
  Values factors() const { return dropout_factors(layout(0, 0), draws(), kDropoutStep); }
  Layout layout(int before, int after) const { return {N, H, W, C, slices ? before : 0, slices ? after : 0}; }
  int samples() const { return groups > 0 ? N : 1; }
  int parts() const { return groups > 0 ? groups : C; }
  int64_t pixels() const { return static_cast<int64_t>(N) * H * W / samples(); }  // of a sample
  size_t size() const { return static_cast<size_t>(N) * H * W * C; }
  // Index of the statistics that element i belongs to.
  size_t statistic(size_t i) const { return i / (pixels() * C) * parts() + i % C / (C / parts()); }
};
constexpr double kEpsilon = 1e-3, kMomentum = 0.9;

struct Statistics {
  Values mean, variance, rstd;
};
Statistics statistics(const Norm& k, const Values& x) {
  const size_t count = static_cast<size_t>(k.samples()) * k.parts();
  const double each = static_cast<double>(k.size()) / static_cast<double>(count);
  Statistics s{Values(count), Values(count), Values(count)};
  for (size_t i = 0; i < x.size(); ++i) s.mean[k.statistic(i)] += x[i] / each;
  for (size_t i = 0; i < x.size(); ++i) s.variance[k.statistic(i)] += std::pow(x[i] - s.mean[k.statistic(i)], 2) / each;
  for (size_t g = 0; g < count; ++g) s.rstd[g] = 1 / std::sqrt(s.variance[g] + kEpsilon);
  return s;
}
Statistics running(const Values& mean, const Values& variance) {
  Statistics s{mean, variance, variance};
  for (double& r : s.rstd) r = 1 / std::sqrt(r + kEpsilon);
  return s;
}

// What goes into the activation.
Values preactivation(const Norm& k, const Statistics& s, const Values& x, const Values& gamma, const Values& beta,
                     const Values& residual) {
  Values h(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t g = k.statistic(i), c = i % k.C;
    h[i] = gamma[c] * (x[i] - s.mean[g]) * s.rstd[g] + beta[c] + (residual.empty() ? 0 : residual[i]);
  }
  return h;
}

struct Gradients {
  Values dx, dresidual, dgamma, dbeta;
};
Gradients backward(const Norm& k, const Statistics& s, const Values& x, const Values& gamma, const Values& h,
                   const Values& dy) {
  const size_t count = s.mean.size(), C = k.C;
  const double each = static_cast<double>(k.size()) / static_cast<double>(count);
  Gradients d{Values(x.size()), Values(x.size()), Values(C), Values(C)};
  Values sum(count), moment(count);
  const auto normal = [&](size_t i) { return (x[i] - s.mean[k.statistic(i)]) * s.rstd[k.statistic(i)]; };
  for (size_t i = 0; i < x.size(); ++i) {
    const double g = d.dresidual[i] = k.relu && h[i] <= 0 ? 0 : dy[i];
    d.dbeta[i % C] += g;
    d.dgamma[i % C] += g * normal(i);
    sum[k.statistic(i)] += g * gamma[i % C];
    moment[k.statistic(i)] += g * gamma[i % C] * normal(i);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t g = k.statistic(i);
    const double centred = k.training ? (sum[g] + normal(i) * moment[g]) / each : 0;
    d.dx[i] = s.rstd[g] * (gamma[i % C] * d.dresidual[i] - centred);
  }
  return d;
}

// Of each sample and channel: its mean less that of its group.
Values deviations(const Norm& k, const Statistics& s, const Values& x) {
  Values d(static_cast<size_t>(k.N) * k.C);
  const size_t image = k.size() / k.N;
  for (size_t i = 0; i < x.size(); ++i)
    d[i / image * k.C + i % k.C] += (x[i] - s.mean[k.statistic(i)]) * k.C / static_cast<double>(image);
  return d;
}

// The strip of rows that element i is in.
size_t strip(const Norm& k, size_t i) {
  const size_t image = k.size() / k.N, row = static_cast<size_t>(k.W) * k.C;
  return i / image * kernels::tile_strips(k.H) + i % image / row / kernels::kTileStrip;
}
Layout of_strips(const Norm& k) { return {1, k.N * kernels::tile_strips(k.H), 2, k.C}; }
// Of each strip and channel: mean and sum of squared deviations.
Values moments_of_strips(const Norm& k, const Values& x) {
  Values m(of_strips(k).size()), count(m.size());
  const auto at = [&](size_t i) { return strip(k, i) * 2 * k.C + i % k.C; };
  for (size_t i = 0; i < x.size(); ++i) m[at(i)] += x[i], ++count[at(i)];
  for (size_t i = 0; i < m.size(); ++i) m[i] /= std::max(1.0, count[i]);
  for (size_t i = 0; i < x.size(); ++i) m[at(i) + k.C] += std::pow(x[i] - m[at(i)], 2);
  return m;
}
// Coefficient `row` of element i.
double on_load(const Norm& k, const Values& v, int rows, int row, size_t i) {
  const size_t sample = k.groups > 0 ? i / (k.size() / k.N) : 0;
  return v[(sample * rows + row) * k.C + i % k.C];
}

// Inputs that both directions share. dy is 0 where a rounding could flip the activation's mask.
struct Inputs {
  Values x, residual, gamma, beta, running_mean, running_variance, h;
  Statistics used;
};
Inputs draw(const Norm& k, Fixture& fixture) {
  Inputs in;
  const Fill fill = normal(1.5, k.offset);
  in.x = fixture.draw(k.size(), fill, fixture.dtype());
  if (k.residual) in.residual = fixture.draw(k.size(), normal(), fixture.dtype());
  in.gamma = fixture.draw(k.C, uniform(0.5, 1.5), DType::f32);
  in.beta = fixture.draw(k.C, normal(0.5), DType::f32);
  in.running_mean = fixture.draw(k.parts(), normal(1, k.offset), DType::f32);
  in.running_variance = fixture.draw(k.parts(), uniform(0.5, 2), DType::f32);
  in.used = k.training ? statistics(k, in.x) : running(in.running_mean, in.running_variance);
  in.h = preactivation(k, in.used, in.x, in.gamma, in.beta, in.residual);
  return in;
}

// Of fp32 arithmetic about the offset of x, and of the storage of the result.
Tolerance within(const Norm& k, DType stored, double magnitude = 4) {
  return tolerance(stored, 64, magnitude * (1 + std::abs(k.offset) / 16));
}
int64_t map_bytes(const Norm& k, DType t) { return static_cast<int64_t>(k.size() * size_of(t)); }

// What both directions have in common.
kernels::Norm arguments(const Norm& k, Fixture& fixture, const Inputs& in, const Buffer& x, const Buffer& mean,
                        const Buffer& rstd, const Buffer* deviation) {
  const Layout per_channel{1, 1, 1, k.C};
  return {.x = x.map(),
          .groups = k.groups,
          .gamma = fixture.input("gamma", per_channel, in.gamma, DType::f32).as<float>(),
          .beta = fixture.input("beta", per_channel, in.beta, DType::f32).as<float>(),
          .mean = mean.as<float>(),
          .rstd = rstd.as<float>(),
          .deviation = deviation ? deviation->as<float>() : nullptr,
          .relu = k.relu,
          .dropout = k.draws(step_in(fixture, kDropoutStep)),
          .training = k.training,
          .workspace = fixture.workspace(kernels::norm_workspace(k.samples(), k.C))};
}

CaseRun forward_instance(const Norm& k, Fixture& fixture) {
  const Inputs in = draw(k, fixture);
  const Layout per_part{1, 1, k.samples(), k.parts()}, per_group{1, 1, 1, k.parts()};
  Buffer& x = k.in_place ? fixture.inout("x", k.layout(16, 8), in.x) : fixture.input("x", k.layout(16, 8), in.x);
  Buffer* residual = k.residual ? &fixture.input("residual", k.layout(0, 32), in.residual) : nullptr;
  Buffer& y = k.in_place ? x : fixture.output("y", k.layout(8, 0));
  Buffer &mean = fixture.output("mean", per_part, DType::f32), &rstd = fixture.output("rstd", per_part, DType::f32);
  Buffer& sums = fixture.output("sums", {1, 1, k.N, k.C}, DType::f32);
  const bool deviates = k.bias_sums && k.groups > 0;
  Buffer* deviation = deviates ? &fixture.output("deviation", {1, 1, k.N, k.C}, DType::f32) : nullptr;
  Buffer &running_mean = fixture.inout("running_mean", per_group, in.running_mean, DType::f32),
         &running_variance = fixture.inout("running_variance", per_group, in.running_variance, DType::f32);
  const Layout pairs{1, k.N, 2, k.C};
  Values of_x(pairs.size());
  for (size_t i = 0; i < k.size(); ++i) {
    const size_t at = i / (k.size() / k.N) * 2 * k.C + i % k.C;
    of_x[at] += in.x[i];
    of_x[at + k.C] += in.x[i] * in.x[i];
  }
  Buffer *x_sums = k.x_sums ? &fixture.input("x_sums", pairs, of_x, DType::f32) : nullptr,
         *affine = k.affine ? &fixture.output("affine", pairs, DType::f32) : nullptr;
  const Values bias = fixture.draw(k.C, normal(), DType::f32);
  Buffer *x_moments =
             k.strips ? &fixture.input("x_moments", of_strips(k), moments_of_strips(k, in.x), DType::f32) : nullptr,
         *coefficients = k.on_load ? &fixture.output("on_load", {1, k.samples(), 3, k.C}, DType::f32) : nullptr;
  Buffer* x_bias = k.x_bias ? &fixture.input("x_bias", per_group, bias, DType::f32) : nullptr;
  CaseRun instance;
  const kernels::NormForward args{.norm = arguments(k, fixture, in, x, mean, rstd, deviation),
                                  .residual = residual ? residual->map() : TensorView{},
                                  .y = y.map(),
                                  .epsilon = kEpsilon,
                                  .sums = k.sums ? sums.as<float>() : nullptr,
                                  .x_sums = x_sums ? x_sums->as<float>() : nullptr,
                                  .affine = affine ? affine->as<float>() : nullptr,
                                  .x_moments = x_moments ? x_moments->as<float>() : nullptr,
                                  .on_load = coefficients ? coefficients->as<float>() : nullptr,
                                  .x_bias = x_bias ? x_bias->as<float>() : nullptr,
                                  .running_mean = k.groups == 0 ? running_mean.as<float>() : nullptr,
                                  .running_variance = k.groups == 0 ? running_variance.as<float>() : nullptr,
                                  .momentum = kMomentum,
                                  .step = k.step < 0 ? nullptr : step_in(fixture, k.step)};
  instance.run = [&fixture, args] { kernels::norm_forward(fixture.stream(), args); };
  instance.check = [=, &y, &mean, &rstd, &sums, &running_mean, &running_variance, type = fixture.dtype()] {
    Values expected = in.h, totals(static_cast<size_t>(k.N) * k.C);
    const Values factors = k.factors();
    for (size_t i = 0; i < expected.size(); ++i) {
      if (k.relu) expected[i] = std::max(0.0, expected[i]);
      expected[i] *= factors[i];
      totals[i / (k.size() / k.N) * k.C + i % k.C] += expected[i];
    }
    if (!k.affine && !k.on_load) y.expect(expected, within(k, type));
    if (coefficients) {
      const Values of = coefficients->read();
      Values h(k.size());
      for (size_t i = 0; i < h.size(); ++i)
        h[i] = (in.x[i] - on_load(k, of, 3, 0, i)) * on_load(k, of, 3, 1, i) + on_load(k, of, 3, 2, i);
      expect_close("on load", h, in.h, within(k, DType::f32));
    }
    mean.expect(in.used.mean, within(k, DType::f32));
    rstd.expect(in.used.rstd, within(k, DType::f32));
    if (deviation) deviation->expect(deviations(k, in.used, in.x), within(k, DType::f32));
    if (k.sums) sums.expect(totals, within(k, DType::f32, 4 * std::sqrt(static_cast<double>(k.pixels()))));
    if (affine) {
      Values coefficients(pairs.size());
      for (int n = 0; n < k.N; ++n) {
        for (int c = 0; c < k.C; ++c) {
          const size_t g = static_cast<size_t>(n) * k.groups + c / (k.C / k.groups), at = (size_t{2} * n) * k.C + c;
          coefficients[at] = in.gamma[c] * in.used.rstd[g];
          coefficients[at + k.C] = in.beta[c] - in.used.mean[g] * coefficients[at];
        }
      }
      affine->expect(coefficients, within(k, DType::f32));
    }
    Values new_mean = in.running_mean, new_variance = in.running_variance;
    const double t = static_cast<double>(k.step),
                 keep = k.step < 0 ? kMomentum : std::min(kMomentum, (1 + t) / (10 + t));
    for (int g = 0; g < k.parts() && k.groups == 0 && k.training; ++g) {
      new_mean[g] = keep * new_mean[g] + (1 - keep) * (in.used.mean[g] + (k.x_bias ? bias[g] : 0));
      new_variance[g] = keep * new_variance[g] + (1 - keep) * in.used.variance[g];
    }
    running_mean.expect(new_mean, within(k, DType::f32));
    running_variance.expect(new_variance, within(k, DType::f32));
  };
  instance.bytes = (2 + k.residual) * map_bytes(k, fixture.dtype());
  instance.flops = 8 * static_cast<int64_t>(k.size());
  return instance;
}

CaseRun backward_instance(const Norm& k, Fixture& fixture) {
  const Inputs in = draw(k, fixture);
  const Layout per_channel{1, 1, 1, k.C}, per_part{1, 1, k.samples(), k.parts()};
  Values gradient = fixture.draw(k.size(), normal(), fixture.dtype()), activated = in.h;
  const Values factors = k.factors();
  for (size_t i = 0; i < gradient.size(); ++i) {
    activated[i] = std::max(0.0, activated[i]) * factors[i];
    if (k.relu && std::abs(in.h[i]) < 2e-3) gradient[i] = 0;
  }
  Values sums(of_strips(k).size());
  if (k.strips) {  // dy is masked already
    for (size_t i = 0; i < gradient.size(); ++i) {
      gradient[i] = k.relu && in.h[i] <= 0 ? 0 : round_to(fixture.dtype(), gradient[i] * factors[i]);
      const size_t at = strip(k, i) * 2 * k.C + i % k.C;
      sums[at] += gradient[i];
      sums[at + k.C] += gradient[i] * (in.x[i] - in.used.mean[k.statistic(i)]);
    }
  }
  const Values squeeze = k.squeezed ? fixture.draw(2 * k.N * k.C, normal(1, 0.5), DType::f32) : Values{};
  const Layout of_squeeze{1, 1, 2 * k.N, k.C};
  Buffer* squeezes = k.squeezed ? &fixture.input("squeeze", of_squeeze, squeeze, DType::f32) : nullptr;
  Buffer* strip_sums = k.strips ? &fixture.input("sums", of_strips(k), sums, DType::f32) : nullptr;
  Buffer* coefficients = k.on_load ? &fixture.output("on_load", {1, k.samples(), 5, k.C}, DType::f32) : nullptr;
  Buffer& x = fixture.input("x", k.layout(16, 8), in.x);
  Buffer* y = k.residual && k.relu ? &fixture.input("y", k.layout(0, 16), activated) : nullptr;
  Buffer& dy =
      k.in_place ? fixture.inout("dy", k.layout(8, 8), gradient) : fixture.input("dy", k.layout(8, 8), gradient);
  const auto result = [&](const char* name, Layout l, std::optional<DType> t) -> Buffer& {
    return k.accumulate ? fixture.inout(name, l, normal(), t) : fixture.output(name, l, t);
  };
  Buffer& dx = k.in_place && !k.residual ? dy : result("dx", k.layout(0, 8), {});
  Buffer* dresidual = !k.residual ? nullptr : k.in_place ? &dy : &result("dresidual", k.layout(24, 8), {});
  Buffer &dgamma = result("dgamma", per_channel, DType::f32), &dbeta = result("dbeta", per_channel, DType::f32);
  Buffer &mean = fixture.input("mean", per_part, in.used.mean, DType::f32),
         &rstd = fixture.input("rstd", per_part, in.used.rstd, DType::f32);
  const bool deviates = k.bias_sums && k.groups > 0;
  Buffer* deviation =
      deviates ? &fixture.input("deviation", {1, 1, k.N, k.C}, deviations(k, in.used, in.x), DType::f32) : nullptr;
  Buffer* dx_sums = k.bias_sums ? &result("dx_sums", per_channel, DType::f32) : nullptr;
  Buffer* dresidual_sums = k.bias_sums && k.residual ? &result("dresidual_sums", per_channel, DType::f32) : nullptr;
  const auto map = [](Buffer* b) { return b ? b->map() : TensorView{}; };
  CaseRun instance;
  const kernels::NormBackward args{.norm = arguments(k, fixture, in, x, mean, rstd, deviation),
                                   .y = map(y),
                                   .dy = dy.map(),
                                   .dx = k.dx && !k.on_load ? dx.map() : TensorView{},
                                   .dresidual = map(dresidual),
                                   .dgamma = dgamma.as<float>(),
                                   .dbeta = dbeta.as<float>(),
                                   .dx_sums = dx_sums ? dx_sums->as<float>() : nullptr,
                                   .dresidual_sums = dresidual_sums ? dresidual_sums->as<float>() : nullptr,
                                   .accumulate_dx = k.accumulate,
                                   .accumulate_dresidual = k.accumulate,
                                   .accumulate_parameters = k.accumulate,
                                   .sums = strip_sums ? strip_sums->as<float>() : nullptr,
                                   .on_load = coefficients ? coefficients->as<float>() : nullptr,
                                   .squeeze = squeezes ? squeezes->as<float>() : nullptr};
  instance.run = [&fixture, args] { kernels::norm_backward(fixture.stream(), args); };
  instance.check = [=, &dx, &dgamma, &dbeta, t = fixture.dtype()] {
    const auto expect = [&](Buffer& b, Values expected, Tolerance tolerance) {
      for (size_t i = 0; i < expected.size() && k.accumulate; ++i) expected[i] += b.values()[i];
      b.expect(expected, tolerance);
    };
    Values of_activation = gradient;
    for (size_t i = 0; i < gradient.size() && k.squeezed; ++i) {
      const double* const row = &squeeze[i / (k.size() / k.N) * 2 * k.C + i % k.C];
      of_activation[i] = gradient[i] * row[0] + row[k.C];
    }
    for (size_t i = 0; i < of_activation.size() && !k.strips; ++i) of_activation[i] *= factors[i];
    const Gradients d = backward(k, in.used, in.x, in.gamma, in.h, of_activation);
    const double root = std::sqrt(static_cast<double>(k.size() / k.C));
    if (k.dx && !k.on_load) expect(dx, d.dx, within(k, t));
    if (coefficients) {
      const Values of = coefficients->read();
      Values from_g(k.size());
      for (size_t i = 0; i < from_g.size(); ++i) {
        const auto row = [&](int r) { return on_load(k, of, 5, r, i); };
        from_g[i] = row(1) * d.dresidual[i] + row(3) * (in.x[i] - row(0)) + row(4);
      }
      expect_close("dx on load", from_g, d.dx, within(k, DType::f32));
    }
    if (dresidual) expect(*dresidual, d.dresidual, within(k, t));
    expect(dgamma, d.dgamma, within(k, DType::f32, 4 * root));
    expect(dbeta, d.dbeta, within(k, DType::f32, 4 * root));
    Values of_dx(k.C);
    for (size_t i = 0; i < d.dx.size(); ++i) of_dx[i % k.C] += d.dx[i];
    if (dx_sums) expect(*dx_sums, of_dx, within(k, DType::f32, 4 * root));
    if (dresidual_sums) expect(*dresidual_sums, d.dbeta, within(k, DType::f32, 4 * root));
  };
  const int maps = 3 + (y != nullptr) + k.residual + (k.accumulate ? 1 + k.residual : 0);
  instance.bytes = maps * map_bytes(k, fixture.dtype());
  instance.flops = 16 * static_cast<int64_t>(k.size());
  return instance;
}

// The oracle's gradients of a random linear loss, by finite differences.
void check_oracle(const Norm& k, uint64_t seed) {
  Random random(seed);
  const auto draw = [&](size_t count, const Fill& fill) {
    Values v(count);
    for (double& value : v) value = fill(random);
    return v;
  };
  const Values x = draw(k.size(), normal(1.5)), gamma = draw(k.C, uniform(0.5, 1.5)), beta = draw(k.C, normal(0.5)),
               residual = k.residual ? draw(k.size(), normal()) : Values{}, mean = draw(k.parts(), normal()),
               variance = draw(k.parts(), uniform(0.5, 2)), weight = draw(k.size(), normal());
  const auto used = [&](const Values& at) { return k.training ? statistics(k, at) : running(mean, variance); };
  const auto loss = [&](const Values& at, const Values& scale, const Values& shift, const Values& added) {
    const Values h = preactivation(k, used(at), at, scale, shift, added);
    double sum = 0;
    for (size_t i = 0; i < h.size(); ++i) sum += weight[i] * (k.relu ? std::max(0.0, h[i]) : h[i]);
    return sum;
  };
  const Values h = preactivation(k, used(x), x, gamma, beta, residual);
  const Gradients d = backward(k, used(x), x, gamma, h, weight);
  expect_gradient(
      "dx", [&](const Values& v) { return loss(v, gamma, beta, residual); }, x, d.dx, 1e-6);
  expect_gradient(
      "dgamma", [&](const Values& v) { return loss(x, v, beta, residual); }, gamma, d.dgamma, 1e-6);
  expect_gradient(
      "dbeta", [&](const Values& v) { return loss(x, gamma, v, residual); }, beta, d.dbeta, 1e-6);
  if (k.residual) {
    expect_gradient(
        "dresidual", [&](const Values& v) { return loss(x, gamma, beta, v); }, residual, d.dresidual, 1e-6);
  }
}

std::vector<TestCase> describe(const std::vector<Norm>& norms) {
  std::vector<TestCase> all;
  for (const Norm& k : norms) {
    const std::string kind = k.groups > 0 ? "group_norm_" : "batch_norm_";
    if (!k.on_load || !k.residual)
      all.push_back({.name = kind + "forward_" + k.name,
                     .make = [k](Fixture& fixture) { return forward_instance(k, fixture); },
                     .gradient = {},
                     .large = k.large});
    if (!k.sums && !k.x_sums && !k.affine) {
      TestCase c{.name = kind + "backward_" + k.name,
                 .make = [k](Fixture& fixture) { return backward_instance(k, fixture); },
                 .gradient = {},
                 .large = k.large};
      if (!k.large) c.gradient = [k](uint64_t seed) { check_oracle(k, seed); };
      all.push_back(c);
    }
  }
  return all;
}

const Register cases_of_norms(describe({
    // Of all: tiles that fit shared memory and one that does not; few samples, whose passes are launches of their own.
    {.name = "plain", .N = 3, .H = 5, .W = 7, .C = 32, .groups = 32, .relu = false},
    {.name = "relu", .N = 2, .H = 9, .W = 11, .C = 64, .groups = 32},
    {.name = "wide_groups", .N = 2, .H = 3, .W = 5, .C = 96, .groups = 2},
    {.name = "residual", .N = 4, .H = 6, .W = 6, .C = 32, .groups = 8, .residual = true},
    {.name = "slices", .N = 3, .H = 5, .W = 6, .C = 64, .groups = 16, .residual = true, .slices = true},
    {.name = "odd_channels", .N = 2, .H = 4, .W = 5, .C = 15, .groups = 5, .residual = true, .slices = true},
    {.name = "one_sample", .N = 1, .H = 40, .W = 31, .C = 16, .groups = 4},
    {.name = "one_sample_accumulates",
     .N = 1,
     .H = 37,
     .W = 20,
     .C = 64,
     .groups = 32,
     .residual = true,
     .slices = true,
     .accumulate = true},
    {.name = "two_samples_of_one_group", .N = 2, .H = 24, .W = 30, .C = 24, .groups = 1},
    {.name = "big_tile", .N = 2, .H = 40, .W = 50, .C = 16, .groups = 8, .residual = true},
    {.name = "one_pixel", .N = 2, .H = 1, .W = 1, .C = 32, .groups = 8},
    {.name = "in_place", .N = 3, .H = 7, .W = 6, .C = 32, .groups = 16, .in_place = true},
    {.name = "accumulates",
     .N = 3,
     .H = 7,
     .W = 6,
     .C = 48,
     .groups = 12,
     .residual = true,
     .slices = true,
     .accumulate = true},
    {.name = "offset", .N = 2, .H = 16, .W = 16, .C = 16, .groups = 8, .relu = false, .offset = 250},
    {.name = "bias_sums", .N = 5, .H = 6, .W = 7, .C = 32, .groups = 8, .residual = true, .bias_sums = true},
    {.name = "of_what_is_frozen", .N = 5, .H = 6, .W = 7, .C = 32, .groups = 8, .residual = true, .dx = false},
    {.name = "bias_sums_of_one_sample", .N = 1, .H = 33, .W = 20, .C = 24, .groups = 4, .bias_sums = true},
    {.name = "bias_sums_of_two_samples",
     .N = 2,
     .H = 40,
     .W = 50,
     .C = 16,
     .groups = 2,
     .residual = true,
     .accumulate = true,
     .bias_sums = true},
    {.name = "bias_sums_of_single_channels", .N = 2, .H = 5, .W = 6, .C = 15, .groups = 15, .bias_sums = true},
    {.name = "dropout", .N = 5, .H = 6, .W = 7, .C = 32, .groups = 8, .rate = 0.3f},
    {.name = "dropout_of_the_residual", .N = 5, .H = 6, .W = 7, .C = 32, .groups = 8, .residual = true, .rate = 0.3f},
    {.name = "dropout_alone", .N = 2, .H = 24, .W = 30, .C = 24, .groups = 3, .relu = false, .rate = 0.5f},
    {.name = "dropout_of_odd_channels", .N = 2, .H = 4, .W = 5, .C = 15, .groups = 5, .slices = true, .rate = 0.2f},
    {.name = "spatial_dropout",
     .N = 6,
     .H = 9,
     .W = 7,
     .C = 32,
     .groups = 8,
     .sums = true,
     .rate = 0.4f,
     .spatial = true},
    {.name = "spatial_dropout_with_bias_sums",
     .N = 6,
     .H = 9,
     .W = 7,
     .C = 48,
     .groups = 6,
     .bias_sums = true,
     .rate = 0.4f,
     .spatial = true},
    {.name = "sums", .N = 3, .H = 9, .W = 7, .C = 32, .groups = 8, .residual = true, .sums = true},
    {.name = "sums_of_one_sample", .N = 1, .H = 33, .W = 40, .C = 40, .groups = 8, .slices = true, .sums = true},
    {.name = "sums_of_x", .N = 3, .H = 9, .W = 7, .C = 32, .groups = 8, .residual = true, .sums = true, .x_sums = true},
    {.name = "affine", .N = 5, .H = 9, .W = 7, .C = 48, .groups = 4, .affine = true},
    {.name = "strips", .N = 3, .H = 17, .W = 7, .C = 32, .groups = 8, .strips = true},
    {.name = "strips_on_load",
     .N = 3,
     .H = 9,
     .W = 7,
     .C = 48,
     .groups = 4,
     .accumulate = true,
     .bias_sums = true,
     .strips = true,
     .on_load = true,
     .rate = 0.3f},
    {.name = "on_load", .N = 5, .H = 6, .W = 7, .C = 32, .groups = 32, .on_load = true, .rate = 0.3f},
    {.name = "on_load_with_a_residual",
     .N = 3,
     .H = 9,
     .W = 7,
     .C = 32,
     .groups = 8,
     .residual = true,
     .slices = true,
     .accumulate = true,
     .on_load = true},
    {.name = "squeezed",
     .N = 3,
     .H = 5,
     .W = 6,
     .C = 32,
     .groups = 8,
     .residual = true,
     .on_load = true,
     .squeezed = true},
    {.name = "strips", .N = 3, .H = 17, .W = 7, .C = 32, .groups = 0, .strips = true},
    {.name = "strips_on_load",
     .N = 4,
     .H = 12,
     .W = 9,
     .C = 48,
     .groups = 0,
     .strips = true,
     .on_load = true,
     .x_bias = true,
     .step = 3},
    {.name = "running_statistics_on_load",
     .N = 2,
     .H = 5,
     .W = 6,
     .C = 16,
     .groups = 0,
     .on_load = true,
     .training = false},
    {.name = "affine_by_sums_of_x", .N = 2, .H = 5, .W = 6, .C = 15, .groups = 5, .x_sums = true, .affine = true},
    {.name = "plain", .N = 3, .H = 5, .W = 7, .C = 32, .groups = 0, .relu = false},
    {.name = "relu", .N = 4, .H = 13, .W = 17, .C = 64, .groups = 0},
    {.name = "first_step", .N = 2, .H = 5, .W = 6, .C = 16, .groups = 0, .step = 0},
    {.name = "fourth_step", .N = 2, .H = 5, .W = 6, .C = 16, .groups = 0, .step = 3},
    {.name = "late_step", .N = 2, .H = 5, .W = 6, .C = 16, .groups = 0, .step = 500},
    {.name = "lacks_a_bias", .N = 2, .H = 5, .W = 6, .C = 48, .groups = 0, .x_bias = true},
    {.name = "residual", .N = 3, .H = 6, .W = 6, .C = 32, .groups = 0, .residual = true},
    {.name = "slices", .N = 2, .H = 9, .W = 6, .C = 96, .groups = 0, .slices = true},
    {.name = "odd_channels", .N = 2, .H = 7, .W = 5, .C = 37, .groups = 0, .residual = true, .slices = true},
    {.name = "evaluates", .N = 2, .H = 5, .W = 9, .C = 32, .groups = 0, .residual = true, .training = false},
    {.name = "of_what_is_frozen", .N = 3, .H = 6, .W = 6, .C = 32, .groups = 0, .dx = false},
    {.name = "dropout", .N = 3, .H = 13, .W = 17, .C = 32, .groups = 0, .rate = 0.3f},
    {.name = "dropout_of_the_residual", .N = 3, .H = 6, .W = 6, .C = 16, .groups = 0, .residual = true, .rate = 0.3f},
    {.name = "dropout_in_place", .N = 2, .H = 6, .W = 7, .C = 20, .groups = 0, .rate = 0.5f, .in_place = true},
    {.name = "spatial_dropout", .N = 7, .H = 3, .W = 5, .C = 64, .groups = 0, .rate = 0.2f, .spatial = true},
    {.name = "bias_sums", .N = 3, .H = 6, .W = 6, .C = 32, .groups = 0, .residual = true, .bias_sums = true},
    {.name = "bias_sums_evaluated",
     .N = 2,
     .H = 5,
     .W = 9,
     .C = 32,
     .groups = 0,
     .residual = true,
     .accumulate = true,
     .bias_sums = true,
     .training = false},
    {.name = "in_place", .N = 2, .H = 6, .W = 7, .C = 16, .groups = 0, .residual = true, .in_place = true},
    {.name = "accumulates",
     .N = 2,
     .H = 6,
     .W = 7,
     .C = 48,
     .groups = 0,
     .residual = true,
     .slices = true,
     .accumulate = true},
    {.name = "one_pixel", .N = 3, .H = 1, .W = 1, .C = 16, .groups = 0},
    {.name = "offset", .N = 4, .H = 16, .W = 16, .C = 16, .groups = 0, .relu = false, .offset = 250},
    {.name = "large", .N = 4, .H = 64, .W = 128, .C = 32, .groups = 32, .large = true},
    {.name = "large_residual", .N = 4, .H = 64, .W = 128, .C = 64, .groups = 32, .residual = true, .large = true},
    {.name = "large", .N = 4, .H = 64, .W = 128, .C = 32, .groups = 0, .large = true},
}));

}  // namespace
}  // namespace regolith::testing
