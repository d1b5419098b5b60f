// Tables in plain text: columns as wide as they need, numbers to the right.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/train/metrics.h"

namespace regolith {

class Table {
 public:
  // `alignment`: 'l' or 'r' for each column, as "llr"; without it columns that hold only numbers are aligned right.
  // `underlined`: a rule separates the header from the rows.
  explicit Table(std::vector<std::string> header, std::string alignment = "", bool underlined = true)
      : header_(std::move(header)), alignment_(std::move(alignment)), underlined_(underlined) {}
  // One cell per column; missing ones are blank. Throws std::invalid_argument where there are more.
  void add(std::vector<std::string> row);
  void add_rule() { rows_.push_back({}); }  // a line across
  std::string text() const;                 // ends with a newline

 private:
  std::vector<std::string> header_;
  std::string alignment_;
  bool underlined_;
  std::vector<std::vector<std::string>> rows_;  // an empty one is a rule
};

std::string score_text(double score);  // "0.7312", "-" for NaN

// The table at the end of a run: IoU, precision and recall by class, then the metrics of which higher is better.
// `split` is its title ("test"); names may be shorter than the scores ("class 3" then).
std::string score_table(const std::string& split, std::span<const std::string> names, const Scores& scores,
                        std::span<const Metric> metrics);

}  // namespace regolith
