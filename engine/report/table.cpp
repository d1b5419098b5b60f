#include "engine/report/table.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "engine/base/text.h"

namespace regolith {
namespace {

// Characters, not bytes: names may hold any UTF-8.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789.,+-%ex") == std::string::npos;
}

}  // namespace

void Table::add(std::vector<std::string> row) {
  if (row.size() > header_.size()) throw std::invalid_argument("a row has more cells than the table has columns");
  row.resize(header_.size());
  rows_.push_back(std::move(row));
}

std::string Table::text() const {
  std::vector<size_t> widths;
  std::vector<bool> right(header_.size(), true);  // columns that hold only numbers and blanks
  for (const std::string& cell : header_) widths.push_back(width_of(cell));
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], width_of(row[i]));
      right[i] = right[i] && (row[i].empty() || is_number(row[i]));
    }
  for (size_t i = 0; i < alignment_.size(); ++i) right[i] = alignment_[i] == 'r';
  std::string text;
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string fill(widths[i] - width_of(cells[i]), ' ');
      line += (i ? "  " : "") + (right[i] ? fill + cells[i] : cells[i] + fill);
    }
    text += line.erase(line.find_last_not_of(' ') + 1) + "\n";
  };
  std::vector<std::string> rule;
  for (const size_t width : widths) rule.push_back(std::string(width, '-'));
  line(header_);
  if (underlined_) line(rule);
  for (const auto& row : rows_) line(row.empty() ? rule : row);
  return text;
}

std::string score_text(double score) { return std::isnan(score) ? "-" : format("%.4f", score); }

std::string score_table(const std::string& split, std::span<const std::string> names, const Scores& scores,
                        std::span<const Metric> metrics) {
  Table table({split, "IoU", "precision", "recall"});
  for (size_t i = 0; i < scores.iou.size(); ++i)
    table.add({i < names.size() ? names[i] : "class " + std::to_string(i), score_text(scores.iou[i]),
               score_text(scores.precision[i]), score_text(scores.recall[i])});
  table.add_rule();
  for (const Metric& metric : metrics)
    if (metric.higher_is_better) table.add({metric.name, score_text(metric.value)});
  return table.text();
}

}  // namespace regolith
