// What ranks exchange: as threads of one process, over its memory and over TCP.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <numeric>
#include <optional>
#include <thread>

#include "engine/comm/communicator.h"
#include "engine/comm/launch.h"
#include "engine/comm/socket.h"
#include "engine/comm/watch.h"
#include "engine/train/exchange.h"
#include "engine/train/trainer.h"
#include "kernels/core/random.h"
#include "losses/loss.h"
#include "models/reader.h"
#include "tests/support/message.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using ::testing::HasSubstr;
using testing::message;

enum class Kind { local, tcp };

// Each rank's work in a thread of its own.
void as_ranks_of(Kind kind, int size, const std::function<void(Communicator&)>& work) {
  std::vector<std::unique_ptr<Communicator>> local;
  Launch launch;
  launch.size = size;
  launch.address = "127.0.0.1";
  launch.job = "test";
  if (kind == Kind::local)
    local = make_local(size);
  else
    launch.port = Socket::listen(0, 1).port();
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      if (kind == Kind::local) return work(*local[r]);
      Launch own = launch;
      own.rank = r;
      work(*connect_tcp(own));
    });
  for (std::thread& t : threads) t.join();
}

class Ranks : public ::testing::TestWithParam<std::tuple<Kind, int>> {
 protected:
  void run(const std::function<void(Communicator&)>& work) const {
    as_ranks_of(std::get<0>(GetParam()), std::get<1>(GetParam()), work);
  }
};
INSTANTIATE_TEST_SUITE_P(Comm, Ranks,
                         ::testing::Combine(::testing::Values(Kind::local, Kind::tcp), ::testing::Values(1, 2, 3, 4)));

TEST_P(Ranks, ExchangeWhatTheySay) {
  run([](Communicator& c) {
    const int rank = c.rank(), size = c.size();
    EXPECT_THAT(c.name(), HasSubstr("rank " + std::to_string(rank) + " of " + std::to_string(size)));
    const double own = rank + .5;
    std::vector<double> all(size);
    c.gather(&own, sizeof own, all.data());
    for (int r = 0; r < size; ++r) EXPECT_EQ(all[r], r + .5);
    std::vector<int64_t> counts{rank, 1};
    c.sum(counts);
    EXPECT_EQ(counts, (std::vector<int64_t>{size * (size - 1) / 2, size}));
    EXPECT_TRUE(c.any(rank == size - 1));
    EXPECT_FALSE(c.any(false));
    const std::vector<std::string> texts = c.gather(std::string(rank, 'x'));
    for (int r = 0; r < size; ++r) EXPECT_EQ(texts[r], std::string(r, 'x'));
    for (int from = 0; from < size; ++from)
      EXPECT_EQ(c.broadcast("by " + std::to_string(rank), from), "by " + std::to_string(from));
    c.barrier();
  });
}

// More than fits into the buffers of a connection, so that no rank may wait for another to receive.
TEST_P(Ranks, ExchangeMuchAtOnce) {
  constexpr int64_t kCount = 3'000'001;
  run([](Communicator& c) {
    std::vector<float> own(kCount), all(kCount * c.size());
    for (int64_t i = 0; i < kCount; ++i) own[i] = static_cast<float>(i % 1000 + c.rank());
    c.gather(own.data(), kCount * sizeof(float), all.data());
    std::vector<float> sent = own;
    c.broadcast(sent.data(), kCount * sizeof(float), c.size() - 1);
    c.sum(own.data(), kCount);
    for (int64_t i = 0; i < kCount; ++i) {
      const auto v = static_cast<float>(i % 1000);
      for (int r = 0; r < c.size(); ++r) ASSERT_EQ(all[r * kCount + i], v + static_cast<float>(r)) << i;
      ASSERT_EQ(sent[i], v + static_cast<float>(c.size() - 1)) << i;
      ASSERT_EQ(own[i], static_cast<float>(c.size()) * v + static_cast<float>(c.size() * (c.size() - 1) / 2)) << i;
    }
  });
}

TEST_P(Ranks, HearOfAFailure) {
  const int size = std::get<1>(GetParam());
  if (size == 1) return;
  run([size](Communicator& c) {
    if (c.rank() == size - 1) {
      c.barrier();
      return c.fail("the disk is full");
    }
    const std::string text = message<CommError>([&] {
      for (;;) c.barrier();
    });
    EXPECT_THAT(text, HasSubstr("rank " + std::to_string(size - 1) + " of " + std::to_string(size)));
    EXPECT_THAT(text, HasSubstr(": the disk is full"));
  });
}

// A rank that computes for long, and calls nothing.
TEST(WatchDeathTest, EndsAProcessThatDoesNotCome) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto compute = [] {
    const Socket door = Socket::listen(0, 1);
    const auto until = Socket::Clock::now() + std::chrono::seconds(20);
    std::vector<Socket> far, near;
    far.push_back(Socket::connect("127.0.0.1", door.port(), until));
    near.push_back(door.accept(until));
    std::optional<Watch> other(std::in_place, 1, std::vector<std::string>{"rank 0", "rank 1"}, std::move(far));
    const Watch root(0, {"rank 0", "rank 1"}, std::move(near));
    other->fail("the disk is full");
    std::this_thread::sleep_for(std::chrono::seconds(60));
  };
  const auto began = std::chrono::steady_clock::now();
  EXPECT_EXIT(compute(), ::testing::ExitedWithCode(1), "^test_engine[^\n]*: rank 1: the disk is full\n$");
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(20));
}

TEST(Socket, SaysWhichNameDoesNotResolve) {
  std::string unknown;
  const auto until = Socket::Clock::now() + std::chrono::seconds(5);
  EXPECT_FALSE(Socket::connect("no such name", 1, until, &unknown).open());
  EXPECT_TRUE(unknown.starts_with("does not resolve: ")) << unknown;
  const Socket door = Socket::listen(0, 1);
  EXPECT_TRUE(Socket::connect("127.0.0.1", door.port(), until, &unknown).open());
  EXPECT_EQ(unknown, "");
}

TEST(Watch, CallsOnceWhenARankFails) {
  const Socket door = Socket::listen(0, 1);
  const auto until = Socket::Clock::now() + std::chrono::seconds(20);
  std::vector<Socket> far, near;
  far.push_back(Socket::connect("127.0.0.1", door.port(), until));
  near.push_back(door.accept(until));
  Watch other(1, {"rank 0", "rank 1"}, std::move(far)), root(0, {"rank 0", "rank 1"}, std::move(near));
  std::atomic<int> calls = 0;
  root.on_failure([&] { ++calls; });
  other.fail("the disk is full");
  while (!root.failed() && Socket::Clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(message<CommError>([&] { root.check(); }), "rank 1: the disk is full");
  other.fail("and the other one");
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(calls, 1);
  root.on_failure([&] { ++calls; });  // who comes later hears of it at once
  EXPECT_EQ(calls, 2);
}

TEST(Launched, ReadsWhatLaunchersSet) {
  EXPECT_EQ(first_node("node[03-07,9],other"), "node03");
  EXPECT_EQ(first_node("node[3,5]"), "node3");
  EXPECT_EQ(first_node("a,b"), "a");
  EXPECT_EQ(first_node("login1"), "login1");
  EXPECT_EQ(first_node("gpu-a[001-002]-ib"), "gpu-a001-ib");
}

TEST(Share, DividesEvenly) {
  for (const int parts : {1, 2, 5, 8, 9})
    for (const int ranks : {1, 2, 3, 4}) {
      int next = 0;
      for (int r = 0; r < ranks; ++r) {
        const Share s = share_of(parts, r, ranks);
        EXPECT_EQ(s.first, next);
        EXPECT_LE(std::abs(s.count * ranks - parts), ranks - 1);
        next += s.count;
      }
      EXPECT_EQ(next, parts);
    }
}

TEST(DivideBatch, HasAPartForEachRankWhereItIsNotDividedAnyway) {
  const auto counts = [](int N, int each, int ranks) {
    std::vector<int> list;
    int next = 0;
    for (const Share& s : divide_batch(N, each, ranks)) {
      EXPECT_EQ(s.first, next);
      next += s.count;
      list.push_back(s.count);
    }
    EXPECT_EQ(next, N);
    return list;
  };
  EXPECT_EQ(counts(8, 8, 1), std::vector<int>{8});
  EXPECT_EQ(counts(9, 9, 4), (std::vector<int>{2, 2, 2, 3}));
  EXPECT_EQ(counts(2, 2, 3), (std::vector<int>{1, 1}));
  EXPECT_EQ(counts(8, 2, 2), (std::vector<int>{2, 2, 2, 2}));
  EXPECT_EQ(counts(6, 2, 4), (std::vector<int>{2, 2, 2}));  // as without ranks: the same bits
  EXPECT_EQ(counts(8, 4, 4), (std::vector<int>{2, 2, 2, 2}));
}

constexpr int kH = 8, kW = 16, kCount = 22;

struct Trained {
  std::vector<std::vector<float>> weights;
  std::vector<double> losses;
  std::vector<int64_t> confusion;
  std::vector<uint8_t> predictions;
  double evaluation = 0;
};

struct Plan {
  std::string norm = "group";
  Reduce reduce = Reduce::exact;
  int slices = 4, batch = 8;  // 22 samples: two whole batches and a rest of six
  int accumulate = 1;
  bool sync_batch_norm = false;
  LossKind loss = Focal{2, {.25}, {0}, Reduction::mean_elements};
  std::string filters = "8";
  std::function<std::unique_ptr<DeviceRanks>(Communicator&, Device&)> exchange_by = make_device_ranks;
};

Trained train_alone_or_with(Communicator* ranks, Device& device, const Plan& plan) {
  std::vector<uint8_t> images(kCount * kH * kW), masks(images.size());
  for (size_t i = 0; i < images.size(); ++i) {
    const Philox r = philox(7, static_cast<uint32_t>(i), 0, 0, 0);
    images[i] = static_cast<uint8_t>(r.v[0] >> 24);
    masks[i] = static_cast<uint8_t>(r.v[1] % 5);
  }
  NetworkOptions options;
  options.conv.provider = "reference";
  options.seed = 3;
  options.micro_batches = plan.slices;
  if (plan.sync_batch_norm) options.fuse.without.insert("norms in convolutions");
  options.couples_images = LossSpec{plan.loss}.couples_images();
  Network network(read_model(Yaml::load_string("input: {height: 8, width: 16}\n"
                                               "defaults: {kernel: 3, groups: 4, norm: " +
                                                   plan.norm +
                                                   "}\n"
                                                   "nodes:\n"
                                                   "  e: {block: conv_norm, in: input, filters: 8}\n"
                                                   "  p: {op: max_pool, in: e}\n"
                                                   "  b: {block: conv_norm, in: p, filters: 16}\n"
                                                   "  c: {block: conv_norm, in: b, filters: " +
                                                   plan.filters +
                                                   "}\n"
                                                   "  r: {op: dropout, in: c, rate: 0.3}\n"
                                                   "  u: {op: conv_transpose, in: r, filters: 8, stride: 2}\n"
                                                   "  s: {op: add, in: [u, e]}\n"
                                                   "  logits: {op: conv, in: s, filters: 5, kernel: 1}\n",
                                               "small.yaml")),
                  device, options);
  const LossSpec spec{plan.loss};
  const Loss loss(spec, 5);
  TrainerOptions trainer_options;
  trainer_options.batch = plan.batch;
  trainer_options.accumulate = plan.accumulate;
  trainer_options.sync_batch_norm = plan.sync_batch_norm && ranks != nullptr;
  trainer_options.seed = 11;
  trainer_options.augment.flip = kernels::Flip::horizontal;
  trainer_options.image_losses = true;
  trainer_options.ranks = ranks;
  trainer_options.reduce = plan.reduce;
  trainer_options.exchange_by = plan.exchange_by;
  DeviceData data(device, {images.data(), masks.data(), kCount, kH, kW, 1}, plan.batch * plan.accumulate);
  Trainer trainer(network, loss, data, kCount, trainer_options);
  network.parameters().initialise(5, trainer.stream());
  Trained t;
  for (int epoch = 0; epoch < 2; ++epoch) {
    std::vector<int32_t> order(kCount);
    for (int i = 0; i < kCount; ++i) order[i] = kernels::sample_index((i * 3 + epoch) % kCount, i % 2 == 0);
    trainer.run_epoch(
        order, [](int64_t) { return 1e-2; },
        [&](const StepReport& r) {
          t.losses.insert(t.losses.end(), r.image_loss, r.image_loss + r.images);
          return true;
        });
  }
  std::vector<int64_t> rows(kCount - 1);
  std::iota(rows.begin(), rows.end(), 1);
  const Evaluation e = trainer.evaluate(rows, true);
  t.evaluation = e.loss, t.confusion = e.confusion, t.predictions = e.predictions;
  for (size_t i = 0; i < network.parameters().entries().size(); ++i)
    t.weights.push_back(network.parameters().read(static_cast<int>(i), ParamField::weight, trainer.stream()));
  return t;
}

// What each of the ranks has in the end.
std::vector<Trained> train_with(int ranks, const Plan& plan, bool simulated = false) {
  std::vector<Trained> all(ranks);
  as_ranks_of(Kind::local, ranks, [&](Communicator& c) {
    const std::unique_ptr<Device> device = simulated ? make_simulated_device(9) : make_cpu_device(1);
    all[c.rank()] = train_alone_or_with(&c, *device, plan);
  });
  return all;
}

void expect_same(const Trained& a, const Trained& b, const std::string& what) {
  EXPECT_EQ(a.weights, b.weights) << what;
  EXPECT_EQ(a.losses, b.losses) << what;
  EXPECT_EQ(a.evaluation, b.evaluation) << what;
  EXPECT_EQ(a.confusion, b.confusion) << what;
  EXPECT_EQ(a.predictions, b.predictions) << what;
}

TEST(RanksTrain, AsOneDeviceWithAsManyMicroBatches) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  const Plan plan;
  const Trained alone = train_alone_or_with(nullptr, *cpu, plan);
  for (const int ranks : {1, 2, 3, 4})
    for (const Trained& one : train_with(ranks, plan)) expect_same(one, alone, std::to_string(ranks) + " ranks");
  for (const Trained& one : train_with(2, plan, true)) expect_same(one, alone, "simulated");
}

TEST(RanksTrain, WithFewerMicroBatchesThanRanksInTheLastStep) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  Plan plan;
  plan.batch = 7, plan.slices = 7;  // the rest is one image
  const Trained alone = train_alone_or_with(nullptr, *cpu, plan);
  for (const Trained& one : train_with(4, plan)) expect_same(one, alone, "");
}

TEST(RanksTrain, ByOtherSumsNearlyAsAlone) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  for (const auto& [reduce, most] : {std::pair{Reduce::ring, 1e-5}, {Reduce::bf16, 2e-2}}) {
    Plan plan;
    const Trained alone = train_alone_or_with(nullptr, *cpu, plan);
    plan.reduce = reduce;
    const std::vector<Trained> all = train_with(3, plan);
    for (const Trained& one : all) {
      EXPECT_EQ(one.weights, all[0].weights);
      for (size_t i = 0; i < one.losses.size(); ++i)
        ASSERT_NEAR(one.losses[i], alone.losses[i], most * alone.losses[i]);
    }
    EXPECT_NE(all[0].weights, alone.weights);
  }
}

// Each rank's batch norm knows its own images; the running statistics are the mean of all.
TEST(RanksTrain, WithStatisticsOfTheirOwn) {
  Plan plan;
  plan.norm = "batch", plan.slices = 0;
  const std::vector<Trained> all = train_with(2, plan);
  expect_same(all[0], all[1], "the ranks");
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  const Trained alone = train_alone_or_with(nullptr, *cpu, plan);
  EXPECT_NE(all[0].weights, alone.weights);
  EXPECT_NEAR(all[0].evaluation, alone.evaluation, .3 * alone.evaluation);
}

// As with one device, within the rounding of sums in another order.
void expect_near(const Trained& a, const Trained& b, double most) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i) ASSERT_NEAR(a.losses[i], b.losses[i], most * b.losses[i]) << i;
  EXPECT_NEAR(a.evaluation, b.evaluation, most * b.evaluation);
  for (size_t p = 0; p < a.weights.size(); ++p)
    for (size_t i = 0; i < a.weights[p].size(); ++i)
      ASSERT_NEAR(a.weights[p][i], b.weights[p][i], 10 * most) << p << ", " << i;
}

TEST(RanksTrain, WithTheStatisticsOfAll) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  for (const int accumulate : {1, 2}) {
    Plan plan;
    plan.norm = "batch", plan.slices = 0, plan.sync_batch_norm = true, plan.accumulate = accumulate;
    const Trained alone = train_alone_or_with(nullptr, *cpu, plan);
    for (const int ranks : {2, 3}) {
      const std::vector<Trained> all = train_with(ranks, plan);
      for (const Trained& one : all) expect_same(one, all[0], "the ranks");
      expect_near(all[0], alone, 2e-5);
    }
    const std::vector<Trained> simulated = train_with(2, plan, true);
    expect_same(simulated[1], simulated[0], "the simulated ranks");
    expect_near(simulated[0], alone, 2e-5);
  }
}

TEST(RanksTrain, OnALossOverTheBatch) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  for (const LossKind& loss : {LossKind(Dice{.sums = Dice::Sums::batch}),
                               LossKind(Tversky{.gamma = 4. / 3, .sums = Tversky::Sums::batch, .exclude = {0}})}) {
    Plan plan;
    plan.slices = 0, plan.loss = loss, plan.accumulate = 2;
    const Trained alone = train_alone_or_with(nullptr, *cpu, plan);
    const std::vector<Trained> all = train_with(3, plan);
    for (const Trained& one : all) expect_same(one, all[0], "the ranks");
    expect_near(all[0], alone, 2e-5);
  }
}

TEST(RanksTrain, OnlyWhereEachHasAnImageOfABatchThatGoesOverAll) {
  Plan plan;
  plan.norm = "batch", plan.slices = 0, plan.sync_batch_norm = true, plan.batch = 7;  // the rest is one image
  as_ranks_of(Kind::local, 2, [&](Communicator& c) {
    const std::unique_ptr<Device> device = make_cpu_device(1);
    EXPECT_THAT(message<TrainError>([&] { train_alone_or_with(&c, *device, plan); }),
                ::testing::AllOf(HasSubstr("a batch of 1 image for 2 ranks"), HasSubstr("train.sync_batch_norm"),
                                 HasSubstr("train.drop_last")));
  });
}

// As NCCL's, on a simulated device: exchanges are work of the stream, which runs when it may.
class QueuedRanks : public DeviceRanks {
 public:
  explicit QueuedRanks(Communicator& ranks) : ranks_(ranks) {}
  int size() const override { return ranks_.size(); }
  bool asynchronous() const override { return true; }
  std::string name() const override { return "queued"; }
  void gather(Stream& stream, const void* mine, size_t bytes, void* all) override {
    stream.enqueue("gather", [=, this] { ranks_.gather(mine, bytes, all); });
  }
  void sum(DeviceStream& stream, float* values, int64_t count) override {
    ++sums;
    stream.enqueue("sum", [=, this] { ranks_.sum(values, count); });
  }
  void broadcast(DeviceStream& stream, void* data, size_t bytes, int from) override {
    stream.enqueue("broadcast", [=, this] { ranks_.broadcast(data, bytes, from); });
  }
  static std::atomic<int> sums;

 private:
  Communicator& ranks_;
};
std::atomic<int> QueuedRanks::sums = 0;

TEST(RanksTrain, SendingGradientsBesideTheBackwardPass) {
  for (const Reduce reduce : {Reduce::ring, Reduce::bf16}) {
    Plan plan;
    plan.reduce = reduce, plan.filters = "128";
    const std::vector<Trained> host = train_with(2, plan, true);
    plan.exchange_by = [](Communicator& c, Device&) { return std::make_unique<QueuedRanks>(c); };
    QueuedRanks::sums = 0;
    const std::vector<Trained> queued = train_with(2, plan, true);
    expect_same(queued[0], host[0], "ring or bf16");
    expect_same(queued[1], host[1], "ring or bf16");
    if (reduce == Reduce::ring) {
      EXPECT_GT(QueuedRanks::sums, 2 * 4) << "one bucket a step";
    }
  }
}

// What --explain says that ranks exchange.
TEST(Exchange, CountsItsBytes) {
  const Owners owners{0, 0, 0, 1, 1};
  EXPECT_EQ(Exchange::bytes_of(1000, owners, Reduce::exact).gradients, 3 * 4000);
  EXPECT_EQ(Exchange::bytes_of(1000, owners, Reduce::ring).gradients, 4000);
  EXPECT_EQ(Exchange::bytes_of(1000, owners, Reduce::bf16).gradients, 2000);
  EXPECT_EQ(Exchange::bytes_of(1000, owners, Reduce::automatic).reduce, Reduce::exact);
  EXPECT_EQ(Exchange::bytes_of(Exchange::kExactBytes / 20 + 1, owners, Reduce::automatic).reduce, Reduce::ring);
}

}  // namespace
}  // namespace regolith
