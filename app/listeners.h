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

// All of the above that the configuration asks for, in the order that they need.
Listeners all_listeners(Experiment& experiment);

}  // namespace regolith
