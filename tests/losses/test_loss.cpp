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
    Values gradient, images;
  };
  // Of logits (N, 1, pixels, K), on the CPU.
  Result run(const LossFunction& loss, const Values& logits, const Values& mask, int N, int K, int64_t images = 0,
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
    Buffer& each = fixture.output("image_loss", {N, 1, 1, 1}, DType::f64);
    call.image_loss = each.as<double>();
    call.workspace = fixture.workspace(loss.workspace_bytes(N, 1, pixels));
    loss.forward_backward(fixture.stream(), call, images > 0 ? images : N, weight);
    fixture.stream().synchronize();
    return {total.read()[0], dx.read(), each.read()};
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
  CrossEntropy mined;
  mined.boundary = Boundary{2, 1};
  mined.hard = HardPixels{.4, .5};
  const Loss loss(sum({{1, smoothed},
                       {.5, Focal{.reduction = Reduction::mean_pixels}},
                       {2, Dice{}},
                       {1, mined},
                       {1, Tversky{}},
                       {3, LovaszSoftmax{.per_image = true}}}),
                  3);
  EXPECT_FALSE(loss.couples_images());
  const Values x = random_logits(3 * 5 * 3), mask = {0, 1, 2, 2, 1, 1, 1, 0, 0, 2, 2, 0, 1, 0, 2};
  const Result whole = run(loss, x, mask, 3, 3);
  double sum = 0;
  for (size_t n = 0; n < 3; ++n) {
    const Result one = run(loss, part(x, n * 15, 15), part(mask, n * 5, 5), 1, 3, 3);
    sum += one.loss;
    EXPECT_NEAR(one.images[0], whole.images[n], 1e-6 * whole.loss);
    expect_close("gradient", one.gradient, part(whole.gradient, n * 15, 15), {1e-8, 1e-6});
  }
  EXPECT_NEAR(sum, whole.loss, 1e-6 * whole.loss);
  EXPECT_NEAR((whole.images[0] + whole.images[1] + whole.images[2]) / 3, whole.loss, 1e-6 * whole.loss);
}

// Also where a term is of the batch as a whole.
TEST_F(LossTest, TheMeanOfTheImagesIsTheLoss) {
  const Loss loss(sum({{1, Focal{}}, {2, Dice{.sums = Dice::Sums::batch}}, {1, LovaszSoftmax{}}}), 3);
  EXPECT_TRUE(loss.couples_images());
  const Result r = run(loss, random_logits(2 * 5 * 3), {0, 1, 2, 2, 1, 1, 1, 0, 0, 2}, 2, 3);
  EXPECT_NEAR((r.images[0] + r.images[1]) / 2, r.loss, 1e-6 * r.loss);
  EXPECT_GT(std::abs(r.images[0] - r.images[1]), 1e-3 * r.loss);
}

// tests/golden/lovasz_softmax.py prints these.
TEST_F(LossTest, LovaszMatchesItsPaper) {
  const Values x = {1.5, -.25, .5, .125, 2, -1, -.5, .75, .25, 0, 1, -2, 2.5, .5, 1}, mask = {0, 1, 1, 0, 0};
  for (const bool per_image : {false, true}) {  // of one image
    const Result present = run(Loss(only(LovaszSoftmax{.per_image = per_image}), 3), x, mask, 1, 3);
    EXPECT_NEAR(present.loss, 0.4502833174470223, 1e-7);
    expect_close(
        "gradient of the classes that are present", present.gradient,
        {-0.037983653, 0.012185965, 0.025797688, 0.017656832, -0.023389167, 0.005732334, 0.013324875, -0.041533636,
         0.028208761, -0.062533805, 0.065143664, -0.002609859, -0.032374186, 0.012222572, 0.020151614},
        {1e-7, 1e-6});
    const Result all = run(Loss(only(LovaszSoftmax{.classes = LovaszSoftmax::Classes::all, .per_image = per_image}), 3),
                           x, mask, 1, 3);
    EXPECT_NEAR(all.loss, 0.40698924797355257, 1e-7);
    expect_close(
        "gradient of all classes", all.gradient,
        {-0.025322435, 0.008123977, 0.017198459, 0.011771222, -0.015592778, 0.003821556, -0.007280641, -0.084106613,
         0.091387253, -0.041689204, 0.04342911, -0.001739906, -0.021582791, 0.008148381, 0.013434409},
        {1e-7, 1e-6});
  }
}

TEST_F(LossTest, TverskyOfEqualErrorsIsDice) {
  const Values x = random_logits(2 * 6 * 3), mask = {0, 1, 2, 2, 1, 1, 1, 0, 0, 2, 0, 0};
  for (const auto sums : {OverlapSums::per_image, OverlapSums::batch}) {
    const Result dice = run(Loss(only(Dice{.smooth = 1, .sums = sums, .exclude = {1}}), 3), x, mask, 2, 3);
    const Tversky even{.alpha = .5, .beta = .5, .smooth = .5, .sums = sums, .exclude = {1}};
    const Result tversky = run(Loss(only(even), 3), x, mask, 2, 3);
    EXPECT_NEAR(tversky.loss, dice.loss, 1e-12);
    expect_close("gradient", tversky.gradient, dice.gradient, {1e-9, 1e-6});
  }
}

// One class of a pixel each, worked out by hand: p = 3/4 where it is right, 1/4 where it is wrong.
TEST_F(LossTest, TverskyWeighsMissesAndFalseAlarms) {
  const Tversky t{.alpha = .25, .beta = .75, .gamma = 2, .smooth = 0, .exclude = {0}};
  const double a = std::log(3.);  // class 1: I = 3/4, P = 1, T = 1, so that FP = FN = 1/4, and the index is 3/4
  EXPECT_NEAR(run(Loss(only(t), 2), {0, a, a, 0}, {1, 0}, 1, 2).loss, std::sqrt(.25), 1e-6);
  // The truth reversed: I = 1/4, FP = 3/4 and FN = 3/4: the index is 1/4.
  EXPECT_NEAR(run(Loss(only(t), 2), {0, a, a, 0}, {0, 1}, 1, 2).loss, std::sqrt(.75), 1e-6);
  // Both of class 1: I = 1, FP = 0, FN = 1: 1 / (1 + 3/4).
  EXPECT_NEAR(run(Loss(only(t), 2), {0, a, a, 0}, {1, 1}, 1, 2).loss, std::sqrt(3. / 7), 1e-6);
}

TEST_F(LossTest, HardPixelsHaveTheirOwnDivisor) {
  const Values mask = {0, 0, 0, 0, 1, 1, 1, 1};
  const double a = std::log(3.), b = std::log(9.);  // p of the truth: 3/4 or 1/4; 9/10 or 1/10
  const Values x = {a, 0, 0, a, b, 0, 0, b, /**/ 0, b, a, 0, 0, b, 0, a};
  const auto of = [&](HardPixels hard, Reduction reduction = Reduction::mean_pixels) {
    CrossEntropy ce;
    ce.hard = hard;
    ce.reduction = reduction;
    return run(Loss(only(ce), 2), x, mask, 2, 2);
  };
  const Result half = of({.5, 0});  // 1/4 and 1/10 of the first image, 1/4 of the second
  const double first = -(std::log(.25) + std::log(.1)) / 2, second = -std::log(.25);
  EXPECT_NEAR(half.images[0], first, 1e-6);
  EXPECT_NEAR(half.images[1], second, 1e-6);
  EXPECT_NEAR(half.loss, (first + second) / 2, 1e-6);
  for (const size_t easy : {0, 1, 4, 5, 8, 9}) EXPECT_EQ(half.gradient[easy], 0) << easy;
  EXPECT_NEAR(half.gradient[2], -.75 / 4, 1e-6);  // (p - 1) / (2 images x 2 kept)
  const Result two = of({.1f, .5});               // no pixel is below: of each image the two lowest
  EXPECT_NEAR(two.images[0], first, 1e-6);
  EXPECT_NEAR(two.images[1], -(std::log(.25) + std::log(.75)) / 2, 1e-6);
  EXPECT_NEAR(of({.5, 0}, Reduction::sum_per_image).loss, (2 * first + second) / 2, 1e-6);
  EXPECT_NEAR(of({1, 1}).loss, run(Loss(only(CrossEntropy{}), 2), x, mask, 2, 2).loss, 1e-6);
}

TEST_F(LossTest, BoundariesWeighMore) {
  CrossEntropy ce;
  ce.boundary = Boundary{3, 2};
  ce.reduction = Reduction::sum_per_image;
  const Values x(2 * 12, 0.);  // each pixel costs log 2
  const double one = std::exp(-1. / 8), two = std::exp(-4. / 8), three = std::exp(-9. / 8);
  EXPECT_NEAR(run(Loss(only(ce), 2), x, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1, 2).loss, 12 * std::log(2.), 1e-5);
  double sum = 0;  // d is 9, 8, ... 1 and then 1, 2, 3; from 8 pixels, 4 sigma, on the weight is 1
  for (int d = 1; d <= 8; ++d) sum += std::exp(-d * d / 8.);
  EXPECT_NEAR(run(Loss(only(ce), 2), x, {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1}, 1, 2).loss,
              (12 + 3 * (sum + one + two + three)) * std::log(2.), 1e-5);
}

TEST_F(LossTest, HeadsHaveLossesOfTheirOwn) {
  LossSpec spec = only(Focal{.exclude = {0}});
  spec.ignore = 2;
  EXPECT_FALSE(spec.couples_images() || spec.needs_frequencies());
  Dice rare{.sums = Dice::Sums::batch};
  rare.weights.inverse_frequency = true;
  spec.heads["deep"] = {rare};
  spec.heads["wide"] = {LovaszSoftmax{.per_image = true}};
  EXPECT_TRUE(spec.couples_images() && spec.needs_frequencies());
  EXPECT_EQ(spec.unlearnt(3), std::vector<int>{0}) << "of the output";
  const std::vector<double> shares{.5, .25, .25};
  const Loss loss(spec, 3, shares);
  EXPECT_TRUE(loss.couples_images());
  const Values x = random_logits(2 * 5 * 3), mask = {0, 1, 2, 2, 1, 1, 1, 0, 0, 2};
  const auto expect_as = [&](const LossFunction& head, AnyLoss<> alone) {
    LossSpec other;
    other.ignore = 2;
    std::visit([&](auto& kind) { other.kind = kind; }, alone);
    const Result a = run(head, x, mask, 2, 3), b = run(Loss(other, 3, shares), x, mask, 2, 3);
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_EQ(a.gradient, b.gradient);
  };
  expect_as(loss.of_head("deep"), std::get<Dice>(spec.heads["deep"].kind));
  expect_as(loss.of_head("wide"), LovaszSoftmax{.per_image = true});
  expect_as(loss.of_head("another"), Focal{.exclude = {0}});
  EXPECT_GE(loss.workspace_bytes(2, 1, 5), loss.of_head("wide").workspace_bytes(2, 1, 5));
  spec.heads["wide"] = {LovaszSoftmax{.exclude = {5}}};
  EXPECT_THAT(message(spec, 3, shares), ::testing::HasSubstr("loss.heads.wide.lovasz.exclude: class 5 is not one of"));
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
  CrossEntropy mined;
  mined.hard = HardPixels{};
  for (const LossSpec& spec :
       {only(CrossEntropy{}), only(Focal{}), only(mined), only(LovaszSoftmax{}), only(Tversky{})}) {
    const Result r = run(Loss(spec, 5), x, {0, 1, 2, 3, 4, 0, 1, 2}, 1, 5);
    EXPECT_TRUE(std::isnan(r.loss));
    EXPECT_TRUE(std::isnan(r.gradient[17]));
    if (!std::holds_alternative<Tversky>(spec.kind)) {  // whose sums are of all pixels
      EXPECT_FALSE(std::isnan(r.gradient[0]));
    }
  }
}

TEST(LossSpec, UnlearntAreTheClassesThatNoTermCounts) {
  EXPECT_EQ(LossSpec{}.unlearnt(3), std::vector<int>{});
  EXPECT_EQ((LossSpec{.kind = Focal{.exclude = {0}}}.unlearnt(3)), std::vector<int>{0});
  EXPECT_EQ((LossSpec{.kind = CrossEntropy{.weights = {.values = {1, 0, 2}}}}.unlearnt(3)), std::vector<int>{1});
  const std::vector<LossTerm> both{{1, Dice{.exclude = {0, 2}}}, {.5, CrossEntropy{.exclude = {0, 1}}}};
  EXPECT_EQ((LossSpec{.kind = both}.unlearnt(3)), std::vector<int>{0});
  EXPECT_EQ((LossSpec{.kind = LovaszSoftmax{.exclude = {1}}}.unlearnt(3)), std::vector<int>{1});
  EXPECT_EQ((LossSpec{.kind = Tversky{.weights = {.values = {0, 1, 1}}}}.unlearnt(3)), std::vector<int>{0});
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
  EXPECT_THAT(message(sum({}), 5), HasSubstr("has no terms; name one of cross_entropy, focal, dice, tversky, lovasz"));
  EXPECT_THAT(message(only(Tversky{.alpha = 0, .beta = 0}), 5), HasSubstr("tversky.alpha: and beta must be"));
  EXPECT_THAT(message(only(LovaszSoftmax{.exclude = {0, 1}}), 2), HasSubstr("lovasz.exclude: excludes all 2 classes"));
  EXPECT_THAT(message(sum({{1, LovaszSoftmax{}}, {1, LovaszSoftmax{}}}), 2),
              HasSubstr("loss.combined.1.lovasz: is one too many: there can be one"));
  EXPECT_THAT(message(sum({{1, Dice{}}, {1, Tversky{}}, {1, Dice{}}, {1, Dice{}}, {1, Tversky{}}}), 2),
              HasSubstr("loss.combined.4.tversky: is one too many: there can be 4 Dice and Tversky terms"));
  CrossEntropy nothing;
  nothing.hard = HardPixels{0, 0};
  EXPECT_THAT(message(only(nothing), 5), HasSubstr("loss.cross_entropy.hard: needs threshold"));
  EXPECT_THAT(message(only(Focal{}), 33), HasSubstr("takes 1 to 32 classes"));
  EXPECT_EQ(message(only(focal({0})), 5), "no error");
  EXPECT_THROW(run(Loss(only(Focal{}), 4), random_logits(5), {0}, 1, 5), TrainError);
}

}  // namespace
}  // namespace regolith::testing
