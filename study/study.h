// A set of configurations, trained with several seeds each: what is to be run, what has been, and the table of it.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "app/run_config.h"
#include "engine/report/history.h"
#include "study/results.h"

namespace regolith {

struct StudyOptions {
  std::vector<std::string> configs = {}, overrides = {};  // YAML files; key.path=value over each
  int seeds = 3, jobs = 0;                                // jobs 0: one per GPU, or one
  std::string output = "study";                           // a folder
  std::string hidden = {};                                // .npz with the masks of data.npz's test_set; empty: none
  std::string score = "miou_foreground";                  // of the table's columns, and what halving goes by
};

enum class RunState { waiting, running, paused, finished, failed, interrupted };

struct StudyRun {  // one seed of a row
  std::string name;
  uint64_t seed = 0;
  RunState state = RunState::waiting;
  std::string message;  // why it failed
  RunResults results;
};

struct StudyRow {
  std::string name, file;              // unique, can be a folder's; the configuration's file
  std::vector<std::string> overrides;  // of a sweep
  std::optional<RunConfig> config;     // nothing: `error` says why
  std::string error;
  int group = 0;                   // rows of one file
  std::optional<Halving> halving;  // of its sweep
  int64_t until = 0;               // epochs that the row is to be trained for now
  int64_t stopped_after = 0;       // epochs after which halving left it; 0: it did not
  std::vector<StudyRun> runs;
};

// One row for each file, or for each of its sweep. All runs of a row see the same images in the same parts:
// data.split's seed, and that of synthetic terrain, are the configuration's run.seed where it says nothing else. A file
// that cannot be read is a row with its error. Throws UsageError for two files of one name.
std::vector<StudyRow> study_rows(const StudyOptions& options);

// The rows of a group that go on after all of them have been trained for `until` epochs: the best by the validation
// score so far, the mean over the runs; the earlier row among equals. None that failed.
std::vector<size_t> survivors(const std::vector<StudyRow>& rows, const std::vector<size_t>& alive, int64_t until,
                              const std::string& score, int factor);

// Trains what is not finished, scores what is to be scored, and writes table.md, table.csv and table.html, each time
// that a run has ended. Returns the exit code: 1 where a run failed, 128 + signal where one came.
int run_study(const StudyOptions& options);

}  // namespace regolith
