// Softmax over the channels.
#include <cmath>

#include "kernels/softmax.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Softmax {
  const char* name;
  Layout x;
  int before = 0, after = 0;  // channels around y and dx in their parents
  bool accumulate = false;
  double sigma = 2;
  Layout y() const { return {x.N, x.H, x.W, x.C, before, after}; }
  std::string title(const char* direction) const { return std::string("softmax_") + direction + "_" + name; }
};

Values forward(const Softmax& k, const Values& x) {
  Values y(x.size());
  const size_t C = k.x.C;
  for (size_t p = 0; p < x.size(); p += C) {
    double most = x[p], sum = 0;
    for (size_t c = 0; c < C; ++c) most = std::max(most, x[p + c]);
    for (size_t c = 0; c < C; ++c) sum += y[p + c] = std::exp(x[p + c] - most);
    for (size_t c = 0; c < C; ++c) y[p + c] /= sum;
  }
  return y;
}

Values backward(const Softmax& k, const Values& y, const Values& dy) {
  Values dx(y.size());
  const size_t C = k.x.C;
  for (size_t p = 0; p < y.size(); p += C) {
    double sum = 0;
    for (size_t c = 0; c < C; ++c) sum += dy[p + c] * y[p + c];
    for (size_t c = 0; c < C; ++c) dx[p + c] = y[p + c] * (dy[p + c] - sum);
  }
  return dx;
}

TestCase forward_case(const Softmax& k) {
  return {.name = k.title("forward"), .make = [k](Fixture& fixture) {
            Buffer& x = fixture.input("x", k.x, normal(k.sigma));
            Buffer& y = fixture.output("y", k.y());
            const auto run = [&fixture, from = x.map(), to = y.map()] {
              kernels::softmax_forward(fixture.stream(), {from, to});
            };
            // exp of a number whose rounding is relative to its size
            const Tolerance close = tolerance(fixture.dtype(), k.x.C, 0.1 * k.sigma);
            return CaseRun{.run = run,
                           .check = [&y, close, expected = forward(k, x.values())] { y.expect(expected, close); },
                           .bytes = static_cast<int64_t>(2 * k.x.size() * size_of(fixture.dtype())),
                           .flops = static_cast<int64_t>(4 * k.x.size())};
          }};
}

TestCase backward_case(const Softmax& k) {
  return {.name = k.title("backward"),
          .make =
              [k](Fixture& fixture) {
                Values x = fixture.draw(k.x.size(), normal(k.sigma), DType::f32);
                Buffer& y = fixture.input("y", k.x, forward(k, x));
                Buffer& dy = fixture.input("dy", k.x, normal());
                Buffer& dx = k.accumulate ? fixture.inout("dx", k.y(), normal()) : fixture.output("dx", k.y());
                Values expected = backward(k, y.values(), dy.values());
                for (size_t i = 0; k.accumulate && i < expected.size(); ++i) expected[i] += dx.values()[i];
                const auto run = [&fixture, s = y.map(), g = dy.map(), to = dx.map(), k] {
                  kernels::softmax_backward(fixture.stream(), {s, g, to, k.accumulate});
                };
                const Tolerance close = tolerance(fixture.dtype(), k.x.C, 2);
                return CaseRun{.run = run,
                               .check = [&dx, close, expected] { dx.expect(expected, close); },
                               .bytes = static_cast<int64_t>(3 * k.x.size() * size_of(fixture.dtype())),
                               .flops = static_cast<int64_t>(4 * k.x.size())};
              },
          .gradient =
              [k](uint64_t seed) {
                Random random(seed);
                Values x(k.x.size()), dy(k.x.size());
                for (double& v : x) v = random.normal();
                for (double& v : dy) v = random.normal();
                const auto loss = [&](const Values& at) {
                  const Values y = forward(k, at);
                  double sum = 0;
                  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
                  return sum;
                };
                expect_gradient("dx of " + k.title(""), loss, x, backward(k, forward(k, x), dy));
              }};
}

// x may be y, and dx may be dy.
TestCase in_place_case() {
  const Softmax k{"in_place", {2, 5, 7, 5}};
  return {.name = k.title("both"), .make = [k](Fixture& fixture) {
            Buffer& x = fixture.inout("x", k.x, normal());
            Buffer& y = fixture.input("y", k.x, forward(k, x.values()));
            Buffer& dy = fixture.inout("dy", k.x, normal());
            const Tolerance close = tolerance(fixture.dtype(), 5, 2);
            return CaseRun{
                .run =
                    [&fixture, m = x.map(), s = y.map(), g = dy.map()] {
                      kernels::softmax_forward(fixture.stream(), {m, m});
                      kernels::softmax_backward(fixture.stream(), {s, g, g});
                    },
                .check =
                    [&x, &dy, close, first = forward(k, x.values()), second = backward(k, y.values(), dy.values())] {
                      x.expect(first, close);
                      dy.expect(second, close);
                    }};
          }};
}

// Far from zero nothing overflows: equal logits of any size share the pixel.
TestCase extremes_case() {
  return {.name = "softmax_forward_extremes", .make = [](Fixture& fixture) {
            Buffer& x = fixture.input("x", {1, 1, 3, 2}, Values{60000, 60000, -60000, -60000, 60000, -60000});
            Buffer& y = fixture.output("y", {1, 1, 3, 2});
            return CaseRun{.run =
                               [&fixture, m = x.map(), to = y.map()] {
                                 kernels::softmax_forward(fixture.stream(), {m, to});
                               },
                           .check =
                               [&y] {
                                 y.expect({.5, .5, .5, .5, 1, 0}, kExact);
                               }};
          }};
}

// What a prediction takes: probabilities in fp32, without the classes that may not be predicted.
TestCase excluded_case() {
  const Softmax k{"excluded", {2, 3, 7, 5}};
  return {.name = k.title("forward"), .make = [k](Fixture& fixture) {
            Buffer& x = fixture.input("x", k.x, normal(k.sigma));
            Buffer& y = fixture.output("y", k.y(), DType::f32);
            Buffer& excluded = fixture.input("excluded", {1, 1, 1, 5}, Values{1, 0, 0, 1, 0}, DType::u8);
            Values kept = x.values();
            for (size_t i = 0; i < kept.size(); ++i)
              if (excluded.values()[i % 5] != 0) kept[i] = -1e9;
            const auto run = [&fixture, &excluded, from = x.map(), to = y.map()] {
              kernels::softmax_forward(fixture.stream(), {from, to, excluded.as<uint8_t>()});
            };
            return CaseRun{.run = run, .check = [&y, expected = forward(k, kept)] {
                             y.expect(expected, tolerance(DType::f32, 5, 0.2));
                           }};
          }};
}

const Softmax kSoftmaxes[] = {
    {"five_classes", {2, 9, 31, 5}},
    {"one_channel", {1, 3, 5, 1}},
    {"vectors", {1, 3, 5, 64}},
    {"slices", {2, 4, 5, 16, 16, 0}, 0, 16},
    {"odd_slices_accumulate", {2, 3, 7, 5, 1, 2}, 3, 1, true},
    {"most_channels", {1, 2, 3, 384}},
    {"wide_range", {1, 4, 9, 5}, 0, 0, false, 20},
};

const Register cases_of_softmax([] {
  std::vector<TestCase> list{in_place_case(), extremes_case(), excluded_case()};
  for (const Softmax& k : kSoftmaxes) {
    if (!k.accumulate) list.push_back(forward_case(k));
    list.push_back(backward_case(k));
  }
  const Softmax large[] = {{"large", {8, 64, 128, 5}}, {"large_32_channels", {4, 64, 128, 32}}};
  for (const Softmax& k : large) {
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
