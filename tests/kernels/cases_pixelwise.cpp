// Casts, biases and sums over the pixels.
#include <algorithm>

#include "kernels/bias.h"
#include "kernels/cast.h"
#include "kernels/channel_sum.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

// From the fixture's type to `to`. n: elements of the array.
TestCase cast_case(DType to, int n, bool accumulate) {
  const std::string name =
      std::string("cast_") + (accumulate ? "accumulates_" : "") + std::to_string(n) + "_to_" + std::string(name_of(to));
  return {
      .name = name, .make = [=](Fixture& fixture) {
        const Fill fill = accumulate ? integers(-50, 50) : normal(100);
        Buffer& from = fixture.input("from", {1, 1, 1, n}, fill);
        Buffer& y = accumulate ? fixture.inout("to", {1, 1, 1, n}, fill, to) : fixture.output("to", {1, 1, 1, n}, to);
        Values expected = from.values();
        for (size_t i = 0; i < expected.size(); ++i)
          expected[i] = round_to(to, expected[i] + (accumulate ? y.values()[i] : 0));
        const kernels::Cast args{from.as<void>(), fixture.dtype(), y.as<void>(), to, n, accumulate};
        return CaseRun{.run = [&fixture, args] { kernels::cast(fixture.stream(), args); },
                       .check = [&y, expected] { y.expect(expected, kExact); },
                       .bytes = n * static_cast<int64_t>(size_of(fixture.dtype()) + size_of(to))};
      }};
}

TestCase bias_case(const char* name, Layout x_layout, Layout y_layout, bool relu) {
  return {.name = std::string("bias_forward_") + name, .make = [=](Fixture& fixture) {
            Buffer& x = fixture.input("x", x_layout, integers(-20, 20));
            Buffer& bias = fixture.input("bias", {1, 1, 1, x_layout.C}, integers(-5, 5), DType::f32);
            Buffer& y = fixture.output("y", y_layout);
            Values expected = x.values();
            for (size_t i = 0; i < expected.size(); ++i) {
              expected[i] += bias.values()[i % x_layout.C];
              if (relu) expected[i] = std::max(expected[i], 0.0);
            }
            const kernels::BiasForward args{x.map(), bias.as<float>(), y.map(), relu};
            return CaseRun{.run = [&fixture, args] { kernels::bias_forward(fixture.stream(), args); },
                           .check = [&y, expected] { y.expect(expected, kExact); },
                           .bytes = 2 * static_cast<int64_t>(x_layout.size() * size_of(fixture.dtype()))};
          }};
}

TestCase bias_in_place_case() {
  return {.name = "bias_forward_in_place", .make = [](Fixture& fixture) {
            Buffer& x = fixture.inout("x", {2, 3, 5, 16}, integers(-20, 20));
            Buffer& bias = fixture.input("bias", {1, 1, 1, 16}, integers(-5, 5), DType::f32);
            Values expected = x.values();
            for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias.values()[i % 16];
            const kernels::BiasForward args{x.map(), bias.as<float>(), x.map()};
            return CaseRun{.run = [&fixture, args] { kernels::bias_forward(fixture.stream(), args); },
                           .check = [&x, expected] { x.expect(expected, kExact); }};
          }};
}

TestCase sum_case(const char* name, Layout layout, bool accumulate, bool exact = true) {
  return {.name = std::string("channel_sum_") + name, .make = [=](Fixture& fixture) {
            Buffer& x = fixture.input("x", layout, exact ? integers(-9, 9) : normal(1, 0.5));
            const Layout row{1, 1, 1, layout.C};
            Buffer& sum = accumulate ? fixture.inout("sum", row, integers(-9, 9), DType::f32)
                                     : fixture.output("sum", row, DType::f32);
            Values expected = accumulate ? sum.values() : Values(layout.C);
            for (size_t i = 0; i < x.values().size(); ++i) expected[i % layout.C] += x.values()[i];
            const Tolerance close = exact ? kExact : tolerance(DType::f32, layout.size() / layout.C, 2);
            const kernels::ChannelSum args{x.map(), sum.as<float>(), accumulate,
                                           fixture.workspace(kernels::channel_sum_workspace(x.map()))};
            return CaseRun{.run = [&fixture, args] { kernels::channel_sum(fixture.stream(), args); },
                           .check = [&sum, close, expected] { sum.expect(expected, close); },
                           .bytes = static_cast<int64_t>(layout.size() * size_of(fixture.dtype()))};
          }};
}

const Register pixelwise_cases([] {
  std::vector<TestCase> list{
      bias_case("whole", {2, 3, 5, 32}, {2, 3, 5, 32}, false),
      bias_case("relu_of_slices", {2, 3, 5, 16, 16, 0}, {2, 3, 5, 16, 0, 32}, true),
      bias_case("odd_channels", {1, 3, 4, 5, 1, 0}, {1, 3, 4, 5}, true),
      bias_in_place_case(),
      sum_case("whole", {2, 9, 11, 64}, false),
      sum_case("accumulates_slice", {3, 16, 24, 16, 16, 32}, true),
      sum_case("three_vectors", {2, 8, 9, 48}, false),
      sum_case("folds_few_channels", {2, 16, 40, 5}, true),
      sum_case("few_channels_odd_pixels", {1, 3, 5, 5}, false),
      sum_case("few_channels_of_slice", {2, 4, 4, 5, 3, 1}, false),
      sum_case("one_channel", {2, 32, 16, 1}, false),
      sum_case("many_channels", {1, 3, 3, 2080}, false),
      sum_case("random", {4, 32, 32, 32}, false, false),
  };
  for (const DType to : kFloats) {
    list.push_back(cast_case(to, 1000, false));
    list.push_back(cast_case(to, 5, false));
    list.push_back(cast_case(to, 333, true));
    list.push_back(cast_case(to, 5000, true));
  }
  TestCase large[] = {bias_case("large", {4, 64, 128, 32}, {4, 64, 128, 32}, true),
                      sum_case("large", {4, 64, 128, 32}, false),
                      sum_case("large_five_channels", {4, 64, 128, 5}, false), cast_case(DType::bf16, 1 << 20, false)};
  for (TestCase& c : large) {
    c.large = true;
    list.push_back(c);
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
