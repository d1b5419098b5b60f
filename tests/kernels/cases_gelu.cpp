#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/gelu.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Gelu {
  const char* name;
  Layout in, out;
  bool in_place = false, accumulate = false, large = false;
};

double distribution(double x) { return .5 * std::erfc(-x / std::numbers::sqrt2); }
double gelu(double x) { return x * distribution(x); }
double slope(double x) { return distribution(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }

TestCase forward(const Gelu& k) {
  return {.name = std::string("gelu_forward_") + k.name,
          .make =
              [k](Fixture& fixture) {
                const Fill fill = normal(2);
                Buffer& x = k.in_place ? fixture.inout("x", k.in, fill) : fixture.input("x", k.in, fill);
                Buffer& y = k.in_place ? x : fixture.output("y", k.out);
                Values expected = x.values();
                for (double& v : expected) v = gelu(v);
                const kernels::GeluForward args{x.map(), y.map()};
                return CaseRun{.run = [&fixture, args] { kernels::gelu_forward(fixture.stream(), args); },
                               .check = [&y, expected, t = fixture.dtype()] { y.expect(expected, tolerance(t)); },
                               .bytes = 2 * static_cast<int64_t>(k.in.size() * size_of(fixture.dtype())),
                               .flops = 24 * static_cast<int64_t>(k.in.size())};
              },
          .large = k.large};
}

TestCase backward(const Gelu& k) {
  TestCase c{.name = std::string("gelu_backward_") + k.name,
             .make =
                 [k](Fixture& fixture) {
                   Buffer& x = fixture.input("x", k.in, normal(2));
                   Buffer& dy = k.in_place ? fixture.inout("dy", k.out, normal()) : fixture.input("dy", k.in, normal());
                   Buffer& dx = k.in_place     ? dy
                                : k.accumulate ? fixture.inout("dx", k.out, normal())
                                               : fixture.output("dx", k.out);
                   Values expected = dy.values();
                   for (size_t i = 0; i < expected.size(); ++i)
                     expected[i] = expected[i] * slope(x.values()[i]) + (k.accumulate ? dx.values()[i] : 0);
                   const kernels::GeluBackward args{x.map(), dy.map(), dx.map(), k.accumulate};
                   return CaseRun{
                       .run = [&fixture, args] { kernels::gelu_backward(fixture.stream(), args); },
                       .check = [&dx, expected, t = fixture.dtype()] { dx.expect(expected, tolerance(t, 1, 4)); },
                       .bytes = (3 + k.accumulate) * static_cast<int64_t>(k.in.size() * size_of(fixture.dtype())),
                       .flops = 40 * static_cast<int64_t>(k.in.size())};
                 },
             .large = k.large};
  if (k.large) return c;
  c.gradient = [](uint64_t seed) {
    Random random(seed);
    Values x(48), dy(48), dx(48);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = 2 * random.normal();
      dy[i] = random.normal();
      dx[i] = dy[i] * slope(x[i]);
    }
    const auto loss = [&](const Values& at) {
      double sum = 0;
      for (size_t i = 0; i < at.size(); ++i) sum += dy[i] * gelu(at[i]);
      return sum;
    };
    expect_gradient("dx", loss, x, dx);
  };
  return c;
}

// Far from zero it is x or 0; where x is NaN, so is y.
TestCase ends() {
  return {.name = "gelu_forward_ends", .make = [](Fixture& fixture) {
            Values values(32, 1.0);
            values[0] = 40, values[1] = -40, values[2] = 0, values[3] = std::numeric_limits<double>::quiet_NaN();
            Buffer &x = fixture.input("x", {1, 1, 1, 32}, values), &y = fixture.output("y", {1, 1, 1, 32});
            Values expected(32, gelu(1));
            expected[0] = 40, expected[1] = expected[2] = 0, expected[3] = values[3];
            const kernels::GeluForward args{x.map(), y.map()};
            return CaseRun{.run = [&fixture, args] { kernels::gelu_forward(fixture.stream(), args); },
                           .check = [&y, expected, t = fixture.dtype()] { y.expect(expected, tolerance(t, 1, 40)); }};
          }};
}

const Gelu kCases[] = {
    {"whole", {2, 5, 7, 32}, {2, 5, 7, 32}},
    {"slices", {2, 3, 9, 24, 8, 16}, {2, 3, 9, 24, 32, 0}},
    {"odd_channels", {3, 4, 3, 5, 1, 0}, {3, 4, 3, 5, 0, 2}},
    {"in_place", {2, 6, 5, 16, 16, 0}, {2, 6, 5, 16, 0, 8}, true},
    {"accumulates", {2, 6, 5, 64}, {2, 6, 5, 64, 8, 8}, false, true},
    {"one_value", {1, 1, 1, 1}, {1, 1, 1, 1}},
    {"large", {4, 64, 128, 32}, {4, 64, 128, 32}, false, false, true},
};
const Register cases_of_gelu([] {
  std::vector<TestCase> all{ends()};
  for (const Gelu& k : kCases) {
    if (!k.accumulate) all.push_back(forward(k));
    all.push_back(backward(k));
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
