// Training steps of a small network: on the CPU, on the simulated device, and with every part of the planner switched
// off in turn. What must be equal is compared bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/engine/small_training.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using namespace small;

// Convolutions that take the norms train like those between norms on their own, and like plain loops; and always to the
// same bits. A loss is the mean over pixels of what logits say that some 12 layers have rounded, by 2^-9 of a value at
// random each, in both runs; training corrects the errors of the steps before: 2 * sqrt(12) * 2^-9 < 2^-6. So slowly
// that the images are not learned by heart: of a focal loss near zero an error of the logits is a share three times as
// large.
TEST(Trainer, FiftyStepsWithNormsInConvolutions) {
  for (const char* norm : {"batch", "group"}) {
    Variant inside;
    inside.norm = norm;
    inside.channels = 16;
    inside.repeat = 2;
    inside.lr = 5e-4;
    inside.network.precision = Precision::bf16;
    Variant loops = inside;
    inside.network.conv.provider = "auto";
    Variant apart = inside;
    apart.network.fuse.without = {"norms in convolutions"};
    constexpr int kEpochs = 17;  // of three steps
    auto first = make_simulated_device(1), second = make_simulated_device(2);
    const Outcome found = train(*first, inside, kEpochs);
    expect_same(train(*second, inside, kEpochs), found);
    for (const Variant& other : {loops, apart}) {
      const Outcome expected = train(*first, other, kEpochs);
      ASSERT_EQ(found.losses.size(), expected.losses.size());
      for (size_t i = 0; i < found.losses.size(); ++i)
        EXPECT_NEAR(found.losses[i], expected.losses[i], 0x1p-6 * expected.losses[i]) << norm << ", step " << i;
    }
  }
}

TEST(Trainer, LearnsAndCountsItsSteps) {
  auto cpu = make_cpu_device(2);
  const Outcome o = train(*cpu, Variant{}, 10);
  ASSERT_EQ(o.losses.size(), 30u);
  EXPECT_LT(o.losses.back(), 0.8 * o.losses.front());
  EXPECT_EQ(std::accumulate(o.confusion.begin(), o.confusion.end(), int64_t{0}), kCount * kH * kW);
}

// Long before a momentum of 0.99 has forgotten that the running variances began as ones.
TEST(Trainer, EvaluatesSensiblyAfterFewSteps) {
  auto cpu = make_cpu_device(1);
  const Outcome o = train(*cpu, Variant{}, 15);
  EXPECT_LT(o.evaluation, 1.2 * o.losses.back());
}

TEST(Trainer, OneSeedGivesTheSameBytes) {
  auto cpu = make_cpu_device(2);
  Variant setup;
  setup.trainer.augment.flip = kernels::Flip::horizontal;
  setup.trainer.augment.rotation.high = 0.1f;
  expect_same(train(*cpu, setup), train(*cpu, setup));
}

// Captured once and replayed, run late and in any order that the device may choose: the same bytes as on the CPU.
TEST(Trainer, SimulatedDeviceEqualsTheCpu) {
  auto cpu = make_cpu_device(1);
  for (const char* norm : {"batch", "group"}) {
    Variant setup;
    setup.norm = norm;
    const Outcome expected = train(*cpu, setup);
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      for (bool capture : {true, false}) {
        SCOPED_TRACE(std::string(norm) + ", seed " + std::to_string(seed) + (capture ? ", captured" : ""));
        auto simulated = make_simulated_device(seed);
        setup.trainer.capture = capture;
        expect_same(train(*simulated, setup), expected);
      }
    }
  }
}

// Losses that sort, search and look at neighbours, of two heads: captured as well.
TEST(Trainer, EveryLossOnTheSimulatedDeviceEqualsTheCpu) {
  Variant setup;
  setup.trainer.image_losses = true;
  CrossEntropy mined;
  mined.boundary = Boundary{2, 1};
  mined.hard = HardPixels{.2, .3};
  setup.loss.kind = std::vector<LossTerm>{{1, mined}, {.5, LovaszSoftmax{}}, {1, Tversky{.gamma = 1.5}}};
  setup.heads = "  side: {op: conv, in: d, filters: 5, kernel: 1}\nheads: {side: 0.5, logits: 1}\n";
  setup.loss.heads["side"] = {LovaszSoftmax{.per_image = true}};
  auto cpu = make_cpu_device(1);
  const Outcome expected = train(*cpu, setup);
  for (uint64_t seed = 1; seed <= 2; ++seed) expect_same(train(*make_simulated_device(seed), setup), expected);
  setup.loss.heads.clear();
  EXPECT_NE(train(*cpu, setup).losses, expected.losses) << "the head has a loss of its own";
}

TEST(Trainer, TheLossesOfImagesComeWithTheirStep) {
  auto cpu = make_cpu_device(1);
  Variant whole;
  whole.norm = "group";
  whole.trainer.image_losses = true;
  whole.network.micro_batches = 1;
  Variant sliced = whole;
  sliced.network.micro_batches = 4;
  const Outcome a = train(*cpu, whole), b = train(*cpu, sliced);
  ASSERT_EQ(a.image_losses.size(), a.losses.size());
  for (size_t step = 0; step < a.losses.size(); ++step) {
    const std::vector<double>& images = a.image_losses[step];
    ASSERT_EQ(images.size(), step % 3 == 2 ? 2u : 4u);
    EXPECT_NEAR(std::accumulate(images.begin(), images.end(), 0.0) / static_cast<double>(images.size()), a.losses[step],
                1e-6 * a.losses[step]);
    for (size_t i = 0; i < images.size(); ++i) EXPECT_NEAR(b.image_losses[step][i], images[i], 1e-4 * images[i]);
  }
  whole.trainer.image_losses = false;
  const Outcome without = train(*cpu, whole);
  EXPECT_EQ(without.losses, a.losses);
  EXPECT_EQ(without.weights, a.weights);
  EXPECT_TRUE(without.image_losses.empty());
}

TEST(Trainer, ViewsAndReuseChangeNothing) {
  auto cpu = make_cpu_device(1);
  Variant base;
  base.channels = 16;  // slices of whole vectors: a compiler contracts single lanes and vectors differently
  const Outcome expected = train(*cpu, base);
  Variant copies = base, roomy = base;
  copies.network.views = false;
  roomy.network.reuse = false;
  expect_same(train(*cpu, copies), expected);
  expect_same(train(*cpu, roomy), expected);
}

TEST(Trainer, StreamingChangesNothing) {
  for (const int variant : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}) {
    const int device = variant / 4;  // the CPU, two orders of the simulated device
    const bool capture = variant % 2 == 1, mixed = variant / 2 % 2 == 1;
    SCOPED_TRACE(variant);
    auto d = device == 0 ? make_cpu_device(1) : make_simulated_device(device);
    Variant resident;
    kernels::Augment& augment = resident.trainer.augment;
    augment.flip = kernels::Flip::horizontal;
    if (mixed) {
      augment.elastic = {true, 4, 2, 0.7f};
      augment.noise = {true, 0.1f, 0.7f};
      augment.cutmix = {true, {0.2f, 0.5f}, 0.7f};
      augment.copy_paste = {true, 3, 0.7f};
      resident.trainer.paste_rows = {2, 5, 7};
    }
    resident.trainer.capture = capture;
    Variant streamed = resident;
    streamed.streaming = Streaming::on;
    expect_same(train(*d, streamed), train(*d, resident));
    resident.trainer.steps_per_epoch = streamed.trainer.steps_per_epoch = 4;  // the order is begun again
    expect_same(train(*d, streamed), train(*d, resident));
  }
}

TEST(Trainer, FusionChangesNothingButRounding) {
  auto cpu = make_cpu_device(1);
  for (const char* norm : {"batch", "group"}) {
    Variant fused, plain;
    fused.norm = plain.norm = norm;
    plain.network.fuse = FuseOptions::none();
    expect_close(train(*cpu, plain), train(*cpu, fused), 1e-4);
  }
}

TEST(Trainer, SlicesChangeNothingButRounding) {
  auto cpu = make_cpu_device(1);
  Variant whole, sliced;
  whole.norm = sliced.norm = "group";
  whole.network.micro_batches = 1;
  sliced.network.micro_batches = 4;
  whole.trainer.augment.flip = sliced.trainer.augment.flip =
      kernels::Flip::horizontal;  // drawn by sample, not by slice
  expect_close(train(*cpu, sliced), train(*cpu, whole), 1e-4);
}

// A step of two batches, and a last one of one batch and a half, is a step of as many images at once.
TEST(Trainer, AccumulatedBatchesAreALargerOne) {
  for (const int device : {0, 1}) {
    auto d = device == 0 ? make_cpu_device(1) : make_simulated_device(device);
    for (const int batch : {2, 3}) {  // of 10 images: 2 steps of 4 and one of 2; of 6 and one of 4
      Variant whole, parts;
      whole.norm = parts.norm = "group";
      whole.trainer.augment.flip = parts.trainer.augment.flip = kernels::Flip::horizontal;
      whole.trainer.batch = 2 * batch;
      parts.trainer.batch = batch;
      parts.trainer.accumulate = 2;
      const Outcome expected = train(*d, whole), accumulated = train(*d, parts);
      EXPECT_EQ(expected.losses.size(), batch == 2 ? 6u : 4u);
      expect_close(accumulated, expected, 1e-4);
      parts.network.micro_batches = 2;
      expect_close(train(*d, parts), expected, 1e-4);
      parts.streaming = Streaming::on;
      expect_close(train(*d, parts), expected, 1e-4);
      parts.trainer.accumulate = 1;
      EXPECT_NE(train(*d, parts).losses.size(), expected.losses.size());
    }
  }
}

// Batch norm sees train.batch images at a time: the gradient is the mean of the batches' own, as of one without updates
// between them.
TEST(Trainer, AccumulatedBatchesHaveStatisticsOfTheirOwn) {
  auto cpu = make_cpu_device(1);
  Variant parts;
  parts.trainer.batch = 5;
  parts.trainer.accumulate = 2;
  Variant apart = parts;
  apart.trainer.accumulate = 1;
  apart.lr = 1e-12;  // the weights stay
  const Outcome accumulated = train(*cpu, parts, 1), alone = train(*cpu, apart, 1);
  ASSERT_EQ(accumulated.losses.size(), 1u);
  ASSERT_EQ(alone.losses.size(), 2u);
  const double mean = (alone.losses[0] + alone.losses[1]) / 2;
  EXPECT_NEAR(accumulated.losses[0], mean, 1e-5 * mean);
  Variant whole = apart;
  whole.trainer.batch = 10;
  EXPECT_GT(std::abs(train(*cpu, whole, 1).losses[0] - mean), 1e-4 * mean);
}

// As many images as the cache is meant to hold, of a size that divides the batch if one of at least half that does.
TEST(Network, SlicesABatch) {
  const auto slice = [](Device& device, int N, const std::string& height, const std::string& norm, int slices = 0) {
    const std::string text = "input: {height: " + height +
                             ", width: 128}\nnodes:\n"
                             "  a: {op: conv, in: input, filters: 96}\n"
                             "  n: {op: " +
                             norm +
                             ", in: a}\n"
                             "  logits: {op: conv, in: n, filters: 5, kernel: 1}\n";
    NetworkOptions options;
    options.micro_batches = slices;
    return Network(read_model(Yaml::load_string(text, "wide.yaml")), device, options).micro_batch_size(N);
  };
  const auto cpu = make_cpu_device(1), simulated = make_simulated_device(1);
  // 3 MiB of fp32 an image, so four.
  for (const auto& [N, size] : {std::pair{1, 1}, {2, 2}, {3, 3}, {8, 4}, {9, 3}, {10, 4}, {31, 4}, {32, 4}})
    EXPECT_EQ(slice(*cpu, N, "64", "group_norm"), size) << N;
  // 24 MiB: two, for the weights' sake.
  for (const auto& [N, size] : {std::pair{1, 1}, {4, 2}, {5, 2}})
    EXPECT_EQ(slice(*cpu, N, "512", "group_norm"), size) << N;
  EXPECT_EQ(slice(*cpu, 10, "64", "group_norm", 3), 4) << "as asked";
  EXPECT_EQ(slice(*cpu, 32, "64", "batch_norm"), 32) << "its images depend on each other";
  EXPECT_EQ(slice(*simulated, 32, "64", "group_norm"), 32) << "a GPU takes the batch whole";
}

TEST(Trainer, LowPrecisionFollowsFp32) {
  auto cpu = make_cpu_device(2);
  const Outcome exact = train(*cpu, Variant{});
  Variant low;
  low.network.precision = Precision::bf16;
  expect_close(train(*cpu, low), exact, 0.05);
}

}  // namespace
}  // namespace regolith
