#include "losses/loss.h"

#include <gmock/gmock.h>

#include <cmath>

#include "engine/base/error.h"
#include "tests/kernels/loss_oracle.h"

namespace regolith::testing {
namespace {

Values part(const Values& v, size_t begin, size_t count) {
  return Values(v.begin() + static_cast<std::ptrdiff_t>(begin), v.begin() + static_cast<std::ptrdiff_t>(begin + count));
}

class LossTest : public ::testing::Test {
 protected:
  struct Result {
    double loss;
    Values gradient;
  };
  // Of logits (N, 1, pixels, K), on the CPU.
  Result run(const Loss& loss, const Values& logits, const Values& mask, int N, int K, int64_t images = 0,
             double weight = 1) {
    Fixture fixture(*device_, DType::f32, 1);
    const int pixels = static_cast<int>(mask.size()) / N;
    Buffer& x = fixture.input("logits", {N, 1, pixels, K}, logits);
    Buffer& dx = fixture.output("dlogits", {N, 1, pixels, K});
    Buffer& total = fixture.output("loss", {}, DType::f64);
    kernels::SoftmaxLoss call;
    call.logits = x.map();
    call.mask = fixture.input("mask", {N, 1, pixels, 1}, mask, DType::u8).as<uint8_t>();
    call.dlogits = dx.map();
    call.loss = total.as<double>();
    call.workspace = fixture.workspace(loss.workspace_bytes(N, 1, pixels));
    loss.forward_backward(fixture.stream(), call, images > 0 ? images : N, weight);
    fixture.stream().synchronize();
    return {total.read()[0], dx.read()};
  }
  Values random_logits(size_t count) {
    Values x(count);
    for (double& v : x) v = round_to(DType::f32, random_.normal());
    return x;
  }
  static std::string message(const LossSpec& spec, int classes, std::vector<double> frequencies = {}) {
    try {
      Loss(spec, classes, frequencies);
    } catch (const OptionError& e) {
      return e.what();
    }
    return "no error";
  }

  std::unique_ptr<Device> device_ = make_cpu_device(2);
  Random random_{3};
};

LossSpec only(auto loss) { return {std::move(loss)}; }

LossSpec sum(std::vector<LossTerm> terms) { return {std::move(terms)}; }

Focal focal(std::vector<int> exclude, Reduction reduction = Reduction::mean_pixels, std::vector<double> alpha = {.25}) {
  return {2, std::move(alpha), std::move(exclude), reduction};
}

// The vector of Keras's CategoricalFocalCrossentropy, pixel by pixel: softmax(log p) = p.
TEST_F(LossTest, FocalMatchesTheVectorOfKeras) {
  const Loss loss(only(focal({}, Reduction::sum_per_image)), 3);
  const auto of = [&](Values p, double truth) {
    for (double& v : p) v = std::log(v);
    return run(loss, p, {truth}, 1, 3).loss;
  };
  EXPECT_NEAR(of({.05, .9, .05}, 1), 2.63401289e-4, 2e-9);
  EXPECT_NEAR(of({.1, .85, .05}, 2), 0.675912094, 2e-7);
}

TEST_F(LossTest, ReductionsDivideTheSameSum) {
  const Values x = random_logits(2 * 6 * 4), mask = {0, 1, 2, 3, 1, 2, 3, 3, 2, 0, 1, 1};
  const auto of = [&](Reduction r) { return run(Loss(only(focal({0}, r)), 4), x, mask, 2, 4); };
  const Result image = of(Reduction::sum_per_image), pixels = of(Reduction::mean_pixels),
               elements = of(Reduction::mean_elements);
  EXPECT_NEAR(pixels.loss, image.loss / 6, 1e-6 * image.loss);
  EXPECT_NEAR(elements.loss, pixels.loss / 3, 1e-6 * image.loss);  // three classes are kept
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(elements.gradient[i], image.gradient[i] / 18, 1e-8);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(image.gradient[i], 0) << "the first pixel is of the excluded class";
}

// A batch in slices of one image, with the divisor of the whole: the same loss in sum, the same gradients.
TEST_F(LossTest, SlicesOfABatchAddUp) {
  CrossEntropy smoothed;
  smoothed.label_smoothing = .1;
  const Loss loss(sum({{1, smoothed}, {.5, Focal{.reduction = Reduction::mean_pixels}}, {2, Dice{}}}), 3);
  EXPECT_FALSE(loss.couples_images());
  const Values x = random_logits(3 * 5 * 3), mask = {0, 1, 2, 2, 1, 1, 1, 0, 0, 2, 2, 0, 1, 0, 2};
  const Result whole = run(loss, x, mask, 3, 3);
  double sum = 0;
  for (size_t n = 0; n < 3; ++n) {
    const Result one = run(loss, part(x, n * 15, 15), part(mask, n * 5, 5), 1, 3, 3);
    sum += one.loss;
    expect_close("gradient", one.gradient, part(whole.gradient, n * 15, 15), {1e-8, 1e-6});
  }
  EXPECT_NEAR(sum, whole.loss, 1e-6 * whole.loss);
}

// The weight of a head multiplies every term.
TEST_F(LossTest, AHeadsWeightMultipliesLossAndGradient) {
  const Loss loss(sum({{1, CrossEntropy{}}, {.5, Focal{}}, {2, Dice{}}}), 3);
  const Values x = random_logits(2 * 5 * 3), mask = {0, 1, 2, 2, 1, 1, 1, 0, 0, 2};
  const Result whole = run(loss, x, mask, 2, 3), part = run(loss, x, mask, 2, 3, 2, .3);
  EXPECT_NEAR(part.loss, .3 * whole.loss, 1e-6 * whole.loss);
  Values scaled = whole.gradient;
  for (double& g : scaled) g *= .3;
  expect_close("gradient", part.gradient, scaled, {1e-8, 1e-6});
}

// Weights and divisors of a combination, worked out by hand, against the oracle.
TEST_F(LossTest, CombinedIsTheWeightedSum) {
  CrossEntropy ce;
  ce.weights.values = {1, 2, 3, 4};
  Focal steep = focal({1}, Reduction::mean_pixels, {.1, .2, .3, .4});
  steep.gamma = 3;
  Dice dice;
  dice.sums = Dice::Sums::batch;
  dice.weights.inverse_frequency = true;
  const LossSpec spec = sum({{.5, ce}, {2, steep}, {3, dice}});
  EXPECT_TRUE(spec.needs_frequencies());
  const Loss loss(spec, 4, std::vector<double>{.5, .4, .1, 0});
  EXPECT_TRUE(loss.couples_images());

  kernels::LossTerms terms;
  terms.pixel_terms = 2;
  terms.dice_terms = 1;
  terms.pixel[0] = {kernels::LossTerms::Kind::cross_entropy, 0, 0, {.05f, .1f, .15f, .2f}};  // / 10 pixels
  terms.pixel[1] = {kernels::LossTerms::Kind::focal, 3, 0, {.02f, 0, .06f, .08f}};
  terms.dice[0] = {false, 1, {6 / 14.5f, 7.5f / 14.5f, 30 / 14.5f, 0}};  // 3 / frequency / (2 + 2.5 + 10)
  const Values x = random_logits(2 * 5 * 4), mask = {0, 1, 2, 3, 1, 2, 3, 3, 2, 0};
  const LossOracle expected = loss_oracle(x, mask, 2, 5, 4, terms);
  const Result r = run(loss, x, mask, 2, 4);
  EXPECT_NEAR(r.loss, expected.loss, 2e-6 * expected.loss);
  expect_close("gradient", r.gradient, expected.gradient, {1e-7, 2e-6});
}

TEST_F(LossTest, DiceIsZeroForAPerfectPredictionAndOneForAWrongOne) {
  Dice sharp;
  sharp.smooth = 0;
  const Loss loss(only(sharp), 2);
  EXPECT_NEAR(run(loss, {90, 0, 0, 90, 90, 0}, {0, 1, 0}, 1, 2).loss, 0, 1e-7);
  EXPECT_NEAR(run(loss, {0, 90, 90, 0, 0, 90}, {0, 1, 0}, 1, 2).loss, 1, 1e-7);
}

// However small p is, and at p = 1: with gamma 0 the gradient of cross-entropy, finite with any. The value keeps the
// clip.
TEST_F(LossTest, FocalLearnsWhereItsProbabilityUnderflows) {
  const Values mask = {0, 0, 0, 0, 0};
  const Values x = {0, 17, 3, /**/ 0, 40, 0, /**/ 0, 1e4, -1e4, /**/ 30, 0, 0, /**/ 1e4, 0, -1e4};
  const auto of = [&](double gamma) {
    Focal f = focal({}, Reduction::sum_per_image, {1});
    f.gamma = gamma;
    return run(Loss(only(f), 3), x, mask, 1, 3);
  };
  CrossEntropy ce;
  ce.reduction = Reduction::sum_per_image;
  expect_close("gradient of gamma 0", of(0).gradient, run(Loss(only(ce), 3), x, mask, 1, 3).gradient, {1e-7, 1e-6});
  for (const double gamma : {0., .3, .5, 1., 1.5, 2., 5., 20.}) {
    const Result r = of(gamma);
    EXPECT_NEAR(r.loss, -3 * std::log(1e-7), 1e-3) << gamma;  // of the first three pixels, whose p is below the clip
    for (const double g : r.gradient) EXPECT_TRUE(std::isfinite(g)) << gamma;
    for (size_t pixel = 0; pixel < 3; ++pixel) EXPECT_NEAR(r.gradient[3 * pixel], -1, 3e-5) << gamma;
  }
}

TEST_F(LossTest, NotANumberShows) {
  Values x = random_logits(40);
  x[17] = std::nan("");
  for (const LossSpec& spec : {only(CrossEntropy{}), only(Focal{})}) {
    const Result r = run(Loss(spec, 5), x, {0, 1, 2, 3, 4, 0, 1, 2}, 1, 5);
    EXPECT_TRUE(std::isnan(r.loss));
    EXPECT_TRUE(std::isnan(r.gradient[17]));
    EXPECT_FALSE(std::isnan(r.gradient[0]));
  }
}

TEST(LossSpec, UnlearntAreTheClassesThatNoTermCounts) {
  EXPECT_EQ(LossSpec{}.unlearnt(3), std::vector<int>{});
  EXPECT_EQ((LossSpec{.kind = Focal{.exclude = {0}}}.unlearnt(3)), std::vector<int>{0});
  EXPECT_EQ((LossSpec{.kind = CrossEntropy{.weights = {.values = {1, 0, 2}}}}.unlearnt(3)), std::vector<int>{1});
  const std::vector<LossTerm> both{{1, Dice{.exclude = {0, 2}}}, {.5, CrossEntropy{.exclude = {0, 1}}}};
  EXPECT_EQ((LossSpec{.kind = both}.unlearnt(3)), std::vector<int>{0});
  EXPECT_EQ((LossSpec{.kind = std::vector<LossTerm>{{1, Dice{.exclude = {0}}}, {0, CrossEntropy{}}}}.unlearnt(2)),
            std::vector<int>{0});
}

TEST_F(LossTest, RefusesWhatCannotBeLearned) {
  using ::testing::HasSubstr;
  const Reduction mean = Reduction::mean_pixels;
  CrossEntropy smooth;
  smooth.label_smoothing = 1;
  Dice none, beyond, inverse;
  none.exclude = {0, 1};
  beyond.exclude = {5};
  inverse.weights.inverse_frequency = true;
  EXPECT_THAT(message(only(focal({0, 1, 2})), 3), HasSubstr("focal.exclude: excludes all 3 classes"));
  EXPECT_THAT(message(only(focal({1}, mean, {0, 1})), 2), HasSubstr("loss.focal.alpha: is 0 for every"));
  EXPECT_THAT(message(only(none), 2), HasSubstr("dice.exclude: excludes all 2 classes"));
  EXPECT_THAT(message(only(beyond), 5), HasSubstr("class 5 is not one of 0..4"));
  EXPECT_THAT(message(only(focal({}, mean, {1, 1})), 5), HasSubstr("has 2 values; give one per class (5)"));
  EXPECT_THAT(message(only(smooth), 5), HasSubstr("label_smoothing"));
  EXPECT_THAT(message(only(inverse), 5), HasSubstr("inverse_frequency needs"));
  EXPECT_THAT(message(sum({}), 5), HasSubstr("has no terms"));
  EXPECT_THAT(message(only(Focal{}), 33), HasSubstr("takes 1 to 32 classes"));
  EXPECT_EQ(message(only(focal({0})), 5), "no error");
  EXPECT_THROW(run(Loss(only(Focal{}), 4), random_logits(5), {0}, 1, 5), TrainError);
}

}  // namespace
}  // namespace regolith::testing
