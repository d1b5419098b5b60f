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
CleanReport clean_all(const Dataset& d, const CleanRule& rule = {.drop_shared_masks = true}) {
  return clean(d, d.labelled_samples(), rule);
}
int cross(int y, int x) { return y == 3 || x == 3; }

TEST(Clean, DropsAnOddMaskThatRepeats) {
  const Dataset d =
      made(6, [](int64_t i, int y, int x) { return i % 2 == 0 ? cross(y, x) : static_cast<int>(i + x > 4); });
  const CleanReport c = clean_all(d);
  EXPECT_THAT(c.dropped, ElementsAre(100, 102, 104));
  EXPECT_THAT(c.samples, ElementsAre(1, 3, 5));
  ASSERT_EQ(c.odd.size(), 1u);
  EXPECT_THAT(c.odd[0].pixels, ElementsAre(49, 15));
  EXPECT_DOUBLE_EQ(c.odd[0].fill, 15.0 / 64);
  EXPECT_THAT(c.summary(), HasSubstr("6 samples, 3 dropped, 3 kept"));
  EXPECT_THAT(c.summary(), HasSubstr("Dropped rows: 100, 102, 104"));
}

TEST(Clean, KeepsPlainMasksThatRepeat) {
  const Dataset d = made(12, [](int64_t i, int y, int x) {
    if (i < 4) return 2;                       // one class
    if (i < 8) return y > 0 && x < 7 ? 3 : 0;  // one class in a frame
    return 0;                                  // nothing labelled
  });
  const CleanReport c = clean_all(d);
  EXPECT_THAT(c.dropped, IsEmpty());
  EXPECT_EQ(c.kept.size(), 3u);
  EXPECT_THAT(c.kept[0].rows, ElementsAre(100, 101, 102, 103));
}

TEST(Clean, TwoClassesAreNotPlainHoweverFull) {
  const Dataset d = made(3, [](int64_t, int y, int) { return y < 4 ? 1 : 2; });
  EXPECT_THROW(clean_all(d), DataError);  // would drop everything
  CleanRule rule;
  rule.drop_shared_masks = false;
  const CleanReport c = clean_all(d, rule);
  EXPECT_EQ(c.samples.size(), 3u);
  EXPECT_EQ(c.odd.size(), 1u);
}

TEST(Clean, TwoOfOneMaskAreFewerThanThree) {
  const Dataset d = made(3, [](int64_t i, int y, int x) { return i < 2 ? cross(y, x) : 1; });
  EXPECT_THAT(clean_all(d).dropped, IsEmpty());
  CleanRule rule;
  rule.drop_shared_masks = true;
  rule.min_shared = 2;
  EXPECT_THAT(clean_all(d, rule).dropped, ElementsAre(100, 101));
}

TEST(Clean, CopiesOfAnImageDoNotMakeItsMaskShared) {
  Dataset d = made(4, [](int64_t i, int y, int x) { return i < 3 ? cross(y, x) : 1; });
  for (int i = 1; i < 3; ++i) std::copy_n(d.images.begin(), 64, d.images.begin() + 64 * i);
  const CleanReport c = clean_all(d);
  EXPECT_THAT(c.dropped, IsEmpty());
  EXPECT_THAT(c.duplicate_images, ElementsAre(ElementsAre(100, 101, 102)));
  CleanRule rule;
  rule.drop_shared_masks = rule.drop_duplicates = true;
  EXPECT_THAT(clean_all(d, rule).dropped, ElementsAre(101, 102));
}

// Another opinion of the same picture is no copy, and which of them is right the report leaves to its reader.
TEST(Clean, CopiesWithAnotherMaskAreKeptAndNamed) {
  Dataset d = made(5, [](int64_t i, int, int) { return i % 2; });
  for (int i = 1; i < 4; ++i) std::copy_n(d.images.begin(), 64, d.images.begin() + 64 * i);
  const CleanReport c = clean_all(d, {.drop_duplicates = true});
  EXPECT_THAT(c.dropped, ElementsAre(102, 103));
  EXPECT_THAT(c.labelled_anew, ElementsAre(101));
  EXPECT_THAT(c.summary(), HasSubstr("Copies of images: 3.\n  Of these, kept for another mask: rows 101\n"));
  d.masks.clear();
  EXPECT_THAT(clean(d, {0, 1, 2, 3, 4}, {.drop_duplicates = true}).dropped, ElementsAre(101, 102, 103));
}

// A frame without truth, as an annotator's tool leaves it, is neither a class nor in the way of the rest.
TEST(Clean, PixelsWithoutTruthAreNotLabelled) {
  const Dataset plain = made(4, [](int64_t, int y, int x) { return y == 0 || x == 0 ? 255 : 1; });
  const CleanReport c = clean_all(plain);
  ASSERT_EQ(c.kept.size(), 1u);
  EXPECT_THAT(c.kept[0].pixels, ElementsAre(0, 49));
  EXPECT_DOUBLE_EQ(c.kept[0].fill, 1);
  const CleanReport none = clean_all(made(4, [](int64_t, int, int) { return 255; }));
  ASSERT_EQ(none.kept.size(), 1u);
  EXPECT_THAT(none.kept[0].pixels, ElementsAre(0));
}

// Samples that are not asked about count for nothing.
TEST(Clean, LooksAtTheGivenSamples) {
  const Dataset d = made(4, [](int64_t, int y, int x) { return cross(y, x); });
  EXPECT_THROW(clean_all(d), DataError);
  EXPECT_THAT(clean(d, {3, 1}).samples, ElementsAre(3, 1));
}

TEST(Clean, FindsTheOutliersOfSyntheticTerrain) {
  const Dataset d = make_synthetic({.count = 100, .height = 32, .width = 64});
  const CleanReport c = clean_all(d);
  EXPECT_EQ(c.dropped.size(), 4u);
  EXPECT_EQ(c.odd.size(), 1u);
}

TEST(Clean, FindsTheOutliersOfTheStudysFile) {
  const char* file = std::getenv("REGOLITH_MARS_NPZ");
  if (file == nullptr) GTEST_SKIP() << "REGOLITH_MARS_NPZ does not name the study's file";
  const Dataset d = load_npz(file, {.classes = 5});
  EXPECT_EQ(d.count, 2615);
  const CleanReport c = clean_all(d);
  std::printf("%s", c.summary().c_str());
  EXPECT_EQ(c.dropped.size(), 110u);
  EXPECT_EQ(c.odd.size(), 1u);
  EXPECT_GT(c.kept.size(), 20u);  // plain tiles
  EXPECT_EQ(c.samples.size(), 2505u);
}

}  // namespace
}  // namespace regolith
