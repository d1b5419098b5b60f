#include <cmath>

#include "engine/base/error.h"
#include "kernels/dropout.h"
#include "tests/support/dropout_oracle.h"

namespace regolith::testing {
namespace {

struct Drop {
  const char* name;
  Layout x, y;
  float rate = 0.3f;
  bool spatial = false, in_place = false, accumulate = false;
  int64_t step = 5;
  int first_sample = 0;
  bool large = false;
};

TestCase dropout_case(const Drop& k) {
  return {.name = std::string("dropout_") + k.name,
          .make =
              [k](Fixture& fixture) {
                // Small integers times 1 / (1 - rate): one rounding.
                Buffer& x =
                    k.in_place ? fixture.inout("x", k.x, integers(-9, 9)) : fixture.input("x", k.x, integers(-9, 9));
                Buffer& y = k.in_place     ? x
                            : k.accumulate ? fixture.inout("y", k.y, integers(-9, 9))
                                           : fixture.output("y", k.y);
                const DropoutDraws draws{k.rate, k.spatial, 0x1234567890abcdefull, step_in(fixture, k.step),
                                         k.first_sample};
                Values expected = x.values();
                const Values factors = dropout_factors(k.x, draws, k.step);
                for (size_t i = 0; i < expected.size(); ++i)
                  expected[i] = expected[i] * factors[i] + (k.accumulate ? y.values()[i] : 0);
                const kernels::Dropout args{x.map(), y.map(), draws, k.accumulate};
                return CaseRun{
                    .run = [&fixture, args] { kernels::dropout(fixture.stream(), args); },
                    .check = [&y, expected, t = tolerance(fixture.dtype(), 1, 16)] { y.expect(expected, t); },
                    .bytes = (2 + k.accumulate) * static_cast<int64_t>(k.x.size() * size_of(fixture.dtype()))};
              },
          .large = k.large};
}

// The share that is dropped, of the oracle's draws, which the kernels' equal.
void expect_rate(uint64_t seed) {
  for (const bool spatial : {false, true}) {
    const Layout x = spatial ? Layout{512, 1, 1, 128} : Layout{4, 16, 32, 32};
    const Values factors = dropout_factors(x, {0.2f, spatial, seed, nullptr, 3}, 11);
    double dropped = 0, sum = 0;
    for (const double f : factors) dropped += f == 0, sum += f;
    const double n = static_cast<double>(factors.size()), sigma = std::sqrt(0.2 * 0.8 / n);
    if (!(std::abs(dropped / n - 0.2) <= 5 * sigma))
      throw Mismatch("the share dropped is " + std::to_string(dropped / n));
    if (!(std::abs(sum / n - 1) <= 5 * sigma / 0.8)) throw Mismatch("the mean factor is " + std::to_string(sum / n));
  }
}

const Drop kDrops[] = {
    {"whole", {2, 5, 7, 32}, {2, 5, 7, 32}},
    {"slices", {2, 3, 9, 24, 8, 16}, {2, 3, 9, 24, 32, 0}},
    {"odd_channels", {3, 4, 3, 5, 1, 0}, {3, 4, 3, 5, 0, 2}},
    {"in_place", {2, 6, 5, 16, 16, 0}, {2, 6, 5, 16, 0, 8}, 0.5f, false, true},
    {"accumulates", {2, 6, 5, 64}, {2, 6, 5, 64, 8, 8}, 0.3f, false, false, true},
    {"later_samples", {2, 3, 4, 80}, {2, 3, 4, 80}, 0.1f, false, false, false, int64_t{1} << 35 | 7, 1000},
    {"one_pixel", {3, 1, 1, 1}, {3, 1, 1, 1}},
    {"nothing", {2, 3, 4, 16}, {2, 3, 4, 16}, 0},
    {"nothing_in_place", {2, 3, 4, 16}, {2, 3, 4, 16}, 0, false, true},
    {"nothing_accumulates", {2, 3, 4, 16}, {2, 3, 4, 16}, 0, false, false, true},
    {"spatial_whole", {3, 4, 5, 48}, {3, 4, 5, 48}, 0.2f, true},
    {"spatial_odd", {5, 2, 3, 7, 1, 0}, {5, 2, 3, 7}, 0.5f, true, false, false, 3, 2},
    {"spatial_wide", {2, 2, 3, 320}, {2, 2, 3, 320, 0, 16}, 0.2f, true, false, true},
    {"large", {8, 64, 128, 32}, {8, 64, 128, 32}, 0.1f, false, false, false, 1, 0, true},
    {"spatial_large", {8, 64, 128, 64}, {8, 64, 128, 64}, 0.2f, true, false, false, 1, 0, true},
};
const Register cases_of_dropout([] {
  std::vector<TestCase> all;
  for (const Drop& k : kDrops) all.push_back(dropout_case(k));
  all.push_back({.name = "dropout_rate", .gradient = expect_rate});
  return all;
}());

}  // namespace
}  // namespace regolith::testing
