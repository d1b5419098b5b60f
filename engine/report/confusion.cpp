#include "engine/report/confusion.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/base/text.h"
#include "engine/report/panel.h"
#include "engine/report/table.h"

namespace regolith {
namespace {

std::string row_name(std::span<const std::string> names, size_t row) { return std::to_string(row) + " " + names[row]; }

// Of the pixels of a row, or -1 where it has none.
double percent_of(std::span<const int64_t> confusion, size_t classes, size_t row, size_t column) {
  const auto of_row = confusion.subspan(row * classes, classes);
  const int64_t all = std::accumulate(of_row.begin(), of_row.end(), int64_t{0});
  return all > 0 ? 100 * static_cast<double>(of_row[column]) / static_cast<double>(all) : -1;
}

std::string percent_text(double percent) { return percent < 0 ? "-" : format("%.1f", percent); }

}  // namespace

std::string short_count(int64_t n) {
  if (n < 10000) return std::to_string(n);
  auto value = static_cast<double>(n);
  const char* unit = "";
  for (const char* next : {"k", "M", "G"}) {
    if (value < 999.5) break;
    value /= 1000;
    unit = next;
  }
  return format("%.*f%s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, unit);
}

std::string confusion_text(std::span<const std::string> names, std::span<const int64_t> confusion) {
  const size_t K = names.size();
  std::string text;
  for (const bool shares : {false, true}) {
    std::vector<std::string> header{shares ? "% of the truth" : "pixels: truth | predicted"};
    for (size_t k = 0; k < K; ++k) header.push_back(std::to_string(k));
    Table table(header, "l" + std::string(K, 'r'));
    for (size_t row = 0; row < K; ++row) {
      std::vector<std::string> cells{row_name(names, row)};
      for (size_t k = 0; k < K; ++k)
        cells.push_back(shares ? percent_text(percent_of(confusion, K, row, k)) : short_count(confusion[row * K + k]));
      table.add(cells);
    }
    text += (shares ? "\n" : "") + table.text();
  }
  return text;
}

Picture draw_confusion(std::span<const std::string> names, std::span<const int64_t> confusion) {
  constexpr int kMargin = 14, kCellWidth = 52, kCellHeight = 34, kTitle = 16;
  constexpr Rgb kPaper{250, 250, 250}, kInk{30, 30, 30}, kDeep{8, 48, 107};
  const auto K = static_cast<int>(names.size());
  int left = text_width("truth");
  for (int row = 0; row < K; ++row) left = std::max(left, text_width(row_name(names, row)));
  left += kMargin + 8;
  const std::string title = "predicted: percent of the row, pixels";
  const int top = kMargin + 2 * kTitle;
  Picture p(std::max(left + K * kCellWidth, left + text_width(title)) + kMargin, top + K * kCellHeight + kMargin,
            kPaper);
  const auto centred = [&](int column, int y, const std::string& text, Rgb colour) {
    draw_text(p, left + column * kCellWidth + (kCellWidth - text_width(text)) / 2, y, text, colour);
  };
  draw_text(p, left, kMargin, title, kInk);
  draw_text(p, kMargin, kMargin + kTitle, "truth", kInk);
  for (int k = 0; k < K; ++k) centred(k, kMargin + kTitle, std::to_string(k), kInk);
  for (int row = 0; row < K; ++row) {
    const int y = top + row * kCellHeight;
    draw_text(p, kMargin, y + (kCellHeight - 7) / 2, row_name(names, row), kInk);
    for (int k = 0; k < K; ++k) {
      const double percent = percent_of(confusion, names.size(), row, k), share = std::max(percent, 0.0) / 100;
      const auto mix = [&](int light, int deep) { return static_cast<uint8_t>(light + (deep - light) * share); };
      const Rgb cell{mix(244, kDeep.r), mix(247, kDeep.g), mix(251, kDeep.b)};
      fill_box(p, left + k * kCellWidth, y, kCellWidth - 1, kCellHeight - 1, cell);
      const Rgb ink = share > 0.45 ? kPaper : kInk;
      centred(k, y + 8, percent_text(percent), ink);
      centred(k, y + 20, short_count(confusion[static_cast<size_t>(row) * K + k]), ink);
    }
  }
  return p;
}

}  // namespace regolith
