// Pictures of what a network did: rows of image | truth | prediction, and a legend of the classes.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/io/image.h"

namespace regolith {

struct LegendEntry {
  std::string name;
  Rgb colour;
};

// `n` colours that people with any colour vision can tell apart (Okabe and Ito, "Color Universal Design", 2008). The
// first is near black; beyond eight the colours repeat, lighter.
std::vector<Rgb> default_colours(int n);

struct PanelRow {
  const uint8_t* image;       // (H, W, C)
  const uint8_t* truth;       // (H, W), or null: left out
  const uint8_t* prediction;  // (H, W), or null
  std::string caption;        // under the image: "row 17 of mars.npz"
};

// Small images are enlarged by a whole factor. A class beyond the legend is drawn in grey checks.
Picture draw_panel(std::span<const PanelRow> rows, int height, int width, int channels,
                   std::span<const LegendEntry> legend);

// Draws text in capitals: 5x7 pixels a character times `scale`, 6 apart, a box for a character that the font lacks.
void draw_text(Picture& picture, int x, int y, const std::string& text, Rgb colour, int scale = 1);
void fill_box(Picture& picture, int x, int y, int width, int height, Rgb colour);  // what of it is inside
int text_width(const std::string& text, int scale = 1);

}  // namespace regolith
