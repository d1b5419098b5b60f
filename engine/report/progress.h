// What a person sees while a network trains: one line per epoch, redrawn on a terminal, plain when piped.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace regolith {

struct ProgressState {
  int epoch = 0, epochs = 0;    // from 1
  int64_t step = 0, steps = 0;  // of the epoch
  double loss = 0, lr = 0, images_per_second = 0;
  std::optional<double> val_loss, val_miou;
};

class Progress {
 public:
  using Clock = std::function<double()>;  // seconds

  // `columns`: width of the terminal, 0 where the output is none. A test gives its own clock.
  Progress(std::ostream& out, int columns, Clock clock = {});
  ~Progress();                                 // leaves the line that is being drawn as it stands
  static int columns_of(int file_descriptor);  // 0 where it is no terminal

  void step(const ProgressState& state);   // redraws, ten times a second at most
  void epoch(const ProgressState& state);  // the epoch is over: its line stays
  void message(const std::string& text);   // a line of its own, above the one that is being drawn

 private:
  std::string line(const ProgressState& state) const;
  void draw(const std::string& line);
  void erase();

  std::ostream& out_;
  int columns_;
  Clock clock_;
  double start_ = 0, drawn_ = 0;
  int64_t first_ = -1;   // steps of the run that were done when the clock started
  std::string current_;  // what stands on the line that is being drawn
};

// "0.1s", "43s", "2:05", "1:02:05"
std::string duration_text(double seconds);

// Seconds that each phase of a run took, in the order in which they began.
class Phases {
 public:
  explicit Phases(Progress::Clock clock = {});
  void start(const std::string& name);  // ends the phase before; a name that was there goes on
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
