#include "tools/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/base/text.h"
#include "engine/conv/provider.h"
#include "kernels/add.h"
#include "kernels/core/random.h"

namespace regolith {
namespace {

using Clock = std::chrono::steady_clock;

template <class T>
DeviceBuffer random_numbers_as(Device& device, DeviceStream& stream, int64_t n, uint32_t key) {
  std::vector<T> host(n);
  for (int64_t i = 0; i < n; ++i)
    host[i] = static_cast<T>(2 * uniform(philox(key, static_cast<uint32_t>(i), 0, 0, 0).v[0]) - 1);
  DeviceBuffer buffer(device, n * sizeof(T));
  device.upload(buffer.as(), host.data(), n * sizeof(T), stream);
  stream.synchronize();
  return buffer;
}

double copy_rate(Device& device, DeviceStream& stream) {
  const size_t bytes = (device.kind() == DeviceKind::cuda ? 512u : 96u) << 20;
  const DeviceBuffer from(device, bytes), to(device, bytes);
  device.fill(from.as(), 0, bytes, stream);
  device.fill(to.as(), 0, bytes, stream);
  constexpr int kChannels = 64;
  const int rows = static_cast<int>(bytes / sizeof(float) / kChannels / 1024);
  const TensorView a{from.as(), 1, rows, 1024, kChannels, kChannels, DType::f32},
      y{to.as(), 1, rows, 1024, kChannels, kChannels, DType::f32};
  const double seconds = median_seconds(
      stream, [&] { kernels::add_forward(stream, {.a = a, .b = {}, .y = y}); }, 0.3);
  return 2 * static_cast<double>(bytes) / seconds;
}

// Of the library's direct convolution, whose multiplications are all done; where there is none, of what is there.
void matrix_rate(Device& device, DeviceStream& stream, DType type, bool tf32, MachineRates& rates) {
  const int N = device.kind() == DeviceKind::cuda ? 128 : 8;
  const ConvRequest request{.shape = {N, 32, 64, 128, 128, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}},
                            .type = type,
                            .tf32 = tf32,
                            .needs_dgrad = false,
                            .needs_wgrad = false};
  std::vector<ConvProvider*> providers = conv_providers();
  std::stable_partition(providers.begin(), providers.end(),
                        [](ConvProvider* p) { return p->name() == "cudnn" || p->name() == "onednn"; });
  for (ConvProvider* provider : providers) {
    if (provider->name() == "reference") continue;  // its loops say nothing of the machine
    auto made = provider->create(device, request);
    if (std::holds_alternative<UnsupportedReason>(made)) continue;
    Convolution& conv = *std::get<0>(made);
    const int64_t elements = static_cast<int64_t>(N) * 32 * 64 * 128;
    const DeviceBuffer x = random_numbers(device, stream, elements, type, 1),
                       w = random_numbers(device, stream, request.shape.weights(), type, 2),
                       y(device, elements * size_of(type)), packed(device, conv.prepacked(WeightUse::forward).bytes),
                       workspace(device, std::max<size_t>(conv.forward_workspace(), 1));
    conv.prepack_weights(stream, WeightUse::forward, w.as(), packed.as());
    const TensorView in{x.as(), N, 32, 64, 128, 128, type}, out{y.as(), N, 32, 64, 128, 128, type};
    const double seconds = median_seconds(
        stream, [&] { conv.forward(stream, in, w.as(), packed.as(), nullptr, out, workspace.as()); }, 0.3);
    rates.matrix = 2 * static_cast<double>(request.shape.macs()) / seconds;
    rates.matrix_by = provider->name();
    return;
  }
}

}  // namespace

DeviceBuffer random_numbers(Device& device, DeviceStream& stream, int64_t n, DType type, uint32_t key) {
  if (type == DType::bf16) return random_numbers_as<bf16>(device, stream, n, key);
  if (type == DType::f16) return random_numbers_as<fp16>(device, stream, n, key);
  return random_numbers_as<float>(device, stream, n, key);
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

double median_seconds(DeviceStream& stream, const std::function<void()>& launch, double budget_seconds, int calls) {
  const auto round = [&](int n) {
    const auto start = Clock::now();
    for (int i = 0; i < n; ++i) launch();
    stream.synchronize();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  round(calls);  // warms up
  const double once = std::max(round(calls), 1e-7);
  const int n = calls * static_cast<int>(std::clamp(std::ceil(3e-3 / once), 1.0, 1000.0));
  std::vector<double> times;
  double total = 0;
  while (times.size() < 5 || (total < budget_seconds && times.size() < 200)) {
    const double seconds = round(n);
    total += seconds;
    times.push_back(seconds / n);
  }
  return median(std::move(times));
}

double MachineRates::floor_seconds(double bytes, double flops) const {
  return std::max(bytes / copy, matrix > 0 ? flops / matrix : 0);
}

MachineRates measure_rates(Device& device, DType type, bool tf32) {
  const auto stream = device.make_stream();
  MachineRates rates;
  rates.copy = copy_rate(device, *stream);
  matrix_rate(device, *stream, type, tf32, rates);
  return rates;
}

std::string to_string(const MachineRates& rates) {
  return format("copy %.1f GB/s, matrix %.0f GFLOP/s (%s)", 1e-9 * rates.copy, 1e-9 * rates.matrix,
                rates.matrix_by.empty() ? "no provider" : rates.matrix_by.c_str());
}

}  // namespace regolith
