#include "deploy/segmenter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "deploy/tiles.h"
#include "engine/train/evaluator.h"
#include "losses/loss.h"
#include "tests/deploy/run.h"
#include "tests/support/message.h"

namespace regolith::testing {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<uint8_t> random_bytes(size_t n, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(n);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  return bytes;
}

// The probabilities of the pixel model, of a byte each.
std::vector<std::array<float, 3>> by_byte(const std::string& run) {
  const Checkpoint w = load_checkpoint(run + "/best.safetensors");
  const auto k1 = w.values<float>("a/kernel"), b1 = w.values<float>("a/bias"), k2 = w.values<float>("logits/kernel"),
             b2 = w.values<float>("logits/bias");
  std::vector<std::array<float, 3>> table;
  for (int byte = 0; byte < 256; ++byte) {
    double logit[3], sum = 0;
    for (int k = 0; k < 3; ++k) {
      logit[k] = b2[k];
      for (int c = 0; c < 8; ++c) logit[k] += k2[k * 8 + c] * std::max(0.0, byte / 255.0 * k1[c] + b1[c]);
      sum += std::exp(logit[k]);
    }
    table.push_back({});
    for (int k = 0; k < 3; ++k) table.back()[k] = static_cast<float>(std::exp(logit[k]) / sum);
  }
  return table;
}

void expect_pixelwise(const Segmentation& s, const std::vector<uint8_t>& pixels, int height, int width,
                      const std::vector<std::array<float, 3>>& table) {
  ASSERT_EQ(s.height, height);
  ASSERT_EQ(s.width, width);
  ASSERT_EQ(s.probabilities.size(), pixels.size() * 3);
  for (size_t i = 0; i < pixels.size(); ++i) {
    const auto& p = table[pixels[i]];
    for (int k = 0; k < 3; ++k) ASSERT_NEAR(s.probabilities[i * 3 + k], p[k], 2e-5) << "pixel " << i;
    std::array<float, 3> sorted = p;
    std::sort(sorted.begin(), sorted.end());
    ASSERT_NEAR(s.confidence[i], sorted[2] - sorted[1], 4e-5) << "pixel " << i;
    if (sorted[2] - sorted[1] > 1e-4) {
      ASSERT_EQ(s.ids[i], std::max_element(p.begin(), p.end()) - p.begin()) << "pixel " << i;
    }
  }
}

TEST(TileAxis, CoversEachPixelWithTilesThatOverlap) {
  for (const int size : {1, 15, 16, 17, 24, 25, 100, 1000}) {
    for (const double overlap : {0.0, 0.25, 0.5, 0.9}) {
      const TileAxis axis(size, 16, overlap);
      EXPECT_EQ(axis.begin(0), 0);
      EXPECT_EQ(axis.end(axis.tiles() - 1), size);
      EXPECT_EQ(axis.complete(axis.tiles() - 1), size);
      for (int t = 1; t < axis.tiles(); ++t) {
        EXPECT_LE(axis.first[t] - axis.first[t - 1], std::ceil(16 * (1 - overlap))) << size << " " << overlap;
        EXPECT_GT(axis.first[t], axis.first[t - 1]);
        EXPECT_EQ(axis.complete(t - 1), axis.begin(t));
      }
      std::vector<double> sums(size);
      for (int t = 0; t < axis.tiles(); ++t)
        for (int i = axis.begin(t); i < axis.end(t); ++i) sums[i] += axis.weight[i - axis.first[t]];
      for (int i = 0; i < size; ++i) EXPECT_NEAR(axis.divisor[i] / sums[i], 1, 1e-6);
    }
  }
}

TEST(TileAxis, ASmallImageIsReflectedAboutItsEdges) {
  EXPECT_EQ(TileAxis(10, 16, 0.5).first[0], -3);
  std::vector<int> at;
  for (int i = -4; i < 9; ++i) at.push_back(reflected(i, 4));
  EXPECT_THAT(at, ElementsAre(2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2));
  EXPECT_EQ(reflected(-3, 1), 0);
}

// Whatever way a pixel is covered, a network of 1x1 convolutions says of it what it says of the pixel alone.
TEST(Segmenter, TilesOfAnImageOfAnySizeAreOneImage) {
  const Folder folder("regolith_segmenter");
  const std::string run = make_run(folder, "run", kPixelModel);
  const auto table = by_byte(run);
  for (const bool flips : {false, true}) {
    for (const auto& [height, width] : {std::pair{16, 24}, {1, 1}, {7, 90}, {41, 10}, {65, 131}}) {
      SegmenterOptions o;
      o.precision = "fp32";
      o.batch = 5;
      if (flips) o.augmentation = TestTimeAugmentation::flips;
      Segmenter segmenter({run}, o);
      const auto pixels = random_bytes(static_cast<size_t>(height) * width);
      expect_pixelwise(segmenter.predict({pixels.data(), height, width, 1}, {true, true}), pixels, height, width,
                       table);
    }
  }
}

TEST(Segmenter, ScaledTilesFallOnTheirPlaces) {
  const Folder folder("regolith_scales");
  const std::string run = make_run(folder, "run", kPixelModel);
  const auto table = by_byte(run);
  SegmenterOptions o;
  o.precision = "fp32";
  o.augmentation = TestTimeAugmentation::flips_and_scales;
  Segmenter segmenter({run}, o);
  const int H = 50, W = 70;
  std::vector<uint8_t> pixels(H * W);  // steep enough that a shift of a pixel would show
  for (int y = 0; y < H; ++y)
    for (int x = 0; x < W; ++x) pixels[y * W + x] = static_cast<uint8_t>(2 * y + x + 20);
  const Segmentation s = segmenter.predict({pixels.data(), H, W, 1}, {true, false});
  for (int y = 1; y + 1 < H; ++y)
    for (int x = 1; x + 1 < W; ++x)
      for (int k = 0; k < 3; ++k)
        ASSERT_NEAR(s.probabilities[(y * W + x) * 3 + k], table[pixels[y * W + x]][k],
                    std::abs(table[pixels[y * W + x] + 1][k] - table[pixels[y * W + x] - 1][k]) + 1e-4)
            << y << " " << x;
}

TEST(Segmenter, IsTheNetworkThatWasTrained) {
  const Folder folder("regolith_trained");
  const std::string run = make_run(folder, "run", R"(
model:
  input: {height: 16, width: 32, channels: 1}
  defaults: {kernel: 3, norm: batch, repeat: 1}
  nodes:
    e: {block: conv_norm, in: input, filters: 8}
    p: {op: max_pool, in: e}
    b: {block: conv_norm, in: p, filters: 16}
    d: {op: dropout, in: b, rate: 0.5}
    u: {op: upsample, in: d}
    c: {op: concat, in: [u, e]}
    logits: {op: conv, in: c, filters: 4, kernel: 1}
)");
  Experiment experiment(load_run_config(run + "/config.yaml", {"run.precision=fp32"}, ConfigUse::network));
  const auto stream = experiment.device().make_stream();
  load_weights(experiment.network(), load_checkpoint(run + "/best.safetensors"), *stream);
  const Loss loss(LossSpec{}, 4);
  Evaluator evaluator(experiment.network(), *stream, loss, {});
  const int N = 3;
  const auto pixels = random_bytes(N * 16 * 32);
  std::vector<float> images(pixels.begin(), pixels.end());
  for (float& x : images) x /= 255;
  const auto expected = evaluator.gradients(images, std::vector<uint8_t>(pixels.size()), N, Mode::eval).logits;
  SegmenterOptions o;
  o.precision = "fp32";
  std::vector<ImageView> views;
  for (int i = 0; i < N; ++i) views.push_back({pixels.data() + i * 16 * 32, 16, 32, 1});
  const std::vector<Segmentation> all = Segmenter({run}, o).predict(views, {true, false});
  ASSERT_EQ(all.size(), N);
  for (int i = 0; i < N * 16 * 32; ++i) {
    double sum = 0;
    for (int k = 0; k < 4; ++k) sum += std::exp(expected[i * 4 + k]);
    for (int k = 0; k < 4; ++k)
      ASSERT_NEAR(all[i / 512].probabilities[i % 512 * 4 + k], std::exp(expected[i * 4 + k]) / sum, 1e-5);
  }
}

TEST(Segmenter, SeveralRunsAreTheMeanOfTheirProbabilities) {
  const Folder folder("regolith_ensemble");
  const std::string a = make_run(folder, "a", kPixelModel, 1), b = make_run(folder, "b", kPixelModel, 2);
  auto table = by_byte(a);
  const auto other = by_byte(b);
  for (int i = 0; i < 256; ++i)
    for (int k = 0; k < 3; ++k) table[i][k] = (table[i][k] + other[i][k]) / 2;
  SegmenterOptions o;
  o.precision = "fp32";
  const auto pixels = random_bytes(40 * 40);
  expect_pixelwise(Segmenter({a, b}, o).predict({pixels.data(), 40, 40, 1}, {true, true}), pixels, 40, 40, table);
}

TEST(Segmenter, RunsOfOtherSizesTakeTheTilesOfTheFirst) {
  const Folder folder("regolith_sizes");
  std::string larger = kPixelModel;
  larger.replace(larger.find("height: 16, width: 24"), 21, "height: 64, width: 40");
  const std::string a = make_run(folder, "a", kPixelModel, 1), b = make_run(folder, "b", larger, 2);
  auto table = by_byte(a);
  const auto other = by_byte(b);
  for (int i = 0; i < 256; ++i)
    for (int k = 0; k < 3; ++k) table[i][k] = (table[i][k] + other[i][k]) / 2;
  SegmenterOptions o;
  o.precision = "fp32";
  const auto pixels = random_bytes(70 * 50);
  for (const std::vector<std::string>& runs : {std::vector{a, b}, std::vector{b, a}}) {
    Segmenter segmenter(runs, o);
    EXPECT_EQ(segmenter.tile_height(), runs[0] == a ? 16 : 64);
    expect_pixelwise(segmenter.predict({pixels.data(), 70, 50, 1}, {true, true}), pixels, 70, 50, table);
  }
}

TEST(Segmenter, ClassesThatTheLossExcludesAreNeverPredicted) {
  const Folder folder("regolith_excluded");
  const std::string run =
      make_run(folder, "run", kPixelModel + std::string("loss: {focal: {exclude: [0]}}\n"), 1, [](Checkpoint& w) {
        w.set<float>("logits/bias", {3}, std::vector{9.f, 0.f, 0.f});
      });
  const auto pixels = random_bytes(16 * 24);
  Segmenter segmenter({run});
  EXPECT_THAT(segmenter.never_predicted(), ElementsAre(0));
  const Segmentation s = segmenter.predict({pixels.data(), 16, 24, 1}, {true, false});
  for (size_t i = 0; i < pixels.size(); ++i) {
    ASSERT_NE(s.ids[i], 0);
    ASSERT_EQ(s.probabilities[3 * i], 0);
    ASSERT_NEAR(s.probabilities[3 * i + 1] + s.probabilities[3 * i + 2], 1, 1e-5);
  }
  SegmenterOptions all;
  all.all_classes = true;
  Segmenter every({run}, all);
  EXPECT_TRUE(every.never_predicted().empty());
  EXPECT_THAT(every.predict({pixels.data(), 16, 24, 1}).ids, Each(0));
}

TEST(Segmenter, RefusesWithTheFileAndWhatWasExpected) {
  const Folder folder("regolith_refusals");
  const std::string run = make_run(folder, "run", kPixelModel);
  const auto refusal = [](const std::vector<std::string>& runs, const SegmenterOptions& o = {}) {
    return message([&] { Segmenter(runs, o); });
  };
  EXPECT_THAT(refusal({folder / "none"}), HasSubstr("none: expected a run folder"));
  EXPECT_THAT(refusal({folder.path.string()}), HasSubstr("config.yaml: is missing"));
  SegmenterOptions last;
  last.weights = "last";
  EXPECT_THAT(refusal({run}, last), HasSubstr("last.safetensors: is missing; --weights best is there"));
  SegmenterOptions tile;
  tile.tile_height = 16;
  EXPECT_THAT(refusal({run}, tile), HasSubstr("expected a height and a width"));
  SegmenterOptions overlap;
  overlap.overlap = std::nan("");
  EXPECT_THAT(refusal({run}, overlap), HasSubstr("overlap nan: expected 0 to 0.9"));
  std::string wide = kPixelModel;
  wide.replace(wide.find("filters: 8"), 10, "filters: 9");
  SegmenterOptions foreign;
  foreign.weights = make_run(folder, "wide", wide) + "/best.safetensors";
  for (foreign.tile_height = foreign.tile_width = 0; foreign.tile_height <= 16;
       foreign.tile_height = foreign.tile_width += 16)
    EXPECT_THAT(
        refusal({run}, foreign),
        AllOf(HasSubstr("'a/kernel' has the shape (9, 1, 1, 1), expected (8, 1, 1, 1)"), Not(HasSubstr("position"))));
  const std::string other = make_run(folder, "other", kPixelModel + std::string("data: {classes: {names: [a, b, c]}}"));
  EXPECT_THAT(refusal({run, other}), HasSubstr("other: has 1 channels and the classes a, b, c"));
  const std::string deep = make_run(folder, "deep", kPixelModel + std::string("data: {normalise: {bits: 12}}"));
  EXPECT_THAT(refusal({run, deep}), HasSubstr("deep/config.yaml: data.normalise.bits, low or high are others"));
  std::filesystem::copy_file(folder / "other/best.safetensors", run + "/last.safetensors");
  Checkpoint wrong = load_checkpoint(run + "/best.safetensors");
  wrong.tensors.erase("a/bias");
  save_checkpoint(run + "/last.safetensors", wrong);
  EXPECT_THAT(refusal({run}, last), HasSubstr("lacks the parameter 'a/bias'"));
  const uint8_t pixel[3] = {};
  Segmenter segmenter({run});
  EXPECT_THAT(message([&] { segmenter.predict({pixel, 1, 1, 3}); }), HasSubstr("3 channels: the network takes 1"));
}

TEST(Segmenter, TilesLargerThanInTrainingAreTakenWhereTheGraphAllowsThem) {
  const Folder folder("regolith_larger");
  const std::string run = make_run(folder, "run", kPixelModel);
  SegmenterOptions o;
  o.precision = "fp32";
  o.tile_height = 33, o.tile_width = 50;
  Segmenter segmenter({run}, o);
  EXPECT_EQ(segmenter.tile_width(), 50);
  const auto pixels = random_bytes(70 * 60);
  expect_pixelwise(segmenter.predict({pixels.data(), 70, 60, 1}, {true, true}), pixels, 70, 60, by_byte(run));

  const std::string fixed = make_run(folder, "fixed", R"(
model:
  input: {height: 8, width: 8, channels: 1}
  nodes:
    a: {op: conv, in: input, filters: 16}
    t: {block: transformer, in: a, heads: 2, mlp_ratio: 2}
    logits: {op: conv, in: t, filters: 3, kernel: 1}
)");
  o.tile_height = o.tile_width = 16;
  EXPECT_THAT(message([&] { Segmenter({fixed}, o); }),
              HasSubstr("is a position embedding, of images of one size; leave out --tile"));
}

}  // namespace
}  // namespace regolith::testing
