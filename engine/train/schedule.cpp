#include "engine/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "engine/base/error.h"
#include "engine/train/metrics.h"

namespace regolith {

std::vector<std::string> monitor_names() {
  std::vector<std::string> names;
  for (const Metric& m : metrics({}, 0, 0)) names.push_back("val_" + m.name);
  return names;
}

bool higher_is_better(const std::string& monitor) {
  for (const Metric& m : metrics({}, 0, 0))
    if ("val_" + m.name == monitor) return m.higher_is_better;
  throw TrainError("monitor: '" + monitor + "' is not watched; choose one of val_loss and the metrics, as val_miou");
}

bool ignores_background(const std::string& monitor) { return monitor.starts_with("val_miou_"); }

namespace {

// Of a part of the run between two restarts: how much of it lies behind.
double within_restart(double t, const CosineSchedule& c) {
  // Lengths over that of the longest part, so that none overflows.
  const int longest = c.growth > 1 ? c.restarts : 0;
  double all = 0, begin = 0;
  for (int i = 0; i <= c.restarts; ++i) all += std::pow(c.growth, i - longest);
  for (int i = 0; i < c.restarts; ++i) {
    const double length = std::pow(c.growth, i - longest) / all;
    if (t < begin + length) return (t - begin) / length;
    begin += length;
  }
  return std::min(1., (t - begin) / (1 - begin));
}

}  // namespace

Schedule::Schedule(const ScheduleSpec& spec, double base_rate, int64_t total_steps)
    : spec_(spec), base_(base_rate), total_(total_steps), maximise_(higher_is_better(monitor())) {}

double Schedule::reduced() const {
  const auto* plateau = std::get_if<ReduceOnPlateau>(&spec_.kind);
  return plateau ? std::max(base_ * reduction_, std::min(base_, plateau->min_lr)) : base_;
}

std::string Schedule::monitor() const {
  const auto* plateau = std::get_if<ReduceOnPlateau>(&spec_.kind);
  return plateau != nullptr ? plateau->monitor : "val_loss";
}

double Schedule::learning_rate(int64_t step) const {
  if (step < spec_.warmup_steps) {
    return reduced() * static_cast<double>(step + 1) / static_cast<double>(spec_.warmup_steps);
  }
  // The part of the way from the first step after the warm-up to the last of the run.
  const double way = static_cast<double>(std::max<int64_t>(1, total_ - 1 - spec_.warmup_steps));
  const double t = std::min(1., static_cast<double>(step - spec_.warmup_steps) / way);
  const auto down = [&](double shape, double last) { return last + (base_ - last) * shape; };
  if (const auto* c = std::get_if<CosineSchedule>(&spec_.kind))
    return down((1 + std::cos(std::numbers::pi * within_restart(t, *c))) / 2, c->min_lr);
  if (const auto* p = std::get_if<PolynomialSchedule>(&spec_.kind)) return down(std::pow(1 - t, p->power), p->end_lr);
  return reduced();
}

void Schedule::end_epoch(double monitored) {
  const auto* plateau = std::get_if<ReduceOnPlateau>(&spec_.kind);
  if (plateau == nullptr) return;
  const double value = maximise_ ? -monitored : monitored;
  if (cooldown_ > 0) {
    --cooldown_;
    wait_ = 0;
  }
  if (std::isfinite(value) && (!seen_ || value < best_ - plateau->min_delta)) {
    best_ = value;
    seen_ = true;
    wait_ = 0;
  } else if (cooldown_ == 0 && ++wait_ >= plateau->patience && reduced() > plateau->min_lr) {
    reduction_ *= plateau->factor;
    cooldown_ = plateau->cooldown;
    wait_ = 0;
  }
}

nlohmann::json Schedule::state() const {
  return {{"reduction", reduction_}, {"best", best_}, {"seen", seen_}, {"wait", wait_}, {"cooldown", cooldown_}};
}

void Schedule::restore(const nlohmann::json& state) try {
  state.at("reduction").get_to(reduction_);
  state.at("best").get_to(best_);
  state.at("seen").get_to(seen_);
  state.at("wait").get_to(wait_);
  state.at("cooldown").get_to(cooldown_);
} catch (const nlohmann::json::exception& e) {
  throw CheckpointError(std::string("the schedule's state is not readable: ") + e.what());
}

EarlyStopping::EarlyStopping(const EarlyStoppingSpec& spec) : spec_(spec), maximise_(higher_is_better(spec.monitor)) {}

EarlyStopping::Verdict EarlyStopping::end_epoch(int64_t epoch, double monitored) {
  const double gain = maximise_ ? monitored - best_ : best_ - monitored;
  if (std::isfinite(monitored) && (best_epoch_ < 0 || gain > spec_.min_delta)) {
    best_ = monitored;
    best_epoch_ = epoch;
    wait_ = 0;
    return {true, false};
  }
  ++wait_;
  return {false, out_of_patience()};
}

nlohmann::json EarlyStopping::state() const {
  // JSON has no NaN: a best value that is not there yet is told by the epoch.
  return {{"best", best_epoch_ < 0 ? 0 : best_}, {"best_epoch", best_epoch_}, {"wait", wait_}};
}

void EarlyStopping::restore(const nlohmann::json& state) try {
  state.at("best").get_to(best_);
  state.at("best_epoch").get_to(best_epoch_);
  state.at("wait").get_to(wait_);
  if (best_epoch_ < 0) best_ = std::numeric_limits<double>::quiet_NaN();
} catch (const nlohmann::json::exception& e) {
  throw CheckpointError(std::string("early stopping's state is not readable: ") + e.what());
}

}  // namespace regolith
