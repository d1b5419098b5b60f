// Tiles cut from large pictures at known places.
#include "data/overlap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "data/synthetic.h"
#include "kernels/core/random.h"

namespace regolith {
namespace {

using ::testing::HasSubstr;

constexpr int kH = 48, kW = 64;

// Ground of three scales between 0 and 255: neighbouring pixels are alike, as in a photograph, and no two are the same
// for long.
class Ground {
 public:
  explicit Ground(uint32_t seed, double contrast = 60) : seed_(seed), contrast_(contrast) {}
  uint8_t at(int y, int x) const {
    const double v = 120 + contrast_ * (noise(y, x, 16) + .6 * noise(y, x, 6) + .25 * noise(y, x, 2));
    return static_cast<uint8_t>(std::clamp(v, 0., 255.));
  }

 private:
  double random(int y, int x, int scale) const {
    return philox(seed_, static_cast<uint32_t>(y), static_cast<uint32_t>(x), static_cast<uint32_t>(scale), 0).v[0] /
               4294967296. -
           .5;
  }
  double noise(int y, int x, int scale) const {  // bilinear between random values
    const int Y = y / scale, X = x / scale;
    const double v = y % scale / static_cast<double>(scale), u = x % scale / static_cast<double>(scale);
    return (1 - v) * ((1 - u) * random(Y, X, scale) + u * random(Y, X + 1, scale)) +
           v * ((1 - u) * random(Y + 1, X, scale) + u * random(Y + 1, X + 1, scale));
  }
  uint32_t seed_;
  double contrast_;
};

struct Tiles {
  explicit Tiles(int channels = 1, int height = kH, int width = kW) {
    data.height = height, data.width = width, data.channels = channels;
  }
  // Of the ground, from (y, x) on.
  int64_t cut(const Ground& ground, int y, int x) {
    for (int r = 0; r < data.height; ++r)
      for (int c = 0; c < data.width; ++c)
        for (int k = 0; k < data.channels; ++k)
          data.images.push_back(static_cast<uint8_t>(ground.at(y + r, x + c) / (k + 1)));
    return data.count++;
  }
  uint8_t& pixel(int64_t i, int y, int x) { return data.images[(i * data.height + y) * data.width + x]; }
  // Fills a box with a colour, and a darker one within it.
  void stamp(int64_t i, int y, int x, int height, int width, int value) {
    for (int r = 0; r < height; ++r)
      for (int c = 0; c < width; ++c)
        pixel(i, y + r, x + c) = static_cast<uint8_t>(r > 2 && r < height / 2 && c % 8 > 3 ? value / 3 : value);
  }
  std::vector<int64_t> groups() { return find_overlaps(data).group; }
  Dataset data;
};

TEST(Overlap, FindsEveryKindOfCommonStrip) {
  struct Case {
    const char* name;
    int y, x;  // of the second tile, the first being at (100, 200)
    bool joined;
  };
  for (const Case& c :
       {Case{"the same", 100, 200, true}, Case{"a pixel on", 101, 201, true}, Case{"half", 100, 200 + kW / 2, true},
        Case{"a corner", 100 + kH - 12, 200 + kW - 40, true},
        Case{"another corner", 100 - kH + 12, 200 + kW - 40, true}, Case{"three columns", 103, 200 + kW - 3, true},
        Case{"one column", 100, 200 - kW + 1, true}, Case{"two rows", 100 + kH - 2, 206, true},
        Case{"one row", 100 - kH + 1, 200, true}, Case{"far away", 300, 400, false}}) {
    Tiles t;
    const Ground ground(1), other(2);
    const int64_t a = t.cut(ground, 100, 200);
    for (int i = 0; i < 5; ++i) t.cut(other, 200 * i, 0);
    const int64_t b = t.cut(ground, c.y, c.x);
    const Overlaps o = find_overlaps(t.data);
    EXPECT_EQ(o.group[a] == o.group[b], c.joined) << c.name;
    EXPECT_EQ(o.sharing, c.joined ? 1 : 0) << c.name;
    EXPECT_EQ(std::set(o.group.begin(), o.group.end()).size(), c.joined ? 6u : 7u) << c.name;
  }
}

TEST(Overlap, GroupsAreNumberedInTheOrderOfTheirFirstImages) {
  Tiles t;
  const Ground one(3), two(4);
  t.cut(one, 0, 0), t.cut(two, 0, 0), t.cut(one, 200, 0), t.cut(two, 10, 10), t.cut(one, 20, 30), t.cut(one, 30, 50);
  const Overlaps o = find_overlaps(t.data);
  EXPECT_EQ(o.group, (std::vector<int64_t>{0, 1, 2, 1, 0, 0}));
  EXPECT_EQ(o.summary,
            "Overlap: 3 joins of images that share pixels, 0 of images that lie edge to edge: 2 groups, the largest of "
            "3, and 1 images by themselves.\n");
}

// What overlaps is textured and differs: black margins, saturated areas and a common figure are not what was cut from
// one picture.
TEST(Overlap, FlatAreasAndFiguresJoinNothing) {
  Tiles t;
  for (uint32_t i = 0; i < 12; ++i) {
    t.cut(Ground(10 + i), 0, 0);
    for (int y = 0; y < kH; ++y)
      for (int x = 0; x < kW; ++x)
        if (y < 20 || x < 20) t.pixel(i, y, x) = i % 2 ? 0 : 255;
    t.stamp(i, 25, 30, 16, 16, 200);
  }
  for (int i = 0; i < 3; ++i) {  // all flat
    t.cut(Ground(30), 0, 0);
    t.stamp(t.data.count - 1, 0, 0, kH, kW, 0);
  }
  const std::vector<int64_t> groups = t.groups();
  EXPECT_EQ(std::set(groups.begin(), groups.end()).size(), groups.size());
}

TEST(Overlap, ACopyWithAFigureInItIsACopy) {
  Tiles t;
  const int64_t a = t.cut(Ground(1), 0, 0), b = t.cut(Ground(1), 0, 0), other = t.cut(Ground(2), 0, 0);
  t.stamp(b, 10, 30, 24, 20, 220);
  t.stamp(other, 10, 30, 24, 20, 220);
  const std::vector<int64_t> groups = t.groups();
  EXPECT_EQ(groups[a], groups[b]);
  EXPECT_NE(groups[a], groups[other]);
}

TEST(Overlap, JoinsTilesThatLieEdgeToEdge) {
  for (const int channels : {1, 3}) {
    Tiles t(channels);
    for (uint32_t picture = 0; picture < 4; ++picture)
      for (int tile = 0; tile < 6; ++tile) t.cut(Ground(20 + picture), tile / 3 * kH, tile % 3 * kW);
    for (uint32_t alone = 0; alone < 20; ++alone) t.cut(Ground(40 + alone), 0, 0);
    const Overlaps o = find_overlaps(t.data);
    EXPECT_EQ(o.sharing, 0);
    EXPECT_EQ(o.abutting, 4 * 5);
    for (int64_t i = 0; i < t.data.count; ++i) EXPECT_EQ(o.group[i], i < 24 ? i / 6 : i - 20) << i;
  }
}

// A copy of a neighbour is not a second neighbour that fits as well.
TEST(Overlap, CopiesDoNotHideAnEdge) {
  Tiles t;
  const Ground ground(5);
  t.cut(ground, 0, 0), t.cut(ground, 0, kW), t.cut(ground, 0, kW);
  for (uint32_t i = 0; i < 5; ++i) t.cut(Ground(50 + i), 0, 0);
  t.stamp(2, 12, 20, 10, 10, 250);
  EXPECT_EQ(t.groups(), (std::vector<int64_t>{0, 0, 0, 1, 2, 3, 4, 5}));
}

TEST(Overlap, EdgesWithoutStructureTellNothing) {
  Tiles t;
  for (uint32_t i = 0; i < 20; ++i) t.cut(Ground(60 + i, 1.5), 0, 0);  // a few grey values
  const Ground ground(90, 1.5);
  for (int i = 0; i < 4; ++i) t.cut(ground, 0, i * kW);
  const std::vector<int64_t> groups = t.groups();
  EXPECT_EQ(std::set(groups.begin(), groups.end()).size(), groups.size());
}

TEST(Overlap, PicturesOfTheirOwnStayByThemselves) {
  Dataset d = make_synthetic({.count = 150, .height = 32, .width = 64, .seed = 4, .outliers = 0});
  const Overlaps o = find_overlaps(d);
  EXPECT_EQ(o.sharing + o.abutting, 0) << o.summary;
}

// Short edges, and lines longer than the image is high.
TEST(Overlap, SmallImages) {
  Tiles t(1, 12, 20);
  const Ground ground(7);
  t.cut(ground, 0, 0), t.cut(ground, 3, 5), t.cut(ground, 200, 100), t.cut(ground, 200, 120);
  EXPECT_EQ(t.groups(), (std::vector<int64_t>{0, 0, 1, 2}));
  EXPECT_TRUE(Tiles().groups().empty());
}

}  // namespace
}  // namespace regolith
