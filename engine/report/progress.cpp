#include "engine/report/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/base/text.h"

namespace regolith {
namespace {

constexpr double kRedraw = 0.1, kPipedLine = 60;  // seconds

// Without the sign that a NaN may have.
std::string number_text(const char* pattern, double value) {
  return std::isnan(value) ? "nan" : format(pattern, value);
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  if (seconds < 9.95) return format("%.1fs", std::max(0.0, seconds));
  const long whole = std::lround(seconds);
  if (whole < 60) return format("%lds", whole);
  if (whole < 3600) return format("%ld:%02ld", whole / 60, whole % 60);
  return format("%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
}

Progress::Progress(std::ostream& out, int columns, Clock clock)
    : out_(out),
      columns_(columns),
      clock_(clock ? std::move(clock) : steady_seconds),
      start_(clock_()),
      drawn_(start_) {}

Progress::~Progress() {
  if (!current_.empty()) out_ << "\n" << std::flush;
}

int Progress::columns_of(int file_descriptor) {
  if (!::isatty(file_descriptor)) return 0;
  winsize size{};
  return ::ioctl(file_descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string Progress::line(const ProgressState& s) const {
  const int64_t done = (s.epoch - 1) * s.steps + s.step, total = s.epochs * s.steps;
  const std::string epochs = std::to_string(s.epochs), steps = std::to_string(s.steps);
  std::string text = format("epoch %*d/%s  step %*ld/%s", static_cast<int>(epochs.size()), s.epoch, epochs.c_str(),
                            static_cast<int>(steps.size()), s.step, steps.c_str());
  text += "  loss " + number_text("%.4g", s.loss) + format("  lr %.2e  %.1f images/s", s.lr, s.images_per_second);
  if (s.skipped > 0) text += format("  skipped %ld: gradients not finite", s.skipped);
  if (done > first_ && done < total)
    text += "  ETA " +
            duration_text((clock_() - start_) / static_cast<double>(done - first_) * static_cast<double>(total - done));
  if (done >= total) text += "  in " + duration_text(clock_() - start_);
  for (const Metric& metric : s.validation)
    text += "  val " + metric.name + " " + number_text(metric.higher_is_better ? "%.4f" : "%.4g", metric.value);
  return text;
}

void Progress::erase() {
  if (!current_.empty()) out_ << "\r\x1b[K";
  current_.clear();
}

void Progress::draw(const std::string& line) {
  erase();
  current_ = line.substr(0, static_cast<size_t>(std::max(1, columns_ - 1)));  // a line that wraps cannot be redrawn
  out_ << current_ << std::flush;
}

void Progress::step(const ProgressState& state) {
  const double now = clock_();
  if (first_ < 0) {  // the ETA's clock starts after the first step, which also takes what happens once
    first_ = (state.epoch - 1) * state.steps + state.step;
    start_ = drawn_ = now;
  }
  if (now - drawn_ < (columns_ == 0 ? kPipedLine : current_.empty() ? 0 : kRedraw)) return;
  drawn_ = now;
  columns_ == 0 ? void(out_ << line(state) << std::endl) : draw(line(state));
}

void Progress::epoch(const ProgressState& state) {
  if (first_ < 0) first_ = (state.epoch - 1) * state.steps;
  drawn_ = clock_();
  erase();
  out_ << line(state) << "\n" << std::flush;
}

void Progress::items(double done, int64_t total, const std::string& what) {
  const double now = clock_(), seconds = now - start_;
  const bool last = done >= static_cast<double>(total);
  if (!last && now - drawn_ < (columns_ == 0 ? kPipedLine : kRedraw)) return;
  drawn_ = now;
  std::string text = format("%ld/%ld %s", static_cast<long>(done), static_cast<long>(total), what.c_str());
  if (done > 0 && seconds > 0) text += format("  %.1f %s/s", done / seconds, what.c_str());
  if (!last && done > 0) text += "  ETA " + duration_text(seconds / done * (static_cast<double>(total) - done));
  if (last) text += "  in " + duration_text(seconds);
  if (!last && columns_ > 0) return draw(text);
  erase();
  out_ << text << std::endl;
}

void Progress::message(const std::string& text) {
  const std::string under = current_;
  erase();
  out_ << text << "\n";
  if (!under.empty()) draw(under);
  out_ << std::flush;
}

Phases::Phases(Progress::Clock clock) : clock_(clock ? std::move(clock) : steady_seconds) {}

void Phases::start(const std::string& name) {
  stop();
  auto phase = std::find_if(seconds_.begin(), seconds_.end(), [&](const auto& entry) { return entry.first == name; });
  if (phase == seconds_.end()) phase = seconds_.insert(phase, {name, 0.0});
  current_ = static_cast<int>(phase - seconds_.begin());
  began_ = clock_();
}

void Phases::stop() {
  if (current_ >= 0) seconds_[static_cast<size_t>(current_)].second += clock_() - began_;
  current_ = -1;
}

std::string Phases::text() const {
  std::vector<std::string> phases;
  double total = 0;
  for (const auto& [name, seconds] : seconds_) {
    phases.push_back(name + " " + duration_text(seconds));
    total += seconds;
  }
  return join(phases) + "; " + duration_text(total) + " in all";
}

}  // namespace regolith
