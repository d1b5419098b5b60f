// A network of a few channels and ten images, trained for a few steps: what the tests of the trainer share.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/train/trainer.h"
#include "kernels/core/random.h"
#include "losses/loss.h"
#include "models/reader.h"

namespace regolith::small {

inline constexpr int kH = 8, kW = 16, kCount = 10;

// Channels: of the wide level; twice as many below it.
inline Graph small_unet(const std::string& norm, int channels = 8, const std::string& heads = "", int repeat = 1) {
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

inline const LossSpec kFocal{Focal{2, {.25}, {0}, Reduction::mean_elements}};
inline Loss focal() { return {kFocal, 5}; }

inline std::vector<int64_t> all_rows() {
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

inline Outcome train(Device& device, const Variant& setup, int epochs = 2) {
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

inline void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.image_losses, b.image_losses);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.evaluation, b.evaluation);
  EXPECT_EQ(a.confusion, b.confusion);
}

inline void expect_close(const Outcome& a, const Outcome& b, double relative) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i)
    EXPECT_TRUE(std::abs(a.losses[i] - b.losses[i]) <= relative * std::abs(b.losses[i]))
        << "step " << i << ": " << a.losses[i] << " and " << b.losses[i];
}

}  // namespace regolith::small
