#include "engine/train/ema.h"

#include "kernels/ema.h"

namespace regolith {

Ema::Ema(Network& network, DeviceStream& stream, const EmaSpec& spec)
    : network_(network),
      stream_(stream),
      spec_(spec),
      weights_(network.device(), static_cast<size_t>(network.parameters().trained_size()) * sizeof(float)),
      statistics_(network.device(), static_cast<size_t>(network.parameters().statistics_size()) * sizeof(float)) {
  for (const DeviceBuffer* b : {&weights_, &statistics_})
    if (b->bytes() > 0) network.device().fill(b->as(), 0, b->bytes(), stream);
}

void Ema::update(const StepState* state) {
  const Parameters& p = network_.parameters();
  const auto average = [&](const float* values, const DeviceBuffer& to, int64_t count) {
    if (count > 0)
      kernels::ema(stream_, {.state = state,
                             .weights = values,
                             .average = to.as<float>(),
                             .count = count,
                             .decay = spec_.decay,
                             .warm_up = spec_.warm_up});
  };
  average(p.master(), weights_, p.trained_size());
  average(p.statistics(), statistics_, p.statistics_size());
}

void Ema::exchange() {
  Parameters& p = network_.parameters();
  if (p.trained_size() > 0) kernels::exchange(stream_, {p.master(), weights_.as<float>(), p.trained_size()});
  if (p.statistics_size() > 0)
    kernels::exchange(stream_, {p.statistics(), statistics_.as<float>(), p.statistics_size()});
  p.refresh_compute_copy(stream_);
}

float* Ema::location(int param) const {
  const Parameters::Entry& e = network_.parameters().entries()[param];
  return (e.trainable ? weights_ : statistics_).as<float>() + e.offset;
}

std::vector<float> Ema::read(int param) const {
  std::vector<float> values(network_.parameters().entries()[param].elements);
  network_.device().download(values.data(), location(param), values.size() * sizeof(float), stream_);
  stream_.synchronize();
  return values;
}

void Ema::write(int param, const std::vector<float>& values) {
  network_.device().upload(location(param), values.data(), values.size() * sizeof(float), stream_);
  stream_.synchronize();
}

}  // namespace regolith
