#include <gtest/gtest.h>
#include <omp.h>

#include <array>
#include <map>

#include "data/synthetic.h"
#include "engine/base/error.h"

namespace regolith {
namespace {

TEST(Synthetic, HasTheStudysFlaws) {
  const Dataset d = make_synthetic({.count = 200, .seed = 3});
  std::array<double, 5> share{};
  std::map<std::string, int> masks;
  int64_t with_rocks = 0;
  for (int64_t i = 0; i < d.count; ++i) {
    bool rock = false;
    for (int64_t p = 0; p < d.mask_bytes(); ++p) {
      const uint8_t c = d.mask(i)[p];
      ASSERT_LT(c, 5);
      share[c] += 1.0 / static_cast<double>(d.masks.size());
      rock |= c == 4;
    }
    with_rocks += rock;
    ++masks[std::string(d.mask(i), d.mask(i) + d.mask_bytes())];
  }
  EXPECT_NEAR(share[0], 0.27, 0.1);
  EXPECT_NEAR(share[1], 0.29, 0.12);
  EXPECT_NEAR(share[2], 0.32, 0.12);
  EXPECT_NEAR(share[3], 0.13, 0.08);
  EXPECT_NEAR(share[4], 0.0015, 0.0004);
  EXPECT_NEAR(static_cast<double>(with_rocks), 18, 2);
  int most = 0;
  for (const auto& [mask, n] : masks) most = std::max(most, n);
  EXPECT_EQ(most, 8);  // 4% share one mask
}

TEST(Synthetic, DependsOnTheSeedAlone) {
  const Terrain t{.count = 12, .height = 32, .width = 48, .seed = 11};
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Dataset one = make_synthetic(t);
  omp_set_num_threads(3);
  const Dataset three = make_synthetic(t);
  omp_set_num_threads(threads);
  EXPECT_EQ(one.images, three.images);
  EXPECT_EQ(one.masks, three.masks);
  Terrain other = t;
  other.seed = 12;
  EXPECT_NE(make_synthetic(other).images, one.images);
}

// A rock is lit from above: it grows darker downwards, in every picture.
TEST(Synthetic, RocksAreLitFromAbove) {
  const Dataset d = make_synthetic({.count = 100, .outliers = 0});
  int rocks = 0;
  for (int64_t i = 0; i < d.count; ++i) {
    const int64_t down = 5 * d.width;
    double fall = 0, pairs = 0;
    for (int64_t p = 0; p + down < d.mask_bytes(); ++p) {
      if (d.mask(i)[p] == 4 && d.mask(i)[p + down] == 4) fall += d.image(i)[p] - d.image(i)[p + down], ++pairs;
    }
    if (pairs < 10) continue;
    ++rocks;
    EXPECT_GT(fall / pairs, 15) << "picture " << i;
  }
  EXPECT_GE(rocks, 7);
}

TEST(Synthetic, AnySizeAndRefusals) {
  EXPECT_EQ(make_synthetic({.count = 1, .height = 16, .width = 16}).count, 1);
  EXPECT_EQ(make_synthetic({.count = 3, .height = 100, .width = 30, .outliers = 1, .big_rock = 0.05}).count, 3);
  EXPECT_THROW(make_synthetic({.count = 0}), DataError);
  EXPECT_THROW(make_synthetic({.height = 8}), DataError);
  EXPECT_THROW(make_synthetic({.outliers = 1.5}), DataError);
  EXPECT_THROW(make_synthetic({.big_rock = -1}), DataError);
}

}  // namespace
}  // namespace regolith
