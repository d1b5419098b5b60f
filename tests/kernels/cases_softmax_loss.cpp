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
LossTerms::Dice tversky(std::initializer_list<float> weights, bool per_image, float alpha, float beta, float power = 1,
                        float smooth = 1) {
  LossTerms::Dice t = dice(weights, per_image, smooth);
  t.tversky = true;
  t.alpha = alpha;
  t.beta = beta;
  t.power = power;
  return t;
}
LossTerms::Pixel near_boundaries(LossTerms::Pixel t, float weight, float sigma) {
  t.boundary_weight = weight;
  t.boundary_sigma = sigma;
  return t;
}
LossTerms::Pixel hard(LossTerms::Pixel t, float threshold, float share, bool mean = true) {
  t.hard_threshold = threshold;
  t.hard_share = share;
  t.hard_mean = mean;
  return t;
}
LossTerms lovasz(LossTerms t, std::initializer_list<float> weights, bool per_image, bool present = true) {
  t.has_lovasz = true;
  t.lovasz = {.per_image = per_image, .present = present};
  std::copy(weights.begin(), weights.end(), t.lovasz.class_weight);
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
  int patch = 1;  // side of the squares of one class that a mask is made of
};

// Mostly moderate logits, some that saturate the softmax (focal's clip), some ties.
double logit(Random& r) {
  const int kind = r.integer(0, 19);
  return kind == 0 ? 40 * r.normal() : kind < 4 ? r.integer(-2, 2) : 2 * r.normal();
}

Values draw_mask(Random& r, const Config& k) {
  Values mask(static_cast<size_t>(k.x.N) * k.x.H * k.x.W);
  for (double& m : mask) m = r.integer(0, 9) == 0 && k.terms.ignore >= 0 ? k.terms.ignore : r.integer(0, k.x.C - 1);
  const auto at = [&](int n, int y, int x) -> double& {
    return mask[(static_cast<size_t>(n) * k.x.H + y) * k.x.W + x];
  };
  for (int n = 0; n < k.x.N; ++n)
    for (int y = 0; y < k.x.H; ++y)
      for (int x = 0; x < k.x.W; ++x) at(n, y, x) = at(n, y / k.patch * k.patch, x / k.patch * k.patch);
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
  Buffer& images = k.accumulate ? fixture.inout("image_loss", {k.x.N, 1, 1, 1}, constant(5), DType::f64)
                                : fixture.output("image_loss", {k.x.N, 1, 1, 1}, DType::f64);
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
      .image_loss = images.as<double>(),
      .image_factor = 2,
      .accumulate_image_loss = k.accumulate,
      .confusion = confusion.as<int64_t>(),
      .prediction = prediction.as<uint8_t>(),
      .workspace = fixture.workspace(kernels::softmax_loss_workspace(k.x.N, k.x.H, k.x.W, K, k.terms)),
  };
  const int64_t elements = static_cast<int64_t>(k.x.size()), element = static_cast<int64_t>(size_of(fixture.dtype()));
  const int64_t passes = 1 + k.gradient + (k.terms.dice_terms > 0) + k.terms.has_lovasz;
  return {.run = [&fixture, args] { kernels::softmax_loss(fixture.stream(), args); },
          .check =
              [=, t = fixture.dtype(), &x, &loss, &images, &confusion, &prediction] {
                LossOracle o = loss_oracle(x.values(), truth, k.x.N, k.x.H * k.x.W, K, k.terms, k.x.W);
                prediction.expect(o.prediction, kExact);
                for (size_t i = 0; i < o.confusion.size(); ++i) o.confusion[i] += confusion.values()[i];
                confusion.expect(o.confusion, kExact);
                loss.expect({o.loss + (k.accumulate ? 3 : 0)}, {1e-7 * static_cast<double>(elements), 4e-6});
                for (double& image : o.images) image = 2 * image + (k.accumulate ? 5 : 0);
                images.expect(o.images, {2e-7 * static_cast<double>(elements), 4e-6});
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
  const auto of = [&](const Values& point) {
    return loss_oracle(point, mask, k.x.N, k.x.H * k.x.W, k.x.C, k.terms, k.x.W);
  };
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

const auto kOnes = cross_entropy({1, 1, 1, 1, 1});
const auto kAllKinds =
    lovasz(terms({near_boundaries(hard(cross_entropy({.5f, 1, 2, 0}, .1f), .4f, .2f), 3, 1.5f), focal({1, .25f, 0, 2})},
                 {tversky({1, 2, 0, 1}, false, .7f, .3f, .75f), dice({0, 1, .5f, 2}, true)}, 255),
           {2, 0, 2, 2}, false);

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
    make_case({"tversky_per_image", {2, 9, 13, 5}, terms({}, {tversky({20, 0, 5, 5, 1}, true, .3f, .7f)}, 4)}),
    make_case({"tversky_batch_focal", {3, 9, 8, 3}, terms({}, {tversky({9, 5, 7}, false, .6f, .9f, .75f, 0)})}),
    make_case({.name = "boundary",
               .x = {2, 13, 17, 4},
               .terms = terms({near_boundaries(kOnes, 10, 2)}, {}, 255),
               .patch = 5}),
    make_case({.name = "boundary_far",
               .x = {1, 40, 70, 3},
               .terms = terms({near_boundaries(kOnes, 4, 9)}, {}, 255),
               .patch = 29}),
    make_case({.name = "boundary_of_one_class",
               .x = {2, 3, 21, 2},
               .terms = terms({near_boundaries(kOnes, 10, 60)}),
               .patch = 30}),
    make_case({"hard", {3, 9, 13, 5}, terms({hard(cross_entropy({1, 2, 0, 1, 1}), .3f, 0)}, {}, 255)}),
    make_case(
        {"hard_least", {2, 16, 20, 4}, terms({hard(kOnes, 1e-6f, .3f), hard(focal({1, 1, 0, 1}), .2f, 1, false)})}),
    make_case({"lovasz", {2, 5, 7, 4}, lovasz(terms({}, {}, 255), {3, 3, 3, 3}, false)}),
    make_case({"lovasz_all_classes", {2, 3, 5, 32, 3, 1}, lovasz(terms({}), {0, 5, 5, 5, 0, 5, 5, 5}, false, false)}),
    make_case({.name = "lovasz_per_image",
               .x = {3, 6, 9, 3},
               .terms = lovasz(terms({}, {}, 1), {7, 0, 7}, true),
               .patch = 3}),
    make_case({.name = "lovasz_chunks",
               .x = {3, 40, 56, 2},
               .terms = lovasz(terms({kOnes}), {200, 200}, false),
               .loss_scale = 2}),
    make_case({"lovasz_one_pixel", {1, 1, 1, 2}, lovasz(terms({}), {1, 1}, true)}),
    make_case({"lovasz_evaluation", {2, 5, 7, 4}, lovasz(terms({}), {3, 3, 3, 3}, true), false}),
    make_case(
        {.name = "all_kinds", .x = {2, 6, 24, 4}, .terms = kAllKinds, .accumulate = true, .loss_scale = 4, .patch = 2}),
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
