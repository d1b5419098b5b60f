#include <cmath>
#include <limits>

#include "kernels/max_pool.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Pool {
  const char* name;
  Layout x, y;  // y.before and .after also of dy
  int kernel = 2, stride = 2;
  bool accumulate = false;
};

// The pixel of x, as an index into its values, that each value of y is: the first maximum, or a NaN.
std::vector<size_t> winners(const Pool& k, const Values& x) {
  std::vector<size_t> from(k.y.size());
  for (size_t i = 0; i < from.size(); ++i) {
    const size_t c = i % k.y.C, q = i / k.y.C % k.y.W, p = i / k.y.C / k.y.W % k.y.H, n = i / k.y.C / k.y.W / k.y.H;
    const auto at = [&](int r, int s) {
      return ((n * k.x.H + p * k.stride + r) * k.x.W + q * k.stride + s) * k.x.C + c;
    };
    from[i] = at(0, 0);
    for (int r = 0; r < k.kernel; ++r) {
      for (int s = 0; s < k.kernel; ++s) {
        if (std::isnan(x[from[i]])) continue;
        if (x[at(r, s)] > x[from[i]] || std::isnan(x[at(r, s)])) from[i] = at(r, s);
      }
    }
  }
  return from;
}
Values forward(const Pool& k, const Values& x) {
  Values y;
  for (const size_t from : winners(k, x)) y.push_back(x[from]);
  return y;
}
Values backward(const Pool& k, const Values& x, const Values& dy) {
  Values dx(x.size());
  const std::vector<size_t> from = winners(k, x);
  for (size_t i = 0; i < from.size(); ++i) dx[from[i]] += dy[i];
  return dx;
}

TestCase forward_case(const Pool& k) {
  return {.name = std::string("max_pool_forward_") + k.name, .make = [k](Fixture& fixture) {
            Buffer& x = fixture.input("x", k.x, integers(-3, 3));  // with many equal maxima
            Buffer& y = fixture.output("y", k.y);
            const kernels::MaxPoolForward args{x.map(), y.map(), k.kernel, k.stride};
            return CaseRun{.run = [&fixture, args] { kernels::max_pool_forward(fixture.stream(), args); },
                           .check = [&y, expected = forward(k, x.values())] { y.expect(expected, kExact); },
                           .bytes = static_cast<int64_t>((k.x.size() + k.y.size()) * size_of(fixture.dtype()))};
          }};
}

TestCase backward_case(const Pool& k) {
  return {.name = std::string("max_pool_backward_") + k.name,
          .make =
              [k](Fixture& fixture) {
                Buffer& x = fixture.input("x", k.x, integers(-3, 3));
                Buffer& dy = fixture.input("dy", k.y, integers(-9, 9));
                Buffer& dx = k.accumulate ? fixture.inout("dx", k.x, integers(-9, 9)) : fixture.output("dx", k.x);
                Values expected = backward(k, x.values(), dy.values());
                for (size_t i = 0; k.accumulate && i < expected.size(); ++i) expected[i] += dx.values()[i];
                const kernels::MaxPoolBackward args{x.map(), dy.map(), dx.map(), k.kernel, k.stride, k.accumulate};
                return CaseRun{.run = [&fixture, args] { kernels::max_pool_backward(fixture.stream(), args); },
                               .check = [&dx, expected] { dx.expect(expected, kExact); },
                               .bytes = static_cast<int64_t>((2 * k.x.size() + k.y.size()) * size_of(fixture.dtype()))};
              },
          .gradient =
              [k](uint64_t seed) {
                Random random(seed);
                Values x(k.x.size()), dy(k.y.size());
                for (double& v : x) v = random.normal();
                for (double& v : dy) v = random.normal();
                const auto loss = [&](const Values& at) {
                  const Values y = forward(k, at);
                  double sum = 0;
                  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
                  return sum;
                };
                expect_gradient("dx of max pooling", loss, x, backward(k, x, dy));
              }};
}

// NaN anywhere in a window is what the window gives.
TestCase nan_case() {
  const Pool k{"nan", {1, 4, 8, 16}, {1, 2, 4, 16}};
  return {.name = "max_pool_forward_nan", .make = [k](Fixture& fixture) {
            Values values = fixture.draw(k.x.size(), normal(), fixture.dtype());
            for (size_t i = 0; i < values.size(); i += 7) values[i] = std::numeric_limits<double>::quiet_NaN();
            Buffer& x = fixture.input("x", k.x, values);
            Buffer& y = fixture.output("y", k.y);
            const kernels::MaxPoolForward args{x.map(), y.map()};
            return CaseRun{.run = [&fixture, args] { kernels::max_pool_forward(fixture.stream(), args); },
                           .check = [&y, expected = forward(k, x.values())] { y.expect(expected, kExact); }};
          }};
}

const Pool kPools[] = {
    {"whole", {2, 8, 12, 16}, {2, 4, 6, 16}},
    {"slices", {2, 4, 6, 32, 16, 16}, {2, 2, 3, 32, 0, 16}},
    {"accumulates", {2, 6, 4, 16, 0, 16}, {2, 3, 2, 16}, 2, 2, true},
    {"odd_size", {2, 5, 7, 16}, {2, 2, 3, 16}},
    {"odd_channels", {1, 4, 6, 3, 1, 1}, {1, 2, 3, 3}},
    {"three_by_two", {2, 9, 8, 16}, {2, 4, 3, 16}, 3, 2},
    {"three_by_two_accumulates", {1, 7, 7, 5, 2, 0}, {1, 3, 3, 5}, 3, 2, true},
    {"three_by_one", {1, 5, 6, 8}, {1, 3, 4, 8}, 3, 1},
    {"two_by_three", {1, 8, 9, 8}, {1, 3, 3, 8}, 2, 3},
};

const Register cases_of_max_pool([] {
  std::vector<TestCase> list{nan_case()};
  for (const Pool& k : kPools) {
    if (!k.accumulate) list.push_back(forward_case(k));
    list.push_back(backward_case(k));
  }
  const Pool large{"large", {4, 64, 128, 32}, {4, 32, 64, 32}};
  for (TestCase c : {forward_case(large), backward_case(large)}) {
    c.large = true;
    c.gradient = nullptr;
    list.push_back(c);
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
