#include "deploy/evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "app/command_line.h"
#include "deploy/evaluation_report.h"
#include "engine/io/npy.h"
#include "engine/report/confusion.h"
#include "engine/report/table.h"
#include "engine/train/boundary.h"
#include "engine/train/metrics.h"
#include "kernels/sample.h"
#include "tests/deploy/run.h"
#include "tests/support/message.h"

namespace regolith::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

std::string contents(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string printed(const EvaluationOptions& o) {
  ::testing::internal::CaptureStdout();
  std::string error;
  try {
    evaluate(o);
  } catch (const Error& e) {
    error = e.what();
  }
  return ::testing::internal::GetCapturedStdout() + error;
}

// Ten images of the pixel model's size, and masks of which a tenth has no truth.
class Evaluations : public ::testing::Test {
 protected:
  static constexpr int kCount = 10, kPixels = 16 * 24;
  Evaluations() : images(kCount * kPixels), masks(kCount * kPixels) {
    std::mt19937 random(3);
    for (uint8_t& b : images) b = static_cast<uint8_t>(random());
    for (uint8_t& m : masks) m = static_cast<uint8_t>(random() % 10 == 0 ? 255 : random() % 3);
    const std::vector<NpzEntry> entries{npz_entry("image", {kCount, 16, 24}, images.data()),
                                        npz_entry("mask", {kCount, 16, 24}, masks.data())};
    write_npz(folder / "data.npz", entries);
  }
  std::string yaml(const std::string& loss) const {
    return std::string(kPixelModel) + "data: {npz: " + (folder / "data.npz") +
           ", classes: {names: [none, soil, rock]}, split: {train: 0.5, validation: 0.2, test: 0.3}}\nloss: " + loss +
           "\n";
  }
  std::string run(const std::string& name, const std::string& loss = "{ignore: 255, cross_entropy: {}}",
                  uint64_t seed = 1) const {
    return make_run(folder, name, yaml(loss), seed);
  }
  EvaluationOptions options(std::vector<std::string> runs) const {
    EvaluationOptions o;
    o.runs = std::move(runs);
    o.segmenter.device = "cpu", o.segmenter.threads = 1, o.segmenter.precision = "fp32";
    return o;
  }

  Folder folder{"regolith_evaluation"};
  std::vector<uint8_t> images, masks;
};

TEST_F(Evaluations, ScoresAreThoseOfEveryPixelWithTruth) {
  EvaluationOptions o = options({run("a")});
  o.input = folder / "data.npz";
  o.output = folder / "scores";
  const std::string text = printed(o);
  EXPECT_THAT(text, AllOf(HasSubstr("data (10 images)"), HasSubstr("boundary F1"), HasSubstr("miou_keras_ignore0"),
                          HasSubstr("% of the truth"), Not(HasSubstr("never predicted"))));
  Segmenter segmenter(o.runs, o.segmenter);
  std::vector<int64_t> confusion(9);
  BoundaryF1 boundary(3);
  for (int i = 0; i < kCount; ++i) {
    const Segmentation s = segmenter.predict({images.data() + i * kPixels, 16, 24, 1});
    for (int p = 0; p < kPixels; ++p)
      if (masks[i * kPixels + p] != 255) ++confusion[masks[i * kPixels + p] * 3 + s.ids[p]];
    boundary.add({masks.data() + i * kPixels, kPixels}, s.ids, 16, 24);
  }
  const auto json = nlohmann::json::parse(contents(folder / "scores/scores.json"));
  EXPECT_EQ(json["confusion"], confusion);
  EXPECT_EQ(json["pixels"], std::count_if(masks.begin(), masks.end(), [](uint8_t m) { return m != 255; }));
  for (const Metric& m : metrics(confusion, 3, 0)) {
    if (m.higher_is_better) {
      EXPECT_DOUBLE_EQ(json[m.name], m.value);
    }
  }
  EXPECT_DOUBLE_EQ(json["classes"][1]["iou"], score(confusion, 3).iou[1]);
  for (int k = 0; k < 3; ++k) EXPECT_EQ(json["classes"][k]["boundary_f1"], boundary.values()[k]);
  const std::string csv = contents(folder / "scores/per_image.csv");
  EXPECT_THAT(csv, HasSubstr("name,miou,accuracy,iou none,iou soil,iou rock\n"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + kCount);
  EXPECT_EQ(read_image(folder / "scores/worst.png").channels, 3);
  EXPECT_TRUE(fs::exists(folder / "scores/confusion.png"));
}

TEST_F(Evaluations, AnEarlierOneIsKept) {
  EvaluationOptions o = options({run("a")});
  EXPECT_THAT(printed(o), HasSubstr("test (3 images)"));
  EXPECT_TRUE(fs::exists(folder / "a/eval-test/scores.json"));
  EXPECT_THAT(printed(o), HasSubstr("a/eval-test: is there already; --force writes over it"));
  o.force = true;
  EXPECT_THAT(printed(o), HasSubstr("test (3 images)"));
  o.split = "train";
  EXPECT_THAT(printed(o), HasSubstr("train (5 images)"));
  o.input = folder / "data.npz";
  EXPECT_THAT(printed(o), HasSubstr("--input, --split"));
  o.split = "", o.input = "", o.masks = "mask";
  EXPECT_THAT(printed(o), HasSubstr("are of an --input"));
}

TEST_F(Evaluations, WhatTheLossLeavesOutIsNotPredicted) {
  EvaluationOptions o = options({run("a", "{ignore: 255, cross_entropy: {exclude: [0]}}")});
  EXPECT_THAT(printed(o), HasSubstr("never predicted, for the loss leaves them out: none; --all-classes"));
  auto json = nlohmann::json::parse(contents(folder / "a/eval-test/scores.json"));
  EXPECT_EQ(json["confusion"][0], 0);
  EXPECT_EQ(json["never_predicted"], std::vector{0});
  o.segmenter.all_classes = o.force = true;
  EXPECT_THAT(printed(o), Not(HasSubstr("never predicted")));
}

TEST_F(Evaluations, RunsStandBesideEachOther) {
  EvaluationOptions o = options({run("a"), run("b", "{ignore: 255, cross_entropy: {}}", 2)});
  const std::string text = printed(o);
  for (const char* name : {"a", "b"}) {
    const auto json = nlohmann::json::parse(contents(folder / (std::string(name) + "/eval-test/scores.json")));
    EXPECT_THAT(text.substr(text.rfind("miou ")), HasSubstr(score_text(json["miou"])));
    EXPECT_THAT(text, HasSubstr("IoU rock"));
  }
  EXPECT_THAT(text, Not(HasSubstr("not scored on the same images")));
  o.output = folder / "both";
  EXPECT_THAT(printed(o), HasSubstr("both/b"));
  EXPECT_TRUE(fs::exists(folder / "both/a/scores.json"));
  fs::remove_all(folder / "both/a");
  EXPECT_THAT(printed(o), AllOf(HasSubstr("both/b: is there already"), Not(HasSubstr("images/s"))));
  EXPECT_FALSE(fs::exists(folder / "both/a")) << "known before the first is scored";
  o.runs[1] = folder / "gone", o.output = folder / "third";
  EXPECT_THAT(printed(o), HasSubstr("gone"));
  EXPECT_FALSE(fs::exists(folder / "third")) << "likewise";
  o.runs[1] = o.runs[0] + "/";
  EXPECT_THAT(printed(o), HasSubstr("two are called a"));
}

// A picture of classes by its bytes: one image is perfect, one has a wrong half, one has no truth.
class Bytes : public ImageSource {
 public:
  explicit Bytes(Segmenter& segmenter) : segmenter_(segmenter) {}
  int64_t count() const override { return 3; }
  std::string name(int64_t i) const override { return std::array{"good", "bad, \"half\"", "blank"}[i]; }
  NamedImage read(int64_t i) override {
    NamedImage image{name(i), 600, 700, 1, {}};
    for (int y = 0; y < 600; ++y)
      for (int x = 0; x < 700; ++x) image.pixels.push_back(static_cast<uint8_t>(x / 20 * 7 + y / 100));
    return image;
  }
  bool has_masks() const override { return true; }
  std::vector<uint8_t> read_mask(int64_t i) override {
    const NamedImage image = read(i);
    std::vector<uint8_t> mask = segmenter_.predict({image.pixels.data(), 600, 700, 1}).ids;
    for (size_t p = 0; p < mask.size() / 2 && i == 1; ++p) mask[p] = static_cast<uint8_t>((mask[p] + 1) % 3);
    if (i == 2) std::fill(mask.begin(), mask.end(), kernels::kAbsentClass);
    return mask;
  }
  std::string notes() const override { return ""; }

 private:
  Segmenter& segmenter_;
};

TEST_F(Evaluations, TheWorstComeFirstAndThoseWithoutTruthLast) {
  const EvaluationOptions o = options({run("a")});
  Segmenter segmenter(o.runs, o.segmenter), truth(o.runs, o.segmenter);
  Bytes source(truth);
  const Evaluated e = evaluate(segmenter, source, "bytes");
  ASSERT_EQ(e.images.size(), 3u);
  EXPECT_EQ(e.images[0].name, "bad, \"half\"");
  EXPECT_DOUBLE_EQ(e.images[0].accuracy, 0.5);
  EXPECT_EQ(e.images[1].miou, 1);
  EXPECT_TRUE(std::isnan(e.images[2].miou));
  ASSERT_EQ(e.worst.size(), 2u);
  EXPECT_THAT(e.worst[0].caption, HasSubstr("right 0.5000"));
  EXPECT_EQ(e.worst[0].width, 350);
  EXPECT_EQ(e.worst[0].truth.size(), 300u * 350);
  write_evaluation(folder / "out", e, segmenter.class_colours());
  EXPECT_THAT(contents(folder / "out/per_image.csv"),
              AllOf(HasSubstr("\n\"bad, \"\"half\"\"\","), HasSubstr("\nblank,,")));
}

TEST(Confusion, CountsAreShortAndRowsAreShares) {
  for (const auto& [n, text] : std::initializer_list<std::pair<int64_t, const char*>>{{0, "0"},
                                                                                      {9999, "9999"},
                                                                                      {10000, "10.0k"},
                                                                                      {99949, "99.9k"},
                                                                                      {99951, "100k"},
                                                                                      {999499, "999k"},
                                                                                      {999500, "1.00M"},
                                                                                      {9994000, "9.99M"},
                                                                                      {9995001, "10.0M"},
                                                                                      {123456789, "123M"},
                                                                                      {21'000'000'000, "21.0G"}})
    EXPECT_EQ(short_count(n), text) << n;
  const std::vector<std::string> names{"sky", "big rock"};
  const std::vector<int64_t> confusion{30000, 10000, 0, 0};
  EXPECT_THAT(confusion_text(names, confusion),
              AllOf(HasSubstr("0 sky                      30.0k  10.0k\n"), HasSubstr("0 sky           75.0  25.0\n"),
                    HasSubstr("1 big rock         -     -\n")));
  const Picture p = draw_confusion(names, confusion);
  EXPECT_GT(p.width, 2 * 52);
}

}  // namespace
}  // namespace regolith::testing
