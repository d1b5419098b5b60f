// engine_predict: what it reads, what it writes, and what it leaves alone.
#include <csignal>
#include <filesystem>

#include "engine/io/image.h"
#include "engine/io/npy.h"
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Predict : public Cli {
 protected:
  static constexpr int kN = 5, kH = 16, kW = 32;

  // A trained run, images as an array and as files.
  Predict() {
    EXPECT_EQ(run({"engine_run", "tiny.yaml"}).code, 0);
    for (int i = 0; i < kN * kH * kW; ++i) bytes_.push_back(static_cast<uint8_t>(i * 37 % 251));
    write_npz(folder_ / "images.npz", std::vector{npz_entry("test_set", {kN, kH, kW}, bytes_.data())});
    std::filesystem::create_directory(folder_ / "photos");
    for (int i = 0; i < kN; ++i) write_photo("photos/p" + std::to_string(i) + ".png", i, kH, kW);
  }
  void write_photo(const std::string& name, int i, int height, int width) const {
    Picture picture(width, height, {});
    for (int p = 0; p < height * width; ++p) {
      const uint8_t v = bytes_[(i * kH * kW + p) % bytes_.size()];
      picture.pixels[p] = {v, v, v};
    }
    write_png(folder_ / name, picture);
  }
  Outcome predict(const std::string& output, std::vector<std::string> more = {}, const std::string& input = "photos") {
    std::vector<std::string> words{"engine_predict", "runs/tiny", "--input", input, "--output", output};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  }
  std::vector<uint8_t> ids(const std::string& file) const {
    const ImageValues image = read_image(folder_ / file, true);
    return {image.bytes.begin(), image.bytes.end()};
  }

  std::vector<uint8_t> bytes_;
};

TEST_F(Predict, APictureAnArrayAndATableSayTheSame) {
  Outcome o = predict("masks", {"--overlay", "--probabilities", "--confidence"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("never predicted, for the loss leaves them out: background"));
  EXPECT_THAT(o.out, HasSubstr("5 masks in masks"));
  ASSERT_EQ(predict("masks.npz", {"--probabilities"}, "images.npz").code, 0);
  o = predict("masks.csv", {}, "images.npz");
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("5 rows in masks.csv"));

  const NpzReader npz(folder_ / "masks.npz");
  const NpyArray masks = npz.read("masks");
  EXPECT_EQ(masks.shape, (std::vector<int64_t>{kN, kH, kW}));
  EXPECT_EQ(npz.read("probabilities").shape, (std::vector<int64_t>{kN, kH, kW, 5}));
  std::string csv = "id";
  for (int p = 0; p < kH * kW; ++p) csv += "," + std::to_string(p);
  csv += "\n";
  for (int i = 0; i < kN; ++i) {
    const std::string name = "p" + std::to_string(i);
    const std::vector<uint8_t> mask(masks.bytes.begin() + i * kH * kW, masks.bytes.begin() + (i + 1) * kH * kW);
    EXPECT_EQ(ids("masks/" + name + ".png"), mask);
    EXPECT_EQ(std::count(mask.begin(), mask.end(), 0), 0) << "the loss leaves class 0 out";
    csv += std::to_string(i);
    for (const uint8_t id : mask) csv += "," + std::to_string(id);
    csv += "\n";
    EXPECT_TRUE(folder_.has("masks/overlay/" + name + ".png"));
    const NpzReader values(folder_ / ("masks/values/" + name + ".npz"));
    EXPECT_EQ(values.read("probabilities").shape, (std::vector<int64_t>{kH, kW, 5}));
    EXPECT_EQ(values.read("confidence").shape, (std::vector<int64_t>{kH, kW}));
  }
  EXPECT_EQ(folder_.read("masks.csv"), csv);
  EXPECT_EQ(read_image(folder_ / "masks/p0.png", true).palette.size(), 5);
  write_photo("photos/a, \"b\".png", 1, kH, kW);
  ASSERT_EQ(predict("named.csv").code, 0);
  EXPECT_THAT(folder_.read("named.csv"), AllOf(HasSubstr("\np3,"), HasSubstr("\n\"a, \"\"b\"\"\",")));
}

TEST_F(Predict, NothingIsWrittenOverUnasked) {
  ASSERT_EQ(predict("masks").code, 0);
  std::filesystem::remove(folder_ / "masks/p3.png");
  folder_.write("masks/p1.png", "mine");
  Outcome o = predict("masks");
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.err, HasSubstr("p0.png: is there already, with 3 more; --continue leaves them"));
  EXPECT_EQ(folder_.read("masks/p1.png"), "mine");
  o = predict("masks", {"--continue"});
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("1 images of photos, 4 are there already"));
  EXPECT_EQ(folder_.read("masks/p1.png"), "mine");
  EXPECT_TRUE(folder_.has("masks/p3.png"));
  EXPECT_EQ(predict("masks", {"--force"}).code, 0);
  EXPECT_EQ(ids("masks/p1.png").size(), kH * kW);
  ASSERT_EQ(predict("masks.npz", {}, "images.npz").code, 0);
  EXPECT_THAT(predict("masks.npz", {}, "images.npz").err, HasSubstr("masks.npz: is there already; --force"));
}

TEST_F(Predict, WhatLiesBesideTheMasksIsLeftToo) {
  ASSERT_EQ(predict("masks").code, 0);
  std::filesystem::create_directories(folder_ / "masks/overlay");
  folder_.write("masks/p1.png", "corrected by hand");
  folder_.write("masks/overlay/p2.png", "mine");
  const Outcome o = predict("masks", {"--continue", "--overlay", "--confidence"});
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(folder_.read("masks/p1.png"), "corrected by hand");
  EXPECT_EQ(folder_.read("masks/overlay/p2.png"), "mine");
  EXPECT_TRUE(folder_.has("masks/overlay/p1.png"));
  EXPECT_TRUE(folder_.has("masks/values/p2.npz"));
  for (int i = 0; i < kN; ++i) std::filesystem::remove(folder_ / ("masks/p" + std::to_string(i) + ".png"));
  const Outcome refused = predict("masks", {"--overlay"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.err, HasSubstr("masks/overlay/p0.png: is there already, with 4 more"));
  EXPECT_EQ(folder_.read("masks/overlay/p2.png"), "mine");
}

TEST_F(Predict, ASignalEndsALargeImageToo) {
  write_photo("wide.png", 0, 1000, 6000);
  Child child(folder_.path(), {"engine_predict", "runs/tiny", "--input", "wide.png", "--output", "masks", "--overlap",
                               "0.9", "--threads", "1"});
  ASSERT_TRUE(child.wait_for("tiles of 16x32"));
  ASSERT_TRUE(child.wait_until_caught(SIGINT));
  child.signal(SIGINT);
  const Outcome o = child.wait();
  EXPECT_EQ(o.code, 130) << o.err;
  EXPECT_THAT(o.out, HasSubstr("interrupted: 0 masks in masks"));
  EXPECT_FALSE(folder_.has("masks/wide.png"));
}

TEST_F(Predict, WhatIsReadIsNotWrittenOver) {
  const std::string photo = folder_.read("photos/p0.png"), array = folder_.read("images.npz");
  std::filesystem::create_directory_symlink(folder_ / "photos", folder_ / "link");
  const auto refused = [&](const std::string& input, const std::string& output, const std::string& how) {
    const Outcome o = predict(output, {how, "--overlay"}, input);
    EXPECT_EQ(o.code, 2);
    EXPECT_THAT(o.err, HasSubstr("--output " + output + ": would be written over " + input));
  };
  for (const char* how : {"--force", "--continue"}) {
    refused("photos", "photos", how);
    refused("photos", "link/", how);
    refused("photos/p0.png", "photos", how);
  }
  ASSERT_EQ(predict("photos/masks").code, 0);  // a folder in it is no image
  EXPECT_EQ(predict("photos/masks", {"--force"}).code, 0);
  EXPECT_EQ(predict("photos/masks", {"--continue", "--overlay"}).code, 0);
  std::filesystem::create_directories(folder_ / "out");
  std::filesystem::rename(folder_ / "photos", folder_ / "out/overlay");
  refused("out/overlay", "out", "--force");
  refused("images.npz", "images.npz", "--force");
  std::filesystem::create_directory(folder_ / "links");
  std::filesystem::create_symlink("../out/overlay/p0.png", folder_ / "links/p0.png");
  const Outcome o = predict("out/overlay", {"--force"}, "links");
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("would be written over links/p0.png"));
  EXPECT_EQ(folder_.read("out/overlay/p0.png"), photo);
  EXPECT_EQ(folder_.read("images.npz"), array);
}

TEST_F(Predict, PartsAreTheWhole) {
  ASSERT_EQ(predict("masks", {"--part", "1/2"}).code, 0);
  EXPECT_FALSE(folder_.has("masks/p1.png"));
  ASSERT_EQ(predict("masks", {"--part", "2/2"}).code, 0);
  for (int i = 0; i < kN; ++i) EXPECT_TRUE(folder_.has("masks/p" + std::to_string(i) + ".png"));
  for (const std::string part : {"3/2", "1/4294967297", " 1/2", "1/2x", "1"}) {
    const Outcome o = predict("masks", {"--part", part});
    EXPECT_EQ(o.code, 2);
    EXPECT_THAT(o.err, HasSubstr("--part " + part + ": expected a part of the images"));
  }
  ASSERT_EQ(predict("none.csv", {"--part", "9/9"}).code, 0);
  EXPECT_EQ(folder_.read("none.csv"), "id\n");
}

TEST_F(Predict, OneDamagedImageIsNamedAndTheRestGoOn) {
  folder_.write("photos/p2.png", folder_.read("photos/p2.png").substr(0, 60));
  write_photo("photos/wide.png", 1, 21, 77);
  const Outcome o = predict("masks");
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.out, HasSubstr("p2.png: damaged or truncated PNG"));
  EXPECT_THAT(o.err, HasSubstr("1 of 6 images could not be read"));
  EXPECT_FALSE(folder_.has("masks/p2.png"));
  EXPECT_TRUE(folder_.has("masks/p4.png"));
  const ImageHeader wide = read_image_header(folder_ / "masks/wide.png", true);
  EXPECT_EQ(wide.height, 21);
  EXPECT_EQ(wide.width, 77);
  EXPECT_THAT(predict("masks.csv").err, HasSubstr("takes images of one size; choose a folder"));
  EXPECT_FALSE(folder_.has("masks.csv"));
}

TEST_F(Predict, SaysWhatIsWrong) {
  const auto error = [&](const std::string& output, const std::vector<std::string>& more,
                         const std::string& input = "photos") {
    const Outcome o = predict(output, more, input);
    EXPECT_NE(o.code, 0);
    return o.err;
  };
  std::filesystem::create_directory(folder_ / "empty");
  EXPECT_THAT(error("m", {}, "empty"), HasSubstr("empty: has no PNG or JPEG files"));
  EXPECT_THAT(error("m", {}, "nowhere"), HasSubstr("nowhere"));
  EXPECT_THAT(error("m", {"--images", "wrong"}, "images.npz"), HasSubstr("test_set"));
  EXPECT_THAT(error("m.csv", {"--overlay"}), HasSubstr("--overlay: is for an output folder"));
  EXPECT_THAT(error("m.csv", {"--continue"}), HasSubstr("--continue: is for an output folder"));
  EXPECT_THAT(error("m", {"--tile", "16", "0"}), HasSubstr("tiles of 16x0"));
  EXPECT_THAT(error("m", {"--weights", "none.safetensors"}), HasSubstr("none.safetensors: is missing"));
  folder_.write("file", "");
  EXPECT_THAT(error("file/masks", {}), HasSubstr("file/masks: cannot be made"));
  std::filesystem::create_directory(folder_ / "m.npz.tmp");
  const Outcome early = predict("m.npz");
  EXPECT_THAT(early.err, HasSubstr("cannot create m.npz"));
  EXPECT_THAT(early.out, Not(HasSubstr("images of photos"))) << "known before the work";
  std::filesystem::remove(folder_ / "runs/tiny/best.safetensors");
  EXPECT_THAT(error("m", {}), HasSubstr("best.safetensors: is missing; --weights last is there"));
}

}  // namespace
}  // namespace regolith::testing
