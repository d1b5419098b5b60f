#include "deploy/suspects.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

#include "engine/io/npy.h"
#include "tests/deploy/run.h"
#include "tests/support/message.h"

namespace regolith::testing {
namespace {

using ::testing::HasSubstr;

// Twenty images of the pixel model's size, whose class follows from the grey value; the network knows the rule, and the
// masks of two images break it.
class Suspects : public ::testing::Test {
 protected:
  static constexpr int kCount = 20, kPixels = 16 * 24, kWrong = 3, kHalfWrong = 11;
  Suspects() : images(kCount * kPixels), masks(kCount * kPixels) {
    std::mt19937 random(3);
    for (size_t i = 0; i < images.size(); ++i) {
      images[i] = random() % 2 == 0 ? 20 : 235;
      masks[i] = images[i] < 128 ? 1 : 2;
    }
    for (int i = 0; i < kPixels; ++i) {
      masks[kWrong * kPixels + i] = static_cast<uint8_t>(3 - masks[kWrong * kPixels + i]);
      if (i % 2 == 0) masks[kHalfWrong * kPixels + i] = static_cast<uint8_t>(3 - masks[kHalfWrong * kPixels + i]);
    }
    write_npz(folder / "data.npz", std::vector<NpzEntry>{npz_entry("image", {kCount, 16, 24}, images.data()),
                                                         npz_entry("mask", {kCount, 16, 24}, masks.data())});
  }
  // Logits: class 1 is right below the middle grey, class 2 above it.
  std::string run(const std::string& name, int split_seed, const std::string& data = "data.npz") const {
    const std::string yaml = std::string(kPixelModel) + "data: {npz: " + (folder / data) +
                             ", split: {train: 0.5, validation: 0.25, test: 0.25, seed: " + std::to_string(split_seed) +
                             "}}\nloss: {cross_entropy: {exclude: [0]}}\n";
    return make_run(folder, name, yaml, 1, know_greys);
  }
  SuspectsOptions options(std::vector<std::string> runs, const std::string& output) const {
    SuspectsOptions o;
    o.runs = std::move(runs);
    o.output = folder / output;
    o.count = 3;
    o.segmenter.device = "cpu", o.segmenter.threads = 1, o.segmenter.precision = "fp32";
    return o;
  }

  Folder folder{"regolith_suspects"};
  std::vector<uint8_t> images, masks;
};

TEST_F(Suspects, WrongMasksComeFirst) {
  std::vector<std::string> runs;
  for (int i = 0; i < 6; ++i) runs.push_back(run("r" + std::to_string(i), i + 1));
  ::testing::internal::CaptureStdout();
  const std::vector<Suspect> found = find_suspects(options(runs, "out"));
  const std::string text = ::testing::internal::GetCapturedStdout();
  ASSERT_GE(found.size(), 15U);
  EXPECT_EQ(found[0].sample, kWrong);
  EXPECT_EQ(found[1].sample, kHalfWrong);
  EXPECT_DOUBLE_EQ(found[0].contradicted, 1);
  EXPECT_DOUBLE_EQ(found[1].contradicted, 0.5);
  // Grey 20: logits of 10 - 20 * 20/255 and its negative.
  const double margin = 2 * (10 - 20 * 20 / 255.0), low = std::log1p(std::exp(-margin)), high = -std::log(1e-6);
  EXPECT_GT(margin, 13.9);  // so that the least probability counts
  EXPECT_NEAR(found[0].loss, high, 1e-4);
  EXPECT_NEAR(found[1].loss, (low + high) / 2, 1e-4);
  EXPECT_NEAR(found[2].loss, low, 1e-4);
  EXPECT_TRUE(std::isnan(found[0].class_loss[0]));
  EXPECT_NEAR(found[0].class_loss[2], high, 1e-4);
  int64_t judges = 0;
  for (const Suspect& s : found) judges += s.judges;
  EXPECT_EQ(judges, 6 * 10) << "each run judges the images that it held out, and no other";
  EXPECT_THAT(text, HasSubstr(" images judged, by runs that did not train on them"));
  std::ifstream csv(folder / "out/suspects.csv");
  std::string header, line;
  std::getline(csv, header);
  std::getline(csv, line);
  EXPECT_EQ(header, "row,name,runs,loss,contradicted,loss class 0,loss class 1,loss class 2");
  EXPECT_THAT(line, ::testing::StartsWith("3,sample 3,"));
  EXPECT_TRUE(std::filesystem::exists(folder / "out/suspects.png"));
}

TEST_F(Suspects, RefusesWhatItCannotJudge) {
  const std::string a = run("a", 1);
  masks[0] = static_cast<uint8_t>(3 - masks[0]);
  write_npz(folder / "other.npz", std::vector<NpzEntry>{npz_entry("image", {kCount, 16, 24}, images.data()),
                                                        npz_entry("mask", {kCount, 16, 24}, masks.data())});
  const std::string b = run("b", 2, "other.npz");
  std::filesystem::create_directories(folder / "there");
  EXPECT_THAT(message<IoError>([&] { find_suspects(options({a}, "there")); }), HasSubstr("is there already; --force"));
  ::testing::internal::CaptureStdout();
  const std::string text = message<DataError>([&] { find_suspects(options({a, b}, "out")); });
  ::testing::internal::GetCapturedStdout();
  EXPECT_THAT(text, HasSubstr("b: was trained on other images or masks than " + a));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

}  // namespace
}  // namespace regolith::testing
