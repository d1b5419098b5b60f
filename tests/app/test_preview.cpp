// The sheet of engine_data preview, and what an experiment settles of an augmentation.
#include "app/preview.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "engine/io/image.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

class PreviewTest : public testing::Test {
 protected:
  PreviewTest() { fs::create_directories(folder_); }
  ~PreviewTest() override { fs::remove_all(folder_); }
  static Experiment experiment(const std::vector<std::string>& overrides) {
    return Experiment(
        read_run_config(Yaml::load_string("run: {name: r, seed: 7, device: cpu, threads: 1}\n"
                                          "data: {synthetic: {count: 40, height: 16, width: 32}}\n"
                                          "model:\n"
                                          "  input: {height: 16, width: 32, channels: 1}\n"
                                          "  nodes: {logits: {op: conv, in: input, filters: 5, kernel: 1}}\n",
                                          "r.yaml")
                            .with_overrides(overrides),
                        ConfigUse::training));
  }
  std::string sheet(const std::vector<std::string>& overrides, int count = 5) {
    Experiment e = experiment(overrides);
    const std::string path = (folder_ / "sheet.png").string();
    write_preview(e, {path, count, true});
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  const fs::path folder_ = fs::path(testing::TempDir()) /
                           ("regolith_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
};

TEST_F(PreviewTest, OneSeedOneSheet) {
  const std::string massive = "data.augment.preset=massive", expected = sheet({massive});
  EXPECT_EQ(sheet({massive, "data.streaming=on"}), expected);
  EXPECT_EQ(sheet({massive, "run.threads=3"}), expected);
  EXPECT_EQ(sheet({massive, "train.batch=3"}), expected);
  EXPECT_NE(sheet({massive, "run.seed=8"}), expected);
  EXPECT_NE(sheet({"data.augment.preset=light"}), expected);
}

TEST_F(PreviewTest, ShowsWhatIsStoredAndWhatTrains) {
  Experiment e = experiment({"data.augment={flip: horizontal, probability: {flip: 1}}"});
  sheet({"data.augment={flip: horizontal, probability: {flip: 1}}"});
  const ImageValues shown = read_image((folder_ / "sheet.png").string());
  const int64_t row = e.order(0)[0] >> 1;
  const Dataset& images = e.data().images;
  // Enlarged 8 times to 256 x 128, from (10, 24), columns 262 apart.
  const auto at = [&](int column, int y, int x, int channel) {
    return shown.bytes[((24 + y * 8 + 4) * size_t(shown.width) + 10 + column * 262 + x * 8 + 4) * 3 + channel];
  };
  for (int y = 0; y < 16; ++y) {
    for (int x = 0; x < 32; ++x) {
      EXPECT_EQ(at(0, y, x, 0), images.image(row)[y * 32 + x]);
      EXPECT_EQ(at(2, y, 31 - x, 0), at(0, y, x, 0));
      for (int channel = 0; channel < 3; ++channel) EXPECT_EQ(at(3, y, 31 - x, channel), at(1, y, x, channel));
    }
  }
}

TEST_F(PreviewTest, LeavesWhatIsThere) {
  Experiment e = experiment({});
  const std::string path = (folder_ / "sheet.png").string();
  write_preview(e, {path, 1});
  EXPECT_THROW(write_preview(e, {path, 1}), IoError);
  write_preview(e, {path, 1000, true});  // as many as there are
}

TEST(Preview, SaysWhatWasDone) {
  EXPECT_EQ(describe({}, {}), "as it is");
  kernels::AugmentDraw d;
  d.moves = {.flip_x = true, .zoom = 1.25f, .shift_y = 2, .shift_x = -0.3f, .turns = -0.25f};
  d.partners.cutmix = d.cutout = true;
  d.brightness = -12;
  EXPECT_EQ(describe(d, {"a.png", "b.png"}),
            "flipped, zoom 1.25, moved 0, 2, turned -90 deg, cutmix with a.png, brightness -12, cutout");
}

TEST_F(PreviewTest, CopyPasteTakesTheRarestClassThatIsLearnt) {
  Experiment e = experiment({"data.augment={copy_paste: {}}", "loss={focal: {exclude: [0]}}"});
  const ExperimentData& data = e.data();
  const int chosen = data.augment.copy_paste.class_id;
  ASSERT_GT(chosen, 0);
  for (int c = 1; c < 5; ++c)
    EXPECT_TRUE(data.frequencies[c] == 0 || data.frequencies[c] >= data.frequencies[chosen]) << c;
  ASSERT_FALSE(data.paste_rows.empty());
  for (const int32_t row : data.paste_rows) {
    EXPECT_NE(std::find(data.train.begin(), data.train.end(), row), data.train.end());
    const uint8_t* const mask = data.images.mask(row);
    EXPECT_NE(std::find(mask, mask + data.images.mask_bytes(), chosen), mask + data.images.mask_bytes());
  }
  EXPECT_THAT(data.report, testing::HasSubstr("copy_paste: regions of class " + std::to_string(chosen)));
  Experiment named = experiment({"data.augment={copy_paste: {class: 2}}"});
  EXPECT_EQ(named.data().augment.copy_paste.class_id, 2);
}

TEST_F(PreviewTest, CopyPasteRefusesOtherClasses) {
  const auto refuses = [](const std::vector<std::string>& overrides, const std::string& what) {
    Experiment e = experiment(overrides);
    try {
      e.data();
      ADD_FAILURE() << what;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("data.augment.copy_paste.class"));
      EXPECT_THAT(error.what(), testing::HasSubstr(what));
    }
  };
  refuses({"data.augment={copy_paste: {class: 9}}"}, "classes 0 to 4");
  refuses({"data.augment={copy_paste: {class: 2}}", "loss.ignore=2"}, "loss.ignore");
}

TEST_F(PreviewTest, KeysBesideAPresetChangeIt) {
  const kernels::Augment a =
      *experiment({"data.augment={preset: massive, elastic: off, noise: {std: 0.2}}"}).config.data.augment;
  EXPECT_FALSE(a.elastic.on);
  EXPECT_TRUE(a.blur.on);
  EXPECT_EQ(a.noise.std, 0.2f);
  EXPECT_EQ(a.noise.probability, 0.3f);
  EXPECT_EQ(a.probability.shear, 0.3f);
}

}  // namespace
}  // namespace regolith
