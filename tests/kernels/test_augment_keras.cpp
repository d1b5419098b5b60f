// The augmentation against what Keras 3.15 made of the same picture with the same numbers
// (tests/golden/keras_augment.py).
#include <gtest/gtest.h>

#include "engine/tensor/device.h"
#include "kernels/augment.h"
#include "kernels/sample.h"
#include "tests/support/fastest.h"

namespace regolith::kernels {
namespace {

constexpr int kH = 5, kW = 6;

struct Vectors {
  const char* layer;
  std::vector<float> image;
  std::vector<uint8_t> mask;
};
const std::vector<Vectors> kVectors{
    {"flip",
     {204, 68, 210, 118, 48,  0,   202, 190, 200, 232, 30,  106, 224, 80,  214,
      114, 36, 236, 14,  250, 252, 20,  66,  134, 84,  188, 58,  206, 120, 56},
     {3, 1, 4, 2, 0, 0, 3, 3, 3, 4, 0, 2, 4, 1, 4, 2, 0, 4, 0, 4, 4, 0, 1, 2, 1, 3, 1, 3, 2, 1}},
    {"zoom",
     {0,        26.4,   107.5,    188.7, 129.2, 204,   74.20001, 52.86,    173.44, 195.56,
      175.54,   202.6,  236,      126,   102.3, 193.9, 144.8,    224,      110.6,  94.98,
      76.75999, 199.44, 143.0201, 35,    56,    91.2,  193.1,    77.50002, 141.2,  84},
     {0, 0, 2, 4, 1, 3, 2, 0, 4, 3, 3, 3, 4, 0, 2, 4, 1, 4, 2, 1, 0, 4, 4, 0, 1, 2, 3, 1, 3, 1}},
    {"translation",
     {0,        0,        9.850605, 62.36547, 136.8803, 180.8586, 26.38264, 26.38264, 29.89957, 64.62769,
      158.9204, 185.112,  138.3561, 138.3561, 116.4256, 66.61431, 202.8059, 195.0986, 210.6129, 210.6129,
      176.3111, 53.14034, 117.8685, 202.7006, 114.5864, 114.5864, 107.3736, 76.74235, 94.49567, 210.0466},
     {0, 0, 0, 0, 2, 4, 0, 0, 0, 0, 2, 4, 2, 2, 2, 0, 4, 3, 4, 4, 4, 0, 2, 4, 2, 2, 2, 1, 0, 4}},
    {"rotation",
     {118.4513, 157.0139, 197.8404, 134.5967, 192.6735, 165.583,  32.58633, 113.84,   210.3423, 186.0841,
      140.089,  195.972,  82.98708, 54.60907, 142.5424, 215.9939, 195.6682, 72.63935, 216.2334, 90.64539,
      51.90789, 140.5169, 176.6525, 153.5671, 103.2395, 107.4339, 104.6497, 189.6353, 126.1909, 92.75086},
     {2, 2, 4, 1, 3, 2, 0, 2, 4, 3, 1, 4, 2, 0, 2, 4, 4, 0, 4, 0, 0, 4, 1, 3, 0, 2, 2, 3, 1, 1}},
    {"shear",
     {0,        41.90347, 55.60019, 31,       31,       31,       87.21113, 74.69105, 164.311,  163.9788,
      70.93837, 57.94497, 137.1112, 94.40225, 201.2668, 190.8631, 169.5653, 118.252,  83.56672, 54.1058,
      189.2693, 120.5312, 192.0571, 76.35104, 119.2888, 138.8671, 195.7604, 237.2375, 106.0283, 32.66184},
     {0, 0, 31, 31, 31, 31, 2, 0, 2, 4, 1, 31, 4, 0, 4, 3, 3, 3, 1, 0, 4, 1, 4, 31, 2, 3, 4, 4, 0, 31}},
    {"brightness",
     {51,  99,  169, 255, 119, 255, 157, 81,  255, 251, 241, 253, 255, 87,  165,
      255, 131, 255, 185, 117, 71,  255, 255, 65,  107, 171, 255, 109, 239, 135},
     {0, 0, 2, 4, 1, 3, 2, 0, 4, 3, 3, 3, 4, 0, 2, 4, 1, 4, 2, 1, 0, 4, 4, 0, 1, 2, 3, 1, 3, 1}},
    {"contrast",
     {0,   6,  111, 249, 36, 240, 93,  0,   255, 234, 219, 237, 255, 0,   105,
      255, 54, 255, 135, 33, 0,   255, 255, 0,   18,  114, 243, 21,  216, 60},
     {0, 0, 2, 4, 1, 3, 2, 0, 4, 3, 3, 3, 4, 0, 2, 4, 1, 4, 2, 1, 0, 4, 4, 0, 1, 2, 3, 1, 3, 1}},
    {"erasing",
     {0,  48, 118, 210, 68, 204, 106, 30, 232, 200, 190, 202, 236, 36,  114,
      99, 99, 99,  134, 66, 20,  99,  99, 99,  56,  120, 206, 58,  188, 84},
     {0, 0, 2, 4, 1, 3, 2, 0, 4, 3, 3, 3, 4, 0, 2, 4, 1, 4, 2, 1, 0, 4, 4, 0, 1, 2, 3, 1, 3, 1}},
};

// The options that draw what the layer was given, with the seed that draws it.
struct Setting {
  Augment augment;
  uint64_t seed = 0;
};
Setting setting(const std::string& layer) {
  Setting s;
  Augment& a = s.augment;
  const auto fill = [&](Fill f) { a.fill = f, a.mask_fill = static_cast<MaskFill>(f); };
  if (layer == "flip") a.flip = Flip::horizontal, a.probability.flip = 1;
  if (layer == "zoom") a.zoom = {0.3f, 0.3f};
  if (layer == "translation") a.translation = {0.3f, 0.3f}, s.seed = 8, fill(Fill::nearest);
  if (layer == "rotation") a.rotation = {0.07f, 0.07f}, fill(Fill::wrap);
  if (layer == "shear") a.shear = {0.4f, 0.3f}, s.seed = 2, fill(Fill::constant);
  a.fill_value = 31, a.mask_fill_value = 31;
  if (layer == "brightness") a.brightness = {0.2f, 0.2f};
  if (layer == "contrast") a.contrast = {0.5f, 0.5f};
  if (layer == "erasing") a.cutout = {true, {0.1f, 0.4f}, 99, Cutout::MaskRule::keep, 1}, s.seed = 5;
  return s;
}

TEST(Augment, KerasVectors) {
  for (const Execution execution : {testing::kFastest, Execution::checked}) {
    const auto device = make_cpu_device(1, execution);
    const auto stream = device->make_stream();
    std::vector<uint8_t> image(kH * kW), mask(kH * kW), labels(kH * kW);
    for (int i = 0; i < kH * kW; ++i) {
      image[i] = static_cast<uint8_t>((37 * i + 11 * i * i) % 256);
      mask[i] = image[i] / 52;
    }
    const int32_t order = sample_index(0, true);
    for (const Vectors& keras : kVectors) {
      SCOPED_TRACE(keras.layer);
      const Setting s = setting(keras.layer);
      std::vector<float> x(kH * kW);
      sample_batch(*stream, {.images = image.data(),
                             .masks = mask.data(),
                             .order = &order,
                             .entries = 1,
                             .step = nullptr,
                             .steps_per_epoch = 1,
                             .batch = 1,
                             .seed = s.seed,
                             .augment = s.augment,
                             .divisor = 1,
                             .x = {x.data(), 1, kH, kW, 1, 1, DType::f32},
                             .labels = labels.data()});
      stream->synchronize();
      for (int i = 0; i < kH * kW; ++i) EXPECT_NEAR(x[i], keras.image[i], 2e-3) << i;
      EXPECT_EQ(labels, keras.mask);
    }
  }
}

}  // namespace
}  // namespace regolith::kernels
