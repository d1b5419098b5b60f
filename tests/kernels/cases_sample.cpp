#include "kernels/sample.h"

#include "data/augment.h"
#include "tests/kernels/augment_oracle.h"

namespace regolith::testing {
namespace {

using kernels::Augment;

struct Sample {
  const char* name;
  int N, H, W, C;
  Augment augment{};
  Values order = {0, 2, 5, 4, 1, 7, 3};  // twice the row, and whether it is augmented
  int64_t step = 0;
  int first = 0, batch = 0;  // 0: N
  bool wrap = true, masks = true;
  float divisor = 255, offset = 0;
  bool staged = false;  // the rows of this step alone, and whom they are mixed with
};
constexpr int kRows = 4;

TestCase make_case(const Sample& k) {
  return {.name = std::string("sample_") + k.name,
          .make =
              [k](Fixture& fixture) {
                const int batch = k.batch > 0 ? k.batch : k.N, entries = static_cast<int>(k.order.size());
                const int steps = (entries + batch - 1) / batch;
                Buffer& images = fixture.input("images", {kRows, k.H, k.W, k.C}, integers(0, 255), DType::u8);
                Buffer& masks = fixture.input("masks", {kRows, k.H, k.W, 1}, integers(0, 4), DType::u8);
                Buffer& order = fixture.input("order", {1, 1, entries, 1}, k.order, DType::i32);
                Buffer& step = fixture.input("step", {}, Values{static_cast<double>(k.step)}, DType::i64);
                Buffer& x = fixture.output("x", {k.N, k.H, k.W, k.C});
                Buffer& labels = fixture.output("labels", {k.N, k.H, k.W, 1}, DType::u8);
                const Values paste{1, 3}, partners{3, 0, 1, 2, 0, 1, 2, 3, 3, 1, 0, 2, 1, 3};
                Buffer& paste_rows = fixture.input("paste_rows", {1, 1, 2, 1}, paste, DType::i32);
                Buffer& staged = fixture.input("partners", {1, 1, 14, 1}, partners, DType::i32);
                const kernels::SampleBatch args{.images = images.as<uint8_t>(),
                                                .masks = k.masks ? masks.as<uint8_t>() : nullptr,
                                                .order = order.as<int32_t>(),
                                                .entries = entries,
                                                .step = step.as<int64_t>(),
                                                .steps_per_epoch = steps,
                                                .batch = batch,
                                                .first = k.first,
                                                .wrap = k.wrap,
                                                .staged = k.staged,
                                                .seed = 77,
                                                .augment = k.augment,
                                                .paste_rows = paste_rows.as<int32_t>(),
                                                .paste_count = 2,
                                                .partners = k.staged ? staged.as<int32_t>() : nullptr,
                                                .divisor = k.divisor,
                                                .offset = k.offset,
                                                .x = x.map(),
                                                .labels = labels.as<uint8_t>()};
                const auto check = [=, &images, &masks, &x, &labels, &fixture] {
                  Values want_x(x.map().elements(), 0), want_labels(labels.map().elements(), kernels::kAbsentClass);
                  const Values got_x = x.read(), got_labels = labels.read();
                  const int pixels = k.H * k.W;
                  const Augment& a = k.augment;
                  int doubtful = 0;
                  for (int n = 0; n < k.N; ++n) {
                    const int slot = k.first + n, position = static_cast<int>(k.step % steps) * batch + slot;
                    const int at = k.staged ? slot : position;
                    if (at >= entries && !k.wrap) continue;
                    const int entry = static_cast<int>(k.order[at % entries]);
                    const kernels::SampleKey key{77, static_cast<uint32_t>(k.step / steps),
                                                 static_cast<uint32_t>(position)};
                    kernels::AugmentDraw draw;
                    if (entry % 2 == 1) draw = draw_augment(a, k.H, k.W, key);
                    const auto& partner = draw.partners;
                    const int rows[] = {
                        entry / 2,
                        k.staged ? static_cast<int>(partners[2 * slot])
                                 : static_cast<int>(k.order[kernels::chosen(partner.cutmix_word, entries)]) / 2,
                        static_cast<int>(k.staged ? partners[2 * slot + 1]
                                                  : paste[kernels::chosen(partner.paste_word, 2)])};
                    Stored pictures[3];
                    for (int i = 0; i < 3; ++i)
                      pictures[i] = {images.values().data() + int64_t{rows[i]} * pixels * k.C,
                                     k.masks ? masks.values().data() + int64_t{rows[i]} * pixels : nullptr};
                    const Augmented want = augmented(a, draw, key, pictures, k.H, k.W, k.C);
                    for (int i = 0; i < pixels; ++i) {
                      const int64_t to = int64_t{n} * pixels + i;
                      doubtful += want.doubtful[i] > 0;
                      want_labels[to] = want.doubtful[i] > 0 ? got_labels[to] : want.labels[i];
                      for (int c = 0; c < k.C; ++c)
                        want_x[to * k.C + c] =
                            want.doubtful[i] == 2
                                ? got_x[to * k.C + c]
                                : round_to(fixture.dtype(), (want.grey[i * k.C + c] - k.offset) / k.divisor);
                    }
                  }
                  if (doubtful > 0.05 * k.N * pixels) throw Mismatch("too many pixels are left to the kernel");
                  // Coordinates of up to a few hundred in fp32, times the largest step between neighbours.
                  const bool moves =
                      a.rotation.high + a.zoom.high + a.translation.width + a.shear.width > 0 || a.crop.on;
                  const bool tones = a.brightness.high + a.contrast.high > 0 || a.gamma.high > 1 || a.noise.on ||
                                     a.blur.on || a.cutout.on;
                  const double coordinates = 255 / k.divisor * (a.elastic.on ? 1e-4 : moves ? 4e-5 : tones ? 4e-6 : 0);
                  const double rounding = fixture.dtype() == DType::f32    ? 2e-7
                                          : fixture.dtype() == DType::bf16 ? 8e-3
                                                                           : 1e-3;
                  x.expect(want_x, {coordinates + (coordinates > 0 ? rounding : 0), coordinates > 0 ? rounding : 0});
                  labels.expect(want_labels, kExact);
                };
                const int64_t pixels = int64_t{k.N} * k.H * k.W;
                return CaseRun{.run = [&fixture, args] { kernels::sample_batch(fixture.stream(), args); },
                               .check = check,
                               .bytes = pixels * (k.C + 2 + k.C * static_cast<int64_t>(size_of(fixture.dtype()))),
                               .flops = 4 * pixels * k.C};
              },
          .gradient = nullptr};
}

using enum kernels::Fill;
using kernels::MaskFill;
const Augment kAll{
    .flip = kernels::Flip::horizontal, .zoom = {-0.1f, 0.3f}, .translation = {0.2f, 0.1f}, .rotation = {-0.1f, 0.1f}};
Augment filled(Augment a, kernels::Fill fill, MaskFill mask_fill) {
  a.fill = fill, a.mask_fill = mask_fill;
  a.fill_value = 31, a.mask_fill_value = 3;
  return a;
}

// Flips that nearly always come, and one operation more.
Augment with(const std::function<void(Augment&)>& change, Augment a = {.flip = kernels::Flip::horizontal}) {
  change(a);
  return a;
}
const Augment kTones = with([](Augment& a) {
  a.brightness = {-0.2f, 0.3f}, a.contrast = {-0.4f, 0.6f}, a.gamma = {1.1f, 2};
  a.probability.gamma = 0.7f;
});
const Augment kMixed = with(
    [](Augment& a) {
      a.cutmix = {true, {0.1f, 0.6f}, 0.8f};
      a.copy_paste = {true, 4, 0.8f};
    },
    kAll);
// Every operation there is.
const Augment kEverything = with(
    [](Augment& a) {
      a.shear = {0.1f, 0.2f};
      a.crop = {true, {0.5f, 1}, 0.7f};
      a.elastic = {true, 4, 2, 0.7f};
      a.brightness = {-0.2f, 0.3f}, a.contrast = {-0.4f, 0.6f}, a.gamma = {1, 1.5f};
      a.noise = {true, 0.1f, 0.7f};
      a.blur = {true, 1, 0.7f};
      a.cutout = {true, {0.05f, 0.3f}, -1, kernels::Cutout::MaskRule::ignore, 0.7f};
    },
    kMixed);

Augment massive() {
  Augment a = augment_of(kernels::AugmentPreset::massive);
  a.copy_paste.class_id = 4;
  return a;
}

TestCase large(TestCase c) {
  c.large = true;
  return c;
}

const Register cases_of_sample({
    make_case({"plain", 3, 8, 16, 1, {}, {0, 6, 4, 2}}),
    make_case({"plain_odd_width", 3, 5, 7, 1, {}, {0, 6, 4, 2}}),
    make_case({"colour_standardised", 3, 4, 5, 3, {}, {0, 6, 4, 2}, 0, 0, 0, true, true, 57.5f, 120.25f}),
    make_case({"second_step", 3, 5, 16, 1, {}, {0, 2, 4, 6, 2, 4}, 3}),
    make_case({"wraps", 4, 4, 16, 1, {}, {0, 2, 4, 6, 2, 4}, 1}),
    make_case({"absent", 4, 4, 16, 1, kAll, {0, 2, 4, 6, 2, 5}, 1, 0, 0, false}),
    make_case({"no_masks", 2, 4, 16, 1, kAll, {0, 3}, 0, 0, 0, true, false}),
    make_case({"slice_of_batch", 2, 6, 16, 1, kAll, {0, 3, 5, 7, 1, 2, 3}, 5, 1, 4}),
    make_case({"flip", 6, 4, 8, 2, {.flip = kernels::Flip::both}}),
    make_case({"reflect", 7, 12, 16, 1, kAll}),
    make_case({"nearest", 7, 12, 16, 2, filled(kAll, nearest, MaskFill::constant)}),
    make_case({"constant", 7, 12, 16, 1, filled(kAll, constant, MaskFill::nearest)}),
    make_case({"wrap_fill", 7, 12, 16, 1, filled(kAll, wrap, MaskFill::wrap)}),
    make_case({"mask_ignored", 7, 12, 16, 1, filled(kAll, reflect, MaskFill::ignore)}),
    make_case({"far_out", 7, 3, 5, 1, {.zoom = {3, 6}, .translation = {2, 2}, .rotation = {-0.5f, 0.5f}}}),
    make_case({"shear", 7, 12, 17, 1, with([](Augment& a) {
                 a.shear = {0.3f, 0.5f};
               })}),
    make_case({"crop", 7, 12, 16, 1, with([](Augment& a) {
                 a.crop = {true, {0.3f, 0.8f}, 0.8f};
               })}),
    make_case({"elastic", 7, 12, 37, 2, with([](Augment& a) {
                 a.elastic = {true, 6, 2, 0.8f};
               })}),
    make_case({"elastic_smooth", 7, 25, 16, 1, with([](Augment& a) {
                 a.elastic = {true, 20, 9, 1};
               })}),
    make_case({"tones", 7, 12, 16, 1, kTones}),
    make_case({"tones_colour", 7, 6, 7, 3, kTones}),
    make_case({"gamma", 7, 12, 16, 1, with([](Augment& a) {
                 a.gamma = {0.4f, 2.5f};
               })}),
    make_case({"noise", 7, 12, 16, 1, with([](Augment& a) {
                 a.noise = {true, 0.2f, 0.8f};
               })}),
    make_case({"noise_colour", 7, 3, 47, 3, with([](Augment& a) {
                 a.noise = {true, 0.2f, 0.8f};
               })}),
    make_case({"blur", 7, 12, 16, 1, with([](Augment& a) {
                 a.blur = {true, 1.5f, 0.8f};
               })}),
    make_case({"blur_small_map", 7, 3, 5, 2, with([](Augment& a) {
                 a.blur = {true, 3, 1};
               })}),
    make_case({"blur_in_tiles", 7, 5, 100, 4, with([](Augment& a) {
                 a.blur = {true, 1, 1};
               })}),
    make_case({"cutout", 7, 12, 16, 2, with([](Augment& a) {
                 a.cutout = {true, {0.1f, 0.5f}, 99};
               })}),
    make_case({"cutout_ignored", 7, 12, 16, 2, with([](Augment& a) {
                 a.cutout = {true, {0.1f, 0.5f}, -1, kernels::Cutout::MaskRule::ignore, 0.8f};
               })}),
    make_case({"mixed", 7, 12, 16, 1, kMixed}),
    make_case({"mixed_without_masks", 7, 6, 16, 1, kMixed, {1, 2, 5, 4, 1, 7, 3}, 0, 0, 0, true, false}),
    make_case({"mixed_staged", 3, 12, 16, 1, kMixed, {1, 3, 5}, 6, 0, 0, true, true, 255, 0, true}),
    make_case({"everything", 7, 24, 40, 1, kEverything, {1, 3, 5, 7, 1, 7, 3}}),
    make_case({"everything_colour", 5, 9, 21, 3, filled(kEverything, constant, MaskFill::ignore), {1, 3, 5, 7, 1}}),
    make_case({"everything_in_slices", 3, 20, 33, 1, kEverything, {1, 3, 5, 7, 1, 7, 3, 2}, 5, 1, 4}),
    large(make_case({"large", 8, 64, 128, 1, kAll, {1, 3, 5, 7, 1, 7, 3, 5}})),
    large(make_case({"large_plain", 8, 64, 128, 1, {}, {1, 3, 5, 7, 1, 7, 3, 5}})),
    large(make_case({"large_massive", 32, 64, 128, 1, massive(), Values(32, 3)})),
});

}  // namespace
}  // namespace regolith::testing
