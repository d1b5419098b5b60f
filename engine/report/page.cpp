#include "engine/report/page.h"

#include <algorithm>

#include "engine/base/text.h"
#include "engine/report/confusion.h"

namespace regolith {
namespace {

constexpr size_t kCurveColours = 8;

// Colours of curves: each stands out from paper and night alike.
constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --band: #f6f8fa;
  --link: #0969da; --bad: #b3261e; --deep: 9, 105, 218;
  --curve-0: #1f6fb4; --curve-1: #d9722a; --curve-2: #2f8f4e; --curve-3: #8a4fb5; --curve-4: #c0392b;
  --curve-5: #0e8a8a; --curve-6: #a8760a; --curve-7: #6b7280 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --band: #151b23; --link: #58a6ff;
    --bad: #ff8a80; --deep: 56, 139, 253;
    --curve-0: #58a6ff; --curve-1: #f0883e; --curve-2: #56d364; --curve-3: #bc8cff; --curve-4: #ff7b72;
    --curve-5: #39c5cf; --curve-6: #e3b341; --curve-7: #9198a1 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem }
p { margin: .5rem 0; max-width: 46rem } .lead, .muted, figcaption { color: var(--soft) }
a { color: var(--link) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 } tbody tr:hover { background: var(--band) }
th:first-child, td:first-child { padding-left: .2rem }
.left { text-align: left } td.note { white-space: normal; min-width: 14rem; overflow-wrap: anywhere }
tr.failed td { color: var(--bad) } tr.muted td { color: var(--soft) }
.chip { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .5em }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; margin: .3rem 0 .8rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
svg { display: block; width: 100%; max-width: 34rem; height: auto; font: 13px system-ui, sans-serif }
figure { margin: .4rem 0 .9rem } figcaption { font-size: .85rem }
figure img { display: block; width: 100%; height: auto; image-rendering: pixelated }
.bar { display: flex; height: 1.4rem; border-radius: 4px; overflow: hidden; margin: .6rem 0 }
.confusion th + th { text-align: center } .confusion td { text-align: center; min-width: 4.6rem; line-height: 1.3 } .confusion small { opacity: .75 }
.confusion td.left { text-align: left }
pre { background: var(--band); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, monospace }
summary { cursor: pointer; color: var(--link) }
@media (max-width: 32rem) { th, td { padding: .3rem .4rem } }
)";

std::string base64(const std::string& bytes) {
  constexpr const char* kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    const size_t n = std::min<size_t>(3, bytes.size() - at);
    uint32_t word = 0;
    for (size_t i = 0; i < 3; ++i) word = word << 8 | (i < n ? static_cast<uint8_t>(bytes[at + i]) : 0);
    for (size_t i = 0; i < 4; ++i) text += i <= n ? kDigits[word >> (18 - 6 * i) & 63] : '=';
  }
  return text;
}

}  // namespace

std::string html_page(const std::string& title, const std::string& body) {
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
         "content=\"width=device-width, initial-scale=1\">\n<title>" +
         escape_markup(title) + "</title>\n<style>" + kStyle + "</style>\n</head>\n<body>\n" + body +
         "</body>\n</html>\n";
}

std::string html_table(const std::vector<std::string>& header, std::span<const HtmlRow> rows) {
  const auto kind_of = [&](size_t column) {
    return header[column] == "note" ? " class=\"left note\"" : column == 0 ? " class=\"left\"" : "";
  };
  std::string html = "<div class=\"wide\"><table>\n<thead><tr>";
  for (size_t i = 0; i < header.size(); ++i)
    html += std::string("<th") + (i == 0 || header[i] == "note" ? " class=\"left\"" : "") + ">" +
            escape_markup(header[i]) + "</th>";
  html += "</tr></thead>\n<tbody>\n";
  for (const HtmlRow& row : rows) {
    html += row.kind.empty() ? "<tr>" : "<tr class=\"" + row.kind + "\">";
    for (size_t i = 0; i < row.cells.size(); ++i) {
      const bool spans = i + 1 == row.cells.size() && row.cells.size() < header.size();
      html += "<td" +
              (spans ? " class=\"left note\" colspan=\"" + std::to_string(header.size() - i) + "\""
                     : std::string(kind_of(i))) +
              ">" + row.cells[i] + "</td>";
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string html_plot(const std::string& title, const std::vector<Curve>& curves) {
  const bool legend = std::ranges::any_of(curves, [](const Curve& c) { return !c.name.empty(); });
  return format("<svg viewBox=\"0 0 450 %d\" role=\"img\">", legend ? 375 : 350) + "<title>" + escape_markup(title) +
         "</title>\n" +
         plot(56, 36, title, curves, {.text = "var(--ink)", .axis = "var(--soft)", .grid = "var(--line)"}) + "</svg>\n";
}

std::string html_plots(const std::vector<std::string>& plots) {
  return "<div class=\"plots\">\n" + join(plots, "") + "</div>\n";
}

std::string curve_colour(size_t i) {
  if (i < kCurveColours) return "var(--curve-" + std::to_string(i) + ")";
  return "hsl(" + std::to_string(i * 137 % 360) + ", 60%, 50%)";  // the golden angle: neighbours differ the most
}

std::string colour_chip(const std::string& colour, const std::string& text) {
  return "<span><span class=\"chip\" style=\"background:" + colour + "\"></span>" + text + "</span>";
}

std::string html_confusion(std::span<const std::string> names, std::span<const int64_t> confusion) {
  const size_t K = names.size();
  std::string html =
      "<div class=\"wide\"><table class=\"confusion\">\n<thead><tr><th class=\"left\">truth \\ predicted</th>";
  for (const std::string& name : names) html += "<th>" + escape_markup(name) + "</th>";
  html += "</tr></thead>\n<tbody>\n";
  for (size_t row = 0; row < K; ++row) {
    int64_t all = 0;
    for (size_t k = 0; k < K; ++k) all += confusion[row * K + k];
    html += "<tr><td class=\"left\">" + escape_markup(names[row]) + "</td>";
    for (size_t k = 0; k < K; ++k) {
      const int64_t pixels = confusion[row * K + k];
      const double share = all > 0 ? static_cast<double>(pixels) / static_cast<double>(all) : 0;
      html += format("<td style=\"background:rgba(var(--deep), %.2f)\">", 0.6 * share) +
              (all > 0 ? format("%.1f", 100 * share) : "-") + "<br><small>" + short_count(pixels) + "</small></td>";
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string html_picture(const Picture& picture, const std::string& description) {
  return "<img alt=\"" + escape_markup(description) + "\" width=\"" + std::to_string(picture.width) + "\" height=\"" +
         std::to_string(picture.height) + "\" src=\"data:image/png;base64," + base64(png_bytes(picture)) + "\">";
}

}  // namespace regolith
