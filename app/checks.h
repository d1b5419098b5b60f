// What no key can tell alone: looked at before the work that would find it late, or never.
#pragma once

#include <string>

#include "app/experiment.h"

namespace regolith {

// Before the data is read. Throws ConfigError for a loss that does not fit the classes, IoError where the folder of a
// new run could not be made.
void check_before_data(Experiment& experiment, bool new_run);

// With the data, before the first step. Throws ConfigError for keys that need validation images where there are none.
// Returns a line for each key that can have no effect, and for each class without pixels.
std::string warnings(Experiment& experiment, int64_t steps_per_epoch);

}  // namespace regolith
