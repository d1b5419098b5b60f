#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <numeric>
#include <set>

#include "data/split.h"
#include "data/synthetic.h"
#include "engine/base/error.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// 1x4 masks: all of class 1, every third with a pixel of class 2, every tenth with two of class 3.
Dataset made(int64_t count) {
  Dataset d;
  d.count = count;
  d.height = 1;
  d.width = 4;
  d.origin = "made";
  d.images.resize(4 * count);
  d.source.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t mask[] = {1, static_cast<uint8_t>(i % 3 == 0 ? 2 : 1), static_cast<uint8_t>(i % 10 == 0 ? 3 : 1),
                            static_cast<uint8_t>(i % 10 == 0 ? 3 : 1)};
    d.masks.insert(d.masks.end(), mask, mask + 4);
  }
  return d;
}

Split split_all(const Dataset& d, double train, double validation, double test, uint64_t seed) {
  return split(d, d.labelled_samples(), train, validation, test, seed);
}

int64_t holding(const Dataset& d, const std::vector<int64_t>& part, uint8_t cls) {
  return std::count_if(part.begin(), part.end(),
                       [&](int64_t i) { return std::count(d.mask(i), d.mask(i) + d.mask_bytes(), cls) > 0; });
}

TEST(Split, SizesAreExactAndPartsAreDisjoint) {
  for (const int64_t count : {1, 2, 7, 10, 99, 1000}) {
    for (const auto& [v, t] : {std::pair{0.1, 0.1}, {0.15, 0.25}, {0.0, 0.5}, {1.0 / 3, 1.0 / 3}}) {
      const Dataset d = made(count);
      const int64_t validations = std::llround(v * static_cast<double>(count)),
                    tests = std::llround(t * static_cast<double>(count));
      if (count - validations - tests < 1) continue;
      const Split s = split_all(d, 1 - v - t, v, t, 3);
      EXPECT_EQ(static_cast<int64_t>(s.validation.size()), validations);
      EXPECT_EQ(static_cast<int64_t>(s.test.size()), tests);
      std::set<int64_t> all(s.train.begin(), s.train.end());
      all.insert(s.validation.begin(), s.validation.end());
      all.insert(s.test.begin(), s.test.end());
      EXPECT_EQ(static_cast<int64_t>(all.size()), count);
      EXPECT_EQ(static_cast<int64_t>(s.train.size()), count - validations - tests);
    }
  }
}

TEST(Split, EveryPartHasItsShareOfRareClasses) {
  const Dataset d = made(600);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Split s = split_all(d, 0.8, 0.1, 0.1, seed);
    EXPECT_NEAR(holding(d, s.test, 3), 6, 1);
    EXPECT_NEAR(holding(d, s.validation, 3), 6, 1);
    EXPECT_NEAR(holding(d, s.test, 2), 20, 2);
    EXPECT_NEAR(holding(d, s.train, 3), 48, 2);
  }
}

TEST(Split, DependsOnTheSeedAlone) {
  const Dataset d = made(200);
  EXPECT_EQ(split_all(d, 0.8, 0.1, 0.1, 5).test, split_all(d, 0.8, 0.1, 0.1, 5).test);
  EXPECT_NE(split_all(d, 0.8, 0.1, 0.1, 5).test, split_all(d, 0.8, 0.1, 0.1, 6).test);
  EXPECT_THAT(split_all(d, 0.8, 0.1, 0.1, 5).summary, HasSubstr("test: 20 samples; with class 0: 0, 1: 20"));
}

// The parts are those of a data set that holds the given samples alone.
TEST(Split, DealsTheGivenSamples) {
  const Dataset d = made(200);
  Dataset odd = d;
  odd.count = 100;
  odd.masks.clear();
  std::vector<int64_t> samples;
  for (int64_t i = 1; i < 200; i += 2) {
    samples.push_back(i);
    odd.masks.insert(odd.masks.end(), d.mask(i), d.mask(i) + 4);
  }
  const Split whole = split(d, samples, 0.8, 0.1, 0.1, 5), alone = split_all(odd, 0.8, 0.1, 0.1, 5);
  EXPECT_EQ(whole.summary, alone.summary);
  ASSERT_EQ(whole.test.size(), alone.test.size());
  for (size_t i = 0; i < whole.test.size(); ++i) EXPECT_EQ(whole.test[i], samples[alone.test[i]]);
  EXPECT_THAT(class_frequencies(d, {0, 1}, 4), ElementsAre(0, 5. / 8, 1. / 8, 2. / 8));
}

TEST(Split, PartOfTheDataMayBeLeftOut) {
  const Split s = split_all(made(100), 0.5, 0.1, 0.1, 1);
  EXPECT_EQ(s.train.size(), 50u);
}

TEST(Split, PixelsWithoutTruthAreNoClass) {
  Dataset d = made(30);
  for (int64_t i = 0; i < 30; ++i) d.masks[4 * i] = kernels::kAbsentClass;
  const Split s = split_all(d, 0.8, 0.1, 0.1, 3);
  EXPECT_THAT(s.summary, HasSubstr("train: 24 samples; with class 0: 0, 1: "));
  EXPECT_THAT(s.summary, HasSubstr("; ignored pixels: 24\n"));
  EXPECT_EQ(s.summary.find("255"), s.summary.npos);
  const std::vector<double> f = class_frequencies(d, d.labelled_samples(), 4);
  EXPECT_DOUBLE_EQ(std::accumulate(f.begin(), f.end(), 0.0), 1);
  EXPECT_EQ(oversample(d, s.train, {.class_id = kernels::kAbsentClass, .factor = 5}).size(), s.train.size());
}

TEST(Split, GroupsStayTogether) {
  Dataset d = made(60);
  for (int64_t i = 0; i < 60; ++i) d.group.push_back(i * i % 13);
  const Split s = split_all(d, 0.6, 0.2, 0.2, 3);
  std::map<int64_t, int> part_of;
  int64_t count = 0;
  for (const auto& [part, members] : {std::pair{0, &s.train}, {1, &s.validation}, {2, &s.test}}) {
    for (const int64_t i : *members) EXPECT_EQ(part_of.emplace(d.group[i], part).first->second, part);
    count += std::ssize(*members);
    EXPECT_GT(holding(d, *members, 3), 0) << part;
  }
  EXPECT_EQ(count, 60);
  EXPECT_NEAR(static_cast<double>(s.train.size()), 36, 6);
  for (int64_t i = 0; i < 60; ++i) d.group[i] = i % 2;
  EXPECT_THROW(split_all(d, 0.6, 0.2, 0.2, 3), DataError);
  EXPECT_EQ(split_all(d, 0.5, 0.5, 0, 3).validation.size(), 30u);
}

TEST(Split, PartsAsListed) {
  Dataset d = made(6);
  d.images = std::vector<uint8_t>{1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 1, 1, 1, 1};
  for (const char* name : {"a.png", "b.png", "c.d.png", "e.jpg", "f.png", "g.png"}) d.names.push_back(name);
  const std::string folder = ::testing::TempDir() + "regolith_split_";
  SplitFiles files;
  const auto list = [&](FilePath& file, const std::string& name, const std::string& text) {
    file.path = folder + name;
    std::ofstream(file.path) << text;
  };
  const auto refusal = [&] {
    try {
      assign_parts(d, files);
    } catch (const DataError& e) {
      return std::string(e.what());
    }
    return std::string("no DataError");
  };
  list(files.validation, "v.txt",
       "\xef\xbb\xbf"
       "c.d.png\r\n\n  b  \n");
  list(files.test, "t.txt", "images/g.png");
  assign_parts(d, files);
  const Split s = given_split(d, {0, 1, 2, 4, 5});
  EXPECT_THAT(s.train, ElementsAre(0, 4));
  EXPECT_THAT(s.validation, ElementsAre(1, 2));
  EXPECT_THAT(s.test, ElementsAre(5));
  EXPECT_THAT(s.summary, HasSubstr("the same image in two parts: 1 times, first a.png and g.png"));
  list(files.train, "n.txt", "a\n");
  assign_parts(d, files);
  EXPECT_THAT(given_split(d, d.labelled_samples()).summary, HasSubstr("in no part: 2 samples"));
  list(files.train, "n.txt", "a\nb.png\n");
  assign_parts(d, {.train = {}, .validation = files.validation, .test = {}});
  EXPECT_THAT(refusal(), HasSubstr("v.txt:3: 'b' is listed already, at " + folder + "n.txt:2"));
  list(files.train, "n.txt", "q.png\n");
  EXPECT_THAT(refusal(), HasSubstr("n.txt:1: 'q.png' is no image of made: expected a name such as a.png"));
  list(files.train, "n.txt", "\n");
  EXPECT_THAT(refusal(), HasSubstr("n.txt: lists no images"));
  list(files.train, "n.txt",
       std::string("\xff\xfe"
                   "a\0\n\0",
                   6));
  EXPECT_THAT(refusal(), HasSubstr("n.txt: is text in UTF-16; save it in UTF-8"));
  d.names.clear();
  list(files.train, "n.txt", "6");
  std::iota(d.source.begin(), d.source.end(), 0);
  EXPECT_THAT(refusal(), HasSubstr("'6' is no image of made: expected a row, 0 to 5"));
}

TEST(Split, RefusesWhatCannotBe) {
  const Dataset d = made(10);
  EXPECT_THROW(split_all(d, 0.9, 0.1, 0.1, 1), DataError);
  EXPECT_THROW(split_all(d, -0.1, 0.1, 0.1, 1), DataError);
  EXPECT_THROW(split_all(d, std::nan(""), 0.1, 0.1, 1), DataError);
  EXPECT_THROW(split_all(d, 0, 0.5, 0.5, 1), DataError);
}

TEST(Oversample, RepeatsAreAugmentedTheFirstIsNot) {
  const Dataset d = made(12);  // 0 and 10 have two pixels of class 3
  const auto all = oversample(d, {0, 1, 10}, {.class_id = 3, .min_pixels = 2, .factor = 3, .augment = {}});
  std::vector<std::pair<int64_t, bool>> flat;
  for (const SampleIndex& o : all) flat.emplace_back(o.index, o.augment);
  using P = std::pair<int64_t, bool>;
  EXPECT_THAT(flat,
              ElementsAre(P{0, false}, P{0, true}, P{0, true}, P{1, false}, P{10, false}, P{10, true}, P{10, true}));
  EXPECT_EQ(oversample(d, {0, 1, 10}, {.class_id = 3, .min_pixels = 3, .factor = 3, .augment = {}}).size(), 3u);
  const auto everything = oversample(d, {0, 1}, {.class_id = 3, .min_pixels = 2, .factor = 2, .augment = {}}, true);
  EXPECT_TRUE(std::all_of(everything.begin(), everything.end(), [](const SampleIndex& o) { return o.augment; }));
  EXPECT_THROW(oversample(d, {0}, {.factor = 0, .augment = {}}), DataError);
}

TEST(EpochOrder, IsAPermutationOfItsOwn) {
  std::set<std::vector<int64_t>> seen;
  for (int64_t epoch = 0; epoch < 50; ++epoch) {
    std::vector<int64_t> order = epoch_order(9, epoch, 100);
    seen.insert(order);
    EXPECT_EQ(order, epoch_order(9, epoch, 100));
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
  }
  EXPECT_EQ(seen.size(), 50u);
  EXPECT_NE(epoch_order(9, 0, 100), epoch_order(10, 0, 100));
  EXPECT_THAT(epoch_order(1, 1, 1), ElementsAre(0));
}

TEST(EpochOrder, PlacesAreUniform) {
  std::vector<int> first(10, 0);
  for (int64_t epoch = 0; epoch < 5000; ++epoch) ++first[epoch_order(4, epoch, 10)[0]];
  for (const int n : first) EXPECT_NEAR(n, 500, 110);  // five standard deviations
}

}  // namespace
}  // namespace regolith
