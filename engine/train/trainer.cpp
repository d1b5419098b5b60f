#include "engine/train/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/base/error.h"
#include "kernels/cast.h"

namespace regolith {
namespace {

// Steps in a row without finite gradients after which training stops: a loss scale of 2^16 halves this often before it
// is below one.
constexpr int64_t kMostSkipped = 20;

}  // namespace

// What the host reads of two steps, in memory that asynchronous copies may write.
struct Trainer::Pinned {
  struct Slot {
    StepState state;
    double loss;
  };
  explicit Pinned(Device& d) : device(d), slots(static_cast<Slot*>(d.allocate_host(2 * sizeof(Slot)))) {
    for (auto& e : events) e = d.make_event();
  }
  ~Pinned() { device.release_host(slots); }
  Device& device;
  Slot* slots;
  std::array<std::unique_ptr<Event>, 2> events;
};

Trainer::Trainer(Network& network, LossFunction loss, const TrainerOptions& options)
    : network_(network),
      device_(network.device()),
      loss_(std::move(loss)),
      options_(options),
      stream_(device_.make_stream()),
      optimizer_(device_, *stream_, options.optimizer, network.parameters().flat_size(),
                 storage_type(network.options().precision)),
      loss_value_(device_, sizeof(double)),
      pinned_(std::make_unique<Pinned>(device_)) {
  const int K = network.graph().classes();
  confusion_ = DeviceBuffer(device_, static_cast<size_t>(K) * K * sizeof(int64_t));
}

Trainer::~Trainer() {
  try {
    stream_->synchronize();
  } catch (const Error&) {  // whoever runs steps has heard of it
  }
}

std::vector<float> Trainer::read_moment(int moment, int param) {
  const Parameters::Entry& e = network_.parameters().entries()[param];
  std::vector<float> values(e.elements);
  device_.download(values.data(), optimizer_.moment(moment) + e.offset, values.size() * sizeof(float), *stream_);
  stream_->synchronize();
  return values;
}

void Trainer::write_moment(int moment, int param, const std::vector<float>& values) {
  const Parameters::Entry& e = network_.parameters().entries()[param];
  device_.upload(optimizer_.moment(moment) + e.offset, values.data(), values.size() * sizeof(float), *stream_);
  stream_->synchronize();
}

BatchSource& Trainer::evaluation_data(const SplitView& split) {
  for (auto& [host, source] : evaluation_)
    if (host == split.images) return *source;
  const int batch = static_cast<int>(std::min<int64_t>(options_.batch, split.count));
  auto source = std::make_unique<BatchSource>(device_, *stream_, split, split.count, batch, options_.streaming);
  std::vector<int32_t> rows(split.count);
  for (int64_t i = 0; i < split.count; ++i) rows[i] = kernels::sample_index(i, false);
  source->set_order(rows);
  evaluation_.emplace_back(split.images, std::move(source));
  return *evaluation_.back().second;
}

size_t Trainer::data_bytes() const {
  size_t n = labels_.bytes() + loss_workspace_.bytes() + (training_ ? training_->bytes() : 0);
  for (const auto& [host, source] : evaluation_) n += source->bytes();
  return n;
}

void Trainer::set_training_data(const SplitView& split, int64_t entries_per_epoch) {
  entries_ = entries_per_epoch;
  const int64_t whole = entries_ / options_.batch, rest = entries_ % options_.batch;
  steps_per_epoch_ = options_.steps_per_epoch > 0 ? options_.steps_per_epoch
                     : options_.drop_last         ? std::max<int64_t>(whole, 1)
                                                  : whole + (rest > 0);
  training_ = std::make_unique<BatchSource>(device_, *stream_, split, entries_, options_.batch, options_.streaming);
  micro_batches_of(options_.batch, Mode::train);  // compiles
  drop_captures();
}

void Trainer::reserve_batch(int N) {
  const Shape& image = network_.graph().nodes[network_.graph().input].shape();
  const size_t labels = static_cast<size_t>(N) * image.H * image.W, work = loss_.workspace_bytes(N, image.H, image.W);
  if (labels > labels_.bytes() || work > loss_workspace_.bytes()) drop_captures();
  if (labels > labels_.bytes()) labels_ = DeviceBuffer(device_, labels);
  if (work > loss_workspace_.bytes()) loss_workspace_ = DeviceBuffer(device_, work);
}

void Trainer::drop_captures() {
  full_graph_.reset();
  tail_graph_.reset();
}

std::vector<Trainer::MicroBatch> Trainer::micro_batches_of(int N, Mode mode) {
  const int each = mode == Mode::eval || loss_.couples_images ? N : network_.micro_batch_size(N);
  std::vector<MicroBatch> slices;
  const int64_t* step = &optimizer_.state()->step;
  reserve_batch(each);
  for (int first = 0; first < N; first += each) {
    const int count = std::min(each, N - first);
    slices.push_back({&network_.program(count, mode, step), first, count});
  }
  for (MicroBatch& s : slices) s.program = &network_.program(s.count, mode, step);
  return slices;
}

void Trainer::enqueue_losses(const MicroBatch& slice, int64_t images, bool gradient, uint8_t* prediction) {
  const Graph& graph = slice.program->graph();
  for (size_t h = 0; h < graph.heads.size(); ++h) {
    const int node = graph.heads[h].node;
    const bool first = h == 0 && slice.first == 0;
    kernels::SoftmaxLoss call;
    call.logits = slice.program->value(node);
    call.mask = labels_.as<uint8_t>();
    if (gradient) call.dlogits = slice.program->gradient(node);
    call.loss_scale = optimizer_.loss_scale();
    call.loss = loss_value_.as<double>();
    call.accumulate_loss = !first;
    if (node == graph.output) {
      call.confusion = confusion_.as<int64_t>();
      call.prediction = prediction;
    }
    call.workspace = loss_workspace_.as();
    loss_.run(*stream_, static_cast<int>(h), call, images);
  }
}

void Trainer::enqueue_sample(kernels::SampleBatch call, const MicroBatch& slice) {
  call.first = slice.first;
  call.seed = options_.seed;
  call.divisor = options_.divisor;
  call.offset = options_.offset;
  call.x = slice.program->image();
  call.labels = labels_.as<uint8_t>();
  kernels::sample_batch(*stream_, call);
}

void Trainer::enqueue_step(const std::vector<MicroBatch>& slices) {
  const int64_t images = slices.back().first + slices.back().count;
  kernels::SampleBatch sample{};
  training_->bind(sample, steps_per_epoch_);
  sample.step = &optimizer_.state()->step;
  sample.augment = options_.augment;
  for (const MicroBatch& s : slices) {
    enqueue_sample(sample, s);
    s.program->forward(*stream_, s.first);
    enqueue_losses(s, images, true, nullptr);
    s.program->backward(*stream_, s.first > 0);
  }
  Parameters& p = network_.parameters();
  optimizer_.update(*stream_, p.master(), p.grad(), p.compute_type() == DType::f32 ? nullptr : p.compute_copy());
}

// Before the step of that number: a profiler's recording begins or ends here.
void Trainer::mark_profile(int64_t step) {
  const int64_t first = options_.profile_start, last = first + options_.profile_steps;
  if (options_.profile_steps == 0 || (step != first && step != last)) return;
  stream_->synchronize();
  device_.profile(step == first);
}

void Trainer::read_report(int slot, StepReport& report) {
  pinned_->events[slot]->synchronize();
  const Pinned::Slot& s = pinned_->slots[slot];
  report = {s.state.step, s.loss, s.state.gradient_norm, s.state.loss_scale, s.state.skipped, s.state.skipped_in_a_row};
}

bool Trainer::run_epoch(const std::vector<int32_t>& order, const std::function<double(int64_t step)>& learning_rate,
                        const std::function<bool(const StepReport&)>& report) {
  training_->set_order(order);
  device_.fill(confusion_.as(), 0, confusion_.bytes(), *stream_);
  const int64_t begin = state().step, in_epoch = begin % steps_per_epoch_;
  double rate = -1;

  const bool wraps = options_.steps_per_epoch > 0;
  const int64_t rest = entries_ % options_.batch;
  const bool has_tail = !wraps && rest > 0 && (!options_.drop_last || entries_ < options_.batch);
  std::vector<MicroBatch> full, tail;  // a program's growth may move the arena: all are made before any is captured
  if (steps_per_epoch_ > 1 || !has_tail) full = micro_batches_of(options_.batch, Mode::train);
  if (has_tail) tail = micro_batches_of(static_cast<int>(rest), Mode::train);
  if (has_tail && !full.empty()) full = micro_batches_of(options_.batch, Mode::train);

  if (captured_arena_ != network_.arena()) drop_captures();
  captured_arena_ = network_.arena();
  const bool capture = options_.capture && device_.kind() != DeviceKind::cpu && observer_ == nullptr;
  const auto run = [&](const std::vector<MicroBatch>& slices, std::unique_ptr<CapturedGraph>& graph) {
    for (const MicroBatch& s : slices) {
      s.program->observe(observer_);
      s.program->pack(*stream_);
    }
    if (!capture) {
      enqueue_step(slices);
    } else {
      if (graph == nullptr) graph = device_.capture(*stream_, [&] { enqueue_step(slices); });
      graph->replay(*stream_);
    }
    network_.parameters().mark_dirty();
  };

  StepReport r;
  bool go_on = true;
  int pending = -1;  // the slot of a step that has not been read yet
  const auto hear = [&](int slot) {
    read_report(slot, r);
    if (r.skipped_in_a_row >= kMostSkipped) explain_divergence(full.empty() ? tail : full);
    return report(r);
  };
  for (int64_t i = in_epoch; i < steps_per_epoch_ && go_on; ++i) {
    const bool last_is_tail = has_tail && i == steps_per_epoch_ - 1;
    if (const double next = learning_rate(begin + i - in_epoch); next != rate) set_learning_rate(rate = next);
    mark_profile(begin + i - in_epoch);
    training_->prefetch(i);
    run(last_is_tail ? tail : full, last_is_tail ? tail_graph_ : full_graph_);
    const int slot = static_cast<int>(i % 2);
    device_.download(&pinned_->slots[slot].state, optimizer_.state(), sizeof(StepState), *stream_);
    device_.download(&pinned_->slots[slot].loss, loss_value_.as(), sizeof(double), *stream_);
    stream_->record(*pinned_->events[slot]);
    if (pending >= 0) go_on = hear(pending);
    pending = slot;
  }
  if (pending >= 0) go_on = hear(pending) && go_on;
  return go_on;
}

std::vector<int64_t> Trainer::training_confusion() {
  std::vector<int64_t> c(confusion_.bytes() / sizeof(int64_t));
  device_.download(c.data(), confusion_.as(), confusion_.bytes(), *stream_);
  stream_->synchronize();
  return c;
}

Evaluation Trainer::evaluate(const SplitView& split, bool predictions) {
  Evaluation e;
  BatchSource& source = evaluation_data(split);
  const int batch = static_cast<int>(std::min<int64_t>(options_.batch, split.count));
  const int64_t pixels = static_cast<int64_t>(split.H) * split.W;
  DeviceBuffer prediction;
  if (predictions) {
    prediction = DeviceBuffer(device_, batch * pixels);
    e.predictions.resize(split.count * pixels);
  }
  device_.fill(confusion_.as(), 0, confusion_.bytes(), *stream_);
  double loss = 0;
  for (int64_t first = 0; first < split.count; first += batch) {
    const int count = static_cast<int>(std::min<int64_t>(batch, split.count - first));
    const MicroBatch s = micro_batches_of(count, Mode::eval)[0];
    s.program->pack(*stream_);
    source.prefetch(first / batch);
    kernels::SampleBatch sample{};
    source.bind_at(sample, first);
    enqueue_sample(sample, s);
    s.program->forward(*stream_);
    enqueue_losses(s, split.count, false, prediction.as<uint8_t>());
    if (predictions) device_.download(e.predictions.data() + first * pixels, prediction.as(), count * pixels, *stream_);
    double part = 0;
    device_.download(&part, loss_value_.as(), sizeof part, *stream_);
    stream_->synchronize();
    loss += part;
  }
  e.loss = loss;
  e.confusion = training_confusion();
  return e;
}

Trainer::BatchResult Trainer::gradients(const std::vector<float>& images, const std::vector<uint8_t>& masks, int N,
                                        Mode mode) {
  BatchResult result;
  const std::vector<MicroBatch> slices = micro_batches_of(N, mode);
  const Shape& image = network_.graph().nodes[network_.graph().input].shape();
  const int64_t pixels = static_cast<int64_t>(image.H) * image.W;
  for (const MicroBatch& s : slices) {
    s.program->pack(*stream_);
    const TensorView x = s.program->image(), y = s.program->value(s.program->graph().output);
    DeviceBuffer floats(device_, std::max(x.elements(), y.elements()) * sizeof(float));
    device_.upload(floats.as(), images.data() + s.first * pixels * image.C, x.elements() * sizeof(float), *stream_);
    kernels::cast(*stream_,
                  {.from = floats.as(), .from_type = DType::f32, .to = x.data, .to_type = x.dtype, .n = x.elements()});
    device_.upload(labels_.as(), masks.data() + s.first * pixels, s.count * pixels, *stream_);
    s.program->forward(*stream_, s.first);
    const size_t at = result.logits.size();
    result.logits.resize(at + y.elements());
    kernels::cast(*stream_,
                  {.from = y.data, .from_type = y.dtype, .to = floats.as(), .to_type = DType::f32, .n = y.elements()});
    device_.download(result.logits.data() + at, floats.as(), y.elements() * sizeof(float), *stream_);
    enqueue_losses(s, N, mode != Mode::eval, nullptr);
    if (mode != Mode::eval) s.program->backward(*stream_, s.first > 0);
    stream_->synchronize();
  }
  device_.download(&result.loss, loss_value_.as(), sizeof(double), *stream_);
  stream_->synchronize();
  return result;
}

namespace {

// Looks at every value and gradient as it is made, for the first that is not finite.
class FiniteSearch : public RunObserver {
 public:
  FiniteSearch(Device& device, DeviceStream& stream, Program& program)
      : device_(device), stream_(stream), program_(program) {}
  void begin(const Node&, bool) override {}
  void end(const Node& node, bool backward) override {
    if (!found.empty()) return;
    const int i = program_.graph().find(node.name);
    if (!backward) return look(program_.value(i), "the output of node " + node.name);
    for (int in : node.inputs) {
      if (const TensorView g = program_.gradient(in))
        look(g, "the gradient that node " + node.name + " gives to " + program_.graph().nodes[in].name);
    }
  }
  std::string found;

 private:
  void look(const TensorView& m, const std::string& what) {
    if (!m.whole()) return;  // its parent is looked at
    std::vector<unsigned char> bytes(m.elements() * size_of(m.dtype));
    device_.download(bytes.data(), m.data, bytes.size(), stream_);
    stream_.synchronize();
    const auto any = [&](auto zero) {
      const auto* p = reinterpret_cast<const decltype(zero)*>(bytes.data());
      return std::any_of(p, p + m.elements(), [](auto v) { return !std::isfinite(static_cast<float>(v)); });
    };
    const bool bad = m.dtype == DType::f32 ? any(float{}) : m.dtype == DType::bf16 ? any(bf16{}) : any(fp16{});
    if (bad) found = what;
  }
  Device& device_;
  DeviceStream& stream_;
  Program& program_;
};

}  // namespace

void Trainer::explain_divergence(const std::vector<MicroBatch>& slices) {
  std::string culprit = "the gradient of a parameter";
  for (const MicroBatch& s : slices) {
    FiniteSearch search(device_, *stream_, *s.program);
    s.program->observe(&search);
    enqueue_step({s});
    stream_->synchronize();
    s.program->observe(nullptr);
    if (!search.found.empty()) {
      culprit = search.found;
      break;
    }
  }
  throw TrainError("the gradients of " + std::to_string(kMostSkipped) +
                   " steps in a row were not finite; first to be " + "infinite or NaN: " + culprit +
                   ". Lower optimizer.lr, set optimizer.clip_norm, or use precision fp32");
}

}  // namespace regolith
