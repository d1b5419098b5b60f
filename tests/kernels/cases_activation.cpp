#include "kernels/activation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

double logistic(double x) { return 1 / (1 + std::exp(-x)); }
double distribution(double x) { return .5 * std::erfc(-x / std::numbers::sqrt2); }
double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }

struct Function {
  kernels::Activation f;
  double (*y)(double x);
  double (*slope)(double saved);  // from x or y, whichever backward reads
  bool exact = false;             // small integers stay small integers
  int64_t flops[2] = {4, 4};      // of an element, forward and backward
  std::string name() const { return std::string(kernels::traits_of(f).name); }
  bool reads_x() const { return kernels::traits_of(f).gradient_reads_x; }
  Fill fill() const { return exact ? integers(-9, 9) : normal(2); }
};
const Function kFunctions[] = {
    {kernels::Activation::relu,
     [](double x) { return x < 0 ? 0.0 : x; },
     [](double y) { return y > 0 ? 1.0 : 0.0; },
     true,
     {1, 1}},
    {kernels::Activation::sigmoid, logistic, [](double y) { return y * (1 - y); }},
    {kernels::Activation::gelu,
     [](double x) { return x * distribution(x); },
     [](double x) { return distribution(x) + x * density(x); },
     false,
     {24, 40}},
};

struct Maps {
  const char* name;
  Layout in, out;
  bool in_place = false, accumulate = false, large = false;
};

Values each(Values x, double (*f)(double)) {
  for (double& v : x) v = f(v);
  return x;
}

TestCase forward(const Function& g, const Maps& k) {
  return {.name = g.name() + "_forward_" + k.name,
          .make =
              [g, k](Fixture& fixture) {
                Buffer& x = k.in_place ? fixture.inout("x", k.in, g.fill()) : fixture.input("x", k.in, g.fill());
                Buffer& y = k.in_place ? x : fixture.output("y", k.out);
                const kernels::ActivationForward args{g.f, x.map(), y.map()};
                const Tolerance close = g.exact ? kExact : tolerance(fixture.dtype());
                return CaseRun{.run = [&fixture, args] { kernels::activation_forward(fixture.stream(), args); },
                               .check = [&y, close, expected = each(x.values(), g.y)] { y.expect(expected, close); },
                               .bytes = 2 * static_cast<int64_t>(k.in.size() * size_of(fixture.dtype())),
                               .flops = g.flops[0] * static_cast<int64_t>(k.in.size())};
              },
          .large = k.large};
}

TestCase backward(const Function& g, const Maps& k) {
  TestCase c{.name = g.name() + "_backward_" + k.name,
             .make =
                 [g, k](Fixture& fixture) {
                   const Fill gradient = g.exact ? integers(-9, 9) : normal();
                   const Values x = fixture.draw(k.in.size(), g.fill(), fixture.dtype());
                   Buffer& saved = fixture.input("saved", k.in, g.reads_x() ? x : each(x, g.y));
                   Buffer& dy = k.in_place ? fixture.inout("dy", k.out, gradient) : fixture.input("dy", k.in, gradient);
                   Buffer& dx = k.in_place     ? dy
                                : k.accumulate ? fixture.inout("dx", k.out, gradient)
                                               : fixture.output("dx", k.out);
                   Values expected = dy.values();
                   for (size_t i = 0; i < expected.size(); ++i)
                     expected[i] = expected[i] * g.slope(saved.values()[i]) + (k.accumulate ? dx.values()[i] : 0);
                   const kernels::ActivationBackward args{g.f, saved.map(), dy.map(), dx.map(), k.accumulate};
                   const Tolerance close = g.exact ? kExact : tolerance(fixture.dtype(), 1, 4);
                   return CaseRun{
                       .run = [&fixture, args] { kernels::activation_backward(fixture.stream(), args); },
                       .check = [&dx, close, expected] { dx.expect(expected, close); },
                       .bytes = (3 + k.accumulate) * static_cast<int64_t>(k.in.size() * size_of(fixture.dtype())),
                       .flops = g.flops[1] * static_cast<int64_t>(k.in.size())};
                 },
             .large = k.large};
  if (k.large) return c;
  c.gradient = [g](uint64_t seed) {
    Random random(seed);
    Values x(48), dy(48), dx(48);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = 2 * random.normal();
      dy[i] = random.normal();
      dx[i] = dy[i] * g.slope(g.reads_x() ? x[i] : g.y(x[i]));
    }
    const auto loss = [&](const Values& at) {
      double sum = 0;
      for (size_t i = 0; i < at.size(); ++i) sum += dy[i] * g.y(at[i]);
      return sum;
    };
    expect_gradient("dx of " + g.name(), loss, x, dx);
  };
  return c;
}

// Far from zero nothing overflows. Where x is NaN, so is y: an activation that hides it would hide a training that went
// bad.
TestCase ends(const Function& g) {
  return {.name = g.name() + "_forward_ends", .make = [g](Fixture& fixture) {
            Values x(32, 1.0);
            const double far[] = {40, -40, 60000, -60000, 0, std::numeric_limits<double>::quiet_NaN()};
            std::copy(std::begin(far), std::end(far), x.begin());
            Buffer &from = fixture.input("x", {1, 1, 1, 32}, x), &y = fixture.output("y", {1, 1, 1, 32});
            const kernels::ActivationForward args{g.f, from.map(), y.map()};
            const Tolerance close = g.exact ? kExact : tolerance(fixture.dtype(), 1, 40);
            return CaseRun{.run = [&fixture, args] { kernels::activation_forward(fixture.stream(), args); },
                           .check = [&y, close, expected = each(from.values(), g.y)] { y.expect(expected, close); }};
          }};
}

const Maps kMaps[] = {
    {"whole", {2, 5, 7, 32}, {2, 5, 7, 32}},
    {"slices", {2, 3, 9, 24, 8, 16}, {2, 3, 9, 24, 32, 0}},
    {"wide_slices", {2, 3, 5, 64, 64, 0}, {2, 3, 5, 64, 0, 64}},
    {"odd_channels", {3, 4, 3, 5, 1, 0}, {3, 4, 3, 5, 0, 2}},
    {"odd_accumulates", {2, 3, 7, 5, 1, 2}, {2, 3, 7, 5, 3, 1}, false, true},
    {"in_place", {2, 6, 5, 16, 16, 0}, {2, 6, 5, 16, 0, 8}, true},
    {"accumulates", {2, 6, 5, 64}, {2, 6, 5, 64, 8, 8}, false, true},
    {"one_channel", {2, 8, 16, 1}, {2, 8, 16, 1}},
    {"one_value", {1, 1, 1, 1}, {1, 1, 1, 1}},
    {"large", {4, 64, 128, 32}, {4, 64, 128, 32}, false, false, true},
    {"large_one_channel", {8, 64, 128, 1}, {8, 64, 128, 1}, false, false, true},
};
const Register cases_of_activation([] {
  std::vector<TestCase> all;
  for (const Function& g : kFunctions) {
    all.push_back(ends(g));
    for (const Maps& k : kMaps) {
      if (!k.accumulate) all.push_back(forward(g, k));
      all.push_back(backward(g, k));
    }
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
