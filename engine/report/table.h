// Tables in plain text: columns as wide as they need, numbers to the right.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace regolith {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  // One cell per column; missing ones are blank. Throws std::invalid_argument where there are more.
  void add(std::vector<std::string> row);
  void add_rule() { rows_.push_back({}); }  // a line across
  std::string text() const;                 // ends with a newline

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;  // an empty one is a rule
};

std::string score_text(double score);  // "0.6123"; "-" for NaN, where there is nothing to score

// The table at the end of a run. `split` is its title ("test"); names may be shorter than the scores ("class 3" then).
struct ScoreColumns {
  std::span<const double> iou, precision, recall;  // by class
  double miou = 0, miou_foreground = 0, miou_keras_ignore0 = 0;
};
std::string score_table(const std::string& split, std::span<const std::string> names, const ScoreColumns& scores);

}  // namespace regolith
