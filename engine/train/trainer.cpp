#include "engine/train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numeric>

#include "engine/base/error.h"

namespace regolith {
namespace {

// Steps in a row without finite gradients after which training stops: a loss scale of 2^16 halves this often before it
// is below one.
constexpr int64_t kMostSkipped = 20;

template <class Parts>
Owners owners_of(const Parts& parts) {
  Owners owners;
  for (const auto& part : parts) owners.push_back(part.rank);
  return owners;
}

// Adds the time of `work` to `seconds`.
template <class F>
void timed(double& seconds, F&& work) {
  const auto began = std::chrono::steady_clock::now();
  work();
  seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

}  // namespace

// What the host reads of two steps, in memory that asynchronous copies may write.
struct Trainer::Pinned {
  // image_losses: of a step; 0: none are read. reported: reports have them. ranks: that the losses come from.
  Pinned(Device& d, int image_losses, bool reported, int ranks)
      : device(d), slots(static_cast<StepReport*>(d.allocate_host(2 * sizeof(StepReport)))), images(image_losses) {
    for (auto& e : events) e = d.make_event();
    if (images > 0) losses = static_cast<double*>(d.allocate_host(2 * images * sizeof(double)));
    if (ranks > 1) of_ranks = static_cast<double*>(d.allocate_host(2 * images * ranks * sizeof(double)));
    for (int slot = 0; slot < 2; ++slot) slots[slot].image_loss = reported ? losses + slot * images : nullptr;
  }
  ~Pinned() {
    for (void* const memory : {static_cast<void*>(slots), static_cast<void*>(losses), static_cast<void*>(of_ranks)})
      if (memory != nullptr) device.release_host(memory);
  }
  Device& device;
  StepReport* slots;
  int images;
  double *losses = nullptr, *of_ranks = nullptr;  // (2, images), (2, ranks, images)
  std::array<std::unique_ptr<Event>, 2> events;
};

Trainer::Trainer(Network& network, const LossFunction& loss, DeviceData& data, int64_t entries_per_epoch,
                 const TrainerOptions& options)
    : network_(network),
      device_(network.device()),
      data_(data),
      options_(options),
      stream_(device_.make_stream()),
      optimizer_(device_, *stream_, options.optimizer, network.parameters().trained_size(),
                 storage_type(network.options().precision)),
      evaluator_(network, *stream_, loss, options, optimizer_.state()),
      entries_(entries_per_epoch) {
  if (options.ranks != nullptr && options.ranks->size() > 1) ranks_ = options.exchange_by(*options.ranks, device_);
  pinned_ = std::make_unique<Pinned>(device_, options.image_losses || ranks_ ? step_images() : 0, options.image_losses,
                                     ranks_ ? ranks_->size() : 1);
  const int64_t whole = entries_ / step_images(), rest = entries_ % step_images();
  if (options_.steps_per_epoch == 0 && (whole == 0 || !options_.drop_last)) rest_ = static_cast<int>(rest);
  steps_per_epoch_ = options_.steps_per_epoch > 0 ? options_.steps_per_epoch
                     : options_.drop_last         ? std::max<int64_t>(whole, 1)
                                                  : whole + (rest > 0);
  const int K = network.graph().classes();
  confusion_ = DeviceBuffer(device_, static_cast<size_t>(K) * K * sizeof(int64_t));
  if (pinned_->losses != nullptr) image_loss_ = DeviceBuffer(device_, step_images() * sizeof(double));
  if (!options_.paste_rows.empty()) data_.set(paste_, options_.paste_rows, *stream_);
  if (options.ema) ema_.emplace(network, *stream_, *options.ema);
  if (ranks_) {
    all_image_loss_ = DeviceBuffer(device_, step_images() * sizeof(double) * ranks_->size());
    exchange_.emplace(*ranks_, network.graph(), network.parameters(), device_, owners_of(divide(step_images())),
                      options.reduce);
  }
  compile_steps();
}

Trainer::Averaged::Averaged(Trainer& trainer) : ema_(trainer.state().updates > 0 ? trainer.ema() : nullptr) {
  if (ema_ != nullptr) ema_->exchange();
}
Trainer::Averaged::~Averaged() {
  try {
    if (ema_ != nullptr) ema_->exchange();
  } catch (const Error&) {  // the device is lost: the next call says so
  }
}

std::pair<Trainer::StepParts, Trainer::StepParts> Trainer::compile_steps() {
  StepParts full, tail;  // a program's growth may move the arena: all are made before any step is captured
  if (steps_per_epoch_ > 1 || rest_ == 0) full = parts_of(step_images());
  if (rest_ > 0) tail = parts_of(rest_);
  return {full, tail};
}

// What a rank computes depends on the images of the others.
bool Trainer::couples_ranks() const { return ranks_ && (options_.sync_batch_norm || evaluator_.loss_couples_images()); }

Trainer::MicroBatches Trainer::divide(int images) {
  MicroBatches parts;
  const int ranks = ranks_ ? ranks_->size() : 1;
  for (int first = 0; first < images; first += options_.batch) {
    const int batch = std::min(options_.batch, images - first);
    const auto of_batch = evaluator_.divide(batch, Mode::train, ranks);
    if (couples_ranks() && static_cast<int>(of_batch.size()) != ranks)
      throw TrainError("a batch of " + std::to_string(batch) + (batch == 1 ? " image" : " images") + " for " +
                       std::to_string(ranks) + " ranks, of which each needs one: " +
                       (options_.sync_batch_norm ? "train.sync_batch_norm" : "the loss") +
                       " goes over the batch; set train.drop_last, or a larger train.batch");
    for (int r = 0; r < ranks; ++r) {
      const Share share = share_of(static_cast<int>(of_batch.size()), r, ranks);
      for (int i = share.first; i < share.first + share.count; ++i) {
        MicroBatch part{of_batch[i], r, batch};
        part.first += first;
        part.index = static_cast<int>(parts.size());
        parts.push_back(part);
      }
    }
  }
  return parts;
}

Trainer::StepParts Trainer::parts_of(int images) {
  StepParts parts{.own = {}, .all = divide(images), .images = images};
  for (MicroBatch part : parts.all) {
    if (ranks_ && part.rank != options_.ranks->rank()) continue;
    part.program = &network_.program(part.count, Mode::train);
    parts.own.push_back(part);
  }
  return parts;
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

// images: of the whole step, which the parts may be a share of.
void Trainer::enqueue_gradients(const MicroBatches& parts, int64_t images) {
  if (parts.empty()) {  // fewer micro-batches than ranks: this one has nothing to add
    Parameters& p = network_.parameters();
    if (p.trained_size() > 0) device_.fill(p.grad(), 0, p.trained_size() * sizeof(float), *stream_);
    return;
  }
  const bool exact = exchange_ && exchange_->exact();
  kernels::SampleBatch sample{};
  data_.bind(sample, order_, step_images(), steps_per_epoch_);
  sample.step = &optimizer_.state()->step;
  sample.seed = options_.seed;
  sample.augment = options_.augment;
  sample.paste_rows = paste_.entries.as<int32_t>();
  sample.paste_count = static_cast<int>(paste_.count);
  for (const MicroBatch& part : parts) {
    if (ranks_) ranks_->begin_batch(part.batch_images);
    part.program->share_batch(options_.sync_batch_norm ? ranks_.get() : nullptr);
    timed(seconds_.augment, [&] { evaluator_.enqueue_sample(sample, part); });
    part.program->forward(*stream_, part.first);
    evaluator_.enqueue_losses(part, images,
                              {.gradients = true,
                               .accumulate = &part != parts.data(),
                               .confusion = confusion_.as<int64_t>(),
                               .image_loss = image_loss_.as<double>(),
                               .ranks = ranks_.get()});
    std::function<void(int)> done;
    if (exchange_ && &part == &parts.back()) done = [&](int node) { exchange_->send(*stream_, node); };
    part.program->backward(*stream_, !exact && &part != parts.data(), done);
    if (exact) exchange_->keep(*stream_, static_cast<int>(&part - parts.data()));
  }
}

// What the ranks owe each other, after which all of them have the same gradient, the same running statistics and the
// losses of all images; then the update.
void Trainer::finish_step(const MicroBatches& all) {
  if (exchange_) {
    exchange_->sum(*stream_, owners_of(all));
    if (!options_.sync_batch_norm) exchange_->average_statistics(*stream_);
    ranks_->gather(*stream_, image_loss_.as(), image_loss_.bytes(), all_image_loss_.as());
  }
  Parameters& p = network_.parameters();
  optimizer_.update(*stream_, p.master(), p.grad(), p.compute_type() == DType::f32 ? nullptr : p.compute_copy());
  if (ema_) ema_->update(optimizer_.state());
}

void Trainer::enqueue_step(const StepParts& parts) {
  enqueue_gradients(parts.own, parts.images);
  if (!exchanges_on_host()) finish_step(parts.all);
}

void Trainer::collect_losses(const MicroBatches& all, int slot) {
  double* const losses = pinned_->losses + slot * step_images();
  const double* const of_ranks = pinned_->of_ranks + int64_t{slot} * step_images() * ranks_->size();
  StepReport& report = pinned_->slots[slot];
  for (const MicroBatch& part : all)
    std::copy_n(of_ranks + int64_t{part.rank} * step_images() + part.first, part.count, losses + part.first);
  report.loss = std::accumulate(losses, losses + report.images, 0.) / report.images;
}

void Trainer::broadcast_weights() {
  Parameters& p = network_.parameters();
  if (!ranks_) return;
  ranks_->broadcast(*stream_, p.master(), p.trained_size() * sizeof(float), 0);
  ranks_->broadcast(*stream_, p.statistics(), p.statistics_size() * sizeof(float), 0);
  p.refresh_compute_copy(*stream_);
}

namespace {

// Where a capture stands, for what goes wrong in it.
class CaptureWatch : public RunObserver {
 public:
  explicit CaptureWatch(const DeviceStream& stream) : stream_(stream) {}
  void begin(const Node& node, bool backward) override { at_ = "in" + named(node, backward); }
  void end(const Node& node, bool backward) override {
    if (stream_.capture_failed()) throw DeviceError("what was enqueued cannot be captured");
    at_ = "after" + named(node, backward);
  }
  const std::string& at() const { return at_; }

 private:
  static std::string named(const Node& node, bool backward) {
    return " node " + node.name + (backward ? ", backward" : "");
  }
  const DeviceStream& stream_;
  std::string at_ = "before the first node";
};

}  // namespace

std::unique_ptr<CapturedGraph> Trainer::capture(const StepParts& parts) {
  CaptureWatch watch(*stream_);
  const auto observe = [&](RunObserver* observer) {
    for (const MicroBatch& part : parts.own) part.program->observe(observer);
  };
  observe(&watch);
  try {
    auto graph = device_.capture(*stream_, [&] { enqueue_step(parts); });
    observe(nullptr);
    return graph;
  } catch (const DeviceError& e) {
    observe(nullptr);
    throw DeviceError("capturing a training step, " + watch.at() + ": " + e.what() +
                      "; run.cuda_graph=false trains without a capture");
  }
}

// Before the step of that number: a profiler's recording begins or ends here.
void Trainer::mark_profile(int64_t step) {
  const int64_t first = options_.profile_start, last = first + options_.profile_steps;
  if (options_.profile_steps == 0 || (step != first && step != last)) return;
  stream_->synchronize();
  device_.profile(step == first);
}

bool Trainer::run_epoch(const std::vector<int32_t>& order, const std::function<double(int64_t step)>& learning_rate,
                        const std::function<bool(const StepReport&)>& report) {
  if (static_cast<int64_t>(order.size()) != entries_)
    throw TrainError("an epoch's order has " + std::to_string(order.size()) + " entries; expected " +
                     std::to_string(entries_));
  timed(seconds_.read, [&] { data_.set(order_, order, *stream_); });
  device_.fill(confusion_.as(), 0, confusion_.bytes(), *stream_);
  const int64_t begin = state().step, in_epoch = begin % steps_per_epoch_;
  const Mixing mixing{options_.augment, options_.seed, paste_};
  double rate = -1;

  const auto [full, tail] = compile_steps();
  const std::pair<const void*, int> memory{network_.arena(), evaluator_.moves()};
  if (captured_memory_ != memory) full_.graph.reset(), tail_.graph.reset();
  captured_memory_ = memory;
  const bool capture = options_.capture && device_.kind() != DeviceKind::cpu && observer_ == nullptr &&
                       !(exchanges_on_host() && couples_ranks());
  const auto run = [&](const StepParts& parts, Step& step) {
    for (const MicroBatch& part : parts.own) {
      part.program->observe(observer_);
      part.program->pack(*stream_);
    }
    if (!capture || !step.has_run) {
      enqueue_step(parts);
      step.has_run = true;
    } else {
      if (step.graph == nullptr) step.graph = this->capture(parts);
      step.graph->replay(*stream_);
    }
    if (exchanges_on_host()) finish_step(parts.all);
    network_.parameters().mark_dirty();
  };

  bool go_on = true;
  int pending = -1;  // the slot of a step that has not been read yet
  const auto on_step = [&](int slot) {
    timed(seconds_.step, [&] { pinned_->events[slot]->synchronize(); });
    if (exchange_) collect_losses(pinned_->slots[slot].images == step_images() ? full.all : tail.all, slot);
    const StepReport r = pinned_->slots[slot];
    if (r.state.skipped_in_a_row >= kMostSkipped) explain_divergence(std::to_string(kMostSkipped) + " steps in a row");
    return report(r);
  };
  for (int64_t i = in_epoch; i < steps_per_epoch_ && go_on; ++i) {
    const bool is_tail = rest_ > 0 && i == steps_per_epoch_ - 1;
    if (const double next = learning_rate(begin + i - in_epoch); next != rate) set_learning_rate(rate = next);
    mark_profile(begin + i - in_epoch);
    timed(seconds_.read, [&] {
      data_.prefetch(order_, i * step_images(), step_images(), *stream_, &mixing, begin / steps_per_epoch_);
    });
    const int slot = static_cast<int>(i % 2);
    pinned_->slots[slot].first = i * step_images();
    pinned_->slots[slot].images = is_tail ? rest_ : step_images();
    timed(seconds_.step, [&] { run(is_tail ? tail : full, is_tail ? tail_ : full_); });
    device_.download(&pinned_->slots[slot].state, optimizer_.state(), sizeof(StepState), *stream_);
    if (exchange_)
      device_.download(pinned_->of_ranks + int64_t{slot} * step_images() * ranks_->size(), all_image_loss_.as(),
                       all_image_loss_.bytes(), *stream_);
    else
      device_.download(&pinned_->slots[slot].loss, evaluator_.loss(), sizeof(double), *stream_);
    if (pinned_->losses != nullptr && !exchange_)
      device_.download(pinned_->losses + slot * step_images(), image_loss_.as(),
                       pinned_->slots[slot].images * sizeof(double), *stream_);
    stream_->record(*pinned_->events[slot]);
    if (pending >= 0) go_on = on_step(pending);
    pending = slot;
  }
  if (pending >= 0) go_on = on_step(pending) && go_on;
  return go_on;
}

std::vector<int64_t> Trainer::training_confusion() {
  std::vector<int64_t> c(confusion_.bytes() / sizeof(int64_t));
  device_.download(c.data(), confusion_.as(), confusion_.bytes(), *stream_);
  stream_->synchronize();
  return c;
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

void Trainer::require_finite_epoch() {
  const StepState s = state();
  if (s.skipped_in_a_row >= steps_per_epoch_ && s.loss_scale <= 1) explain_divergence("all steps of an epoch");
}

void Trainer::explain_divergence(const std::string& when) {
  const auto [full, tail] = compile_steps();
  std::string culprit = "the gradient of a parameter";
  for (const MicroBatch& part : (full.images > 0 ? full : tail).own) {
    FiniteSearch search(device_, *stream_, *part.program);
    part.program->observe(&search);
    enqueue_gradients({part}, step_images());
    stream_->synchronize();
    part.program->observe(nullptr);
    if (!search.found.empty()) {
      culprit = search.found;
      break;
    }
  }
  throw TrainError("the gradients of " + when + " were not finite; first to be infinite or NaN: " + culprit +
                   ". A norm's running statistics may be infinite by now: start anew with a lower optimizer.lr, with " +
                   "optimizer.clip_norm, or with precision fp32");
}

}  // namespace regolith
