// What a trainer refuses, names and leaves alone: training that goes bad, orders, evaluations between epochs, captures,
// a profiler's steps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "engine/base/error.h"
#include "kernels/add.h"
#include "tests/engine/small_training.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using namespace small;

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

}  // namespace
}  // namespace regolith
