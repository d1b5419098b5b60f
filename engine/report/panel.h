// Sheets of images and of masks with a legend of the classes; of what a network did, rows of image | truth |
// prediction.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "engine/io/image.h"

namespace regolith {

struct LegendEntry {
  std::string name;
  Rgb colour;
};

// An entry for each class; there are as many colours, or more.
std::vector<LegendEntry> legend_of(std::span<const std::string> names, std::span<const std::array<uint8_t, 3>> colours);

// `n` colours that people with any colour vision can tell apart (Okabe and Ito, "Color Universal Design", 2008). The
// first is near black; beyond eight the colours repeat, lighter.
std::vector<Rgb> default_colours(int n);

// Rows of tiles of one size. Small images are enlarged by a whole factor. A class beyond the legend is drawn in grey
// checks.
struct Tile {
  const uint8_t* values = nullptr;  // (H, W, C) of an image, or (H, W) class ids; null: left empty
  bool classes = false;
};
struct SheetRow {
  std::vector<Tile> tiles;
  std::string caption;  // under the tiles: "row 17 of mars.npz"
};
// titles: of the columns.
Picture draw_sheet(std::span<const std::string> titles, std::span<const SheetRow> rows, int height, int width,
                   int channels, std::span<const LegendEntry> legend);

struct PanelRow {
  const uint8_t* image;       // (H, W, C)
  const uint8_t* truth;       // (H, W), or null: left out
  const uint8_t* prediction;  // (H, W), or null
  std::string caption;
};
Picture draw_panel(std::span<const PanelRow> rows, int height, int width, int channels,
                   std::span<const LegendEntry> legend);

// Draws text in capitals: 5x7 pixels a character times `scale`, 6 apart, a box for a character that the font lacks.
void draw_text(Picture& picture, int x, int y, const std::string& text, Rgb colour, int scale = 1);
void fill_box(Picture& picture, int x, int y, int width, int height, Rgb colour);  // what of it is inside
int text_width(const std::string& text, int scale = 1);

}  // namespace regolith
