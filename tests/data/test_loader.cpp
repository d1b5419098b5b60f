// Batches on every device that needs no GPU; what the kernel computes is checked in tests/kernels.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/loader.h"
#include "kernels/core/error.h"

namespace regolith {
namespace {

using ::testing::ElementsAre;

// 1x1 pictures: picture i is the byte 10 * i, its mask the class i.
Dataset made(int64_t count) {
  Dataset d;
  d.count = count;
  d.height = d.width = 1;
  for (int64_t i = 0; i < count; ++i) {
    d.images.push_back(static_cast<uint8_t>(10 * i));
    d.masks.push_back(static_cast<uint8_t>(i));
    d.source.push_back(i);
  }
  return d;
}

class Loader : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    device_ = GetParam() == DeviceKind::cpu ? make_cpu_device() : make_simulated_device(7);
    stream_ = device_->make_stream();
    x_ = DeviceBuffer(*device_, 4 * sizeof(float));
    labels_ = DeviceBuffer(*device_, 4);
    step_ = DeviceBuffer(*device_, sizeof(int64_t));
  }
  Map map(int n) const { return {x_.as(), n, 1, 1, 1, 1, DType::f32}; }
  void set_step(int64_t step) {
    device_->upload(step_.as(), &step, sizeof step, *stream_);
    stream_->synchronize();
  }
  std::vector<uint8_t> labels(size_t n) {
    std::vector<uint8_t> host(n);
    device_->download(host.data(), labels_.as(), n, *stream_);
    stream_->synchronize();
    return host;
  }
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceStream> stream_;
  DeviceBuffer x_, labels_, step_;
};

TEST_P(Loader, ACapturedPassFollowsTheStep) {
  const DeviceDataset data(*device_, *stream_, made(10));
  Sampler s(*device_, data, once({9, 1, 2, 3, 4, 5, 6}), 3, false, 1);
  EXPECT_EQ(s.steps_per_epoch(), 3);
  EXPECT_EQ(s.present(0), 3);
  EXPECT_EQ(s.present(2), 1);
  s.in_order(*stream_);
  const auto graph =
      device_->capture(*stream_, [&] { s.sample(*stream_, step_.as<int64_t>(), map(3), labels_.as<uint8_t>()); });
  std::vector<std::vector<uint8_t>> seen;
  for (int64_t step = 0; step < 4; ++step) {
    set_step(step);
    graph->replay(*stream_);
    seen.push_back(labels(3));
  }
  EXPECT_THAT(seen,
              ElementsAre(ElementsAre(9, 1, 2), ElementsAre(3, 4, 5), ElementsAre(6, 255, 255), ElementsAre(9, 1, 2)));
}

TEST_P(Loader, EpochsAreShuffledWithoutWaiting) {
  const DeviceDataset data(*device_, *stream_, made(4));
  Sampler s(*device_, data, once({0, 1, 2, 3}), 4, true, 5);
  set_step(0);
  std::vector<std::vector<uint8_t>> host(6, std::vector<uint8_t>(4));
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    s.shuffle(epoch, *stream_);
    s.sample(*stream_, step_.as<int64_t>(), map(4), labels_.as<uint8_t>());
    device_->download(host[epoch].data(), labels_.as(), 4, *stream_);
  }
  stream_->synchronize();
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    const auto order = epoch_order(5, epoch, 4);
    EXPECT_THAT(host[epoch], ElementsAre(order[0], order[1], order[2], order[3])) << epoch;
  }
}

TEST_P(Loader, NormalisesAndWraps) {
  const DeviceDataset data(*device_, *stream_, made(5));
  Sampler s(*device_, data, once({1, 2, 4}), 2, true, 5, {}, 2.0, 1.5);
  s.in_order(*stream_);
  set_step(1);
  s.sample(*stream_, step_.as<int64_t>(), map(2), labels_.as<uint8_t>());
  std::vector<float> x(2);
  device_->download(x.data(), x_.as(), 8, *stream_);
  EXPECT_THAT(labels(2), ElementsAre(4, 1));
  EXPECT_THAT(x, ElementsAre(81.5f, 21.5f));
}

TEST_P(Loader, RefusesOtherSizes) {
  const DeviceDataset data(*device_, *stream_, made(5));
  EXPECT_THROW(Sampler(*device_, data, {}, 2, true, 5), DataError);
  EXPECT_THROW(Sampler(*device_, data, once({5}), 2, true, 5), DataError);
  Sampler s(*device_, data, once({1}), 2, true, 5);
  EXPECT_THROW(s.sample(*stream_, nullptr, {x_.as(), 1, 2, 1, 1, 1, DType::f32}, nullptr), DataError);
  EXPECT_THROW(s.sample(*stream_, nullptr, {x_.as(), 3, 1, 1, 1, 1, DType::f32}, nullptr), KernelError);
}

INSTANTIATE_TEST_SUITE_P(Devices, Loader, ::testing::Values(DeviceKind::cpu, DeviceKind::simulated),
                         [](const auto& info) { return info.param == DeviceKind::cpu ? "cpu" : "simulated"; });

}  // namespace
}  // namespace regolith
