#include <algorithm>
#include <cmath>

#include "kernels/upsample.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Upsample {
  const char* name;
  Layout x;  // y is `factor` times as large
  int factor = 2;
  bool bilinear = false, accumulate = false;
  int before = 0, after = 0;  // channels around y in its parent
  Layout y() const { return {x.N, factor * x.H, factor * x.W, x.C, before, after}; }
};

struct Tap {
  int from;
  double weight;
};
// What output o takes of n inputs, from the definition: its half-pixel centre in the inputs' coordinates.
std::vector<Tap> taps(const Upsample& k, int o, int n) {
  if (!k.bilinear) return {{o / k.factor, 1}};
  const double at = std::max((o + 0.5) / k.factor - 0.5, 0.0);
  const int first = static_cast<int>(std::floor(at)), second = std::min(first + 1, n - 1);
  return {{first, 1 - (at - first)}, {second, at - first}};
}

// Calls f(index into y, index into x, weight) for all that y is made of.
template <class F>
void each_term(const Upsample& k, F&& f) {
  const Layout y = k.y();
  for (int n = 0; n < y.N; ++n)
    for (int p = 0; p < y.H; ++p)
      for (int q = 0; q < y.W; ++q)
        for (const Tap& h : taps(k, p, k.x.H))
          for (const Tap& w : taps(k, q, k.x.W))
            for (int c = 0; c < y.C; ++c)
              f(((n * y.H + p) * y.W + q) * y.C + c, ((n * k.x.H + h.from) * k.x.W + w.from) * k.x.C + c,
                h.weight * w.weight);
}
Values forward(const Upsample& k, const Values& x) {
  Values y(k.y().size());
  each_term(k, [&](size_t to, size_t from, double weight) { y[to] += weight * x[from]; });
  return y;
}
Values backward(const Upsample& k, const Values& dy) {
  Values dx(k.x.size());
  each_term(k, [&](size_t from, size_t to, double weight) { dx[to] += weight * dy[from]; });
  return dx;
}

TestCase forward_case(const Upsample& k) {
  return {.name = std::string("upsample_forward_") + k.name, .make = [k](Fixture& fixture) {
            Buffer& x = fixture.input("x", k.x, normal());
            Buffer& y = fixture.output("y", k.y());
            const kernels::UpsampleForward args{x.map(), y.map(), k.factor, k.bilinear};
            const Tolerance close = k.bilinear ? tolerance(fixture.dtype(), 4, 4) : kExact;
            return CaseRun{.run = [&fixture, args] { kernels::upsample_forward(fixture.stream(), args); },
                           .check = [&y, close, expected = forward(k, x.values())] { y.expect(expected, close); },
                           .bytes = static_cast<int64_t>((k.x.size() + k.y().size()) * size_of(fixture.dtype()))};
          }};
}

TestCase backward_case(const Upsample& k) {
  return {.name = std::string("upsample_backward_") + k.name,
          .make =
              [k](Fixture& fixture) {
                const Fill fill = k.bilinear ? normal() : integers(-5, 5);
                Buffer& dy = fixture.input("dy", k.y(), fill);
                Buffer& dx = k.accumulate ? fixture.inout("dx", k.x, fill) : fixture.output("dx", k.x);
                Values expected = backward(k, dy.values());
                for (size_t i = 0; k.accumulate && i < expected.size(); ++i) expected[i] += dx.values()[i];
                const Tolerance close = k.bilinear ? tolerance(fixture.dtype(), 4 * k.factor * k.factor, 4) : kExact;
                const kernels::UpsampleBackward args{dy.map(), dx.map(), k.factor, k.bilinear, k.accumulate};
                return CaseRun{.run = [&fixture, args] { kernels::upsample_backward(fixture.stream(), args); },
                               .check = [&dx, close, expected] { dx.expect(expected, close); },
                               .bytes = static_cast<int64_t>((k.x.size() + k.y().size()) * size_of(fixture.dtype()))};
              },
          .gradient =
              [k](uint64_t seed) {
                Random random(seed);
                Values x(k.x.size()), dy(k.y().size());
                for (double& v : x) v = random.normal();
                for (double& v : dy) v = random.normal();
                const auto loss = [&](const Values& at) {
                  const Values y = forward(k, at);
                  double sum = 0;
                  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
                  return sum;
                };
                expect_gradient("dx of upsampling", loss, x, backward(k, dy));
              }};
}

// Numbers from PyTorch: interpolate(tensor([[1, 2], [3, 5]]), scale_factor=2, mode='bilinear', align_corners=False).
TestCase known_case() {
  return {.name = "upsample_forward_bilinear_known_numbers", .make = [](Fixture& fixture) {
            Buffer& x = fixture.input("x", {1, 2, 2, 1}, Values{1, 2, 3, 5});
            Buffer& y = fixture.output("y", {1, 4, 4, 1});
            const kernels::UpsampleForward args{x.map(), y.map(), 2, true};
            const Values expected{1,   1.25,   1.75,   2,    1.5, 1.8125, 2.4375, 2.75,
                                  2.5, 2.9375, 3.8125, 4.25, 3,   3.5,    4.5,    5};
            return CaseRun{.run = [&fixture, args] { kernels::upsample_forward(fixture.stream(), args); },
                           .check = [&y, expected] { y.expect(expected, kExact); }};
          }};
}

const Upsample kUpsamples[] = {
    {"nearest", {2, 3, 5, 16}},
    {"nearest_slices", {1, 4, 3, 32, 16, 0}, 2, false, false, 32, 16},
    {"nearest_odd_channels", {2, 2, 3, 5, 1, 0}, 2, false, false, 0, 3},
    {"nearest_by_three", {1, 2, 3, 16}, 3},
    {"nearest_accumulates", {2, 3, 2, 16, 0, 16}, 2, false, true},
    {"bilinear", {2, 3, 5, 16}, 2, true},
    {"bilinear_slices", {1, 4, 3, 32, 16, 0}, 2, true, false, 32, 16},
    {"bilinear_odd_channels", {2, 2, 3, 5, 1, 0}, 2, true, false, 0, 3},
    {"bilinear_by_three", {1, 3, 4, 16}, 3, true},
    {"bilinear_by_four", {1, 3, 2, 8}, 4, true},
    {"bilinear_one_pixel", {2, 1, 1, 16}, 2, true},
    {"bilinear_accumulates", {2, 3, 2, 16, 0, 16}, 2, true, true},
};

const Register cases_of_upsample([] {
  std::vector<TestCase> list{known_case()};
  for (const Upsample& k : kUpsamples) {
    if (!k.accumulate) list.push_back(forward_case(k));
    list.push_back(backward_case(k));
  }
  for (const Upsample& k : {Upsample{"nearest_large", {4, 32, 64, 32}}, {"bilinear_large", {4, 32, 64, 32}, 2, true}}) {
    for (TestCase c : {forward_case(k), backward_case(k)}) {
      c.large = true;
      c.gradient = nullptr;
      list.push_back(c);
    }
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
