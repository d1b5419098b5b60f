// Layer norm against plain loops in double precision.
#include <cmath>

#include "kernels/layer_norm.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Norm {
  std::string name;
  int N, H, W, C;
  bool slices = false;      // of wider parents, all of them
  bool accumulate = false;  // all gradients
  bool in_place = false;    // y over x, dx over dy
  bool no_dx = false;
  double offset = 0;  // of x: what a careless variance loses
  bool large = false;

  Layout layout(int before, int after) const { return {N, H, W, C, slices ? before : 0, slices ? after : 0}; }
  Layout row() const { return {1, 1, 1, C}; }
  Layout statistics() const { return {1, 1, N, H * W}; }
  size_t pixels() const { return static_cast<size_t>(N) * H * W; }
  size_t size() const { return pixels() * C; }
};
constexpr double kEpsilon = 1e-5;

struct Oracle {
  const Norm& k;
  Values mean, rstd;
  Oracle(const Norm& norm, const Values& x) : k(norm), mean(k.pixels()), rstd(k.pixels()) {
    for (size_t i = 0; i < x.size(); ++i) mean[i / k.C] += x[i] / k.C;
    for (size_t i = 0; i < x.size(); ++i) rstd[i / k.C] += std::pow(x[i] - mean[i / k.C], 2) / k.C;
    for (double& r : rstd) r = 1 / std::sqrt(r + kEpsilon);
  }
  double normal(const Values& x, size_t i) const { return (x[i] - mean[i / k.C]) * rstd[i / k.C]; }
  Values forward(const Values& x, const Values& gamma, const Values& beta) const {
    Values y(x.size());
    for (size_t i = 0; i < y.size(); ++i) y[i] = gamma[i % k.C] * normal(x, i) + beta[i % k.C];
    return y;
  }
  struct Gradients {
    Values dx, dgamma, dbeta;
  };
  Gradients backward(const Values& x, const Values& gamma, const Values& dy) const {
    Gradients d{Values(x.size()), Values(k.C), Values(k.C)};
    Values sum(k.pixels()), moment(k.pixels());
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t p = i / k.C, c = i % k.C;
      d.dbeta[c] += dy[i];
      d.dgamma[c] += dy[i] * normal(x, i);
      sum[p] += dy[i] * gamma[c] / k.C;
      moment[p] += dy[i] * gamma[c] * normal(x, i) / k.C;
    }
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t p = i / k.C;
      d.dx[i] = rstd[p] * (gamma[i % k.C] * dy[i] - sum[p] - normal(x, i) * moment[p]);
    }
    return d;
  }
};

// Of fp32 arithmetic about the offset of x, and of the storage of the result.
Tolerance within(const Norm& k, DType stored, double magnitude = 4) {
  return tolerance(stored, 64, magnitude * (1 + std::abs(k.offset) / 16));
}

CaseRun forward(const Norm& k, Fixture& fixture) {
  const Fill fill = normal(1.5, k.offset);
  Buffer& x = k.in_place ? fixture.inout("x", k.layout(16, 8), fill) : fixture.input("x", k.layout(16, 8), fill);
  Buffer& y = k.in_place ? x : fixture.output("y", k.layout(8, 0));
  Buffer &gamma = fixture.input("gamma", k.row(), uniform(.5, 1.5), DType::f32),
         &beta = fixture.input("beta", k.row(), normal(.5), DType::f32);
  Buffer &mean = fixture.output("mean", k.statistics(), DType::f32),
         &rstd = fixture.output("rstd", k.statistics(), DType::f32);
  const kernels::LayerNormForward args{x.map(),          y.map(),          gamma.as<float>(), beta.as<float>(),
                                       mean.as<float>(), rstd.as<float>(), kEpsilon};
  const Oracle oracle(k, x.values());
  const Values expected = oracle.forward(x.values(), gamma.values(), beta.values());
  return {.run = [&fixture, args] { kernels::layer_norm_forward(fixture.stream(), args); },
          .check =
              [=, &y, &mean, &rstd, mean_expected = oracle.mean, rstd_expected = oracle.rstd, t = fixture.dtype()] {
                y.expect(expected, within(k, t));
                mean.expect(mean_expected, within(k, DType::f32));
                rstd.expect(rstd_expected, {1e-6, 1e-5 * (1 + std::abs(k.offset) / 16)});
              },
          .bytes = 2 * static_cast<int64_t>(k.size() * size_of(fixture.dtype())),
          .flops = 8 * static_cast<int64_t>(k.size())};
}

CaseRun backward(const Norm& k, Fixture& fixture) {
  Buffer& x = fixture.input("x", k.layout(0, 8), normal(1.5, k.offset));
  Buffer& dy =
      k.in_place ? fixture.inout("dy", k.layout(8, 8), normal()) : fixture.input("dy", k.layout(8, 8), normal());
  Buffer* dx = k.no_dx        ? nullptr
               : k.in_place   ? &dy
               : k.accumulate ? &fixture.inout("dx", k.layout(16, 0), normal())
                              : &fixture.output("dx", k.layout(16, 0));
  Buffer& gamma = fixture.input("gamma", k.row(), uniform(.5, 1.5), DType::f32);
  const auto parameter = [&](const char* name) -> Buffer& {
    return k.accumulate ? fixture.inout(name, k.row(), normal(), DType::f32)
                        : fixture.output(name, k.row(), DType::f32);
  };
  Buffer &dgamma = parameter("dgamma"), &dbeta = parameter("dbeta");
  const Oracle oracle(k, x.values());
  Buffer &mean = fixture.input("mean", k.statistics(), oracle.mean, DType::f32),
         &rstd = fixture.input("rstd", k.statistics(), oracle.rstd, DType::f32);
  const kernels::LayerNormBackward args{x.map(),
                                        dy.map(),
                                        dx ? dx->map() : TensorView{},
                                        gamma.as<float>(),
                                        mean.as<float>(),
                                        rstd.as<float>(),
                                        dgamma.as<float>(),
                                        dbeta.as<float>(),
                                        k.accumulate,
                                        k.accumulate,
                                        fixture.workspace(kernels::layer_norm_workspace(x.map()))};
  const auto d = oracle.backward(x.values(), gamma.values(), dy.values());
  return {.run = [&fixture, args] { kernels::layer_norm_backward(fixture.stream(), args); },
          .check =
              [=, &dgamma, &dbeta, t = fixture.dtype()] {
                const auto expect = [&](Buffer& b, Values expected, Tolerance tolerance) {
                  for (size_t i = 0; i < expected.size() && k.accumulate; ++i) expected[i] += b.values()[i];
                  b.expect(expected, tolerance);
                };
                const double root = std::sqrt(static_cast<double>(k.pixels()));
                if (dx) expect(*dx, d.dx, within(k, t));
                expect(dgamma, d.dgamma, within(k, DType::f32, 4 * root));
                expect(dbeta, d.dbeta, within(k, DType::f32, 4 * root));
              },
          .bytes = 3 * static_cast<int64_t>(k.size() * size_of(fixture.dtype())),
          .flops = 16 * static_cast<int64_t>(k.size())};
}

// The oracle's gradients of a random linear loss, by finite differences.
void check_oracle(const Norm& k, uint64_t seed) {
  Random random(seed);
  const auto draw = [&](size_t count, const Fill& fill) {
    Values v(count);
    for (double& value : v) value = fill(random);
    return v;
  };
  const Values x = draw(k.size(), normal(1.5)), gamma = draw(k.C, uniform(.5, 1.5)), beta = draw(k.C, normal(.5)),
               weight = draw(k.size(), normal());
  const auto loss = [&](const Values& at, const Values& scale, const Values& shift) {
    const Values y = Oracle(k, at).forward(at, scale, shift);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += weight[i] * y[i];
    return sum;
  };
  const auto d = Oracle(k, x).backward(x, gamma, weight);
  expect_gradient(
      "dx", [&](const Values& v) { return loss(v, gamma, beta); }, x, d.dx, 1e-6, 1e-4);
  expect_gradient(
      "dgamma", [&](const Values& v) { return loss(x, v, beta); }, gamma, d.dgamma, 1e-6);
  expect_gradient(
      "dbeta", [&](const Values& v) { return loss(x, gamma, v); }, beta, d.dbeta, 1e-6);
}

const Norm kCases[] = {
    {.name = "whole", .N = 2, .H = 5, .W = 7, .C = 32},
    {.name = "many_channels", .N = 1, .H = 3, .W = 5, .C = 640},
    {.name = "many_pixels", .N = 3, .H = 17, .W = 19, .C = 64},
    {.name = "slices", .N = 2, .H = 5, .W = 6, .C = 64, .slices = true},
    {.name = "odd_channels", .N = 2, .H = 4, .W = 5, .C = 37, .slices = true},
    {.name = "two_channels", .N = 1, .H = 1, .W = 1, .C = 2},
    {.name = "in_place", .N = 2, .H = 7, .W = 6, .C = 48, .in_place = true},
    {.name = "accumulates", .N = 3, .H = 7, .W = 6, .C = 128, .slices = true, .accumulate = true},
    {.name = "without_dx", .N = 2, .H = 3, .W = 3, .C = 16, .no_dx = true},
    {.name = "offset", .N = 2, .H = 6, .W = 6, .C = 64, .offset = 250},
    {.name = "large", .N = 4, .H = 64, .W = 128, .C = 32, .large = true},
};
const Register cases_of_layer_norm([] {
  std::vector<TestCase> all;
  for (const Norm& k : kCases) {
    if (!k.accumulate && !k.no_dx)
      all.push_back({.name = "layer_norm_forward_" + k.name,
                     .make = [k](Fixture& fixture) { return forward(k, fixture); },
                     .large = k.large});
    TestCase c{.name = "layer_norm_backward_" + k.name,
               .make = [k](Fixture& fixture) { return backward(k, fixture); },
               .large = k.large};
    if (!k.large) c.gradient = [k](uint64_t seed) { check_oracle(k, seed); };
    all.push_back(c);
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
