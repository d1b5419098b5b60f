// What a person sees while a network trains: one line per epoch, redrawn on a terminal; plain when piped, and then one
// a minute at least.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "engine/train/metrics.h"

namespace regolith {

struct ProgressState {
  int epoch = 0, epochs = 0;    // from 1
  int64_t step = 0, steps = 0;  // of the epoch
  double loss = 0, lr = 0, images_per_second = 0;
  int64_t skipped = 0;             // steps of the epoch whose gradients were not finite
  std::vector<Metric> validation;  // shown as "val NAME": a loss with four digits, a score with four decimals
};

class Progress {
 public:
  using Clock = std::function<double()>;  // seconds

  // `columns`: width of the terminal, 0 where the output is no terminal. A test gives its own clock.
  Progress(std::ostream& out, int columns, Clock clock = {});
  ~Progress();                                 // leaves the line that is being drawn as it stands
  static int columns_of(int file_descriptor);  // 0: no terminal

  void step(const ProgressState& state);   // redraws, ten times a second at most; piped, once a minute
  void epoch(const ProgressState& state);  // ends the epoch: its line stays
  // Work of one kind: "120/2615 images  98.2 images/s  ETA 25s". `done` may have fractions; the last call ends the
  // line.
  void items(double done, int64_t total, const std::string& what);
  void message(const std::string& text);  // a line of its own, above the one that is being drawn

 private:
  std::string line(const ProgressState& state) const;
  void draw(const std::string& line);
  void erase();

  std::ostream& out_;
  int columns_;
  Clock clock_;
  double start_ = 0, drawn_ = 0;
  int64_t first_ = -1;   // steps done when the clock started
  std::string current_;  // the text of the line that is being drawn
};

// "0.1s", "43s", "2:05", "1:02:05"
std::string duration_text(double seconds);

// Seconds of each phase of a run, in the order in which the phases began.
class Phases {
 public:
  explicit Phases(Progress::Clock clock = {});
  void start(const std::string& name);  // ends the phase before; a known phase goes on
  void stop();
  const std::vector<std::pair<std::string, double>>& seconds() const { return seconds_; }
  std::string text() const;  // "data 0.4s, build 0.2s, train 1:43; 1:44 in all"

 private:
  Progress::Clock clock_;
  std::vector<std::pair<std::string, double>> seconds_;
  int current_ = -1;
  double began_ = 0;
};

}  // namespace regolith
