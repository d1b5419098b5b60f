#include "kernels/softmax_loss.h"
#include "tests/kernels/loss_oracle.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

using kernels::LossTerms;

LossTerms::Pixel cross_entropy(std::initializer_list<float> weights, float smoothing = 0) {
  LossTerms::Pixel t{.kind = LossTerms::Kind::cross_entropy, .gamma = 0, .smoothing = smoothing};
  std::copy(weights.begin(), weights.end(), t.class_weight);
  return t;
}
LossTerms::Pixel focal(std::initializer_list<float> weights, float gamma = 2) {
  LossTerms::Pixel t{.kind = LossTerms::Kind::focal, .gamma = gamma};
  std::copy(weights.begin(), weights.end(), t.class_weight);
  return t;
}
LossTerms::Dice dice(std::initializer_list<float> weights, bool per_image, float smooth = 1) {
  LossTerms::Dice t{.per_image = per_image, .smooth = smooth};
  std::copy(weights.begin(), weights.end(), t.class_weight);
  return t;
}
LossTerms terms(std::initializer_list<LossTerms::Pixel> pixel, std::initializer_list<LossTerms::Dice> dice = {},
                int ignore = -1) {
  LossTerms t;
  t.pixel_terms = static_cast<int>(pixel.size());
  t.dice_terms = static_cast<int>(dice.size());
  t.ignore = ignore;
  std::copy(pixel.begin(), pixel.end(), t.pixel);
  std::copy(dice.begin(), dice.end(), t.dice);
  return t;
}

struct Config {
  const char* name;
  Layout x;
  LossTerms terms;
  bool gradient = true, accumulate = false, mask = true;
  float loss_scale = 0;  // 0: none given
  bool large = false;
};

// Mostly moderate logits, some that saturate the softmax (focal's clip), some ties.
double logit(Random& r) {
  const int kind = r.integer(0, 19);
  return kind == 0 ? 40 * r.normal() : kind < 4 ? r.integer(-2, 2) : 2 * r.normal();
}

Values draw_mask(Random& r, const Config& k) {
  Values mask(static_cast<size_t>(k.x.N) * k.x.H * k.x.W);
  for (double& m : mask) m = r.integer(0, 9) == 0 && k.terms.ignore >= 0 ? k.terms.ignore : r.integer(0, k.x.C - 1);
  return mask;
}

CaseRun make(Fixture& fixture, const Config& k) {
  const int K = k.x.C;
  const Layout pixels{k.x.N, k.x.H, k.x.W, 1};
  Buffer& x = fixture.input("logits", k.x, logit);
  const Values truth = k.mask ? draw_mask(fixture.random(), k) : Values(pixels.size(), K);
  Buffer* mask = k.mask ? &fixture.input("mask", pixels, truth, DType::u8) : nullptr;
  Buffer* dx = k.gradient ? &fixture.output("dlogits", k.x) : nullptr;
  Buffer& loss =
      k.accumulate ? fixture.inout("loss", {}, constant(3), DType::f64) : fixture.output("loss", {}, DType::f64);
  Buffer& confusion = fixture.inout("confusion", {1, 1, K, K}, integers(0, 5), DType::i64);
  Buffer& prediction = fixture.output("prediction", pixels, DType::u8);
  Buffer* scale = k.loss_scale > 0 ? &fixture.input("loss_scale", {}, constant(k.loss_scale), DType::f32) : nullptr;
  const kernels::SoftmaxLoss args{
      .logits = x.map(),
      .mask = mask ? mask->as<uint8_t>() : nullptr,
      .terms = k.terms,
      .dlogits = dx ? dx->map() : TensorView{},
      .loss_scale = scale ? scale->as<float>() : nullptr,
      .loss = loss.as<double>(),
      .accumulate_loss = k.accumulate,
      .confusion = confusion.as<int64_t>(),
      .prediction = prediction.as<uint8_t>(),
      .workspace = fixture.workspace(kernels::softmax_loss_workspace(k.x.N, k.x.H, k.x.W, K, k.terms)),
  };
  const int64_t elements = static_cast<int64_t>(k.x.size()), element = static_cast<int64_t>(size_of(fixture.dtype()));
  const int64_t passes = 1 + k.gradient + (k.terms.dice_terms > 0);
  return {.run = [&fixture, args] { kernels::softmax_loss(fixture.stream(), args); },
          .check =
              [=, t = fixture.dtype(), &x, &loss, &confusion, &prediction] {
                LossOracle o = loss_oracle(x.values(), truth, k.x.N, k.x.H * k.x.W, K, k.terms);
                prediction.expect(o.prediction, kExact);
                for (size_t i = 0; i < o.confusion.size(); ++i) o.confusion[i] += confusion.values()[i];
                confusion.expect(o.confusion, kExact);
                loss.expect({o.loss + (k.accumulate ? 3 : 0)}, {1e-7 * static_cast<double>(elements), 4e-6});
                if (dx == nullptr) return;
                const double factor = k.loss_scale > 0 ? k.loss_scale : 1;
                for (double& g : o.gradient) g *= factor;
                dx->expect(o.gradient, tolerance(t, 16, 4 * factor));
              },
          .bytes = elements * element * passes + 2 * static_cast<int64_t>(pixels.size()),
          .flops = elements * (40 + 30 * (passes - 1))};
}

// Of the oracle: the derivative by each logit, away from focal's clip.
void check_gradient(const Config& k, uint64_t seed) {
  Random random(seed);
  Values x(k.x.size());
  for (double& v : x) v = 2 * random.normal();
  const Values mask = draw_mask(random, k);
  const auto of = [&](const Values& point) { return loss_oracle(point, mask, k.x.N, k.x.H * k.x.W, k.x.C, k.terms); };
  expect_gradient(
      "dlogits", [&](const Values& point) { return of(point).loss; }, x, of(x).gradient, 1e-5, 1e-6);
}

TestCase make_case(const Config& k) {
  TestCase c;
  c.name = std::string("softmax_loss_") + k.name;
  c.make = [k](Fixture& fixture) { return make(fixture, k); };
  if (k.gradient && !k.large) c.gradient = [k](uint64_t seed) { check_gradient(k, seed); };
  c.large = k.large;
  return c;
}

const auto kStudy = terms({focal({0, .25f, .25f, .25f, .25f})});
const auto kEverything = terms({cross_entropy({.5f, 1, 2, 0}, .1f), focal({1, .25f, 0, 2}, 1.5f)},
                               {dice({0, 1, .5f, 2}, true), dice({1, .25f, 1, 1}, false, .5f)}, 255);

const Register cases_of_softmax_loss({
    make_case({"cross_entropy", {2, 9, 13, 5}, terms({cross_entropy({1, 1, 1, 1, 1})})}),
    make_case({"smoothed_slices", {2, 5, 7, 3, 1, 2}, terms({cross_entropy({1, .5f, 2}, .1f)}, {}, 255)}),
    make_case({"focal", {2, 16, 20, 5}, kStudy}),
    make_case({"focal_scaled",
               {1, 7, 9, 4},
               terms({focal({.5f, 1, 0, 2}, 1.5f), focal({1, 1, 1, 1}, 0)}),
               true,
               false,
               true,
               128}),
    make_case({"dice_per_image", {2, 33, 40, 5}, terms({}, {dice({20, 0, 5, 5, 1}, true)}, 4)}),
    make_case({"dice_batch", {3, 9, 8, 2}, terms({}, {dice({20, 10}, false, 0)}), true, true}),
    make_case({"combined", {2, 6, 24, 4}, kEverything, true, true, true, 4}),
    make_case({"combined_evaluation", {2, 6, 24, 4, 4, 4}, kEverything, false}),
    make_case({"most_classes", {1, 3, 11, 32}, terms({cross_entropy({1, 1, 1, 1, 1, 1, 1})})}),
    make_case({"no_mask", {2, 3, 5, 5}, kStudy, true, false, false}),
    make_case({"one_pixel", {1, 1, 1, 2}, terms({cross_entropy({1, 1})}, {dice({1, 1}, true)})}),
    make_case({"study_batch", {32, 64, 128, 5}, kStudy, true, false, true, 0, true}),
    make_case({"study_batch_dice",
               {32, 64, 128, 5},
               terms({}, {dice({0, 50, 50, 50, 50}, true)}),
               true,
               false,
               true,
               0,
               true}),
});

}  // namespace
}  // namespace regolith::testing
