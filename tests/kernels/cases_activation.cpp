#include "kernels/activation.h"

#include <algorithm>
#include <limits>

#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Relu {
  const char* name;
  Layout in, out;
  bool in_place = false, accumulate = false;
};

TestCase forward(const Relu& k) {
  return {.name = std::string("relu_forward_") + k.name, .make = [k](Fixture& fixture) {
            Buffer& x =
                k.in_place ? fixture.inout("x", k.in, integers(-9, 9)) : fixture.input("x", k.in, integers(-9, 9));
            Buffer& y = k.in_place ? x : fixture.output("y", k.out);
            Values expected = x.values();
            for (double& v : expected) v = std::max(0.0, v);
            const kernels::ReluForward args{x.map(), y.map()};
            return CaseRun{.run = [&fixture, args] { kernels::relu_forward(fixture.stream(), args); },
                           .check = [&y, expected] { y.expect(expected, kExact); },
                           .bytes = 2 * static_cast<int64_t>(k.in.size() * size_of(fixture.dtype())),
                           .flops = static_cast<int64_t>(k.in.size())};
          }};
}

TestCase backward(const Relu& k) {
  return {
      .name = std::string("relu_backward_") + k.name, .make = [k](Fixture& fixture) {
        const Fill small = integers(-9, 9);
        Buffer& y = fixture.input("y", k.in, integers(0, 2));
        Buffer& dy = k.in_place ? fixture.inout("dy", k.out, small) : fixture.input("dy", k.in, small);
        Buffer& dx = k.in_place ? dy : k.accumulate ? fixture.inout("dx", k.out, small) : fixture.output("dx", k.out);
        Values expected = dy.values();
        for (size_t i = 0; i < expected.size(); ++i) {
          if (y.values()[i] <= 0) expected[i] = 0;
          if (k.accumulate) expected[i] += dx.values()[i];
        }
        const kernels::ReluBackward args{y.map(), dy.map(), dx.map(), k.accumulate};
        return CaseRun{.run = [&fixture, args] { kernels::relu_backward(fixture.stream(), args); },
                       .check = [&dx, expected] { dx.expect(expected, kExact); },
                       .bytes = (3 + k.accumulate) * static_cast<int64_t>(k.in.size() * size_of(fixture.dtype())),
                       .flops = static_cast<int64_t>(k.in.size())};
      }};
}

// Where x is NaN, so is y: a rectifier that hides it would hide a training that went bad.
TestCase keeps_nan() {
  return {.name = "relu_forward_keeps_nan", .make = [](Fixture& fixture) {
            Values values(32, 1.0);
            values[7] = values[8] = std::numeric_limits<double>::quiet_NaN();
            Buffer &x = fixture.input("x", {1, 1, 1, 32}, values), &y = fixture.output("y", {1, 1, 1, 32});
            const kernels::ReluForward args{x.map(), y.map()};
            return CaseRun{.run = [&fixture, args] { kernels::relu_forward(fixture.stream(), args); },
                           .check = [&y, values] { y.expect(values, kExact); }};
          }};
}

const Relu kCases[] = {
    {"whole", {2, 5, 7, 32}, {2, 5, 7, 32}},
    {"slices", {2, 3, 9, 24, 8, 16}, {2, 3, 9, 24, 32, 0}},
    {"odd_channels", {3, 4, 3, 5, 1, 0}, {3, 4, 3, 5, 0, 2}},
    {"in_place", {2, 6, 5, 16, 16, 0}, {2, 6, 5, 16, 0, 8}, true},
    {"accumulates", {2, 6, 5, 64}, {2, 6, 5, 64, 8, 8}, false, true},
};
const Register cases_of_activation([] {
  std::vector<TestCase> all{keeps_nan()};
  for (const Relu& k : kCases) {
    if (!k.accumulate) all.push_back(forward(k));
    all.push_back(backward(k));
  }
  const Relu large{"large", {4, 64, 128, 32}, {4, 64, 128, 32}};
  for (TestCase c : {forward(large), backward(large)}) {
    c.large = true;
    all.push_back(c);
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
