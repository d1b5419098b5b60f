// The curves of a run as SVG: two panels, axes with round ticks, a legend. No fonts or scripts are needed to see it.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/report/history.h"

namespace regolith {
namespace {

struct Curve {
  const char* name;
  const char* colour;
  double EpochRecord::*value;
};
struct Box {
  double x, y, width, height;  // of the area inside of the axes
};

constexpr Curve kLosses[] = {{"training", "#1f6fb4", &EpochRecord::loss},
                             {"validation", "#d9722a", &EpochRecord::val_loss}};
constexpr Curve kScores[] = {{"miou", "#2f8f4e", &EpochRecord::val_miou},
                             {"miou_foreground", "#8a4fb5", &EpochRecord::val_miou_foreground},
                             {"miou_keras_ignore0", "#c0392b", &EpochRecord::val_miou_keras_ignore0}};

std::string number(double value, const char* pattern = "%.2f") {
  char text[32];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

// A step of 1, 2 or 5 times a power of ten that cuts the range into at most `most` parts.
double tick_step(double range, int most) {
  const double raw = range / most, power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= raw * (1 - 1e-9)) return factor * power;
  return 10 * power;
}

std::string escape(const std::string& text) {
  std::string safe;
  for (const char c : text) safe += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return safe;
}

std::string text_at(double x, double y, const char* anchor, const std::string& text, const char* extra = "") {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" + anchor + "\" " + extra + ">" +
         escape(text) + "</text>\n";
}

template <size_t N>
std::string panel(const Box& box, const std::string& title, const std::vector<EpochRecord>& records,
                  const Curve (&curves)[N]) {
  double low = INFINITY, high = -INFINITY;
  for (const EpochRecord& record : records)
    for (const Curve& curve : curves)
      if (std::isfinite(record.*curve.value)) {
        low = std::min(low, record.*curve.value);
        high = std::max(high, record.*curve.value);
      }
  std::string svg = text_at(box.x + box.width / 2, box.y - 14, "middle", title, "font-weight=\"bold\"");
  if (!(low <= high)) return svg + text_at(box.x + box.width / 2, box.y + box.height / 2, "middle", "nothing measured");
  const double margin = high > low ? 0 : std::max(std::abs(high) * 0.1, 1e-6);
  const double step = tick_step(high - low + 2 * margin, 6);
  low = std::floor((low - margin) / step + 1e-9) * step;
  high = std::ceil((high + margin) / step - 1e-9) * step;
  const auto first = static_cast<double>(records.front().epoch);
  const double last = std::max(first + 1, static_cast<double>(records.back().epoch));
  const auto x_of = [&](double epoch) { return box.x + (epoch - first) / (last - first) * box.width; };
  const auto y_of = [&](double value) { return box.y + (high - value) / (high - low) * box.height; };

  const double right = box.x + box.width, bottom = box.y + box.height;
  const auto rule = [](double x1, double y1, double x2, double y2, const char* colour) {
    return "<path d=\"M" + number(x1) + " " + number(y1) + "L" + number(x2) + " " + number(y2) + "\" stroke=\"" +
           colour + "\" fill=\"none\"/>\n";
  };
  for (int i = 0; i <= static_cast<int>(std::lround((high - low) / step)); ++i) {
    const double value = std::abs(low + i * step) < step * 1e-6 ? 0 : low + i * step, y = y_of(value);
    svg += rule(box.x, y, right, y, "#e3e3e3") + text_at(box.x - 6, y + 4, "end", number(value, "%.6g"));
  }
  const double epochs = std::max(1.0, tick_step(last - first, 8));
  for (double epoch = std::ceil(first / epochs) * epochs; epoch <= last; epoch += epochs)
    svg += rule(x_of(epoch), bottom, x_of(epoch), bottom + 4, "#444") +
           text_at(x_of(epoch), bottom + 18, "middle", number(epoch, "%.0f"));
  svg += rule(box.x, box.y, box.x, bottom, "#444") + rule(box.x, bottom, right, bottom, "#444");
  svg += text_at(box.x + box.width / 2, bottom + 36, "middle", "epoch");

  double legend = box.x;
  for (const Curve& curve : curves) {
    std::string path, dots;
    bool pen = false;
    for (const EpochRecord& record : records) {
      const double value = record.*curve.value;
      if (!std::isfinite(value)) continue;  // validation need not come every epoch: the line goes on
      const std::string x = number(x_of(static_cast<double>(record.epoch))), y = number(y_of(value));
      path += (pen ? "L" : "M") + x + " " + y;
      pen = true;
      if (records.size() <= 40)
        dots += "<circle cx=\"" + x + "\" cy=\"" + y + "\" r=\"2\" fill=\"" + curve.colour + "\"/>\n";
    }
    if (!pen) continue;
    svg += "<path d=\"" + path + "\" fill=\"none\" stroke-width=\"1.8\" stroke-linejoin=\"round\" stroke=\"" +
           curve.colour + "\"/>\n" + dots;
    svg += "<rect x=\"" + number(legend) + "\" y=\"" + number(bottom + 50) + "\" width=\"14\" height=\"4\" fill=\"" +
           curve.colour + "\"/>\n" + text_at(legend + 19, bottom + 56, "start", curve.name);
    legend += 40 + 7.2 * static_cast<double>(std::string(curve.name).size());
  }
  return svg;
}

}  // namespace

std::string history_svg(const std::string& title, const std::vector<EpochRecord>& records) {
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 420\" width=\"960\" height=\"420\" "
      "font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n<rect width=\"960\" height=\"420\" "
      "fill=\"white\"/>\n";
  svg += text_at(480, 26, "middle", title, "font-size=\"16\"");
  svg += panel({70, 70, 380, 270}, "loss", records, kLosses);
  svg += panel({540, 70, 380, 270}, "validation mIoU", records, kScores);
  return svg + "</svg>\n";
}

}  // namespace regolith
