#include <algorithm>
#include <cmath>

#include "kernels/resize.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Resize {
  const char* name;
  Layout x;
  int height, width;
  bool bilinear = false, accumulate = false;
  int before = 0, after = 0;  // channels around y in its parent
  Layout y() const { return {x.N, height, width, x.C, before, after}; }
};

struct Tap {
  int from;
  double weight;
};
// What output o of m takes of n inputs, from the definition: its half-pixel centre in the inputs' coordinates.
std::vector<Tap> taps(bool bilinear, int o, int m, int n) {
  if (!bilinear) return {{(2 * o + 1) * n / (2 * m), 1}};
  const double at = std::max((o + 0.5) * n / m - 0.5, 0.0);
  const int first = std::min(static_cast<int>(std::floor(at)), n - 1), second = std::min(first + 1, n - 1);
  return {{first, 1 - (at - first)}, {second, at - first}};
}

// Calls f(index into y, index into x, weight) for all that y is made of.
template <class F>
void each_term(const Resize& k, F&& f) {
  for (int n = 0; n < k.x.N; ++n)
    for (int p = 0; p < k.height; ++p)
      for (int q = 0; q < k.width; ++q)
        for (const Tap& h : taps(k.bilinear, p, k.height, k.x.H))
          for (const Tap& w : taps(k.bilinear, q, k.width, k.x.W))
            for (int c = 0; c < k.x.C; ++c)
              f(((n * k.height + p) * k.width + q) * k.x.C + c, ((n * k.x.H + h.from) * k.x.W + w.from) * k.x.C + c,
                h.weight * w.weight);
}
Values forward(const Resize& k, const Values& x) {
  Values y(k.y().size());
  each_term(k, [&](size_t to, size_t from, double weight) { y[to] += weight * x[from]; });
  return y;
}
Values backward(const Resize& k, const Values& dy) {
  Values dx(k.x.size());
  each_term(k, [&](size_t from, size_t to, double weight) { dx[to] += weight * dy[from]; });
  return dx;
}

int64_t terms(const Resize& k) {  // of a pixel of dx, at most
  return 4LL * (k.height / k.x.H + 1) * (k.width / k.x.W + 1);
}

TestCase forward_case(const Resize& k) {
  return {.name = std::string("resize_forward_") + k.name, .make = [k](Fixture& fixture) {
            Buffer& x = fixture.input("x", k.x, normal());
            Buffer& y = fixture.output("y", k.y());
            const kernels::ResizeForward args{x.map(), y.map(), k.bilinear};
            const Tolerance close = k.bilinear ? tolerance(fixture.dtype(), 4, 4) : kExact;
            return CaseRun{.run = [&fixture, args] { kernels::resize_forward(fixture.stream(), args); },
                           .check = [&y, close, expected = forward(k, x.values())] { y.expect(expected, close); },
                           .bytes = static_cast<int64_t>((k.x.size() + k.y().size()) * size_of(fixture.dtype())),
                           .flops = static_cast<int64_t>(k.bilinear ? 6 * k.y().size() : 0)};
          }};
}

TestCase backward_case(const Resize& k) {
  return {.name = std::string("resize_backward_") + k.name,
          .make =
              [k](Fixture& fixture) {
                const Fill fill = k.bilinear ? normal() : integers(-3, 3);
                Buffer& dy = fixture.input("dy", k.y(), fill);
                Buffer& dx = k.accumulate ? fixture.inout("dx", k.x, fill) : fixture.output("dx", k.x);
                Values expected = backward(k, dy.values());
                for (size_t i = 0; k.accumulate && i < expected.size(); ++i) expected[i] += dx.values()[i];
                const Tolerance close = k.bilinear ? tolerance(fixture.dtype(), terms(k), 4) : kExact;
                const kernels::ResizeBackward args{dy.map(), dx.map(), k.bilinear, k.accumulate};
                return CaseRun{.run = [&fixture, args] { kernels::resize_backward(fixture.stream(), args); },
                               .check = [&dx, close, expected] { dx.expect(expected, close); },
                               .bytes = static_cast<int64_t>((k.x.size() + k.y().size()) * size_of(fixture.dtype())),
                               .flops = static_cast<int64_t>((k.bilinear ? 8 : 1) * k.y().size())};
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
                expect_gradient("dx of resizing", loss, x, backward(k, dy));
              }};
}

// What PyTorch's interpolate(x, size, mode='bilinear', align_corners=False) and mode='nearest-exact' give.
TestCase known_case(const char* name, bool bilinear, Layout from, Values values, Layout to, Values expected) {
  return {.name = std::string("resize_forward_known_numbers_") + name, .make = [=](Fixture& fixture) {
            Buffer &x = fixture.input("x", from, values), &y = fixture.output("y", to);
            const kernels::ResizeForward args{x.map(), y.map(), bilinear};
            return CaseRun{
                .run = [&fixture, args] { kernels::resize_forward(fixture.stream(), args); },
                .check = [&y, expected, close = tolerance(fixture.dtype(), 2, 4)] { y.expect(expected, close); }};
          }};
}

const Resize kResizes[] = {
    {"nearest_up", {2, 3, 5, 16}, 5, 8},
    {"nearest_down", {2, 7, 9, 16}, 3, 4},
    {"nearest_mixed_slices", {1, 4, 9, 32, 16, 0}, 7, 5, false, false, 32, 16},
    {"nearest_odd_channels", {2, 5, 3, 5, 1, 0}, 2, 7, false, false, 0, 3},
    {"nearest_to_one_pixel", {1, 4, 5, 8}, 1, 1},
    {"nearest_accumulates", {2, 3, 4, 16, 0, 16}, 5, 3, false, true},
    {"bilinear_up", {2, 3, 5, 16}, 5, 8, true},
    {"nearest_twice", {2, 3, 5, 16}, 6, 10},
    {"nearest_twice_slices", {1, 4, 3, 32, 16, 0}, 8, 6, false, false, 32, 16},
    {"nearest_twice_odd_channels", {2, 2, 3, 5, 1, 0}, 4, 6, false, false, 0, 3},
    {"nearest_by_three", {1, 2, 3, 16}, 6, 9},
    {"nearest_twice_accumulates", {2, 3, 2, 16, 0, 16}, 6, 4, false, true},
    {"bilinear_twice", {2, 3, 5, 16}, 6, 10, true},
    {"bilinear_twice_slices", {1, 4, 3, 32, 16, 0}, 8, 6, true, false, 32, 16},
    {"bilinear_twice_odd_channels", {2, 2, 3, 5, 1, 0}, 4, 6, true, false, 0, 3},
    {"bilinear_twice_one_pixel", {2, 1, 1, 16}, 2, 2, true},
    {"bilinear_twice_accumulates", {2, 3, 2, 16, 0, 16}, 6, 4, true, true},
    {"bilinear_by_three", {1, 3, 4, 16}, 9, 12, true},
    {"bilinear_by_four", {1, 3, 2, 8}, 12, 8, true},
    {"bilinear_far_up", {1, 2, 3, 8}, 15, 20, true},
    {"bilinear_down", {2, 7, 9, 16}, 3, 4, true},
    {"bilinear_far_down", {1, 16, 21, 8}, 3, 2, true},
    {"bilinear_mixed_slices", {1, 4, 9, 32, 16, 0}, 7, 5, true, false, 32, 16},
    {"bilinear_odd_channels", {2, 5, 3, 5, 1, 0}, 2, 7, true, false, 0, 3},
    {"bilinear_from_one_pixel", {2, 1, 1, 16}, 4, 8, true},
    {"bilinear_to_one_pixel", {1, 4, 5, 8}, 1, 1, true},
    {"bilinear_same_size", {1, 3, 4, 8}, 3, 4, true},
    {"bilinear_accumulates", {2, 3, 4, 16, 0, 16}, 5, 3, true, true},
};

const Register cases_of_resize([] {
  const Layout line{1, 1, 5, 1};
  const Values numbers{0, 1, 2, 3, 4};
  std::vector<TestCase> list{
      known_case("down", true, line, numbers, {1, 1, 3, 1}, {1.0 / 3, 2, 11.0 / 3}),
      known_case("up", true, line, numbers, {1, 1, 8, 1}, {0, 0.4375, 1.0625, 1.6875, 2.3125, 2.9375, 3.5625, 4}),
      known_case("nearest_down", false, line, numbers, {1, 1, 3, 1}, {0, 2, 4}),
      known_case("nearest_up", false, line, numbers, {1, 1, 8, 1}, {0, 0, 1, 2, 2, 3, 4, 4}),
      known_case("twice", true, {1, 2, 2, 1}, {1, 2, 3, 5}, {1, 4, 4, 1},
                 {1, 1.25, 1.75, 2, 1.5, 1.8125, 2.4375, 2.75, 2.5, 2.9375, 3.8125, 4.25, 3, 3.5, 4.5, 5}),
  };
  for (const Resize& k : kResizes) {
    if (!k.accumulate) list.push_back(forward_case(k));
    list.push_back(backward_case(k));
  }
  for (const Resize& k :
       {Resize{"nearest_large", {4, 48, 96, 32}, 64, 128}, Resize{"bilinear_large", {4, 48, 96, 32}, 64, 128, true},
        Resize{"bilinear_down_large", {4, 64, 128, 32}, 24, 48, true},
        Resize{"nearest_twice_large", {4, 32, 64, 32}, 64, 128},
        Resize{"bilinear_twice_large", {4, 32, 64, 32}, 64, 128, true}}) {
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
