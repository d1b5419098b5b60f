#include "tools/fit.h"

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "engine/base/error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/safetensors.h"
#include "engine/report/history.h"
#include "engine/report/panel.h"
#include "engine/report/progress.h"
#include "engine/report/table.h"
#include "engine/train/metrics.h"
#include "engine/train/weights.h"
#include "models/reader.h"
#include "tools/session.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The next free folder NAME, NAME-2, NAME-3 ... under `output`: a run never writes into an earlier one.
std::string new_folder(const config::RunSection& run) {
  std::error_code e;
  fs::create_directories(run.output, e);
  if (e) throw IoError(run.output + ": cannot make the folder of the runs: " + e.message());
  for (int i = 1;; ++i) {
    const fs::path folder = fs::path(run.output) / (i == 1 ? run.name : run.name + "-" + std::to_string(i));
    if (fs::create_directory(folder, e)) return folder.string();
    if (e) throw IoError(folder.string() + ": cannot make the run's folder: " + e.message());
  }
}

double monitored(const std::string& name, double loss, const Scores& s) {
  if (name == "val_miou") return s.miou;
  if (name == "val_miou_foreground") return s.miou_foreground;
  if (name == "val_miou_keras_ignore0") return s.miou_keras_ignore0;
  return loss;
}

json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

// One training run. The loop's own state is what a checkpoint holds beside weights and moments.
class Run {
 public:
  Run(const config::RunConfig& config, const FitOptions& options)
      : c_(config),
        options_(options),
        device_(open_device(config.run)),
        network_(read_model(config.model), *device_, network_options(config, *device_)),
        classes_(network_.graph().classes()),
        monitor_(monitor_name(config.best_monitor())) {}

  FitResult run() {
    FitResult result;
    std::optional<Checkpoint> last;
    if (!options_.resume.empty()) last = read_last();
    phases_.start("data");
    data_ = prepare_data(c_, classes_);
    std::fputs(data_.report.c_str(), stdout);
    trainer_ = std::make_unique<Trainer>(network_, loss_function(c_, network_.graph(), data_.frequencies),
                                         trainer_options(c_, data_.augment));
    phases_.start("compile");
    check_image();
    trainer_->set_training_data(view(data_.train), static_cast<int64_t>(data_.occurrences.size()));
    schedule_.emplace(schedule_spec(c_.schedule, c_.optimizer.lr()), c_.optimizer.lr(),
                      trainer_->steps_per_epoch() * c_.train.epochs, monitor_);
    EarlyStoppingSpec stopping{monitor_, 0, 0};
    if (c_.train.early_stopping)
      stopping = {monitor_, c_.train.early_stopping->patience, c_.train.early_stopping->min_delta};
    stopping_.emplace(stopping);
    open_folder(last);
    result.folder = folder_;
    std::printf("device %s, precision %s, %s parameters, arena %.0f MiB\nrun folder %s\n", device_->name().c_str(),
                std::string(name_of(network_.options().precision)).c_str(),
                std::to_string(network_.graph().parameter_count()).c_str(),
                static_cast<double>(network_.arena_bytes()) / (1 << 20), folder_.c_str());
    phases_.start("training");
    result.interrupted = !train();
    if (result.interrupted) {
      std::printf("interrupted after %lld steps; %s is written. To go on:\n  %s --resume %s\n",
                  static_cast<long long>(trainer_->state().step), path("last.safetensors").c_str(),
                  options_.command.c_str(), shell_word(folder_).c_str());
      return result;
    }
    finish();
    return result;
  }

 private:
  std::string path(const std::string& name) const { return (fs::path(folder_) / name).string(); }

  void check_image() const {
    const Shape& in = network_.graph().nodes[network_.graph().input].shape();
    if (in.H != data_.train.height || in.W != data_.train.width || in.C != data_.train.channels)
      c_.yaml.at("model").find("input").fail(
          "the model takes images of " + std::to_string(in.H) + "x" + std::to_string(in.W) + "x" +
          std::to_string(in.C) + "; " + data_.train.origin + " has " + std::to_string(data_.train.height) + "x" +
          std::to_string(data_.train.width) + "x" + std::to_string(data_.train.channels));
  }

  // What a run goes on from, read before anything that takes its time.
  Checkpoint read_last() {
    folder_ = options_.resume;
    if (!fs::is_directory(folder_))
      throw IoError(folder_ + ": there is no such folder; --resume takes the run folder that an earlier run printed");
    if (!fs::exists(path("last.safetensors")))
      throw IoError(path("last.safetensors") + ": is missing, so there is nothing to go on from; start anew without " +
                    "--resume");
    return load_checkpoint(path("last.safetensors"));
  }

  void open_folder(const std::optional<Checkpoint>& last) {
    if (!last) {
      network_.parameters().initialise(c_.run.seed, trainer_->stream());
      folder_ = new_folder(c_.run);
      write_file_atomically(path("config.yaml"), c_.to_yaml());
      history_.emplace(path("history.jsonl"), 0);
      return;
    }
    check_parameters(network_, *last);
    const json state = json::parse(last->meta("run"), nullptr, false);
    try {
      epoch_ = state.at("epoch");
      loss_sum_ = state.at("loss_sum");
      loss_steps_ = state.at("loss_steps");
      stopped_ = state.at("stopped") && c_.train.early_stopping;
      if (state.at("seed") != c_.run.seed || state.at("steps_per_epoch") != trainer_->steps_per_epoch())
        throw CheckpointError(last->origin + ": was made with another seed, batch or data; resume with the " +
                              "configuration of that run, " + path("config.yaml"));
      schedule_->restore(state.at("schedule"));
      stopping_->restore(state.at("stopping"));
    } catch (const json::exception&) {
      throw CheckpointError(last->origin + ": its training state cannot be read; was it written by engine_run?");
    }
    load_training(network_, *trainer_, *last);
    history_.emplace(path("history.jsonl"), epoch_);
    if (stopped_ || epoch_ >= c_.train.epochs)
      std::printf("%s is finished%s after epoch %lld: nothing is left to train\n", folder_.c_str(),
                  stopped_ ? ", stopped early" : "", static_cast<long long>(epoch_));
    else
      std::printf("resuming %s at epoch %lld, step %lld\n", folder_.c_str(), static_cast<long long>(epoch_ + 1),
                  static_cast<long long>(trainer_->state().step));
  }

  void save_last() { save_last(epoch_); }
  void save_last(int64_t epoch) {
    Checkpoint c = save_training(network_, *trainer_);
    c.metadata["run"] = json{{"epoch", epoch},
                             {"loss_sum", loss_sum_},
                             {"loss_steps", loss_steps_},
                             {"stopped", stopped_},
                             {"seed", c_.run.seed},
                             {"steps_per_epoch", trainer_->steps_per_epoch()},
                             {"schedule", schedule_->state()},
                             {"stopping", stopping_->state()}}
                            .dump();
    save_checkpoint(path("last.safetensors"), c);
  }

  std::vector<int32_t> order() const {
    const auto permutation = epoch_order(c_.run.seed, epoch_, static_cast<int64_t>(data_.occurrences.size()));
    std::vector<int32_t> entries;
    for (int64_t i : permutation)
      entries.push_back(kernels::sample_index(data_.occurrences[i].index, data_.occurrences[i].augment));
    return entries;
  }

  // False where a signal ended it.
  bool train() {
    Progress progress(std::cout, Progress::columns_of(1));
    for (; epoch_ < c_.train.epochs && !stopped_; ++epoch_) {
      const int64_t first_step = epoch_ * trainer_->steps_per_epoch();
      const auto began = std::chrono::steady_clock::now();
      int64_t steps = 0;
      ProgressState state{.epoch = static_cast<int>(epoch_ + 1),
                          .epochs = c_.train.epochs,
                          .steps = trainer_->steps_per_epoch(),
                          .val_loss = {},
                          .val_miou = {}};
      const bool whole = trainer_->run_epoch(
          order(), [&](int64_t step) { return schedule_->learning_rate(step); },
          [&](const StepReport& r) {
            if (std::isfinite(r.loss)) loss_sum_ += r.loss, ++loss_steps_;
            ++steps;
            const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
            state.step = r.step - first_step;
            state.loss = loss_sum_ / static_cast<double>(std::max<int64_t>(1, loss_steps_));
            state.lr = schedule_->learning_rate(r.step - 1);
            state.images_per_second = static_cast<double>(steps * c_.train.batch) / seconds.count();
            progress.step(state);
            return options_.interrupted == nullptr || !options_.interrupted->load();
          });
      if (state.step < state.steps) {
        save_last();
        return false;
      }
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
      end_epoch(progress, state, seconds.count());
      if (!whole && !stopped_ && epoch_ + 1 < c_.train.epochs) return false;
    }
    return true;
  }

  void end_epoch(Progress& progress, ProgressState& state, double seconds) {
    const StepState now = trainer_->state();
    EpochRecord record{.epoch = epoch_ + 1,
                       .step = now.step,
                       .lr = state.lr,
                       .loss = state.loss,
                       .images_per_second = state.images_per_second,
                       .seconds = seconds,
                       .skipped_steps = now.skipped,
                       .val_iou = {}};
    const bool validates =
        data_.validation.count > 0 && ((epoch_ + 1) % c_.train.validate_every == 0 || epoch_ + 1 == c_.train.epochs);
    bool improved = data_.validation.count == 0;
    if (validates) {
      const Evaluation e = trainer_->evaluate(view(data_.validation), false);
      const Scores s = score(e.confusion, classes_);
      record.val_loss = e.loss;
      record.val_miou = s.miou;
      record.val_miou_foreground = s.miou_foreground;
      record.val_miou_keras_ignore0 = s.miou_keras_ignore0;
      record.val_iou = s.iou;
      state.val_loss = e.loss;
      state.val_miou = s.miou_foreground;
      const double value = monitored(monitor_, e.loss, s);
      schedule_->end_epoch(value);
      const auto verdict = stopping_->end_epoch(epoch_, value);
      improved = verdict.improved;
      stopped_ = verdict.stop;
    }
    progress.epoch(state);
    history_->append(record);
    if (improved) {
      Checkpoint best = save_weights(network_, trainer_->stream());
      best.metadata["epoch"] = std::to_string(epoch_ + 1);
      best.metadata["monitor"] = monitor_;
      save_checkpoint(path("best.safetensors"), best);
    }
    loss_sum_ = 0;
    loss_steps_ = 0;
    save_last(epoch_ + 1);
    if (stopped_)
      progress.message("stopping early: " + monitor_ + " has not improved for " +
                       std::to_string(c_.train.early_stopping->patience) + " epochs");
  }

  // The best weights on the test set: table, panels, scores.
  void finish() {
    phases_.start("test");
    if (fs::exists(path("best.safetensors")))
      load_weights(network_, load_checkpoint(path("best.safetensors")), trainer_->stream());
    const bool has_test = data_.test.count > 0;
    const Dataset& last = has_test ? data_.test : data_.validation.count > 0 ? data_.validation : data_.train;
    const std::string name = has_test ? "test" : data_.validation.count > 0 ? "validation" : "training";
    const Evaluation e = trainer_->evaluate(view(last), true);
    const Scores s = score(e.confusion, classes_);
    const auto names = class_names(c_.data.classes, classes_);
    const std::string title = name + " (" + std::to_string(last.count) + " images)";
    std::printf("\n%s", score_table(title, names,
                                    {s.iou, s.precision, s.recall, s.miou, s.miou_foreground, s.miou_keras_ignore0})
                            .c_str());
    json scores{{"split", name},
                {"loss", number(e.loss)},
                {"miou", number(s.miou)},
                {"miou_foreground", number(s.miou_foreground)},
                {"miou_keras_ignore0", number(s.miou_keras_ignore0)},
                {"confusion", e.confusion}};
    for (int k = 0; k < classes_; ++k)
      scores["classes"].push_back({{"name", names[k]},
                                   {"iou", number(s.iou[k])},
                                   {"precision", number(s.precision[k])},
                                   {"recall", number(s.recall[k])}});
    write_file_atomically(path("scores.json"), scores.dump(2) + "\n");
    std::vector<std::string> written{"config.yaml", "history.jsonl", "best.safetensors", "last.safetensors",
                                     "scores.json"};
    if (c_.train.panels > 0) {
      write_panels(last, e.predictions, names);
      written.push_back("panels.png");
    }
    write_file_atomically(path("history.svg"), history_svg(c_.run.name, history_->records()));
    written.push_back("history.svg");
    phases_.stop();
    std::printf("\nwritten\n");
    for (const std::string& w : written) std::printf("  %s\n", path(w).c_str());
    std::printf("\n%s\n%s\n", phases_.text().c_str(), memory_text().c_str());
  }

  // What the plan promised, and what the process took at its most.
  std::string memory_text() {
    const auto mib = [](double bytes) { return std::to_string(std::lround(bytes / (1 << 20))) + " MiB"; };
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return "memory: arena " + mib(network_.arena_bytes()) + ", data " + mib(trainer_->data_bytes()) + ", weights " +
           mib(network_.parameters().bytes() + network_.packed_bytes()) + "; peak of the process " +
           mib(1024.0 * static_cast<double>(usage.ru_maxrss));
  }

  // Rows spread over the split, image beside truth beside prediction.
  void write_panels(const Dataset& data, const std::vector<uint8_t>& predictions,
                    const std::vector<std::string>& names) const {
    std::vector<Rgb> colours = default_colours(classes_);
    for (size_t k = 0; k < std::min(colours.size(), c_.data.classes.colours.size()); ++k) {
      const config::Colour& c = c_.data.classes.colours[k];
      colours[k] = {c[0], c[1], c[2]};
    }
    std::vector<LegendEntry> legend;
    for (int k = 0; k < classes_; ++k) legend.push_back({names[k], colours[k]});
    std::vector<PanelRow> rows;
    const int64_t count = std::min<int64_t>(c_.train.panels, data.count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * data.count / count;
      rows.push_back({data.image(at), data.mask(at), predictions.data() + at * data.mask_bytes(),
                      "image " + std::to_string(data.source[at])});
    }
    write_png(path("panels.png"), draw_panel(rows, data.height, data.width, data.channels, legend));
  }

  const config::RunConfig& c_;
  const FitOptions& options_;
  Phases phases_;
  std::unique_ptr<Device> device_;
  Network network_;
  int classes_;
  std::string monitor_, folder_;
  PreparedData data_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<Schedule> schedule_;
  std::optional<EarlyStopping> stopping_;
  std::optional<History> history_;
  int64_t epoch_ = 0, loss_steps_ = 0;
  double loss_sum_ = 0;
  bool stopped_ = false;  // early
};

}  // namespace

std::string shell_word(const std::string& word) {
  const std::string plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:.,/@%";
  if (!word.empty() && word.find_first_not_of(plain) == word.npos) return word;
  std::string text = "'";
  for (const char c : word) c == '\'' ? text += "'\\''" : text += c;
  return text + "'";
}

FitResult fit(const config::RunConfig& config, const FitOptions& options) { return Run(config, options).run(); }

}  // namespace regolith
