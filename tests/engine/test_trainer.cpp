// Training steps of a small network: on the CPU, on the simulated device, and with every part of the planner switched
// off in turn. What must be equal is compared bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "engine/base/error.h"
#include "engine/report/explain.h"
#include "engine/train/trainer.h"
#include "kernels/add.h"
#include "kernels/core/random.h"
#include "losses/loss.h"
#include "models/reader.h"
#include "places.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

constexpr int kH = 8, kW = 16, kCount = 10;

// Channels: of the wide level; twice as many below it.
Graph small_unet(const std::string& norm, int channels = 8, const std::string& heads = "", int repeat = 1) {
  const std::string wide = std::to_string(channels), deep = std::to_string(2 * channels);
  return read_model(
      Yaml::load_string("input: {height: 8, width: 16}\n"
                        "defaults: {kernel: 3, groups: 4, repeat: " +
                            std::to_string(repeat) + ", norm: " + norm +
                            "}\n"
                            "nodes:\n"
                            "  e: {block: conv_norm, in: input, filters: " +
                            wide +
                            "}\n"
                            "  p: {op: max_pool, in: e}\n"
                            "  b: {block: conv_norm, in: p, filters: " +
                            deep +
                            "}\n"
                            "  u: {op: upsample, in: b, mode: bilinear}\n"
                            "  c: {op: concat, in: [u, e]}\n"
                            "  d: {block: conv_norm, in: c, filters: " +
                            wide +
                            "}\n"
                            "  t: {op: conv_transpose, in: b, filters: " +
                            wide +
                            ", kernel: 2, stride: 2}\n"
                            "  s: {op: add, in: [d, t, e]}\n"
                            "  logits: {op: conv, in: s, filters: 5, kernel: 1}\n" +
                            heads,
                        "small.yaml"));
}

struct Data {
  std::vector<uint8_t> images, masks;
  Data() : images(kCount * kH * kW), masks(images.size()) {
    for (size_t i = 0; i < images.size(); ++i) {
      const Philox r = philox(7, static_cast<uint32_t>(i), 0, 0, 0);
      images[i] = static_cast<uint8_t>(r.v[0] >> 24);
      masks[i] = static_cast<uint8_t>(r.v[1] % 5);
    }
  }
  DataView view() const { return {images.data(), masks.data(), kCount, kH, kW, 1}; }
};

const LossSpec kFocal{Focal{2, {.25}, {0}, Reduction::mean_elements}};
Loss focal() { return {kFocal, 5}; }

std::vector<int64_t> all_rows() {
  std::vector<int64_t> rows(kCount);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

struct Variant {
  std::string norm = "batch";
  int channels = 8, repeat = 1;
  NetworkOptions network;
  TrainerOptions trainer;
  Streaming streaming = Streaming::off;
  double lr = 1e-2;
  LossSpec loss = kFocal;
  std::string heads;  // of the model
  Variant() {
    network.conv.provider = "reference";
    network.seed = 3;
    trainer.batch = 4;  // 10 samples: two whole batches and a rest of two
  }
};

struct Outcome {
  std::vector<std::vector<float>> weights;
  std::vector<double> losses;
  std::vector<std::vector<double>> image_losses;  // of each step
  std::vector<int64_t> confusion;
  double evaluation = 0;
};

Outcome train(Device& device, const Variant& setup, int epochs = 2) {
  const Data data;
  Network network(small_unet(setup.norm, setup.channels, setup.heads, setup.repeat), device, setup.network);
  const Loss loss(setup.loss, 5);
  DeviceData device_data(device, data.view(), setup.trainer.batch * setup.trainer.accumulate, setup.streaming,
                         partners_of(setup.trainer.augment));
  Trainer trainer(network, loss, device_data, kCount, setup.trainer);
  network.parameters().initialise(5, trainer.stream());
  Outcome o;
  for (int e = 0; e < epochs; ++e) {
    std::vector<int32_t> order(kCount);
    for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index((i * 3 + e) % kCount, i % 2 == 0);
    trainer.run_epoch(
        order, [&](int64_t) { return setup.lr; },
        [&](const StepReport& r) {
          o.losses.push_back(r.loss);
          if (r.image_loss != nullptr) o.image_losses.emplace_back(r.image_loss, r.image_loss + r.images);
          return true;
        });
  }
  const Evaluation evaluation = trainer.evaluate(all_rows(), true);
  o.evaluation = evaluation.loss;
  o.confusion = evaluation.confusion;
  for (size_t i = 0; i < network.parameters().entries().size(); ++i)
    o.weights.push_back(network.parameters().read(static_cast<int>(i), ParamField::weight, trainer.stream()));
  return o;
}

// A trainer of the usual network on the CPU, before its weights are made.
struct Setting {
  std::unique_ptr<Device> cpu = make_cpu_device(1);
  const Data data;
  const Variant setup;
  Network network{small_unet("batch"), *cpu, setup.network};
  const Loss loss = focal();
  DeviceData device_data{*cpu, data.view(), setup.trainer.batch};
  Trainer trainer{network, loss, device_data, kCount, setup.trainer};
};

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.image_losses, b.image_losses);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.evaluation, b.evaluation);
  EXPECT_EQ(a.confusion, b.confusion);
}

void expect_close(const Outcome& a, const Outcome& b, double relative) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i)
    EXPECT_TRUE(std::abs(a.losses[i] - b.losses[i]) <= relative * std::abs(b.losses[i]))
        << "step " << i << ": " << a.losses[i] << " and " << b.losses[i];
}

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

TEST(Trainer, RefusesHalfPrecisionOnTheCpu) {
  auto cpu = make_cpu_device(1);
  Variant low;
  low.network.precision = Precision::fp16;
  EXPECT_THROW(train(*cpu, low), DeviceError);
}

TEST(Trainer, NamesTheNodeThatWentBad) {
  auto cpu = make_cpu_device(1);
  Variant setup;
  setup.lr = INFINITY;
  try {
    train(*cpu, setup, 20);
    FAIL() << "expected a TrainError";
  } catch (const TrainError& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("the output of node e/1/conv"));
  }
}

// Where an epoch has few steps, 20 in a row would be days.
TEST(Trainer, AnEpochWithoutAFiniteStepIsTold) {
  Setting s;
  s.network.parameters().initialise(5, s.trainer.stream());
  const std::vector<int32_t> order(kCount);
  std::vector<int> images;
  const auto epoch = [&](double rate) {
    s.trainer.run_epoch(
        order, [&](int64_t) { return rate; },
        [&](const StepReport& r) {
          images.push_back(r.images);
          return true;
        });
  };
  epoch(1e-3);
  EXPECT_EQ(images, (std::vector<int>{4, 4, 2}));
  s.trainer.require_finite_epoch();
  epoch(INFINITY);
  s.trainer.require_finite_epoch();  // its first step was finite
  epoch(1e-3);
  try {
    s.trainer.require_finite_epoch();
    FAIL() << "expected a TrainError";
  } catch (const TrainError& e) {
    EXPECT_THAT(e.what(), testing::AllOf(testing::HasSubstr("all steps of an epoch"),
                                         testing::HasSubstr("the output of "
                                                            "node e/1/conv"),
                                         testing::HasSubstr("start anew with a lower optimizer.lr")));
  }
}

// By the whole batch, or by the last one of an epoch: before any training.
TEST(Trainer, RefusesBatchStatisticsOfOneValue) {
  auto cpu = make_cpu_device(1);
  const Data data;
  const auto refusal = [&](int batch, bool drop_last) -> std::string {
    Network network(read_model(Yaml::load_string("input: {height: 8, width: 16}\n"
                                                 "nodes:\n"
                                                 "  e: {op: conv, in: input, filters: 4}\n"
                                                 "  g: {op: global_avg_pool, in: e}\n"
                                                 "  n: {op: batch_norm, in: g}\n"
                                                 "  r: {op: resize, in: n, height: 8, width: 16}\n"
                                                 "  logits: {op: conv, in: r, filters: 5, kernel: 1}\n",
                                                 "pooled.yaml")),
                    *cpu, {});
    const Loss loss = focal();
    DeviceData device_data(*cpu, data.view(), batch);
    TrainerOptions options;
    options.batch = batch;
    options.drop_last = drop_last;
    try {
      Trainer(network, loss, device_data, kCount, options);
    } catch (const GraphError& e) {
      return e.what();
    }
    return "";
  };
  for (const int batch : {1, 3, 9})  // of 10 images
    EXPECT_THAT(refusal(batch, false), testing::AllOf(testing::HasSubstr("node n: "), testing::HasSubstr("drop_last")));
  EXPECT_EQ(refusal(2, false), "");
  EXPECT_EQ(refusal(9, true), "");
}

TEST(Trainer, RefusesAnOrderOfAnotherLength) {
  Setting s;
  const std::vector<int32_t> order(kCount + 1);
  EXPECT_THROW(s.trainer.run_epoch(
                   order, [](int64_t) { return 1e-3; }, [](const StepReport&) { return true; }),
               TrainError);
}

TEST(Trainer, StopsWhenItIsTold) {
  Setting s;
  s.network.parameters().initialise(5, s.trainer.stream());
  std::vector<int32_t> order(kCount);
  for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index(i, false);
  const auto rate = [](int64_t) { return 1e-3; };
  EXPECT_FALSE(s.trainer.run_epoch(order, rate, [](const StepReport&) { return false; }));
  EXPECT_LT(s.trainer.state().step, 3);
  EXPECT_TRUE(s.trainer.run_epoch(order, rate, [](const StepReport&) { return true; }));  // the rest of the epoch
  EXPECT_EQ(s.trainer.state().step, 3);
}

// Two parts of one size, one after the other, between epochs: each has its own scores, those of an evaluator that knows
// no trainer, and the confusion of the training pixels stays.
TEST(Trainer, EvaluationsLeaveTheTrainingAlone) {
  const Data data;
  const Variant setup;
  const std::vector<int64_t> first{0, 3, 4, 7, 9}, second{8, 6, 5, 2, 1};
  for (const Streaming streaming : {Streaming::off, Streaming::on}) {
    auto device = make_simulated_device(3);
    Network network(small_unet("batch"), *device, setup.network);
    const Loss loss = focal();
    DeviceData device_data(*device, data.view(), setup.trainer.batch, streaming);
    Trainer trainer(network, loss, device_data, kCount, setup.trainer);
    network.parameters().initialise(5, trainer.stream());
    std::vector<int32_t> order;
    for (const int64_t row : all_rows()) order.push_back(kernels::sample_index(row, false));
    trainer.run_epoch(
        order, [](int64_t) { return 1e-2; }, [](const StepReport&) { return true; });
    const std::vector<int64_t> trained = trainer.training_confusion();
    EXPECT_EQ(std::accumulate(trained.begin(), trained.end(), int64_t{0}), kCount * kH * kW);

    const Evaluation a = trainer.evaluate(first, true), b = trainer.evaluate(second, true);
    EXPECT_EQ(trainer.training_confusion(), trained);
    EXPECT_NE(a.predictions, b.predictions);
    const Evaluation whole = trainer.evaluate(all_rows(), true);
    EXPECT_NEAR((a.loss + b.loss) / 2, whole.loss, 1e-6 * whole.loss);
    for (size_t i = 0; i < whole.confusion.size(); ++i)
      EXPECT_EQ(a.confusion[i] + b.confusion[i], whole.confusion[i]) << i;
    for (size_t i = 0; i < second.size(); ++i) {
      const auto pixels = [&](const Evaluation& e, int64_t sample) {
        const auto at = e.predictions.begin() + sample * kH * kW;
        return std::vector<uint8_t>(at, at + kH * kW);
      };
      EXPECT_EQ(pixels(b, static_cast<int64_t>(i)), pixels(whole, second[i])) << i;
    }

    Evaluator alone(network, trainer.stream(), loss, setup.trainer);
    const Evaluation c = alone.evaluate(device_data, second, true);
    EXPECT_EQ(c.loss, b.loss);
    EXPECT_EQ(c.confusion, b.confusion);
    EXPECT_EQ(c.predictions, b.predictions);
  }
}

// The CPU, with a profiler that notes what had been done when it was told to begin and to end.
class Profiled : public Device {
 public:
  std::unique_ptr<Device> cpu = make_cpu_device(1);
  std::vector<std::pair<bool, size_t>> marks;  // on, losses reported so far
  const std::vector<double>* losses = nullptr;

  void profile(bool on) override { marks.emplace_back(on, losses->size()); }
  DeviceKind kind() const override { return cpu->kind(); }
  Execution execution() const override { return cpu->execution(); }
  std::string name() const override { return cpu->name(); }
  size_t free_bytes() const override { return cpu->free_bytes(); }
  void* allocate(size_t bytes) override { return cpu->allocate(bytes); }
  void release(void* memory) noexcept override { cpu->release(memory); }
  void* allocate_host(size_t bytes) override { return cpu->allocate_host(bytes); }
  void release_host(void* memory) noexcept override { cpu->release_host(memory); }
  std::unique_ptr<DeviceStream> make_stream() override { return cpu->make_stream(); }
  std::unique_ptr<Event> make_event() override { return cpu->make_event(); }
  void upload(void* d, const void* h, size_t n, DeviceStream& s) override { cpu->upload(d, h, n, s); }
  void download(void* h, const void* d, size_t n, DeviceStream& s) override { cpu->download(h, d, n, s); }
  void copy(void* to, const void* from, size_t n, DeviceStream& s) override { cpu->copy(to, from, n, s); }
  void fill(void* d, uint8_t byte, size_t n, DeviceStream& s) override { cpu->fill(d, byte, n, s); }
  std::unique_ptr<CapturedGraph> capture(DeviceStream& s, const std::function<void()>& work) override {
    return cpu->capture(s, work);
  }
};

TEST(Trainer, BracketsTheStepsThatAProfilerRecords) {
  const Data data;
  Profiled device;
  Variant setup;
  setup.trainer.profile_start = 2;  // of three steps an epoch: the last of the first epoch, and one more
  setup.trainer.profile_steps = 2;
  Network network(small_unet("batch"), device, setup.network);
  const Loss loss = focal();
  DeviceData device_data(device, data.view(), setup.trainer.batch);
  Trainer trainer(network, loss, device_data, kCount, setup.trainer);
  network.parameters().initialise(5, trainer.stream());
  std::vector<double> losses;
  device.losses = &losses;
  std::vector<int32_t> order(kCount);
  for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index(i, false);
  for (int epoch = 0; epoch < 3; ++epoch) {
    trainer.run_epoch(
        order, [](int64_t) { return 1e-3; },
        [&](const StepReport& r) {
          losses.push_back(r.loss);
          return true;
        });
  }
  // Reports come one step late, and all of an epoch's before the next begins.
  EXPECT_EQ(device.marks, (std::vector<std::pair<bool, size_t>>{{true, 1}, {false, 3}}));
}

// Work that was never enqueued before, from its third run on: its first launch then is in a capture.
struct Unsteady : OpBase<Unsteady> {
  explicit Unsteady(bool backward) : backward_(backward) {}
  std::string_view kind() const override { return "unsteady"; }
  Inference infer(const std::vector<Shape>& inputs) override {
    Inference r;
    r.shape = inputs[0];
    return r;
  }
  void forward(const OpRun& run) override {
    kernels::add_forward(*run.stream, {.a = run.x[0], .b = {}, .y = run.y});
    if (!backward_) surprise(run);
  }
  void backward(const OpRun& run) override {
    kernels::add_forward(*run.stream, {.a = run.dy, .b = {}, .y = run.dx[0]});
    if (backward_) surprise(run);
  }
  void surprise(const OpRun& run) {
    run.stream->enqueue(runs_++ == 0 ? "steady" : "surprise", [] {});
  }
  bool backward_;
  int runs_ = 0;
};

TEST(Trainer, AFailedCaptureNamesItsNode) {
  for (const bool backward : {false, true}) {
    const Data data;
    const auto device = make_simulated_device(1);
    Variant setup;
    Graph graph = small_unet("batch");
    const int last = graph.add("odd", std::make_unique<Unsteady>(backward), {graph.output});
    graph.infer(1);
    graph.output = graph.heads[0].node = last;
    Network network(std::move(graph), *device, setup.network);
    const Loss loss = focal();
    DeviceData device_data(*device, data.view(), setup.trainer.batch);
    Trainer trainer(network, loss, device_data, kCount, setup.trainer);
    network.parameters().initialise(5, trainer.stream());
    std::vector<int32_t> order(kCount);
    for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index(i, false);
    int steps = 0;
    const auto run = [&] {
      trainer.run_epoch(
          order, [](int64_t) { return 1e-3; }, [&](const StepReport&) { return ++steps > 0; });
    };
    EXPECT_THAT(run, testing::ThrowsMessage<DeviceError>(testing::AllOf(
                         testing::HasSubstr(backward ? "in node odd, backward: " : "in node odd: "),
                         testing::HasSubstr("kernel surprise is launched for the first time inside a capture"),
                         testing::HasSubstr("run.cuda_graph=false"))));
  }
}

TEST(Views, ConcatOfTheUnetCopiesNothing) {
  auto cpu = make_cpu_device(1);
  Graph g = read_model(Yaml::load(std::string(REGOLITH_SOURCE_DIR) + "/configs/models/unet.yaml").at("model"));
  NetworkOptions options;
  options.conv.provider = "reference";
  Network network(std::move(g), *cpu, options);
  for (Mode mode : {Mode::train, Mode::eval}) {
    Program& p = network.program(1, mode);
    EXPECT_EQ(p.plan().concat_copies, 0);
    EXPECT_EQ(p.plan().extra_adds, 0);
    int parts = 0;
    for (size_t i = 0; i < p.graph().nodes.size(); ++i) {
      const Node& n = p.graph().nodes[i];
      if (n.op->kind() != "concat") continue;
      int channel = 0;
      for (int in : n.inputs) {
        const TensorView whole = p.value(static_cast<int>(i)), part = p.value(in);
        EXPECT_EQ(part.data, whole.as<float>() + channel) << n.name;
        EXPECT_EQ(part.pitch, whole.C);
        if (mode == Mode::train) {
          EXPECT_EQ(p.gradient(in).data, p.gradient(static_cast<int>(i)).as<float>() + channel);
        }
        channel += part.C;
        ++parts;
      }
    }
    EXPECT_EQ(parts, 4);
  }
}

TEST(Memory, TooLargeABatchNamesTensorsAndOneThatFits) {
  auto cpu = make_cpu_device(1);
  Graph g = read_model(Yaml::load(std::string(REGOLITH_SOURCE_DIR) + "/configs/models/unet.yaml").at("model"));
  NetworkOptions options;
  options.conv.provider = "reference";
  Network network(std::move(g), *cpu, options);
  try {
    network.program(1 << 14, Mode::train);
    FAIL() << "expected a DeviceError";
  } catch (const DeviceError& e) {
    EXPECT_THAT(e.what(),
                testing::AllOf(testing::HasSubstr("c1"), testing::ContainsRegex("A batch of [0-9]+ would fit$")));
  }
}

// The plan is told whole, and needs none of the memory; slices are advised only where they change nothing.
TEST(Memory, ExplainsABatchThatDoesNotFit) {
  auto cpu = make_cpu_device(1);
  for (const bool couples : {false, true}) {
    NetworkOptions options;
    options.conv.provider = "reference";
    options.reserve = false;
    options.couples_images = couples;
    if (!couples) {  // of its own accord it takes slices, which always fit
      Network sliced(small_unet("group"), *cpu, options);
      EXPECT_THAT(explain(sliced, 1 << 30, 2), testing::Not(testing::HasSubstr("does not fit")));
      options.micro_batches = 1;
    }
    Network network(small_unet("group"), *cpu, options);
    const std::string small = explain(network, 4, 2), large = explain(network, 1 << 30, 2);
    for (const std::string& text : {small, large})
      EXPECT_THAT(text, testing::AllOf(testing::HasSubstr("\narena  "), testing::HasSubstr("\nlargest  ")));
    EXPECT_THAT(small, testing::Not(testing::HasSubstr("does not fit")));
    EXPECT_THAT(large, testing::ContainsRegex(couples ? "\ndoes not fit .* would fit\n$"
                                                      : "\ndoes not fit .*; or set train.slices\n$"));
    EXPECT_EQ(network.arena(), nullptr);
  }
}

}  // namespace
}  // namespace regolith
