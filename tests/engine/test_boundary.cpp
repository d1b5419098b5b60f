#include "engine/train/boundary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/sample.h"

namespace regolith {
namespace {

constexpr uint8_t kNone = kernels::kAbsentClass;

// From the definition: sets of points, every distance.
double f1_of(const std::vector<uint8_t>& truth, const std::vector<uint8_t>& prediction, int H, int W, int cls,
             double tolerance) {
  using Points = std::vector<std::pair<int, int>>;
  const auto boundary = [&](const std::vector<uint8_t>& map) {
    Points points;
    for (int y = 0; y < H; ++y)
      for (int x = 0; x < W; ++x) {
        bool on = false;
        for (const auto& [v, u] : Points{{y - 1, x}, {y + 1, x}, {y, x - 1}, {y, x + 1}})
          on |= v >= 0 && v < H && u >= 0 && u < W && truth[v * W + u] != kNone && map[v * W + u] != cls;
        if (on && map[y * W + x] == cls && truth[y * W + x] != kNone) points.emplace_back(y, x);
      }
    return points;
  };
  const auto share = [&](const Points& of, const Points& in) {
    double near = 0;
    for (const auto& [y, x] : of) {
      double least = 1e9;
      for (const auto& [v, u] : in) least = std::min(least, std::hypot(y - v, x - u));
      near += least <= tolerance;
    }
    return of.empty() ? 0 : near / std::ssize(of);
  };
  const Points t = boundary(truth), p = boundary(prediction);
  if (t.empty()) return std::nan("");
  const double precision = share(p, t), recall = share(t, p);
  return precision + recall > 0 ? 2 * precision * recall / (precision + recall) : 0;
}

// Blobs of a few pixels, some of them without truth.
std::vector<uint8_t> blobs(int H, int W, int classes, bool holes, std::mt19937& random) {
  std::vector<uint8_t> coarse((H / 3 + 1) * (W / 3 + 1)), map(H * W);
  for (uint8_t& c : coarse) c = holes && random() % 8 == 0 ? kNone : static_cast<uint8_t>(random() % classes);
  for (int y = 0; y < H; ++y)
    for (int x = 0; x < W; ++x) map[y * W + x] = coarse[y / 3 * (W / 3 + 1) + x / 3];
  return map;
}

TEST(BoundaryF1, IsThatOfEveryDistanceOverTheImagesThatHaveABoundary) {
  constexpr int kClasses = 4;
  std::mt19937 random(7);
  for (const int tolerance : {0, 1, 2, 3}) {
    BoundaryF1 score(kClasses, tolerance);
    std::vector<double> sums(kClasses, 0), images(kClasses, 0);
    for (const auto& [H, W] : {std::pair{17, 23}, {1, 40}, {30, 2}, {5, 5}}) {
      for (int image = 0; image < 4; ++image) {
        const int used = 1 + image % 3;  // the last class is in no image
        const auto truth = blobs(H, W, used, true, random), prediction = blobs(H, W, used, false, random);
        score.add(truth, prediction, H, W);
        for (int c = 0; c < kClasses; ++c)
          if (const double f1 = f1_of(truth, prediction, H, W, c, tolerance); !std::isnan(f1))
            sums[c] += f1, ++images[c];
      }
    }
    for (int c = 0; c < kClasses - 1; ++c) EXPECT_NEAR(score.values()[c], sums[c] / images[c], 1e-12) << tolerance;
    EXPECT_TRUE(std::isnan(score.values()[kClasses - 1]));
  }
}

TEST(BoundaryF1, AShiftWithinTheToleranceIsPerfectAndOneBeyondIsNot) {
  const std::vector<uint8_t> truth{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1}, by_two{0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1},
      by_three{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1}, none(12, 0);
  const auto f1 = [&](const std::vector<uint8_t>& prediction) {
    BoundaryF1 score(2);
    score.add(truth, prediction, 1, 12);
    return score.values();
  };
  EXPECT_EQ(f1(by_two), (std::vector<double>{1, 1}));
  EXPECT_EQ(f1(by_three), (std::vector<double>{0, 0}));
  EXPECT_EQ(f1(none), (std::vector<double>{0, 0}));
  BoundaryF1 nothing_to_find(2);
  nothing_to_find.add(none, truth, 1, 12);
  EXPECT_TRUE(std::isnan(nothing_to_find.values()[0]));
}

}  // namespace
}  // namespace regolith
