// HTML pages in one file: no scripts, nothing to be fetched, light or dark as the reader's system is.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/io/image.h"
#include "engine/report/plot.h"

namespace regolith {

// The whole document. The title is text, `body` HTML, as is all that these functions return.
std::string html_page(const std::string& title, const std::string& body);

struct HtmlRow {
  std::vector<std::string> cells;  // HTML; of fewer than the header has, the last one spans the rest
  std::string kind = "";           // "", "muted" or "failed"
};
// The first column and those called "note" are aligned left, the others right. It scrolls where the window is narrow.
std::string html_table(const std::vector<std::string>& header, std::span<const HtmlRow> rows);

// A plot in the page's colours, under its title.
std::string html_plot(const std::string& title, const std::vector<Curve>& curves);
std::string html_plots(const std::vector<std::string>& plots);  // side by side, as many as there is room for
std::string curve_colour(size_t i);  // of the page: no two that stand beside each other are alike
std::string colour_chip(const std::string& colour, const std::string& text);  // text as HTML

// Percent of the truth, with the pixels: the larger the share, the deeper the colour.
std::string html_confusion(std::span<const std::string> names, std::span<const int64_t> confusion);

std::string html_picture(const Picture& picture, const std::string& description);  // as a PNG in the page

}  // namespace regolith
