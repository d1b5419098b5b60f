// What data.pseudo asks of a Segmenter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/run_config.h"

namespace regolith {

// A pseudo_labeller (app/pseudo.h). It shows its progress.
std::vector<uint8_t> label_by_runs(const RunConfig& config, const DataView& images,
                                   const std::vector<std::string>& class_names);

}  // namespace regolith
