// What every device does: the CPU, the simulated one, and CUDA where there is one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/tensor/device.h"
#include "kernels/add.h"
#include "tests/support/simulated_device.h"

namespace regolith {
namespace {

struct Made {
  const char* name;
  std::function<std::unique_ptr<Device>()> make;  // null where this machine has none
};

void PrintTo(const Made& m, std::ostream* out) { *out << m.name; }

struct DeviceContract : testing::TestWithParam<Made> {
  static constexpr int kCount = 4096;
  void SetUp() override {
    device = GetParam().make();
    if (!device) GTEST_SKIP() << "no CUDA device";
    stream = device->make_stream();
    host = static_cast<float*>(device->allocate_host(kCount * sizeof(float)));
    std::iota(host, host + kCount, 0.f);
    a = DeviceBuffer(*device, kCount * sizeof(float));
    b = DeviceBuffer(*device, kCount * sizeof(float));
  }
  void TearDown() override {
    if (device) device->release_host(host);
  }
  void add(const DeviceBuffer& x, const DeviceBuffer& y, const DeviceBuffer& to, DeviceStream& s) {
    const auto map = [](const DeviceBuffer& m) { return TensorView{m.as(), 1, kCount / 16, 1, 16, 16, DType::f32}; };
    kernels::add_forward(s, {map(x), map(y), map(to)});
  }
  std::vector<float> get(const DeviceBuffer& m, DeviceStream& s) {
    std::vector<float> v(kCount);
    device->download(v.data(), m.as(), m.bytes(), s);
    s.synchronize();
    return v;
  }
  std::vector<float> times(float factor) const {
    std::vector<float> v(kCount);
    for (int i = 0; i < kCount; ++i) v[i] = factor * static_cast<float>(i);
    return v;
  }
  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceStream> stream;
  float* host = nullptr;
  DeviceBuffer a, b;
};

TEST_P(DeviceContract, CopiesAndKernelsInOrder) {
  device->upload(a.as(), host, a.bytes(), *stream);
  device->copy(b.as(), a.as(), a.bytes(), *stream);
  add(a, b, b, *stream);
  EXPECT_EQ(get(b, *stream), times(2));
  device->fill(b.as(), 0, b.bytes(), *stream);
  EXPECT_EQ(get(b, *stream), times(0));
  EXPECT_GT(device->free_bytes(), a.bytes());
  EXPECT_GT(stream->processors(), 0);
}

TEST_P(DeviceContract, AllocationsAreAligned) {
  for (const size_t bytes : {0, 1, 257, 4097}) {
    const DeviceBuffer odd(*device, bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(odd.as()) % 256, 0u) << bytes;
  }
}

TEST_P(DeviceContract, EventsOrderStreamsAndHost) {
  auto other = device->make_stream();
  auto written = device->make_event(), read = device->make_event();
  read->synchronize();  // never recorded: done
  device->upload(a.as(), host, a.bytes(), *stream);
  stream->record(*written);
  other->wait(*written);
  add(a, a, b, *other);
  float* result = static_cast<float*>(device->allocate_host(b.bytes()));
  device->download(result, b.as(), b.bytes(), *other);
  other->record(*read);
  read->synchronize();
  EXPECT_EQ(std::vector(result, result + kCount), times(2));
  device->release_host(result);
}

TEST_P(DeviceContract, ACaptureOfTwoStreamsIsReplayed) {
  auto other = device->make_stream();
  auto fork = device->make_event(), join = device->make_event();
  add(a, b, b, *stream);  // once before it is captured
  device->fill(b.as(), 0, b.bytes(), *stream);
  stream->synchronize();
  auto graph = device->capture(*stream, [&] {
    device->upload(a.as(), host, a.bytes(), *stream);
    stream->record(*fork);
    other->wait(*fork);
    add(a, b, b, *other);
    other->record(*join);
    stream->wait(*join);
  });
  for (int i = 0; i < 3; ++i) graph->replay(*stream);
  EXPECT_EQ(get(b, *stream), times(3));
}

TEST_P(DeviceContract, AFailedCaptureLeavesTheStreamUsable) {
  EXPECT_THROW(device->capture(*stream, [] { throw GraphError("no"); }), GraphError);
  device->upload(a.as(), host, a.bytes(), *stream);
  EXPECT_EQ(get(a, *stream), times(1));
}

std::string name_of_device(const testing::TestParamInfo<Made>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Host, DeviceContract,
                         testing::Values(Made{"Cpu", [] { return make_cpu_device(2); }},
                                         Made{"Simulated0", [] { return make_simulated_device(0); }},
                                         Made{"Simulated1", [] { return make_simulated_device(1); }},
                                         Made{"Simulated2", [] { return make_simulated_device(2); }}),
                         name_of_device);
#if defined(REGOLITH_CUDA)
INSTANTIATE_TEST_SUITE_P(Gpu, DeviceContract,
                         testing::Values(Made{"Cuda", [] { return cuda_available() ? make_cuda_device() : nullptr; }}),
                         name_of_device);
#endif

TEST(Devices, WithoutCudaTheErrorSaysSo) {
  if (cuda_available()) GTEST_SKIP() << "this machine has a CUDA device";
  EXPECT_THAT([] { make_cuda_device(); },
              testing::ThrowsMessage<DeviceError>(
                  testing::AnyOf(testing::HasSubstr("built without CUDA"), testing::HasSubstr("no CUDA device"))));
}

}  // namespace
}  // namespace regolith
