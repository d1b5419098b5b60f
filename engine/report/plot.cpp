#include "engine/report/plot.h"

#include <algorithm>
#include <cmath>

#include "engine/base/text.h"
#include "engine/report/history.h"

namespace regolith {
namespace {

constexpr const char* kLossColours[] = {"#1f6fb4", "#d9722a", "#8a4fb5"};
constexpr const char* kScoreColours[] = {"#2f8f4e", "#8a4fb5", "#c0392b", "#1f6fb4", "#d9722a", "#7a7a7a"};

// A step of 1, 2 or 5 times a power of ten that cuts the range into at most `most` parts.
double tick_step(double range, int most) {
  const double raw = range / most, power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= raw * (1 - 1e-9)) return factor * power;
  return 10 * power;
}

std::string text_at(double x, double y, const char* anchor, const std::string& text, const std::string& extra) {
  return format(R"(<text x="%.2f" y="%.2f" text-anchor="%s" )", x, y, anchor) + extra + ">" + escape_markup(text) +
         "</text>\n";
}

std::string rule(double x1, double y1, double x2, double y2, const char* colour) {
  return format("<path d=\"M%.2f %.2fL%.2f %.2f\" stroke=\"%s\" fill=\"none\"/>\n", x1, y1, x2, y2, colour);
}

}  // namespace

std::string escape_markup(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '&':
        safe += "&amp;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

std::string plot(double left, double top, const std::string& title, const std::vector<Curve>& curves,
                 const PlotInks& inks) {
  constexpr double width = 380, height = 270;
  const double right = left + width, middle = left + width / 2, bottom = top + height;
  const std::string ink = std::string("fill=\"") + inks.text + "\"";
  double low = INFINITY, high = -INFINITY, first = INFINITY, last = -INFINITY;
  size_t most = 0;  // points of a curve
  for (const Curve& curve : curves) {
    most = std::max(most, curve.points.size());
    for (const auto& [x, value] : curve.points) {
      first = std::min(first, x), last = std::max(last, x);
      if (std::isfinite(value)) low = std::min(low, value), high = std::max(high, value);
    }
  }
  std::string svg = text_at(middle, top - 14, "middle", title, ink + " font-weight=\"bold\"");
  if (!(low <= high)) return svg + text_at(middle, top + height / 2, "middle", "nothing measured", ink);
  const double margin = high > low ? 0 : std::max(std::abs(high) * 0.1, 1e-6);
  const double step = tick_step(high - low + 2 * margin, 6);
  low = std::floor((low - margin) / step + 1e-9) * step;
  high = std::ceil((high + margin) / step - 1e-9) * step;
  last = std::max(first + 1, last);
  const auto x_of = [&](double epoch) { return left + (epoch - first) / (last - first) * width; };
  const auto y_of = [&](double value) { return top + (high - value) / (high - low) * height; };

  for (int i = 0; i <= static_cast<int>(std::lround((high - low) / step)); ++i) {
    const double value = std::abs(low + i * step) < step * 1e-6 ? 0 : low + i * step, y = y_of(value);
    svg += rule(left, y, right, y, inks.grid) + text_at(left - 6, y + 4, "end", format("%.6g", value), ink);
  }
  const double epochs = std::max(1.0, tick_step(last - first, 8));
  for (double epoch = std::ceil(first / epochs) * epochs; epoch <= last; epoch += epochs)
    svg += rule(x_of(epoch), bottom, x_of(epoch), bottom + 4, inks.axis) +
           text_at(x_of(epoch), bottom + 18, "middle", format("%.0f", epoch), ink);
  svg += rule(left, top, left, bottom, inks.axis) + rule(left, bottom, right, bottom, inks.axis);
  svg += text_at(middle, bottom + 36, "middle", "epoch", ink);

  double legend = left;
  for (const Curve& curve : curves) {
    std::string path, dots;
    for (const auto& [epoch, value] : curve.points) {
      if (!std::isfinite(value)) continue;  // the line goes on: validation need not come every epoch
      const double x = x_of(epoch), y = y_of(value);
      path += format("%c%.2f %.2f", path.empty() ? 'M' : 'L', x, y);
      if (most <= 40) dots += format("<circle cx=\"%.2f\" cy=\"%.2f\" r=\"2\" fill=\"", x, y) + curve.colour + "\"/>\n";
    }
    if (path.empty()) continue;
    svg += "<path d=\"" + path +
           format("\" fill=\"none\" stroke-width=\"%.2g\" stroke-linejoin=\"round\" stroke=\"", curve.width) +
           curve.colour + "\"/>\n" + dots;
    if (curve.name.empty()) continue;
    svg += format("<rect x=\"%.2f\" y=\"%.2f\" width=\"14\" height=\"4\" fill=\"", legend, bottom + 50) + curve.colour +
           "\"/>\n";
    svg += text_at(legend + 19, bottom + 56, "start", curve.name, ink);
    legend += 40 + 7.2 * static_cast<double>(curve.name.size());
  }
  return svg;
}

std::string history_svg(const std::string& title, const std::vector<EpochRecord>& records) {
  std::vector<Curve> losses{{"training", kLossColours[0], {}}}, scores;
  for (const EpochRecord& record : records)
    losses[0].points.push_back({static_cast<double>(record.epoch), record.loss});
  const auto add = [&](const std::string& prefix, std::vector<Metric> EpochRecord::*of) {
    for (size_t m = 0; !records.empty() && m < (records.back().*of).size(); ++m) {
      const Metric& metric = (records.back().*of)[m];
      std::vector<Curve>& curves = metric.higher_is_better ? scores : losses;
      const char* colour = metric.higher_is_better ? kScoreColours[scores.size() % std::size(kScoreColours)]
                                                   : kLossColours[losses.size() % std::size(kLossColours)];
      Curve& curve =
          curves.emplace_back(Curve{prefix + (metric.name == "loss" ? "validation" : metric.name), colour, {}});
      for (const EpochRecord& record : records)
        curve.points.push_back(
            {static_cast<double>(record.epoch), m < (record.*of).size() ? (record.*of)[m].value : EpochRecord::kNone});
    }
  };
  add("", &EpochRecord::validation);
  add("ema ", &EpochRecord::ema_validation);
  return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 420\" width=\"960\" height=\"420\" "
         "font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n<rect width=\"960\" height=\"420\" "
         "fill=\"white\"/>\n" +
         text_at(480, 26, "middle", title, "font-size=\"16\"") + plot(70, 70, "loss", losses) +
         plot(540, 70, "validation mIoU", scores) + "</svg>\n";
}

}  // namespace regolith
