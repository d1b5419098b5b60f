// The table of a study: a row for each configuration, mean and spread over its seeds, beside what others published.
#pragma once

#include <string>
#include <vector>

#include "study/study.h"

namespace regolith {

std::string table_text(const std::vector<StudyRow>& rows, const StudyOptions& options);
std::string table_markdown(const std::vector<StudyRow>& rows, const StudyOptions& options);
// Every number, as a fraction of one: a line for each run, then mean and spread of each row, and its reference.
std::string table_csv(const std::vector<StudyRow>& rows, const StudyOptions& options);
// The same with the curves of all runs over each other, in one file.
std::string table_html(const std::vector<StudyRow>& rows, const StudyOptions& options);

std::string percent_text(double fraction);  // "45.32", "-" for NaN

// Of the values that are numbers. spread: their standard deviation, with n - 1; NaN for fewer than two.
struct MeanSpread {
  double mean, spread;
  int count;
};
MeanSpread mean_spread(const std::vector<double>& values);
// "45.32 ± 0.41", "45.32" of one value, "-" of none.
std::string spread_text(const MeanSpread& m, double factor, const char* pattern, const char* spread = nullptr);

// What all forms of the table are made of: a row, a run of it that failed, or its reference.
struct TableLine {
  std::string kind;  // "", "failed", "reference"
  size_t row;
  std::vector<std::string> cells;  // as many as the header has; the last is the note
};
std::vector<std::string> splits_of(const std::vector<StudyRow>& rows, const StudyOptions& options);
// The classes that the runs have scores of, in the order in which they come; of all splits where none is named.
std::vector<std::string> classes_of(const std::vector<StudyRow>& rows, const std::string& split = "");
std::vector<std::string> table_header(const std::vector<StudyRow>& rows, const StudyOptions& options);
std::vector<TableLine> table_lines(const std::vector<StudyRow>& rows, const StudyOptions& options);
const char* name_of(RunState state);

}  // namespace regolith
