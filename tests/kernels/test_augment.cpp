// The augmentation against numbers worked out by hand; against an oracle it is a kernel case (cases_sample.cpp).
#include <gtest/gtest.h>

#include "engine/tensor/device.h"
#include "kernels/augment.h"

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
  k.augment.fill = k.augment.mask_fill = fill;
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
  const Affine a = affine_of({false, false, 1, 0, 0, 0.25f}, 3, 3);
  // The output's top row (y = 0) was the input's right column (x = 2): its top-left pixel came from the top right.
  EXPECT_NEAR(a.xx * 0 + a.xy * 0 + a.x0, 2, 1e-6);
  EXPECT_NEAR(a.yx * 0 + a.yy * 0 + a.y0, 0, 1e-6);
  EXPECT_NEAR(a.xx * 2 + a.xy * 0 + a.x0, 2, 1e-6);
  EXPECT_NEAR(a.yx * 2 + a.yy * 0 + a.y0, 2, 1e-6);
}

TEST(Augment, ShiftMovesDownAndRight) {
  const Affine a = affine_of({false, false, 1, 2, 3, 0}, 8, 8);
  EXPECT_EQ(a.xx * 5 + a.x0, 2);
  EXPECT_EQ(a.yy * 5 + a.y0, 3);
}

TEST(Augment, DrawsFillTheirRanges) {
  const Augment a{.flip = Flip::both, .zoom = {-0.2f, 0.1f}, .translation = {0.25f, 0.5f}, .rotation = {-0.1f, 0.1f}};
  AugmentDraw low{false, false, 9, 99, 99, 9}, high{false, false, -9, -99, -99, -9};
  int flips = 0, upside_down = 0;
  for (uint32_t i = 0; i < 4000; ++i) {
    const AugmentDraw d = draw_augment(a, 64, 128, 5, i / 16, i % 16);
    flips += d.flip_x;
    upside_down += d.flip_y;
    for (auto member : {&AugmentDraw::zoom, &AugmentDraw::shift_y, &AugmentDraw::shift_x, &AugmentDraw::turns}) {
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

}  // namespace
}  // namespace regolith::kernels
