// The polynomials of the fast execution against the C library in double.
#include "kernels/core/math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace regolith::kernels::fast {
namespace {

constexpr int L = kLanes<float>;
constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();

// In units of the last place of the expected value.
double error(float actual, double expected) {
  int exponent;
  std::frexp(expected, &exponent);
  return std::abs(actual - expected) / std::ldexp(1., exponent - 24);
}

// The largest error of f over `low`..`high`.
template <class F, class G>
double worst(F&& f, G&& reference, float low, float high) {
  std::mt19937 engine(7);
  std::uniform_real_distribution<float> draw(low, high);
  double most = 0;
  for (int i = 0; i < 20000; ++i) {
    Vec<L> x;
    for (int j = 0; j < L; ++j) x.set(j, draw(engine));
    const Vec<L> y = f(x);
    for (int j = 0; j < L; ++j) {
      const double e = error(y[j], reference(static_cast<double>(x[j])));
      most = e <= most ? most : e;  // NaN is kept
    }
  }
  return most;
}

TEST(Math, ExpIsWithinTwoUlp) {
  const auto f = [](Vec<L> x) { return exp(x); };
  const auto g = [](double x) { return std::exp(x); };
  EXPECT_LT(worst(f, g, -87.3f, 88.7f), 1.5);
  EXPECT_LT(worst(f, g, -1, 1), 1.5);
}

TEST(Math, LogIsWithinTwoUlp) {
  const auto f = [](Vec<L> x) { return log(x); };
  const auto g = [](double x) { return std::log(x); };
  EXPECT_LT(worst(f, g, 1e-7f, 1), 1.5);
  EXPECT_LT(worst(f, g, .9f, 1.1f), 1.5);
  EXPECT_LT(worst(f, g, 1, 3e38f), 1.5);
}

TEST(Math, ErfIsWithinSevenUlp) {
  const auto f = [](Vec<L> x) { return erf(x); };
  const auto g = [](double x) { return std::erf(x); };
  EXPECT_LT(worst(f, g, -1e-3f, 1e-3f), 7);
  EXPECT_LT(worst(f, g, -1, 1), 7);
  EXPECT_LT(worst(f, g, -5, 5), 7);
}

TEST(Math, SqrtIsExact) {
  EXPECT_LE(worst([](Vec<L> x) { return sqrt(x); }, [](double x) { return std::sqrt(x); }, 0, 1e6f), .5);
}

TEST(Math, EndsOfTheRange) {
  const auto e = [](float x) { return exp(Vec<L>(x))[L - 1]; };
  const auto l = [](float x) { return log(Vec<L>(x))[L - 1]; };
  EXPECT_EQ(e(0), 1);
  EXPECT_EQ(e(-kInfinity), 0);
  EXPECT_EQ(e(-200), 0);
  EXPECT_EQ(e(kInfinity), kInfinity);
  EXPECT_EQ(e(89), kInfinity);
  EXPECT_TRUE(std::isnan(e(kNaN)));
  EXPECT_EQ(l(1), 0);
  EXPECT_EQ(l(0), -kInfinity);
  EXPECT_EQ(l(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(l(-1)));
  EXPECT_TRUE(std::isnan(l(kNaN)));
  const auto r = [](float x) { return erf(Vec<L>(x))[L - 1]; };
  EXPECT_EQ(r(0), 0);
  EXPECT_NEAR(r(kInfinity), 1, 6e-8);
  EXPECT_NEAR(r(-kInfinity), -1, 6e-8);
  EXPECT_TRUE(std::isnan(r(kNaN)));
}

}  // namespace
}  // namespace regolith::kernels::fast
