// The simulated device: what CUDA guarantees holds for every seed, what CUDA does not guarantee fails for some, and
// memory of the wrong side is caught.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/tensor/device.h"
#include "kernels/add.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr int kSeeds = 40;
constexpr int kPixels = 64, kChannels = 16, kElements = kPixels * kChannels;

TensorView map_of(void* data) { return {data, 1, kPixels, 1, kChannels, kChannels, DType::f32}; }

// to = a + b
void add(const DeviceBuffer& a, const DeviceBuffer& b, const DeviceBuffer& to, DeviceStream& stream) {
  kernels::add_forward(stream, {map_of(a.as()), map_of(b.as()), map_of(to.as())});
}

struct Simulated : testing::Test {
  explicit Simulated(uint64_t seed = 1) : device(make_simulated_device(seed)), s(device->make_stream()) {}
  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceStream> s;

  DeviceBuffer buffer() { return {*device, kElements * sizeof(float)}; }
  void put(const DeviceBuffer& b, float value, DeviceStream& stream) {
    const std::vector<float> v(kElements, value);
    device->upload(b.as(), v.data(), b.bytes(), stream);
  }
  std::vector<float> get(const DeviceBuffer& b, DeviceStream& stream) {
    std::vector<float> v(kElements);
    device->download(v.data(), b.as(), b.bytes(), stream);
    stream.synchronize();
    return v;
  }
};
struct AnySeed : Simulated {
  explicit AnySeed(uint64_t seed) : Simulated(seed) {}
  void TestBody() override {}
};

std::vector<float> all(float value) { return std::vector<float>(kElements, value); }

TEST(SimulatedDevice, OneStreamKeepsItsOrder) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    AnySeed t(seed);
    auto a = t.buffer(), b = t.buffer();
    t.put(a, 1, *t.s);
    t.put(b, 2, *t.s);
    add(a, b, a, *t.s);  // 3
    add(a, a, b, *t.s);  // 6
    t.device->copy(a.as(), b.as(), a.bytes(), *t.s);
    ASSERT_EQ(t.get(a, *t.s), all(6)) << t.device->name();
    t.device->fill(a.as(), 0, a.bytes(), *t.s);
    ASSERT_EQ(t.get(a, *t.s), all(0)) << t.device->name();
  }
}

// Stream two reads what stream one writes: right for every seed with an event, wrong for some without.
int wrong_seeds(bool with_event, bool captured) {
  int wrong = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    AnySeed t(seed);
    auto two = t.device->make_stream();
    auto written = t.device->make_event(), joined = t.device->make_event();
    auto a = t.buffer(), b = t.buffer(), sum = t.buffer();
    t.put(a, 1, *t.s);
    t.put(b, 0, *t.s);
    t.put(sum, 0, *t.s);
    t.s->synchronize();
    const auto work = [&] {
      if (captured) {  // the second stream must join the capture in any case
        t.s->record(*joined);
        two->wait(*joined);
      }
      t.device->copy(b.as(), a.as(), a.bytes(), *t.s);
      add(a, b, b, *t.s);  // 2
      if (with_event) {
        t.s->record(*written);
        two->wait(*written);
      }
      add(b, b, sum, *two);  // 4
      two->record(*joined);
      t.s->wait(*joined);
    };
    std::unique_ptr<CapturedGraph> graph;
    if (captured) {
      add(b, b, sum, *two);  // once before it is captured
      two->synchronize();
      t.put(sum, 0, *t.s);
      graph = t.device->capture(*t.s, work);
      graph->replay(*t.s);
    } else {
      work();
    }
    wrong += t.get(sum, *t.s) != all(4);
  }
  return wrong;
}

TEST(SimulatedDevice, AnEventOrdersTwoStreams) { EXPECT_EQ(wrong_seeds(true, false), 0); }
TEST(SimulatedDevice, ADroppedEventShows) { EXPECT_GT(wrong_seeds(false, false), kSeeds / 8); }
TEST(SimulatedDevice, AnEventOrdersTwoStreamsOfACapture) { EXPECT_EQ(wrong_seeds(true, true), 0); }
TEST(SimulatedDevice, ADroppedEventInACaptureShows) { EXPECT_GT(wrong_seeds(false, true), kSeeds / 8); }

TEST(SimulatedDevice, WorkRunsLaterThanItIsEnqueued) {
  std::set<bool> ran_at_once, ran_without_a_wait;
  for (int seed = 0; seed < kSeeds; ++seed) {
    AnySeed t(seed);
    bool ran = false;
    t.s->enqueue("probe", [&] { ran = true; });
    ran_at_once.insert(ran);
    t.s->synchronize();
    ASSERT_TRUE(ran);
  }
  EXPECT_EQ(ran_at_once, (std::set{false, true}));
}

TEST(SimulatedDevice, AWaitIsForTheRecordBeforeIt) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    AnySeed t(seed);
    auto two = t.device->make_stream();
    auto event = t.device->make_event();
    two->wait(*event);  // never recorded: does nothing
    event->synchronize();
    std::string order;
    t.s->enqueue("one", [&] { order += '1'; });
    t.s->record(*event);
    two->wait(*event);
    two->enqueue("two", [&] { order += '2'; });
    two->record(*event);  // a later record does not change what was waited for
    t.s->enqueue("three", [&] { order += '3'; });
    event->synchronize();
    EXPECT_LT(order.find('1'), order.find('2')) << t.device->name();
    EXPECT_NE(order.find('2'), std::string::npos);
    t.s->synchronize();
    EXPECT_EQ(order.size(), 3u);
  }
}

TEST(SimulatedDevice, HostMemoryIsReadAsOnCuda) {  // pageable at the call, pinned when the copy runs
  int late = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    AnySeed t(seed);
    auto a = t.buffer(), b = t.buffer();
    std::vector<float> pageable(kElements, 1);
    auto* pinned = static_cast<float*>(t.device->allocate_host(a.bytes()));
    std::fill_n(pinned, kElements, 1.f);
    t.device->upload(a.as(), pageable.data(), a.bytes(), *t.s);
    t.device->upload(b.as(), pinned, b.bytes(), *t.s);
    std::fill_n(pinned, kElements, 2.f);
    pageable.assign(kElements, 2);
    EXPECT_EQ(t.get(a, *t.s), all(1));
    late += t.get(b, *t.s) == all(2);
    t.device->release_host(pinned);
  }
  EXPECT_GT(late, kSeeds / 8);
}

TEST_F(Simulated, AReplayRepeatsTheWork) {
  auto a = buffer(), one = buffer();
  put(a, 0, *s);
  put(one, 1, *s);
  add(one, one, a, *s);
  put(a, 0, *s);
  auto graph = device->capture(*s, [&] { add(a, one, a, *s); });
  EXPECT_EQ(get(a, *s), all(0)) << "a capture runs nothing";
  for (int i = 0; i < 5; ++i) graph->replay(*s);
  graph.reset();  // work in flight keeps it
  EXPECT_EQ(get(a, *s), all(5));
}

TEST_F(Simulated, AnUnjoinedStreamIsRefused) {
  auto two = device->make_stream();
  auto fork = device->make_event();
  const auto lose = [&] { two->enqueue("lost work", [] {}); };
  lose();
  const auto work = [&] {
    s->record(*fork);
    two->wait(*fork);
    lose();
  };
  EXPECT_THAT([&] { device->capture(*s, work); }, ThrowsMessage<DeviceError>(HasSubstr("'lost work'")));
}

TEST_F(Simulated, ACaptureRefusesWhatCudaRefuses) {
  auto a = buffer();
  auto before = device->make_event();
  s->record(*before);
  std::vector<float> pageable(kElements);
  const std::function<void()> refused[] = {
      [&] { s->synchronize(); },
      [&] { buffer(); },
      [&] { s->wait(*before); },
      [&] { device->upload(a.as(), pageable.data(), a.bytes(), *s); },
      [&] { device->download(pageable.data(), a.as(), a.bytes(), *s); },
      [&] { device->capture(*s, [] {}); },
  };
  for (const auto& work : refused) EXPECT_THROW(device->capture(*s, work), DeviceError);
  s->enqueue("after", [] {});
  EXPECT_NO_THROW(s->synchronize()) << "a failed capture leaves the stream usable";
}

// CUDA loads a kernel when it is launched first, and a capture refuses that.
TEST_F(Simulated, ACaptureRefusesTheFirstLaunchOfAKernel) {
  auto a = buffer(), b = buffer();
  const auto work = [&] { add(a, b, a, *s); };
  EXPECT_THAT([&] { device->capture(*s, work); },
              ThrowsMessage<DeviceError>(HasSubstr("kernel add is launched for the first time inside a capture")));
  work();
  EXPECT_NO_THROW(device->capture(*s, work));
  EXPECT_NO_THROW(device->capture(*s, [&] { device->fill(a.as(), 0, a.bytes(), *s); })) << "no kernel";
}

TEST_F(Simulated, WhatWorkThrowsReachesTheNextWait) {
  for (const bool by_event : {false, true}) {
    auto event = device->make_event();
    s->enqueue("fails", [] { throw KernelError("out of luck"); });
    s->record(*event);
    const auto wait = [&] { by_event ? event->synchronize() : s->synchronize(); };
    EXPECT_THAT(wait, ThrowsMessage<KernelError>("out of luck"));
    EXPECT_NO_THROW(wait()) << "once";
  }
}

// --- Memory of the wrong side ---

TEST_F(Simulated, AHostPointerInAKernelIsCaught) {
  auto a = buffer();
  std::vector<float> host(kElements);
  EXPECT_THAT(
      [&] {
        kernels::add_forward(*s, {map_of(a.as()), map_of(host.data()), map_of(a.as())});
      },
      ThrowsMessage<DeviceError>(HasSubstr("kernel add is given a pointer that is not into device memory")));
  float on_the_stack[kElements];
  EXPECT_THROW(kernels::add_forward(*s, {map_of(a.as()), {}, map_of(on_the_stack)}), DeviceError);
}

TEST_F(Simulated, AHostPointerInAnArgumentStructIsCaught) {
  auto a = buffer();
  struct Arguments {
    int64_t count;
    const float* data;
    int packed[2];
  };
  std::vector<float> host(kElements);
  Arguments args{3, a.as<float>(), {64, 128}};
  EXPECT_NO_THROW(s->check_argument("k", &args, sizeof args, false));
  args.data = host.data();
  EXPECT_THROW(s->check_argument("k", &args, sizeof args, false), DeviceError);
}

TEST_F(Simulated, APointerToReleasedMemoryIsCaught) {
  auto a = buffer();
  void* stale = a.as();
  a = {};
  EXPECT_THROW(kernels::add_forward(*s, {map_of(stale), {}, map_of(stale)}), DeviceError);
}

TEST_F(Simulated, PinnedMemoryMayBeReadByAKernel) {
  auto a = buffer();
  auto* pinned = static_cast<float*>(device->allocate_host(a.bytes()));
  std::fill_n(pinned, kElements, 3.f);
  kernels::add_forward(*s, {map_of(pinned), {}, map_of(a.as())});
  EXPECT_EQ(get(a, *s), all(3));
  device->release_host(pinned);
}

TEST_F(Simulated, ACopyMustLieInOneAllocation) {
  auto a = buffer(), b = buffer();
  std::vector<float> host(2 * kElements);
  EXPECT_THROW(device->upload(a.as(), host.data(), a.bytes() + 256, *s), DeviceError);
  EXPECT_THROW(device->download(host.data(), host.data(), 4, *s), DeviceError);
  EXPECT_THROW(device->upload(a.as(), b.as(), 4, *s), DeviceError);
  EXPECT_THROW(device->copy(a.as(), host.data(), 4, *s), DeviceError);
  EXPECT_THROW(device->fill(host.data(), 0, 4, *s), DeviceError);
}

TEST_F(Simulated, NewMemoryIsNotZero) {
  auto a = buffer();
  for (float v : get(a, *s)) ASSERT_NE(v, v);
}

struct SimulatedDeathTest : Simulated {
  SimulatedDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(SimulatedDeathTest, HostCodeThatReadsDeviceMemory) {
  auto a = buffer();
  put(a, 1, *s);
  s->synchronize();
  EXPECT_DEATH((void)*static_cast<volatile float*>(a.as<float>()), "host code touched device memory");
}

TEST_F(SimulatedDeathTest, WorkThatReadsPastTheEnd) {
  auto a = buffer();
  const auto run = [&] {
    s->enqueue("reader", [p = a.as<float>()] { (void)*const_cast<volatile float*>(p + kElements); });
    s->synchronize();
  };
  EXPECT_DEATH(run(), "reader touched device memory that is released, or beyond the end");
}

TEST_F(SimulatedDeathTest, WorkThatReadsReleasedMemory) {
  auto a = buffer();
  auto* stale = a.as<float>();
  a = {};
  const auto run = [&] {
    s->enqueue("reader", [=] { (void)*const_cast<volatile float*>(stale); });
    s->synchronize();
  };
  EXPECT_DEATH(run(), "reader touched device memory that is released");
}

}  // namespace
}  // namespace regolith
