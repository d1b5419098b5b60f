// The augmentation against numbers worked out by hand; against an oracle it is a kernel case (cases_sample.cpp).
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/tensor/device.h"
#include "kernels/augment.h"
#include "kernels/sample.h"
#include "tests/kernels/augment_oracle.h"
#include "tests/support/fastest.h"

namespace regolith::kernels {
namespace {

// One row of four pixels, 10 20 30 40 with classes 1 2 3 4, zoomed out by exactly 2: read at -1.5, 0.5, 2.5 and 4.5.
struct Zoomed {
  std::vector<float> image;
  std::vector<uint8_t> labels;
};
Zoomed zoomed(Fill fill) {
  const auto device = make_cpu_device(1, Execution::checked);
  const auto stream = device->make_stream();
  const std::vector<uint8_t> image{10, 20, 30, 40}, mask{1, 2, 3, 4};
  const int32_t order = sample_index(0, true);
  Zoomed z{std::vector<float>(4), std::vector<uint8_t>(4)};
  SampleBatch k{.images = image.data(),
                .masks = mask.data(),
                .order = &order,
                .entries = 1,
                .step = nullptr,
                .steps_per_epoch = 1,
                .batch = 1,
                .augment = {.zoom = {1, 1}},
                .divisor = 1,
                .x = {z.image.data(), 1, 1, 4, 1, 1, DType::f32},
                .labels = z.labels.data()};
  k.augment.fill = fill;
  k.augment.mask_fill = static_cast<MaskFill>(fill);
  k.augment.fill_value = 100;
  sample_batch(*stream, k);
  return z;
}

TEST(Augment, FillsByHand) {
  EXPECT_EQ(zoomed(Fill::reflect).image, (std::vector<float>{15, 15, 35, 35}));
  EXPECT_EQ(zoomed(Fill::nearest).image, (std::vector<float>{10, 15, 35, 40}));
  EXPECT_EQ(zoomed(Fill::constant).image, (std::vector<float>{100, 15, 35, 100}));
  EXPECT_EQ(zoomed(Fill::wrap).image, (std::vector<float>{35, 15, 35, 15}));
  // Nearest, halves away from zero: pixels -2, 1, 3 and 5.
  EXPECT_EQ(zoomed(Fill::reflect).labels, (std::vector<uint8_t>{2, 2, 4, 3}));
  EXPECT_EQ(zoomed(Fill::nearest).labels, (std::vector<uint8_t>{1, 2, 4, 4}));
  EXPECT_EQ(zoomed(Fill::constant).labels, (std::vector<uint8_t>{0, 2, 4, 0}));
  EXPECT_EQ(zoomed(Fill::wrap).labels, (std::vector<uint8_t>{3, 2, 4, 2}));
}

TEST(Augment, QuarterTurnIsCounterClockwise) {
  const Affine a = affine_of({.turns = 0.25f}, 3, 3);
  // The output's top row (y = 0) was the input's right column (x = 2): its top-left pixel came from the top right.
  EXPECT_NEAR(a.xx * 0 + a.xy * 0 + a.x0, 2, 1e-6);
  EXPECT_NEAR(a.yx * 0 + a.yy * 0 + a.y0, 0, 1e-6);
  EXPECT_NEAR(a.xx * 2 + a.xy * 0 + a.x0, 2, 1e-6);
  EXPECT_NEAR(a.yx * 2 + a.yy * 0 + a.y0, 2, 1e-6);
}

TEST(Augment, ShiftMovesDownAndRight) {
  const Affine a = affine_of({.shift_y = 2, .shift_x = 3}, 8, 8);
  EXPECT_EQ(a.xx * 5 + a.x0, 2);
  EXPECT_EQ(a.yy * 5 + a.y0, 3);
}

TEST(Augment, DrawsFillTheirRanges) {
  const Augment a{.flip = Flip::both, .zoom = {-0.2f, 0.1f}, .translation = {0.25f, 0.5f}, .rotation = {-0.1f, 0.1f}};
  Moves low{.zoom = 9, .shift_y = 99, .shift_x = 99, .turns = 9},
      high{.zoom = -9, .shift_y = -99, .shift_x = -99, .turns = -9};
  int flips = 0, upside_down = 0;
  for (uint32_t i = 0; i < 4000; ++i) {
    const Moves d = draw_augment(a, 64, 128, {5, i / 16, i % 16}).moves;
    flips += d.flip_x;
    upside_down += d.flip_y;
    for (auto member : {&Moves::zoom, &Moves::shift_y, &Moves::shift_x, &Moves::turns}) {
      low.*member = std::min(low.*member, d.*member);
      high.*member = std::max(high.*member, d.*member);
    }
  }
  EXPECT_NEAR(flips, 2000, 150);
  EXPECT_NEAR(upside_down, 2000, 150);
  EXPECT_NEAR(low.zoom, 0.8, 0.001);
  EXPECT_NEAR(high.zoom, 1.1, 0.001);
  EXPECT_NEAR(low.shift_y, -16, 0.1);
  EXPECT_NEAR(high.shift_y, 16, 0.1);
  EXPECT_NEAR(low.shift_x, -64, 0.2);
  EXPECT_NEAR(high.shift_x, 64, 0.2);
  EXPECT_NEAR(low.turns, -0.1, 0.001);
  EXPECT_NEAR(high.turns, 0.1, 0.001);
  EXPECT_GE(low.zoom, 0.8f);
  EXPECT_LE(high.zoom, 1.1f);
}

// Each operation as often as its probability says, and with the same numbers whether the others are there or not.
TEST(Augment, OperationsKeepTheirNumbersAndProbabilities) {
  Augment all{.zoom = {-0.2f, 0.1f}, .brightness = {-0.3f, 0.3f}};
  all.probability = {.zoom = 0.25f, .brightness = 0.75f};
  all.elastic = {true, 8, 6, 0.1f};
  all.cutout = {true, {0.1f, 0.2f}, -1, Cutout::MaskRule::keep, 0.5f};
  all.cutmix = {true, {0.1f, 0.4f}, 0.3f};
  all.copy_paste = {true, 4, 0.9f};
  Augment zoom{.zoom = all.zoom};
  zoom.probability.zoom = all.probability.zoom;
  int zoomed = 0, bright = 0, elastic = 0, cut = 0, mixed = 0, pasted = 0;
  for (uint32_t i = 0; i < 4000; ++i) {
    const SampleKey key{5, i / 16, i % 16};
    const AugmentDraw d = draw_augment(all, 64, 128, key);
    zoomed += d.moves.zoom != 1, bright += d.brightness != 0, elastic += d.elastic, cut += d.cutout;
    mixed += d.partners.cutmix, pasted += d.partners.paste;
    EXPECT_EQ(draw_augment(zoom, 64, 128, key).moves.zoom, d.moves.zoom);
    const PartnerDraw partners = draw_partners(all, key);
    EXPECT_EQ(partners.cutmix_word, d.partners.cutmix_word);
    EXPECT_EQ(partners.paste_word, d.partners.paste_word);
  }
  EXPECT_NEAR(zoomed, 1000, 120);
  EXPECT_NEAR(bright, 3000, 120);
  EXPECT_NEAR(elastic, 400, 90);
  EXPECT_NEAR(cut, 2000, 130);
  EXPECT_NEAR(mixed, 1200, 120);
  EXPECT_NEAR(pasted, 3600, 90);
}

TEST(Augment, ElasticFieldHasItsDeviation) {
  const Elastic e{.on = true, .alpha = 10, .sigma = 4};
  double sum = 0, squares = 0;
  int n = 0;
  for (uint32_t i = 0; i < 20; ++i) {
    for (int y = 0; y < 64; y += 3) {
      for (int x = 0; x < 64; x += 3, n += 2) {
        const testing::Place d = testing::displacement(e, {5, 0, i}, x, y, 64);
        sum += d.x + d.y, squares += d.x * d.x + d.y * d.y;
      }
    }
  }
  EXPECT_NEAR(sum / n, 0, 0.1);
  EXPECT_NEAR(std::sqrt(squares / n), 0.2821 * 10, 0.1);
}

// The pictures of an epoch, whatever the batch, the slice, the threads and the place where they are made.
TEST(Augment, BatchesSlicesAndThreadsChangeNothing) {
  constexpr int kRows = 6, kH = 24, kW = 40;
  std::vector<uint8_t> images(kRows * kH * kW), masks(images.size());
  for (size_t i = 0; i < images.size(); ++i) {
    const Philox r = philox(3, static_cast<uint32_t>(i), 0, 0, 0);
    images[i] = static_cast<uint8_t>(r.v[0] >> 24), masks[i] = static_cast<uint8_t>(r.v[1] % 5);
  }
  Augment a{.flip = Flip::both, .zoom = {-0.2f, 0.2f}, .rotation = {-0.1f, 0.1f}, .contrast = {-0.3f, 0.3f}};
  a.elastic = {true, 6, 3, 0.5f};
  a.noise = {true, 0.1f, 0.5f};
  a.blur = {true, 1, 0.5f};
  a.cutout = {true, {0.1f, 0.3f}, -1, Cutout::MaskRule::ignore, 0.5f};
  a.cutmix = {true, {0.2f, 0.5f}, 0.5f};
  a.copy_paste = {true, 4, 0.5f};
  const std::vector<int32_t> order{1, 3, 5, 7, 9, 11, 1, 5, 4, 9, 3, 7}, paste{2, 4};
  struct Epoch {
    std::vector<float> x;
    std::vector<uint8_t> labels;
    bool operator==(const Epoch&) const = default;
  };
  const auto epoch = [&](int64_t number, int batch, int slice, int threads) {
    const auto device = make_cpu_device(threads, testing::kFastest);
    const auto stream = device->make_stream();
    Epoch e{std::vector<float>(order.size() * kH * kW), std::vector<uint8_t>(order.size() * kH * kW)};
    const int steps = static_cast<int>(order.size()) / batch;
    for (int s = 0; s < steps; ++s) {
      const int64_t step = number * steps + s;
      for (int first = 0; first < batch; first += slice) {
        const int at = (s * batch + first) * kH * kW;
        sample_batch(*stream, {.images = images.data(),
                               .masks = masks.data(),
                               .order = order.data(),
                               .entries = static_cast<int>(order.size()),
                               .step = &step,
                               .steps_per_epoch = steps,
                               .batch = batch,
                               .first = first,
                               .seed = 9,
                               .augment = a,
                               .paste_rows = paste.data(),
                               .paste_count = 2,
                               .x = {e.x.data() + at, slice, kH, kW, 1, 1, DType::f32},
                               .labels = e.labels.data() + at});
        stream->synchronize();
      }
    }
    return e;
  };
  const Epoch expected = epoch(2, 12, 12, 1);
  EXPECT_TRUE(expected == epoch(2, 12, 3, 1));
  EXPECT_TRUE(expected == epoch(2, 6, 6, 2));
  EXPECT_TRUE(expected == epoch(2, 4, 1, 3));
  EXPECT_TRUE(expected == epoch(2, 1, 1, 4));
  EXPECT_FALSE(expected == epoch(3, 12, 12, 1));
}

}  // namespace
}  // namespace regolith::kernels
