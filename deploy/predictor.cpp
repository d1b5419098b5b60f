#include "deploy/predictor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/ops/freeze.h"
#include "engine/train/weights.h"
#include "kernels/sample.h"
#include "kernels/softmax.h"

namespace regolith {
namespace {

NetworkOptions inference(NetworkOptions o) {
  o.training = false;
  return o;
}

Graph frozen(Graph graph, Checkpoint& weights) {
  freeze(graph, weights);
  return graph;
}

}  // namespace

Predictor::Predictor(Graph graph, Checkpoint weights, Device& device, const PredictorOptions& options)
    : device_(device),
      options_(options),
      stream_(device.make_stream()),
      network_(frozen(std::move(graph), weights), device, inference(options.network)) {
  load_weights(network_, weights, *stream_);
  if (!options.excluded.empty()) {
    std::vector<uint8_t> excluded(static_cast<size_t>(classes()));  // (K)
    for (const int c : options.excluded) excluded[c] = 1;
    excluded_ = DeviceBuffer(device, excluded.size());
    device.upload(excluded_.as(), excluded.data(), excluded.size(), *stream_);
    stream_->synchronize();
  }
}

const Shape& Predictor::image() const { return network_.graph().nodes[network_.graph().input].shape(); }

void Predictor::reserve(Slot& slot, int N) {
  const Shape& in = image();
  const size_t pixels = static_cast<size_t>(N) * in.H * in.W;
  const auto host = [&](std::unique_ptr<HostMemory>& memory, size_t bytes) {
    if (memory == nullptr || memory->bytes < bytes) memory = std::make_unique<HostMemory>(device_, bytes);
  };
  host(slot.images, pixels * in.C);
  host(slot.probabilities, pixels * classes() * sizeof(float));
  if (slot.done == nullptr) slot.done = device_.make_event();
  if (images_.bytes() >= pixels * in.C) return;
  stream_->synchronize();  // a batch under way may use what is there
  images_ = DeviceBuffer(device_, pixels * in.C);
  probabilities_ = DeviceBuffer(device_, pixels * classes() * sizeof(float));
  std::vector<int32_t> order(static_cast<size_t>(N));
  for (int i = 0; i < N; ++i) order[i] = kernels::sample_index(i, false);
  order_ = DeviceBuffer(device_, order.size() * sizeof(int32_t));
  device_.upload(order_.as(), order.data(), order_.bytes(), *stream_);
  stream_->synchronize();
}

void Predictor::submit(const uint8_t* images, int N) {
  Slot& slot = slots_[submitted_++ % kAhead];
  const Shape& in = image();
  reserve(slot, N);
  const size_t bytes = static_cast<size_t>(N) * in.H * in.W * in.C;
  std::memcpy(slot.images->data, images, bytes);
  device_.upload(images_.as(), slot.images->data, bytes, *stream_);
  const int slice = network_.prediction_slice(N);
  for (int first = 0; first < N; first += slice) {
    Program& program = network_.program(std::min(slice, N - first), Mode::eval);
    program.pack(*stream_);
    kernels::sample_batch(*stream_, {.images = images_.as<uint8_t>(),
                                     .masks = nullptr,
                                     .order = order_.as<int32_t>(),
                                     .entries = N,
                                     .step = nullptr,
                                     .steps_per_epoch = 1,
                                     .batch = N,
                                     .first = first,
                                     .augment = {},
                                     .divisor = options_.divisor,
                                     .offset = options_.offset,
                                     .x = program.image(),
                                     .labels = nullptr});
    program.forward(*stream_);
    const TensorView logits = program.value(program.graph().output);  // (slice, H, W, K)
    TensorView y{probabilities_.as(), logits.N, logits.H, logits.W, logits.C, logits.C, DType::f32};
    y.data = y.as<float>() + first * y.elements() / y.N;
    kernels::softmax_forward(*stream_, {logits, y, excluded_.as<uint8_t>()});
  }
  device_.download(slot.probabilities->data, probabilities_.as(),
                   static_cast<size_t>(N) * in.H * in.W * classes() * sizeof(float), *stream_);
  stream_->record(*slot.done);
}

const float* Predictor::collect() {
  Slot& slot = slots_[collected_++ % kAhead];
  slot.done->synchronize();
  return static_cast<const float*>(slot.probabilities->data);
}

void Predictor::drop() {
  stream_->synchronize();
  collected_ = submitted_;
}

}  // namespace regolith
