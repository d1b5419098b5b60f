#include "app/training.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <utility>

#include "app/checks.h"
#include "app/command_line.h"
#include "app/pseudo.h"
#include "engine/base/text.h"
#include "engine/comm/launch.h"
#include "engine/io/atomic_file.h"
#include "engine/report/explain.h"
#include "engine/train/weights.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr const char* kPseudoLabels = "pseudo.npz";

double since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

// "0-3,8".
std::string ranges_text(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const size_t first = i;
    while (i + 1 < numbers.size() && numbers[i + 1] == numbers[i] + 1) ++i;
    text += (text.empty() ? "" : ",") + std::to_string(numbers[first]) +
            (i > first ? "-" + std::to_string(numbers[i]) : "");
  }
  return text;
}

// The next free folder NAME, NAME-2, NAME-3 ... under `output`: a run never writes into an earlier one.
std::string new_folder(const RunOptions& run) {
  std::error_code e;
  fs::create_directories(run.output, e);
  if (e) throw IoError(run.output + ": cannot make the folder of the runs: " + e.message());
  for (int i = 1;; ++i) {
    const fs::path folder = fs::path(run.output) / (i == 1 ? run.name : run.name + "-" + std::to_string(i));
    if (fs::create_directory(folder, e)) return folder.string();
    if (e) throw IoError(folder.string() + ": cannot make the run's folder: " + e.message());
  }
}

}  // namespace

Training::Training(Experiment& experiment, TrainingOptions options, Listeners listeners)
    : experiment_(experiment),
      config_(experiment.config),
      ranks_(experiment.ranks()),
      options_(std::move(options)),
      listeners_(std::move(listeners)) {}

std::string Training::path(const std::string& file) const { return (fs::path(folder_) / file).string(); }

bool Training::run() {
  Network& network = experiment_.network();
  chosen_ = chosen(experiment_);
  check_before_data(experiment_, options_.resume.empty());
  if (ranks_ != nullptr) check_same_run();
  std::optional<EarlierRun> earlier;
  if (options_.resume.empty())
    initial_ = experiment_.initial_weights();
  else
    earlier = read_earlier(), experiment_.set_pseudo_labels(path(kPseudoLabels));
  phases_.start("data");
  const ExperimentData& data = experiment_.data();
  std::fputs(data.report.c_str(), stdout);
  digests_ = digests(data);
  if (earlier) earlier->check_data(digests_);
  if (ranks_ != nullptr && ranks_->broadcast(digests_.dump(), 0) != digests_.dump())
    throw DataError(data.images.origin + ": has other images, masks or parts than rank 0 reads");
  loss_.emplace(experiment_.loss(data.frequencies));
  phases_.start("compile");
  trainer_ =
      std::make_unique<Trainer>(network, *loss_, experiment_.device_data(), data.draws, experiment_.trainer_options());
  if (earlier) std::fputs(earlier->report_choices(experiment_.device()).c_str(), stdout);
  if (config_.data.hard_examples)
    losses_before_ = losses_ = std::vector<float>(data.images.count, std::numeric_limits<float>::quiet_NaN());
  schedule_.emplace(config_.schedule, config_.optimizer.lr(), trainer_->steps_per_epoch() * config_.train.epochs);
  std::fputs(warnings(experiment_, trainer_->steps_per_epoch()).c_str(), stdout);
  if (options_.interrupts != nullptr) options_.interrupts->begun = true;
  open_folder(earlier);
  print_ranks();
  std::printf("device %s, precision %s, %lld parameters, arena %.0f MiB\nrun folder %s\n",
              network.device().name().c_str(), name_of(network.options().precision).data(),
              static_cast<long long>(network.graph().parameter_count()),
              static_cast<double>(network.arena_bytes()) / (1 << 20), folder_.c_str());
  phases_.start("training");
  if (!train_epochs() || !finish()) {
    for (const auto& l : listeners_) l->interrupted(*this);
    std::printf("%s after %lld steps; %s is written. To go on:\n  %s --resume %s\n",
                interrupted() ? "interrupted" : "paused", static_cast<long long>(trainer_->state().step),
                path("last.safetensors").c_str(), options_.command.c_str(), shell_word(folder_).c_str());
    return false;
  }
  return true;
}

// Every rank has read its own configuration.
void Training::check_same_run() {
  const std::string root = ranks_->broadcast(std::string(kVersion) + "\n" + kept_config(chosen_), 0);
  const size_t line = root.find('\n');
  if (root.substr(0, line) != kVersion)
    throw ConfigError("this is Regolith " + std::string(kVersion) + ", rank 0 is " + root.substr(0, line));
  std::string others;
  const RunConfig of_root = read_run_config(Yaml::load_string(root.substr(line + 1), "rank 0"), ConfigUse::network);
  for (const Change& c : changes_between(of_root, chosen_))
    if (c.key != "run.threads") others += (others.empty() ? "" : ", ") + c.text();
  if (!others.empty()) throw ConfigError("has another configuration than rank 0: " + others);
}

void Training::print_ranks() {
  if (ranks_ == nullptr) return;
  const Binding own = binding(*ranks_);
  std::string text =
      ranks_->name() + ": " + experiment_.device().name() + ", processors " + ranges_text(own.processors);
  if (own.sharing > 1) text += ", which " + std::to_string(own.sharing) + " ranks share";
  for (const std::string& line : ranks_->gather(text)) std::printf("%s\n", line.c_str());
  if (ranks_->size() == 1) return;
  std::fputs(
      explain_exchange(experiment_.network(), config_.train.batch,
                       {ranks_->size(), config_.train.accumulate, config_.run.reduce, config_.train.sync_batch_norm})
          .c_str(),
      stdout);
  std::printf("             %s\n", trainer_->exchanges().c_str());
}

// What rank 0 has made, once no rank can refuse any more.
std::string Training::shared_folder() {
  if (ranks_ != nullptr) ranks_->barrier();
  const std::string own = is_root() ? new_folder(config_.run) : "";
  return ranks_ == nullptr ? own : ranks_->broadcast(own, 0);
}

// Whether to write a checkpoint now, as rank 0 says; and whether a signal came to any rank.
bool Training::agree(bool save) {
  if (ranks_ == nullptr) return save;
  const bool signal = options_.interrupts != nullptr && options_.interrupts->signal != 0;
  std::vector<int64_t> says{signal, save && is_root()};
  ranks_->sum(says);
  any_interrupted_ = says[0] > 0;
  return says[1] > 0;
}

EarlierRun Training::read_earlier() {
  folder_ = options_.resume;
  check_run_folder(folder_);
  if (is_root()) lock_ = FileLock(folder_);
  EarlierRun earlier = load_earlier_run(folder_, experiment_.network(), chosen_);
  std::fputs(earlier.report(chosen_).c_str(), stdout);
  experiment_.device().choices() = earlier.choices;
  return earlier;
}

void Training::open_folder(const std::optional<EarlierRun>& earlier) {
  Network& network = experiment_.network();
  if (earlier) {
    restore(*earlier);
  } else {
    network.parameters().initialise(config_.run.seed, trainer_->stream());
    if (initial_) initial_->apply(network, trainer_->stream());
    folder_ = shared_folder();
    if (is_root()) {
      lock_ = FileLock(folder_);
      write_config(folder_, chosen_, network.device());
      config_written_ = true;
      write_file_atomically(path("samples.csv"), experiment_.data().list());
      if (initial_) write_file_atomically(path("init.txt"), initial_->list());
      if (config_.data.pseudo) write_pseudo_labels(path(kPseudoLabels), experiment_.data().images);
    }
  }
  if (initial_) std::fputs(initial_->summary().c_str(), stdout);
  initial_.reset();
  const std::set<std::string>& frozen = network.graph().frozen;
  std::fputs(listed("frozen", {frozen.begin(), frozen.end()}).c_str(), stdout);
  for (const auto& l : listeners_) l->begin(*this, earlier.has_value());
  if (!earlier) return;
  if (stopped_ || epoch_ >= config_.train.epochs) {
    std::printf("%s is finished%s after epoch %lld: nothing is left to train; a larger train.%s goes on\n",
                folder_.c_str(), stopped_ ? ", stopped early" : "", static_cast<long long>(epoch_),
                stopped_ ? "early_stopping.patience" : "epochs");
    if (!earlier->changes.empty()) save_last(epoch_);  // else no checkpoint would bring the new configuration
  } else {
    std::printf("resuming %s at epoch %lld, step %lld\n", folder_.c_str(), static_cast<long long>(epoch_ + 1),
                static_cast<long long>(trainer_->state().step));
  }
}

// Changes nothing on the disk.
void Training::restore(const EarlierRun& earlier) {
  const json& state = earlier.state;
  const int64_t steps_per_epoch = trainer_->steps_per_epoch();
  const bool same_score = earlier.same_score(config_);
  Schedule before(earlier.config.schedule, earlier.config.optimizer.lr(),
                  steps_per_epoch * earlier.config.train.epochs);
  try {
    epoch_ = state.at("epoch");
    loss_sum_ = state.at("loss_sum");
    loss_images_ = state.at("loss_images");
    if (state.at("steps_per_epoch") != steps_per_epoch)
      throw CheckpointError(
          earlier.checkpoint.origin + ": train.steps_per_epoch: " + state.at("steps_per_epoch").dump() + " -> " +
          std::to_string(steps_per_epoch) +
          ": that is another experiment; resume with the configuration of that run, " + path("config.yaml"));
    json scheduled = state.at("schedule");
    before.restore(scheduled);
    if (config_.data.hard_examples && !earlier.changed("loss")) {
      const auto read = [](const json& from, std::vector<float>& to) {
        for (size_t i = 0; i < to.size(); ++i)
          if (!from.at(i).is_null()) to[i] = from.at(i);
      };
      read(state.at("image_losses").at("before"), losses_before_);
      read(state.at("image_losses").at("last"), losses_);
    }
    if (earlier.changed("loss")) loss_sum_ = 0, loss_images_ = 0;
    if (earlier.changed("loss") || before.monitor() != schedule_->monitor() ||
        earlier.config.watches_ema() != config_.watches_ema())
      scheduled.update({{"seen", false}, {"wait", 0}, {"cooldown", 0}});
    schedule_->restore(scheduled);
    for (const auto& l : listeners_)
      if (!l->key().empty() && same_score) l->restore(state.at(l->key()));
  } catch (const json::exception&) {
    throw CheckpointError(earlier.checkpoint.origin +
                          ": its training state cannot be read; was it written by engine_run?");
  }
  const float scale = trainer_->state().loss_scale;
  load_training(experiment_.network(), *trainer_, earlier.checkpoint);
  StepState step = trainer_->state();
  if (earlier.config.run.precision != chosen_.run.precision) {  // the loss scale belongs to the precision
    step.loss_scale = scale;
    step.clean_steps = 0;
    trainer_->set_state(step);
  }
  const double rate = schedule_->learning_rate(step.step), rate_before = before.learning_rate(step.step);
  if (rate != rate_before)
    std::printf("learning rate of step %lld: %s; the rate of the checkpoint's own configuration: %s\n",
                static_cast<long long>(step.step), number(rate).c_str(), number(rate_before).c_str());
}

void Training::save_last(int64_t epochs) {
  saved_ = Clock::now();
  if (!is_root()) return;
  json run{{"epoch", epochs},
           {"loss_sum", loss_sum_},
           {"loss_images", loss_images_},
           {"data", digests_},
           {"steps_per_epoch", trainer_->steps_per_epoch()},
           {"schedule", schedule_->state()}};
  if (config_.data.hard_examples) run["image_losses"] = {{"before", losses_before_}, {"last", losses_}};
  for (const auto& l : listeners_)
    if (!l->key().empty()) run[l->key()] = l->state();
  Checkpoint c = save_training(experiment_.network(), *trainer_);
  c.metadata["run"] = run.dump();
  c.metadata["config"] = kept_config(chosen_);
  c.metadata["version"] = kVersion;
  if (const std::string device = kept_device(experiment_.device()); !device.empty()) c.metadata["device"] = device;
  save_checkpoint(path("last.safetensors"), c);
  if (!std::exchange(config_written_, true)) write_config(folder_, chosen_, experiment_.device());
}

// False where a signal ended it, or the last epoch for now.
bool Training::train_epochs() {
  saved_ = Clock::now();
  for (; epoch_ < config_.train.epochs && !stopped_; ++epoch_) {
    if (paused()) return false;
    const auto began = Clock::now();
    const StepProgress last = train_steps();
    const double seconds = since(began);
    times_.training += seconds;
    std::optional<EpochReport> report;
    if (last.step == last.steps) report = end_epoch(last, seconds);
    if (!report) {
      save_last(epoch_);
      return false;
    }
    loss_sum_ = 0;
    loss_images_ = 0;
    const auto trained = Clock::now();
    losses_before_ = losses_;
    for (const auto& l : listeners_) {
      l->epoch(*this, *report);
      stopped_ = report->stop;
    }
    times_.checkpoints += since(trained);
    ++times_.epochs;
    if (stopped_) {
      const int patience = config_.train.early_stopping->patience, every = config_.train.validate_every;
      std::printf("stopping early: %s has not improved for %d %s\n", config_.monitor().c_str(), patience,
                  every == 1 ? "epochs" : ("validations, " + std::to_string(patience * every) + " epochs").c_str());
    }
    if (interrupted() && !stopped_ && epoch_ + 1 < config_.train.epochs) return false;
  }
  return true;
}

// The steps that the epoch has left, or those until a signal came. Writes last.safetensors now and then.
StepProgress Training::train_steps() {
  const auto began = Clock::now();
  const StepState start = trainer_->state();
  const int64_t first_step = epoch_ * trainer_->steps_per_epoch();
  int64_t images = 0;
  StepProgress now{.epoch = epoch_ + 1,
                   .step = start.step - first_step,
                   .steps = trainer_->steps_per_epoch(),
                   .loss = loss_sum_ / static_cast<double>(loss_images_),
                   .lr = schedule_->learning_rate(std::max<int64_t>(0, start.step - 1)),
                   .images_per_second = 0,
                   .skipped = 0};
  if (now.step == now.steps)  // a resumed run that was interrupted as it validated
    for (const auto& l : listeners_) l->step(*this, now);
  const std::chrono::duration<double, std::ratio<60>> interval(config_.train.checkpoint_minutes);
  const std::vector<int32_t> entries = experiment_.order(epoch_, losses_before_);
  while (now.step < now.steps && !interrupted()) {
    trainer_->run_epoch(
        entries, [&](int64_t step) { return schedule_->learning_rate(step); },
        [&](const StepReport& r) {
          if (std::isfinite(r.loss)) loss_sum_ += r.loss * r.images, loss_images_ += r.images;
          images += r.images;
          now.step = r.state.step - first_step;
          for (int b = 0; r.image_loss != nullptr && b < r.images; ++b) {
            const int32_t entry = entries[(r.first + b) % entries.size()];
            if (std::isfinite(r.image_loss[b])) losses_[entry >> 1] = static_cast<float>(r.image_loss[b]);
          }
          now.loss = loss_sum_ / static_cast<double>(loss_images_);  // NaN before the first finite one
          now.lr = schedule_->learning_rate(r.state.step - 1);
          now.images_per_second =
              static_cast<double>(images) / std::chrono::duration<double>(Clock::now() - began).count();
          now.skipped = r.state.skipped - start.skipped;
          for (const auto& l : listeners_) l->step(*this, now);
          // What diverges is not kept: the statistics of its norms may be lost.
          const bool save =
              agree(interval.count() > 0 && Clock::now() - saved_ > interval && r.state.skipped_in_a_row == 0);
          return !interrupted() && !save;
        });
    if (now.step < now.steps && !interrupted()) save_last(epoch_);
  }
  return now;
}

// Nothing where a signal ended the validation, which a resumed run then begins anew.
std::optional<EpochReport> Training::end_epoch(const StepProgress& last, double seconds) {
  const StepState state = trainer_->state();
  EpochReport report;
  report.record = {.epoch = epoch_ + 1,
                   .step = state.step,
                   .lr = last.lr,
                   .loss = last.loss,
                   .images_per_second = last.images_per_second,
                   .seconds = seconds,
                   .skipped_steps = state.skipped,
                   .validation = metrics({}, 0, EpochRecord::kNone),
                   .ema_validation = {},
                   .val_iou = {},
                   .val_ema_iou = {}};
  if (config_.train.ema) report.record.ema_validation = report.record.validation;
  report.improved = !validates();
  const int every = config_.train.validate_every;
  if (!validates() || ((epoch_ + 1) % every != 0 && epoch_ + 1 != config_.train.epochs)) return report;
  const auto began = Clock::now();
  const auto validate = [&](std::vector<Metric>& values, std::vector<double>& iou) {
    const Evaluation e = trainer_->evaluate(experiment_.data().validation, false, may_stop());
    values = metrics(e.confusion, experiment_.classes(), e.loss);
    iou = score(e.confusion, experiment_.classes()).iou;
    return e.whole;
  };
  EpochRecord& record = report.record;
  if (!validate(record.validation, record.val_iou)) return {};
  agree();
  if (config_.train.ema) {
    const Trainer::Averaged averaged(*trainer_);
    if (!validate(record.ema_validation, record.val_ema_iou)) return {};
  }
  times_.validation += since(began);
  report.validated = true;
  const std::vector<Metric>& watched = record.watched(config_.watches_ema());
  report.monitored = value_of(watched, config_.monitor().substr(4));  // without val_
  schedule_->end_epoch(value_of(watched, schedule_->monitor().substr(4)));
  return report;
}

// The best weights on the test set. False where a signal ended it.
bool Training::finish() {
  phases_.start("test");
  for (const auto& l : listeners_) l->before_evaluation(*this);
  trainer_->broadcast_weights();
  agree();
  const ExperimentData& data = experiment_.data();
  FinalReport report;
  const bool has_test = !data.test.empty();
  report.samples = has_test ? data.test : validates() ? data.validation : data.train;
  report.split = has_test ? "test" : validates() ? "validation" : "training";
  const auto scores_of = [&](Evaluation& e) -> SplitScores {
    return {e.confusion, score(e.confusion, experiment_.classes()),
            metrics(e.confusion, experiment_.classes(), e.loss)};
  };
  Evaluation e = trainer_->evaluate(report.samples, true, may_stop());
  if (!e.whole) return false;
  static_cast<SplitScores&>(report) = scores_of(e);
  report.predictions = std::move(e.predictions);
  if (report.split == "validation") report.validation = report;
  if (report.split == "test" && validates()) {
    e = trainer_->evaluate(data.validation, false, may_stop());
    if (!e.whole) return false;
    report.validation = scores_of(e);
  }
  report.written = {"config.yaml"};
  for (const char* file : {"samples.csv", "init.txt", kPseudoLabels})
    if (fs::exists(path(file))) report.written.push_back(file);
  for (const auto& l : listeners_) l->end(*this, report);
  phases_.stop();
  std::printf("\nwritten\n");
  for (const std::string& file : report.written) std::printf("  %s\n", path(file).c_str());
  std::printf("\n%s\n%s\n", phases_.text().c_str(), memory_text().c_str());
  return true;
}

const EpochTimes& Training::times() {
  const StepSeconds& s = trainer_->seconds();
  times_.read = s.read, times_.augment = s.augment, times_.compute = s.step - s.augment;
  return times_;
}

// Ranks, each with its part of the samples, do not stop in between.
std::function<bool()> Training::may_stop() const {
  if (ranks_ != nullptr) return {};
  return [this] { return !interrupted(); };
}

std::string Training::memory_text() {
  Network& network = experiment_.network();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return "memory: arena " + mebibytes(network.arena_bytes()) + ", data " + mebibytes(trainer_->data_bytes()) +
         ", prepacked weights " + mebibytes(network.parameters().prepacked_bytes()) +
         ", weights, gradients and moments " +
         mebibytes(network.parameters().bytes_with_moments(trainer_->moments()) + trainer_->ema_bytes()) +
         "; peak of the process " + mebibytes(1024.0 * static_cast<double>(usage.ru_maxrss));
}

}  // namespace regolith
