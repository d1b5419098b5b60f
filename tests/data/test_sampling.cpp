#include "data/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace regolith {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

// Masks of four pixels each.
Dataset made(std::vector<std::array<uint8_t, 4>> masks) {
  Dataset d;
  d.count = std::ssize(masks);
  d.height = 1;
  d.width = 4;
  for (const auto& m : masks) d.masks.insert(d.masks.end(), m.begin(), m.end());
  return d;
}

std::vector<int64_t> times(const std::vector<int64_t>& order, size_t entries) {
  std::vector<int64_t> n(entries);
  for (const int64_t i : order) ++n.at(i);
  return n;
}

// Class 1 in all of four images, class 2 in two, class 3 in one; pixels without truth are of no class.
TEST(Sampling, RepeatFactorsAreThoseOfLvis) {
  const Dataset d = made({{1, 1, 1, 1}, {1, 2, 2, 2}, {1, 2, 3, 3}, {1, 255, 255, 1}, {3, 3, 3, 3}});
  EXPECT_THAT(repeat_factors(d, {0, 1, 2, 3}, .75),
              ElementsAre(1, DoubleNear(std::sqrt(1.5), 1e-12), DoubleNear(std::sqrt(3.), 1e-12), 1));
  EXPECT_THAT(repeat_factors(d, {0, 1, 2, 3}, .25), ElementsAre(1, 1, 1, 1));
  EXPECT_THAT(repeat_factors(d, {2, 4}, 1), ElementsAre(DoubleNear(std::sqrt(2.), 1e-12), 1)) << "of these alone";
}

TEST(Sampling, HardFactorsGrowWithTheLoss) {
  const float none = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(hard_factors({1, 3, none, 2}, {.share = .5, .at_most = 9}), ElementsAre(.75, 1.25, 1, 1));
  EXPECT_THAT(hard_factors({0, 4}, {.share = 1, .at_most = 1.5}), ElementsAre(0, 1.5));
  EXPECT_THAT(hard_factors({none, none}, {}), ElementsAre(1, 1));
  EXPECT_THAT(hard_factors({0, 0}, {}), ElementsAre(1, 1));
  EXPECT_THAT(hard_factors({1, 2, 3}, {.share = 0, .at_most = 9}), ElementsAre(1, 1, 1));
}

TEST(Sampling, EqualWeightsAreAPermutation) {
  for (const int64_t count : {1, 2, 7, 1000}) {
    for (int64_t epoch = 0; epoch < 20; ++epoch) {
      const std::vector<int64_t> order = weighted_order(3, epoch, std::vector<double>(count, .3), count);
      ASSERT_EQ(std::ssize(order), count);
      EXPECT_EQ(times(order, count), std::vector<int64_t>(count, 1)) << count << ", epoch " << epoch;
    }
  }
}

// Each entry comes its part of the draws, rounded down or up, and over many epochs just its part.
TEST(Sampling, DrawsFollowTheWeights) {
  const std::vector<double> weights{1, .3, 2.2, 0, 1.8, .1, .1, .5};  // 6 in sum
  constexpr int64_t kDraws = 12, kEpochs = 2000;
  std::vector<int64_t> sum(weights.size());
  for (int64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const std::vector<int64_t> order = weighted_order(5, epoch, weights, kDraws), n = times(order, weights.size());
    ASSERT_EQ(std::ssize(order), kDraws);
    for (size_t i = 0; i < n.size(); ++i) {
      EXPECT_GE(static_cast<double>(n[i]), std::floor(2 * weights[i])) << i;
      EXPECT_LE(static_cast<double>(n[i]), std::ceil(2 * weights[i])) << i;
      sum[i] += n[i];
    }
  }
  for (size_t i = 0; i < sum.size(); ++i)  // half a draw is missed by 0.5 / sqrt(2000) = 0.011 of it on the mean
    EXPECT_NEAR(static_cast<double>(sum[i]) / kEpochs, 2 * weights[i], .05) << i;
}

TEST(Sampling, DependsOnSeedAndEpochAlone) {
  const std::vector<double> weights{1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_EQ(weighted_order(1, 4, weights, 30), weighted_order(1, 4, weights, 30));
  EXPECT_NE(weighted_order(1, 4, weights, 30), weighted_order(2, 4, weights, 30));
  EXPECT_NE(weighted_order(1, 4, weights, 30), weighted_order(1, 5, weights, 30));
}

}  // namespace
}  // namespace regolith
