// Curves over epochs as SVG, with round ticks; no fonts or scripts are needed to see them.
#pragma once

#include <array>
#include <string>
#include <vector>

namespace regolith {

struct Curve {
  std::string name;                           // in the legend; "": in none
  std::string colour;                         // as CSS writes it
  std::vector<std::array<double, 2>> points;  // (epoch, value), by epoch; NaN where it was not measured
  double width = 1.8;
};

struct PlotInks {  // as CSS writes them
  const char *text = "#222", *axis = "#444", *grid = "#e3e3e3";
};

// Elements of an <svg>: axes from (left, top) to (left + 380, top + 270), with 56 beside them, 30 above, and 66 below.
std::string plot(double left, double top, const std::string& title, const std::vector<Curve>& curves,
                 const PlotInks& inks = {});

// Text of the user's in XML or HTML.
std::string escape_markup(const std::string& text);

}  // namespace regolith
