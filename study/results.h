// What a run folder tells of its run.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "app/run_config.h"
#include "engine/report/history.h"
#include "engine/train/metrics.h"

namespace regolith {

struct SplitResult {
  std::vector<Metric> metrics;  // as of engine/train/metrics.h
  std::vector<std::string> classes;
  std::vector<double> iou;                        // by class
  double value(const std::string& metric) const;  // NaN where there is none
  double iou_of(const std::string& cls) const;    // the same
};

struct RunResults {
  std::map<std::string, SplitResult> splits;  // "validation", "test", "training", "hidden"
  std::vector<EpochRecord> history;
  int64_t parameters = 0;
  int64_t epochs = 0;  // done, as the last checkpoint has it
  bool finished = false;
  // Of a split, or NaN. Of a run under way the validation is that of the epoch which is the best so far.
  double score(const std::string& split, const std::string& metric) const;
  double epoch_seconds() const;  // of training, the median; NaN without epochs
};

// Throws IoError for a folder whose files cannot be read. A folder that is not there has no results.
RunResults read_results(const std::string& folder, const RunConfig& config);

// The record whose weights are the best by the monitor of `config`, of those up to epoch `until` (0: of all); null
// where none was validated.
const EpochRecord* best_record(const std::vector<EpochRecord>& history, const RunConfig& config, int64_t until = 0);

}  // namespace regolith
