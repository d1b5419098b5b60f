// What Experiment makes of a configuration's data.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "app/experiment.h"
#include "engine/io/npy.h"
#include "kernels/core/random.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

constexpr int kCount = 30, kH = 8, kW = 32;

// Noise; every image twice, kCount / 2 apart, but for one pixel.
TEST(ExperimentData, OverlappingImagesStayInOnePart) {
  const fs::path folder = fs::path(testing::TempDir()) / ("regolith_experiment_data." + std::to_string(::getpid()));
  fs::create_directories(folder);
  std::vector<uint8_t> images, masks(kCount * kH * kW);
  for (uint32_t i = 0; i < kCount * kH * kW; ++i) {
    images.push_back(static_cast<uint8_t>(philox(7, i % (kCount / 2 * kH * kW), 0, 0, 0).v[0] >> 24));
    masks[i] = i % 5;
  }
  for (int i = 0; i < kCount / 2; ++i) images[i * kH * kW] ^= 1;
  write_npz(folder / "d.npz", std::vector{npz_entry("image", {kCount, kH, kW}, images.data()),
                                          npz_entry("mask", {kCount, kH, kW}, masks.data())});
  Experiment experiment(read_run_config(
      Yaml::load_string("data: {npz: d.npz, split: {train: 0.6, validation: 0.2, test: 0.2, group: overlap}}\n"
                        "model: {input: {height: 8, width: 32}, nodes: {logits: {op: conv, in: input, filters: 5}}}",
                        folder / "c.yaml"),
      ConfigUse::training));
  const ExperimentData& data = experiment.data();
  EXPECT_THAT(data.report,
              testing::HasSubstr("Overlap: 15 joins of images that share pixels, 0 of images that lie edge "
                                 "to edge: 15 groups, the largest of 2, and 0 images by themselves.\n"));
  EXPECT_EQ(data.train.size(), 18u);
  EXPECT_EQ(data.test.size(), 6u);
  for (const auto* part : {&data.train, &data.validation, &data.test})
    for (const int64_t i : *part) EXPECT_TRUE(std::ranges::find(*part, (i + kCount / 2) % kCount) != part->end()) << i;
  fs::remove_all(folder);
}

}  // namespace
}  // namespace regolith
