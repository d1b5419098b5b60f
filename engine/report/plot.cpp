// The curves of a run as SVG: two panels, axes with round ticks, a legend. No fonts or scripts are needed to see it.
#include <algorithm>
#include <cmath>

#include "engine/base/text.h"
#include "engine/report/history.h"

namespace regolith {
namespace {

struct Curve {
  std::string name;
  const char* colour;
  std::vector<double> values;  // one per record; NaN where it was not measured
};

constexpr const char* kLossColours[] = {"#1f6fb4", "#d9722a", "#8a4fb5"};
constexpr const char* kScoreColours[] = {"#2f8f4e", "#8a4fb5", "#c0392b", "#1f6fb4", "#d9722a", "#7a7a7a"};

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
  return format(R"(<text x="%.2f" y="%.2f" text-anchor="%s" %s>)", x, y, anchor, extra) + escape(text) + "</text>\n";
}

std::string rule(double x1, double y1, double x2, double y2, const char* colour) {
  return format("<path d=\"M%.2f %.2fL%.2f %.2f\" stroke=\"%s\" fill=\"none\"/>\n", x1, y1, x2, y2, colour);
}

// One panel whose axes start at `left`, with the curves over the epochs of the records.
std::string panel(double left, const char* title, const std::vector<EpochRecord>& records,
                  const std::vector<Curve>& curves) {
  constexpr double width = 380, height = 270, top = 70, bottom = top + height;
  const double right = left + width, middle = left + width / 2;
  double low = INFINITY, high = -INFINITY;
  for (const Curve& curve : curves)
    for (const double value : curve.values)
      if (std::isfinite(value)) low = std::min(low, value), high = std::max(high, value);
  std::string svg = text_at(middle, top - 14, "middle", title, "font-weight=\"bold\"");
  if (!(low <= high)) return svg + text_at(middle, top + height / 2, "middle", "nothing measured");
  const double margin = high > low ? 0 : std::max(std::abs(high) * 0.1, 1e-6);
  const double step = tick_step(high - low + 2 * margin, 6);
  low = std::floor((low - margin) / step + 1e-9) * step;
  high = std::ceil((high + margin) / step - 1e-9) * step;
  const auto first = static_cast<double>(records.front().epoch);
  const double last = std::max(first + 1, static_cast<double>(records.back().epoch));
  const auto x_of = [&](double epoch) { return left + (epoch - first) / (last - first) * width; };
  const auto y_of = [&](double value) { return top + (high - value) / (high - low) * height; };

  for (int i = 0; i <= static_cast<int>(std::lround((high - low) / step)); ++i) {
    const double value = std::abs(low + i * step) < step * 1e-6 ? 0 : low + i * step, y = y_of(value);
    svg += rule(left, y, right, y, "#e3e3e3") + text_at(left - 6, y + 4, "end", format("%.6g", value));
  }
  const double epochs = std::max(1.0, tick_step(last - first, 8));
  for (double epoch = std::ceil(first / epochs) * epochs; epoch <= last; epoch += epochs)
    svg += rule(x_of(epoch), bottom, x_of(epoch), bottom + 4, "#444") +
           text_at(x_of(epoch), bottom + 18, "middle", format("%.0f", epoch));
  svg += rule(left, top, left, bottom, "#444") + rule(left, bottom, right, bottom, "#444");
  svg += text_at(middle, bottom + 36, "middle", "epoch");

  double legend = left;
  for (const Curve& curve : curves) {
    std::string path, dots;
    for (size_t i = 0; i < records.size(); ++i) {
      if (!std::isfinite(curve.values[i])) continue;  // the line goes on: validation need not come every epoch
      const double x = x_of(static_cast<double>(records[i].epoch)), y = y_of(curve.values[i]);
      path += format("%c%.2f %.2f", path.empty() ? 'M' : 'L', x, y);
      if (records.size() <= 40)
        dots += format("<circle cx=\"%.2f\" cy=\"%.2f\" r=\"2\" fill=\"%s\"/>\n", x, y, curve.colour);
    }
    if (path.empty()) continue;
    svg += "<path d=\"" + path + "\" fill=\"none\" stroke-width=\"1.8\" stroke-linejoin=\"round\" stroke=\"" +
           curve.colour + "\"/>\n" + dots;
    svg += format("<rect x=\"%.2f\" y=\"%.2f\" width=\"14\" height=\"4\" fill=\"%s\"/>\n", legend, bottom + 50,
                  curve.colour);
    svg += text_at(legend + 19, bottom + 56, "start", curve.name);
    legend += 40 + 7.2 * static_cast<double>(curve.name.size());
  }
  return svg;
}

}  // namespace

std::string history_svg(const std::string& title, const std::vector<EpochRecord>& records) {
  std::vector<Curve> losses{{"training", kLossColours[0], {}}}, scores;
  for (const EpochRecord& record : records) losses[0].values.push_back(record.loss);
  const auto add = [&](const std::string& prefix, std::vector<Metric> EpochRecord::*of) {
    for (size_t m = 0; !records.empty() && m < (records.back().*of).size(); ++m) {
      const Metric& metric = (records.back().*of)[m];
      std::vector<Curve>& curves = metric.higher_is_better ? scores : losses;
      const char* colour = metric.higher_is_better ? kScoreColours[scores.size() % std::size(kScoreColours)]
                                                   : kLossColours[losses.size() % std::size(kLossColours)];
      Curve& curve =
          curves.emplace_back(Curve{prefix + (metric.name == "loss" ? "validation" : metric.name), colour, {}});
      for (const EpochRecord& record : records)
        curve.values.push_back(m < (record.*of).size() ? (record.*of)[m].value : EpochRecord::kNone);
    }
  };
  add("", &EpochRecord::validation);
  add("ema ", &EpochRecord::ema_validation);
  return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 420\" width=\"960\" height=\"420\" "
         "font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n<rect width=\"960\" height=\"420\" "
         "fill=\"white\"/>\n" +
         text_at(480, 26, "middle", title, "font-size=\"16\"") + panel(70, "loss", records, losses) +
         panel(540, "validation mIoU", records, scores) + "</svg>\n";
}

}  // namespace regolith
