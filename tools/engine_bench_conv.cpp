// engine_bench_conv [--batch N] [--precision fp32|bf16] [--threads T] [--provider NAME ...]
// [--inference]: GFLOP/s of convolutions of U-Nets, each direction or forward of inference, by each provider. Results
// are first compared between the providers.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

#include "app/command_line.h"
#include "engine/base/error.h"
#include "engine/conv/provider.h"
#include "tools/timing.h"

namespace regolith {
namespace {

struct Layer {
  int H, W, C, K, edge = 3;
};
constexpr Layer kLayers[] = {{64, 128, 32, 32},     {32, 64, 32, 64},     {32, 64, 64, 64},  {16, 32, 64, 128},
                             {16, 32, 128, 128},    {8, 16, 768, 256},    {8, 16, 256, 256}, {4, 8, 256, 256},
                             {16, 32, 384, 128},    {32, 64, 192, 64},    {64, 128, 96, 32}, {64, 128, 64, 64, 2},
                             {32, 64, 128, 128, 2}, {16, 32, 256, 256, 2}};

double norm_of_difference(const DeviceBuffer& a, const DeviceBuffer& b, DType type, size_t n) {  // relative
  double difference = 0, norm = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto at = [&](const DeviceBuffer& m) {
      return type == DType::f32 ? m.as<float>()[i] : static_cast<float>(m.as<bf16>()[i]);
    };
    difference += std::pow(at(a) - at(b), 2.0);
    norm += std::pow(at(a), 2.0);
  }
  return std::sqrt(difference / norm);
}

void bench(Device& device, int N, DType type, bool inference, const std::vector<std::string>& wanted) {
  const auto stream = device.make_stream();
  std::printf("%s, %s, batch %d: GFLOP/s, two to a multiplication of the direct sum\n", device.name().c_str(),
              std::string(name_of(type)).c_str(), N);
  for (const auto [H, W, C, K, edge] : kLayers) {
    const int before = (edge - 1) / 2, after = edge / 2;
    ConvRequest request{.shape = {N, H, W, C, K, edge, edge, {1, 1}, {1, 1}, {before, before}, {after, after}},
                        .type = type};
    request.needs_dgrad = request.needs_wgrad = !inference;
    request.frozen = inference;
    const size_t x_size = static_cast<size_t>(N) * H * W * C, y_size = x_size / C * K, w_size = request.shape.weights();
    const DeviceBuffer x = random_numbers(device, *stream, x_size, type, 1),
                       dy = random_numbers(device, *stream, y_size, type, 2),
                       w = random_numbers(device, *stream, w_size, type, 3);
    const DType types[] = {type, type, DType::f32};  // of y, dx and dw
    const size_t sizes[] = {y_size, x_size, w_size};
    std::vector<DeviceBuffer> first;  // those of the first provider
    for (ConvProvider* provider : conv_providers()) {
      const std::string name(provider->name());
      if (std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
      auto made = provider->create(device, request);
      if (const auto* refusal = std::get_if<UnsupportedReason>(&made)) {
        std::printf("%3dx%-3d %3d -> %3d %dx%d  %-9s %s\n", H, W, C, K, edge, edge, name.c_str(),
                    refusal->reason.c_str());
        continue;
      }
      Convolution& conv = *std::get<0>(made);
      std::vector<DeviceBuffer> out;
      for (int i = 0; i < 3; ++i) out.emplace_back(device, sizes[i] * size_of(types[i]));
      const DeviceBuffer packed(device, conv.prepacked(WeightUse::forward).bytes),
          packed_dgrad(device, conv.prepacked(WeightUse::dgrad).bytes);
      const DeviceBuffer ws(device,
                            std::max({conv.forward_workspace(), conv.dgrad_workspace(), conv.wgrad_workspace()}));
      const auto map_x = [&](const DeviceBuffer& b) { return TensorView{b.as(), N, H, W, C, C, type}; };
      const auto map_y = [&](const DeviceBuffer& b) { return TensorView{b.as(), N, H, W, K, K, type}; };
      const double pack = median_seconds(
          *stream,
          [&] {
            conv.prepack_weights(*stream, WeightUse::forward, w.as(), packed.as());
            if (!inference) conv.prepack_weights(*stream, WeightUse::dgrad, w.as(), packed_dgrad.as());
          },
          0.3);
      const auto rate = [&](const std::function<void()>& launch) {
        return 2e-9 * static_cast<double>(request.shape.macs()) / median_seconds(*stream, launch, 0.3);
      };
      const double forward =
          rate([&] { conv.forward(*stream, map_x(x), w.as(), packed.as(), nullptr, map_y(out[0]), ws.as()); });
      const double dgrad =
          inference ? 0
                    : rate([&] { conv.dgrad(*stream, map_y(dy), w.as(), packed_dgrad.as(), map_x(out[1]), ws.as()); });
      const double wgrad = inference ? 0 : rate([&] {
        conv.wgrad(*stream, map_x(x), map_y(dy), out[2].as<float>(), nullptr, false, ws.as());
      });
      for (size_t i = 0; i < (inference ? std::min(first.size(), size_t{1}) : first.size()); ++i) {
        const double error = norm_of_difference(first[i], out[i], types[i], sizes[i]);
        if (!(error < (types[i] == DType::f32 ? 1e-4 : 1e-2)))
          throw Error(name + " differs from the first provider by " + std::to_string(error));
      }
      if (first.empty()) first = std::move(out);
      std::printf("%3dx%-3d %3d -> %3d %dx%d  %-9s forward %5.0f  dgrad %5.0f  wgrad %5.0f  pack %.2f ms  %s\n", H, W,
                  C, K, edge, edge, name.c_str(), forward, dgrad, wgrad, 1e3 * pack, conv.implementation().c_str());
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace regolith

int main(int argc, char** argv) {
  using namespace regolith;
  CommandLine p(argc, argv, "engine_bench_conv", "Times convolutions of U-Nets on the CPU.");
  int batch = 32, threads = 0;
  bool inference = false;
  std::string precision = "fp32";
  std::vector<std::string> providers{"amx", "winograd", "onednn"};
  p.option("--batch", batch, "images", {.min = 1});
  p.option("--threads", threads, "0: all of the machine");
  p.option("--precision", precision, "of the maps", {.names = {"fp32", "bf16"}});
  p.flag("--inference", inference, "forward alone, without gradients");
  p.option("--provider", providers, "which, in the picker's order");
  return p.run([&] {
    bench(*make_cpu_device(threads), batch, precision == "fp32" ? DType::f32 : DType::bf16, inference, providers);
    return 0;
  });
}
