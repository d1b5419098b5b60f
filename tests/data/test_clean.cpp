#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "data/clean.h"
#include "data/sources.h"
#include "data/synthetic.h"
#include "engine/base/error.h"

namespace regolith {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Pictures of 8x8 that all differ, with masks that are made by `mask_of(sample, row, column)`.
template <class F>
Dataset made(int64_t count, F&& mask_of) {
  Dataset d;
  d.count = count;
  d.height = d.width = 8;
  d.origin = "made";
  for (int64_t i = 0; i < count; ++i) {
    d.source.push_back(100 + i);
    for (int p = 0; p < 64; ++p) {
      d.images.push_back(static_cast<uint8_t>(i * 7 + p));
      d.masks.push_back(static_cast<uint8_t>(mask_of(i, p / 8, p % 8)));
    }
  }
  return d;
}
int cross(int y, int x) { return y == 3 || x == 3; }

TEST(Clean, DropsAnOddMaskThatRepeats) {
  const Dataset d =
      made(6, [](int64_t i, int y, int x) { return i % 2 == 0 ? cross(y, x) : static_cast<int>(i + x > 4); });
  const Cleaned c = clean(d);
  EXPECT_THAT(c.report.dropped, ElementsAre(100, 102, 104));
  EXPECT_THAT(c.data.source, ElementsAre(101, 103, 105));
  EXPECT_THAT(std::vector<uint8_t>(c.data.mask(1), c.data.mask(1) + 8), ElementsAre(0, 0, 1, 1, 1, 1, 1, 1));
  EXPECT_EQ(c.data.image(2)[0], 35);
  ASSERT_EQ(c.report.odd.size(), 1u);
  EXPECT_THAT(c.report.odd[0].pixels, ElementsAre(49, 15));
  EXPECT_DOUBLE_EQ(c.report.odd[0].fill, 15.0 / 64);
  EXPECT_THAT(c.report.summary(), HasSubstr("6 samples, 3 dropped, 3 kept"));
  EXPECT_THAT(c.report.summary(), HasSubstr("Dropped rows: 100, 102, 104"));
}

TEST(Clean, KeepsPlainMasksThatRepeat) {
  const Dataset d = made(12, [](int64_t i, int y, int x) {
    if (i < 4) return 2;                       // one class
    if (i < 8) return y > 0 && x < 7 ? 3 : 0;  // one class in a frame
    return 0;                                  // nothing labelled
  });
  const Cleaned c = clean(d);
  EXPECT_THAT(c.report.dropped, IsEmpty());
  EXPECT_EQ(c.report.kept.size(), 3u);
  EXPECT_THAT(c.report.kept[0].rows, ElementsAre(100, 101, 102, 103));
}

TEST(Clean, TwoClassesAreNotPlainHoweverFull) {
  const Dataset d = made(3, [](int64_t, int y, int) { return y < 4 ? 1 : 2; });
  EXPECT_THROW(clean(d), DataError);  // would drop everything
  CleanRule rule;
  rule.drop_shared_masks = false;
  const Cleaned c = clean(d, rule);
  EXPECT_EQ(c.data.count, 3);
  EXPECT_EQ(c.report.odd.size(), 1u);
}

TEST(Clean, TwoOfOneMaskAreFewerThanThree) {
  const Dataset d = made(3, [](int64_t i, int y, int x) { return i < 2 ? cross(y, x) : 1; });
  EXPECT_THAT(clean(d).report.dropped, IsEmpty());
  CleanRule rule;
  rule.drop_shared_masks = true;
  rule.min_shared = 2;
  EXPECT_THAT(clean(d, rule).report.dropped, ElementsAre(100, 101));
}

TEST(Clean, CopiesOfAnImageDoNotMakeItsMaskShared) {
  Dataset d = made(4, [](int64_t i, int y, int x) { return i < 3 ? cross(y, x) : 1; });
  for (int i = 1; i < 3; ++i) std::copy_n(d.images.begin(), 64, d.images.begin() + 64 * i);
  const Cleaned c = clean(d);
  EXPECT_THAT(c.report.dropped, IsEmpty());
  EXPECT_THAT(c.report.duplicate_images, ElementsAre(ElementsAre(100, 101, 102)));
  CleanRule rule;
  rule.drop_shared_masks = rule.drop_duplicate_images = true;
  EXPECT_THAT(clean(d, rule).report.dropped, ElementsAre(101, 102));
}

TEST(Clean, FindsTheOutliersOfSyntheticTerrain) {
  const Dataset d = make_synthetic({.count = 100, .height = 32, .width = 64}).labelled;
  const Cleaned c = clean(d);
  EXPECT_EQ(c.report.dropped.size(), 4u);
  EXPECT_EQ(c.report.odd.size(), 1u);
}

TEST(Clean, FindsTheOutliersOfTheStudysFile) {
  const char* file = std::getenv("REGOLITH_MARS_NPZ");
  if (file == nullptr) GTEST_SKIP() << "REGOLITH_MARS_NPZ does not name the study's file";
  const Loaded l = load_npz(file, 5);
  EXPECT_EQ(l.labelled.count, 2615);
  EXPECT_EQ(l.unlabelled.count, 1000);
  const Cleaned c = clean(l.labelled);
  std::printf("%s", c.report.summary().c_str());
  EXPECT_EQ(c.report.dropped.size(), 110u);
  EXPECT_EQ(c.report.odd.size(), 1u);
  EXPECT_GT(c.report.kept.size(), 20u);  // plain tiles
  EXPECT_EQ(c.data.count, 2505);
}

}  // namespace
}  // namespace regolith
