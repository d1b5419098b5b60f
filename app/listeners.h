// The listeners of an ordinary run.
#pragma once

#include <memory>
#include <vector>

#include "app/experiment.h"
#include "app/listener.h"

namespace regolith {

using Listeners = std::vector<std::unique_ptr<Listener>>;

std::unique_ptr<Listener> early_stopping(const EarlyStoppingSpec& spec);  // also says which weights are the best
std::unique_ptr<Listener> progress_line();
std::unique_ptr<Listener> history_file();       // history.jsonl and history.svg
std::unique_ptr<Listener> end_of_divergence();  // throws TrainError after an epoch whose steps were all skipped
std::unique_ptr<Listener> best_weights();       // best.safetensors; back to them at the end
std::unique_ptr<Listener> last_weights();       // last.safetensors after every epoch
std::unique_ptr<Listener> score_table();        // on the screen and in scores.json
std::unique_ptr<Listener> panels(int count);
std::unique_ptr<Listener> report_page();  // report.html

// For run.tensorboard: set by a program that links app/tensorboard; null: there is none, and the key is refused.
extern std::unique_ptr<Listener> (*tensorboard_events)();

// Seconds of this process, over the epochs that it trained whole.
struct EpochTimes {
  int64_t epochs = 0;
  // read: images are fetched and sent; augment: a CPU draws and normalises a batch (elsewhere it is part of compute);
  // compute: the rest of a step, and waiting for the device that does it. training: these and what lies between.
  double training = 0, read = 0, augment = 0, compute = 0;
  double validation = 0, checkpoints = 0;  // checkpoints: history, best and last weights
};
// As a bar, a table, and a word on each part but compute that takes a fifth or more. divided: augment is known.
std::string epoch_time_html(const EpochTimes& times, bool divided);

// All of the above that the configuration asks for, in the order that they need.
Listeners all_listeners(Experiment& experiment);

}  // namespace regolith
