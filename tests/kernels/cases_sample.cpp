#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/augment.h"
#include "kernels/sample.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

using kernels::Augment;
using kernels::AugmentDraw;

struct Sample {
  const char* name;
  int N, H, W, C;
  Augment augment{};
  Values order = {0, 2, 5, 4, 1, 7, 3};  // twice the row, and whether it is augmented
  int64_t step = 0;
  int first = 0, batch = 0;  // 0: N
  bool wrap = true, masks = true;
  float divisor = 255, offset = 0;
};
constexpr int kRows = 4;

int extended(int i, int n, kernels::Fill fill) {  // by walking, one pixel after the other
  if (i >= 0 && i < n) return i;
  if (fill == kernels::Fill::constant) return -1;
  if (fill == kernels::Fill::nearest) return std::clamp(i, 0, n - 1);
  if (fill == kernels::Fill::wrap) return extended(i < 0 ? i + n : i - n, n, fill);
  return extended(i < 0 ? -1 - i : 2 * n - 1 - i, n, fill);
}

struct Place {
  double x, y;
};
// The layers of Keras one after the other, from the output back to the input.
Place input_place(const AugmentDraw& d, double x, double y, int H, int W) {
  const double angle = 2 * std::numbers::pi * d.turns, c = std::cos(angle), s = std::sin(angle);
  const double rotated_x = c * x - s * y + ((W - 1) - (c * (W - 1) - s * (H - 1))) / 2;
  const double rotated_y = s * x + c * y + ((H - 1) - (s * (W - 1) + c * (H - 1))) / 2;
  const double moved_x = rotated_x - d.shift_x, moved_y = rotated_y - d.shift_y;
  const double zoomed_x = d.zoom * moved_x + (W - 1) / 2.0 * (1 - d.zoom);
  const double zoomed_y = d.zoom * moved_y + (H - 1) / 2.0 * (1 - d.zoom);
  return {d.flip_x ? W - 1 - zoomed_x : zoomed_x, d.flip_y ? H - 1 - zoomed_y : zoomed_y};
}

TestCase make_case(const Sample& k) {
  return {
      .name = std::string("sample_") + k.name,
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
            const kernels::SampleBatch args{.images = images.as<uint8_t>(),
                                            .masks = k.masks ? masks.as<uint8_t>() : nullptr,
                                            .order = order.as<int32_t>(),
                                            .entries = entries,
                                            .step = step.as<int64_t>(),
                                            .steps_per_epoch = steps,
                                            .batch = batch,
                                            .first = k.first,
                                            .wrap = k.wrap,
                                            .seed = 77,
                                            .augment = k.augment,
                                            .divisor = k.divisor,
                                            .offset = k.offset,
                                            .x = x.map(),
                                            .labels = labels.as<uint8_t>()};
            const auto check = [=, &images, &masks, &x, &labels, &fixture] {
              Values want_x(x.map().elements(), 0), want_labels(labels.map().elements(), kernels::kAbsentClass);
              Values got_labels = labels.read();
              for (int n = 0; n < k.N; ++n) {
                const int slot = k.first + n, at = static_cast<int>(k.step % steps) * batch + slot;
                if (at >= entries && !k.wrap) continue;
                const int entry = static_cast<int>(k.order[at % entries]), row = entry / 2;
                AugmentDraw draw{false, false, 1, 0, 0, 0};
                if (entry % 2 == 1) draw = draw_augment(k.augment, k.H, k.W, 77, k.step, slot);
                for (int y = 0; y < k.H; ++y) {
                  for (int px = 0; px < k.W; ++px) {
                    const Place from = input_place(draw, px, y, k.H, k.W);
                    const int left = static_cast<int>(std::floor(from.x)), top = static_cast<int>(std::floor(from.y));
                    const int64_t pixel = (int64_t{n} * k.H + y) * k.W + px;
                    for (int c = 0; c < k.C; ++c) {
                      double sum = 0;
                      for (int corner = 0; corner < 4; ++corner) {
                        const int dx = corner % 2, dy = corner / 2;
                        const int sx = extended(left + dx, k.W, k.augment.fill),
                                  sy = extended(top + dy, k.H, k.augment.fill);
                        const double weight = (1 - std::abs(from.x - left - dx)) * (1 - std::abs(from.y - top - dy));
                        const bool out = sx < 0 || sy < 0;
                        sum += weight * (out ? k.augment.fill_value
                                             : images.values()[((int64_t{row} * k.H + sy) * k.W + sx) * k.C + c]);
                      }
                      want_x[pixel * k.C + c] = round_to(fixture.dtype(), (sum - k.offset) / k.divisor);
                    }
                    if (!k.masks) continue;
                    const auto tie = [](double v) { return std::abs(v - std::floor(v) - 0.5) < 1e-3; };
                    const int sx = extended(static_cast<int>(std::round(from.x)), k.W, k.augment.mask_fill);
                    const int sy = extended(static_cast<int>(std::round(from.y)), k.H, k.augment.mask_fill);
                    const bool out = sx < 0 || sy < 0;
                    want_labels[pixel] =
                        out ? k.augment.mask_fill_value : masks.values()[(int64_t{row} * k.H + sy) * k.W + sx];
                    if (tie(from.x) || tie(from.y))
                      want_labels[pixel] = got_labels[pixel];  // fp32 may decide otherwise
                  }
                }
              }
              // Coordinates of up to a few hundred in fp32, times the largest step between neighbours.
              const double coordinates =
                  255 / k.divisor * 4e-5 *
                  (k.augment.rotation.high + k.augment.zoom.high + k.augment.translation.width > 0);
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
const Augment kAll{
    .flip = kernels::Flip::horizontal, .zoom = {-0.1f, 0.3f}, .translation = {0.2f, 0.1f}, .rotation = {-0.1f, 0.1f}};
Augment filled(Augment a, kernels::Fill fill, kernels::Fill mask_fill) {
  a.fill = fill, a.mask_fill = mask_fill;
  a.fill_value = 31, a.mask_fill_value = 3;
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
    make_case({"nearest", 7, 12, 16, 2, filled(kAll, nearest, constant)}),
    make_case({"constant", 7, 12, 16, 1, filled(kAll, constant, nearest)}),
    make_case({"wrap_fill", 7, 12, 16, 1, filled(kAll, wrap, wrap)}),
    make_case({"far_out", 7, 3, 5, 1, {.zoom = {3, 6}, .translation = {2, 2}, .rotation = {-0.5f, 0.5f}}}),
    large(make_case({"large", 8, 64, 128, 1, kAll})),
});

}  // namespace
}  // namespace regolith::testing
