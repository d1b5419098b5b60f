#include "engine/train/evaluator.h"

#include <algorithm>
#include <numeric>

#include "engine/train/exchange.h"
#include "kernels/cast.h"

namespace regolith {

Evaluator::Evaluator(Network& network, DeviceStream& stream, const LossFunction& loss, const BatchOptions& options,
                     const StepState* state)
    : network_(network),
      device_(network.device()),
      stream_(stream),
      loss_(loss),
      options_(options),
      loss_value_(device_, sizeof(double)),
      confusion_(device_,
                 static_cast<size_t>(network.graph().classes()) * network.graph().classes() * sizeof(int64_t)) {
  if (state != nullptr) {
    network.step_counter(&state->step);
    loss_scale_ = &state->loss_scale;
  } else if (network.options().precision == Precision::fp16) {
    const float scale = 0x1p16f;
    fixed_scale_ = DeviceBuffer(device_, sizeof scale);
    device_.upload(fixed_scale_.as(), &scale, sizeof scale, stream_);
    stream_.synchronize();
    loss_scale_ = fixed_scale_.as<float>();
  }
}

std::vector<Evaluator::MicroBatch> Evaluator::divide(int N, Mode mode, int ranks) {
  const int each = mode == Mode::eval || loss_.couples_images() ? N : network_.micro_batch_size(N);
  std::vector<MicroBatch> parts;
  int most = 0;
  for (const Share& share : divide_batch(N, each, ranks)) {
    parts.push_back({nullptr, share.first, share.count, static_cast<int>(parts.size())});
    most = std::max(most, share.count);
  }
  const Shape& image = network_.graph().nodes[network_.graph().input].shape();
  const auto reserve = [&](DeviceBuffer& buffer, size_t bytes) {
    if (bytes <= buffer.bytes()) return;
    buffer = DeviceBuffer(device_, bytes);
    ++moves_;
  };
  reserve(labels_, static_cast<size_t>(most) * image.H * image.W);
  reserve(workspace_, loss_.workspace_bytes(most, image.H, image.W));
  return parts;
}

std::vector<Evaluator::MicroBatch> Evaluator::micro_batches(int N, Mode mode) {
  std::vector<MicroBatch> parts = divide(N, mode);
  for (MicroBatch& part : parts) part.program = &network_.program(part.count, mode);
  return parts;
}

void Evaluator::enqueue_sample(kernels::SampleBatch call, const MicroBatch& part) {
  call.first = part.first;
  call.divisor = options_.divisor;
  call.offset = options_.offset;
  call.x = part.program->image();
  call.labels = labels_.as<uint8_t>();
  kernels::sample_batch(stream_, call);
}

void Evaluator::enqueue_losses(const MicroBatch& part, int64_t images, const LossOutputs& outputs) {
  const Graph& graph = part.program->graph();
  for (size_t h = 0; h < graph.heads.size(); ++h) {
    const int node = graph.heads[h].node;
    kernels::SoftmaxLoss call;
    call.logits = part.program->value(node);
    call.mask = labels_.as<uint8_t>();
    if (outputs.gradients) call.dlogits = part.program->gradient(node);
    call.loss_scale = loss_scale_;
    call.loss = loss_value_.as<double>();
    call.accumulate_loss = h > 0 || outputs.accumulate;
    if (outputs.image_loss != nullptr) call.image_loss = outputs.image_loss + part.first;
    call.accumulate_image_loss = h > 0;
    if (node == graph.output) {
      call.confusion = outputs.confusion;
      call.prediction = outputs.prediction;
    }
    call.workspace = workspace_.as();
    if (loss_.couples_images()) call.ranks = outputs.ranks;
    loss_.of_head(graph.heads[h].name).forward_backward(stream_, std::move(call), images, graph.heads[h].weight);
  }
}

Evaluation Evaluator::evaluate(DeviceData& data, const std::vector<int64_t>& rows, bool predictions,
                               const std::function<bool()>& go_on, Communicator* ranks) {
  const auto samples = static_cast<int64_t>(rows.size());
  const auto [begin, end] =
      ranks == nullptr ? std::pair<int64_t, int64_t>{0, samples} : part_of(samples, ranks->rank(), ranks->size());
  const int most = static_cast<int>(std::min<int64_t>(options_.batch, end - begin));
  const int batch = loss_.couples_images() || most == 0 ? most : network_.prediction_slice(most);
  const int64_t pixels = static_cast<int64_t>(data.host().H) * data.host().W;
  Evaluation e;
  DeviceBuffer prediction, image_loss(device_, std::max(batch, 1) * sizeof(double));
  if (predictions) {
    prediction = DeviceBuffer(device_, std::max(batch, 1) * pixels);
    e.predictions.resize(samples * pixels);
  }
  std::vector<double> losses(samples);
  std::vector<int32_t> entries;
  for (int64_t i = begin; i < end; ++i) entries.push_back(kernels::sample_index(rows[i], false));
  Order order;
  data.set(order, entries, stream_);
  device_.fill(confusion_.as(), 0, confusion_.bytes(), stream_);
  for (int64_t first = 0; first < end - begin; first += batch) {
    if (go_on && !go_on()) {
      e.whole = false;
      break;
    }
    const int count = static_cast<int>(std::min<int64_t>(batch, end - begin - first));
    const MicroBatch part = micro_batches(count, Mode::eval)[0];
    part.program->pack(stream_);
    data.prefetch(order, first, count, stream_);
    kernels::SampleBatch sample{};
    data.bind_at(sample, order, count, first);
    enqueue_sample(sample, part);
    part.program->forward(stream_);
    enqueue_losses(part, samples,
                   {.confusion = confusion_.as<int64_t>(),
                    .prediction = prediction.as<uint8_t>(),
                    .image_loss = image_loss.as<double>()});
    if (predictions)
      device_.download(e.predictions.data() + (begin + first) * pixels, prediction.as(), count * pixels, stream_);
    device_.download(losses.data() + begin + first, image_loss.as(), count * sizeof(double), stream_);
    stream_.synchronize();
  }
  e.confusion.resize(confusion_.bytes() / sizeof(int64_t));
  device_.download(e.confusion.data(), confusion_.as(), confusion_.bytes(), stream_);
  stream_.synchronize();
  if (ranks != nullptr) add_up(e, losses, pixels, *ranks);
  if (samples > 0) e.loss = std::accumulate(losses.begin(), losses.end(), 0.) / static_cast<double>(samples);
  return e;
}

std::pair<int64_t, int64_t> Evaluator::part_of(int64_t samples, int rank, int ranks) const {
  const int64_t each = loss_.couples_images() ? options_.batch : 1, units = (samples + each - 1) / each;
  return {std::min(samples, units * rank / ranks * each), std::min(samples, units * (rank + 1) / ranks * each)};
}

void Evaluator::add_up(Evaluation& e, std::vector<double>& losses, int64_t pixels, Communicator& ranks) const {
  const auto samples = static_cast<int64_t>(losses.size());
  const auto spread = [&](auto* values, int64_t each) {  // (samples, each), of which every rank has its part
    for (int r = 0; r < ranks.size(); ++r) {
      const auto [begin, end] = part_of(samples, r, ranks.size());
      ranks.broadcast(values + begin * each, (end - begin) * each * sizeof *values, r);
    }
  };
  spread(losses.data(), 1);
  if (!e.predictions.empty()) spread(e.predictions.data(), pixels);
  ranks.sum(e.confusion);
}

Evaluator::BatchResult Evaluator::gradients(const std::vector<float>& images, const std::vector<uint8_t>& masks, int N,
                                            Mode mode) {
  BatchResult result;
  const Shape& image = network_.graph().nodes[network_.graph().input].shape();
  const int64_t pixels = static_cast<int64_t>(image.H) * image.W;
  for (const MicroBatch& part : micro_batches(N, mode)) {
    part.program->pack(stream_);
    const TensorView x = part.program->image(), y = part.program->value(part.program->graph().output);
    DeviceBuffer floats(device_, std::max(x.elements(), y.elements()) * sizeof(float));
    device_.upload(floats.as(), images.data() + part.first * pixels * image.C, x.elements() * sizeof(float), stream_);
    kernels::cast(stream_,
                  {.from = floats.as(), .from_type = DType::f32, .to = x.data, .to_type = x.dtype, .n = x.elements()});
    device_.upload(labels_.as(), masks.data() + part.first * pixels, part.count * pixels, stream_);
    part.program->forward(stream_, part.first);
    const size_t at = result.logits.size();
    result.logits.resize(at + y.elements());
    kernels::cast(stream_,
                  {.from = y.data, .from_type = y.dtype, .to = floats.as(), .to_type = DType::f32, .n = y.elements()});
    device_.download(result.logits.data() + at, floats.as(), y.elements() * sizeof(float), stream_);
    enqueue_losses(part, N, {.gradients = mode != Mode::eval, .accumulate = part.first > 0});
    if (mode != Mode::eval) part.program->backward(stream_, part.first > 0);
    stream_.synchronize();
  }
  device_.download(&result.loss, loss_value_.as(), sizeof(double), stream_);
  stream_.synchronize();
  return result;
}

std::vector<float> Evaluator::read_gradient(int param) {
  std::vector<float> values = network_.parameters().read(param, ParamField::gradient, stream_);
  float scale = 1;
  if (loss_scale_ != nullptr) device_.download(&scale, loss_scale_, sizeof scale, stream_);
  stream_.synchronize();
  for (float& v : values) v /= scale;
  return values;
}

}  // namespace regolith
