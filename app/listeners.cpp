#include "app/listeners.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "app/training.h"
#include "engine/io/atomic_file.h"
#include "engine/io/safetensors.h"
#include "engine/report/panel.h"
#include "engine/report/progress.h"
#include "engine/report/table.h"
#include "engine/train/weights.h"

namespace regolith {
namespace {

using nlohmann::json;

class StoppingListener : public Listener {
 public:
  explicit StoppingListener(const EarlyStoppingSpec& spec) : stopping_(spec) {}
  void begin(Training& t, bool) override {
    if (stopping_.out_of_patience()) t.stop();
  }
  void epoch(Training&, EpochReport& report) override {
    if (!report.validated) return;
    const EarlyStopping::Verdict verdict = stopping_.end_epoch(report.record.epoch - 1, report.monitored);
    report.improved = verdict.improved;
    report.stop = verdict.stop;
  }
  std::string key() const override { return "stopping"; }
  json state() const override { return stopping_.state(); }
  void restore(const json& state) override { stopping_.restore(state); }

 private:
  EarlyStopping stopping_;
};

class ProgressListener : public Listener {
 public:
  void step(Training& t, const StepProgress& p) override {
    state_ = {.epoch = static_cast<int>(p.epoch),
              .epochs = t.experiment().config.train.epochs,
              .step = p.step,
              .steps = p.steps,
              .loss = p.loss,
              .lr = p.lr,
              .images_per_second = p.images_per_second,
              .skipped = p.skipped,
              .validation = {}};
    progress_.step(state_);
  }
  void epoch(Training& t, EpochReport& report) override {
    const std::string monitored = t.experiment().config.monitor().substr(4);  // without val_
    for (const Metric& m : report.record.watched(t.experiment().config.watches_ema()))
      if (report.validated && (m.name == monitored || m.name == "loss" || m.name == "miou"))
        state_.validation.push_back(m);
    progress_.epoch(state_);
  }

 private:
  Progress progress_{std::cout, Progress::columns_of(1)};
  ProgressState state_;
};

class DivergenceListener : public Listener {
 public:
  void epoch(Training& t, EpochReport&) override { t.trainer().require_finite_epoch(); }
};

class HistoryListener : public Listener {
 public:
  void begin(Training& t, bool) override {
    history_.emplace(t.path("history.jsonl"), t.epochs_done());
    if (const int64_t lost = t.epochs_done() - std::ssize(history_->records()); lost > 0)
      std::printf("warning: %s lacks %lld of the %lld epochs before\n", t.path("history.jsonl").c_str(),
                  static_cast<long long>(lost), static_cast<long long>(t.epochs_done()));
  }
  void epoch(Training&, EpochReport& report) override { history_->append(report.record); }
  void end(Training& t, FinalReport& report) override {
    write_file_atomically(t.path("history.svg"), history_svg(t.experiment().config.run.name, history_->records()));
    report.written.insert(report.written.end(), {"history.jsonl", "history.svg"});
  }

 private:
  std::optional<History> history_;
};

class BestListener : public Listener {
 public:
  void epoch(Training& t, EpochReport& report) override {
    if (!report.improved) return;
    std::optional<Trainer::Averaged> averaged;
    if (t.experiment().config.watches_ema()) averaged.emplace(t.trainer());
    Checkpoint best = save_weights(t.experiment().network(), t.trainer().stream());
    best.metadata["epoch"] = std::to_string(report.record.epoch);
    best.metadata["monitor"] = t.experiment().config.monitor();
    save_checkpoint(t.path(kFile), best);
  }
  void before_evaluation(Training& t) override {
    if (std::filesystem::exists(t.path(kFile)))
      load_weights(t.experiment().network(), load_checkpoint(t.path(kFile), Loading::when_used), t.trainer().stream());
    else
      std::printf("no weights are the best by %s; the scores are those of the last ones\n",
                  t.experiment().config.monitor().c_str());
  }
  void end(Training& t, FinalReport& report) override {
    if (std::filesystem::exists(t.path(kFile))) report.written.push_back(kFile);
  }

 private:
  static constexpr const char* kFile = "best.safetensors";
};

class LastListener : public Listener {
 public:
  void epoch(Training& t, EpochReport& report) override { t.save_last(report.record.epoch); }
  void end(Training&, FinalReport& report) override { report.written.push_back("last.safetensors"); }
};

class ScoresListener : public Listener {
 public:
  void end(Training& t, FinalReport& report) override {
    const std::vector<std::string> names = t.experiment().class_names();
    const std::string title = report.split + " (" + std::to_string(report.samples.size()) + " images)";
    std::printf("\n%s", score_table(title, names, report.scores, report.metrics).c_str());
    json scores = json_of(report, names);
    scores["split"] = report.split;
    scores["parameters"] = t.experiment().network().graph().parameter_count();
    if (report.validation) scores["validation"] = json_of(*report.validation, names);
    write_file_atomically(t.path("scores.json"), scores.dump(2) + "\n");
    report.written.push_back("scores.json");
  }

 private:
  static json json_of(const SplitScores& split, const std::vector<std::string>& names) {
    json j{{"confusion", split.confusion}};
    for (const Metric& m : split.metrics) j[m.name] = number(m.value);
    const Scores& s = split.scores;
    for (size_t k = 0; k < names.size(); ++k)
      j["classes"].push_back({{"name", names[k]},
                              {"iou", number(s.iou[k])},
                              {"precision", number(s.precision[k])},
                              {"recall", number(s.recall[k])}});
    return j;
  }
  static json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }
};

// Rows spread over the images, image beside truth beside prediction.
class PanelsListener : public Listener {
 public:
  explicit PanelsListener(int count) : count_(count) {}
  void end(Training& t, FinalReport& report) override {
    const Dataset& data = t.experiment().data().images;
    const std::vector<LegendEntry> legend = legend_of(t.experiment().class_names(), t.experiment().class_colours());
    std::vector<PanelRow> rows;
    const int64_t all = std::ssize(report.samples), count = std::min<int64_t>(count_, all);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * all / count, sample = report.samples[at];
      rows.push_back({data.image(sample), data.mask(sample), report.predictions.data() + at * data.mask_bytes(),
                      "image " + std::to_string(data.source[sample])});
    }
    write_png(t.path("panels.png"), draw_panel(rows, data.height, data.width, data.channels, legend));
    report.written.push_back("panels.png");
  }

 private:
  int count_;
};

}  // namespace

std::unique_ptr<Listener> early_stopping(const EarlyStoppingSpec& spec) {
  return std::make_unique<StoppingListener>(spec);
}
std::unique_ptr<Listener> progress_line() { return std::make_unique<ProgressListener>(); }
std::unique_ptr<Listener> history_file() { return std::make_unique<HistoryListener>(); }
std::unique_ptr<Listener> end_of_divergence() { return std::make_unique<DivergenceListener>(); }
std::unique_ptr<Listener> best_weights() { return std::make_unique<BestListener>(); }
std::unique_ptr<Listener> last_weights() { return std::make_unique<LastListener>(); }
std::unique_ptr<Listener> score_table() { return std::make_unique<ScoresListener>(); }
std::unique_ptr<Listener> panels(int count) { return std::make_unique<PanelsListener>(count); }

std::unique_ptr<Listener> (*tensorboard_events)() = nullptr;

Listeners all_listeners(Experiment& experiment) {
  const TrainOptions& train = experiment.config.train;
  Listeners all;
  // Without early stopping its rule still says which weights are the best.
  all.push_back(early_stopping(train.early_stopping.value_or(EarlyStoppingSpec{experiment.config.monitor(), 0, 0})));
  if (experiment.ranks() != nullptr &&
      !experiment.ranks()->is_root()) {  // it decides as rank 0 does, and writes nothing
    all.push_back(end_of_divergence());
    return all;
  }
  all.push_back(progress_line());
  all.push_back(history_file());
  all.push_back(end_of_divergence());  // told and recorded, but not kept
  all.push_back(best_weights());
  all.push_back(last_weights());
  all.push_back(score_table());
  if (train.panels > 0) all.push_back(panels(train.panels));
  all.push_back(report_page());
  if (experiment.config.run.tensorboard) {
    if (tensorboard_events == nullptr)
      experiment.config.yaml.find("run").fail_key(
          "tensorboard", "needs protobuf, which this program was built without; tools/setup.sh installs it");
    all.push_back(tensorboard_events());
  }
  return all;
}

}  // namespace regolith
