// What engine_eval prints and writes of its scores.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "deploy/evaluation.h"

namespace regolith {

std::string evaluation_text(const Evaluated& result);  // the table of scores and the confusion matrix
// Metrics and IoU by class, a run a column. Throws ConfigError for runs of other classes.
std::string comparison_text(std::span<const std::string> runs, std::span<const Evaluated> results);
// scores.json, confusion.png, per_image.csv, worst.png. Throws IoError.
void write_evaluation(const std::string& folder, const Evaluated& result,
                      const std::vector<std::array<uint8_t, 3>>& colours);

}  // namespace regolith
