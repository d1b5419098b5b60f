#include "engine/report/panel.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>

namespace regolith {
namespace {

using Glyph = std::array<uint8_t, 7>;  // rows from the top, the leftmost pixel in bit 4

const std::map<char, Glyph> kFont = {
    {' ', {0, 0, 0, 0, 0, 0, 0}},
    {'A', {0x0e, 0x11, 0x11, 0x11, 0x1f, 0x11, 0x11}},
    {'B', {0x1e, 0x11, 0x11, 0x1e, 0x11, 0x11, 0x1e}},
    {'C', {0x0f, 0x10, 0x10, 0x10, 0x10, 0x10, 0x0f}},
    {'D', {0x1e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x1e}},
    {'E', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f}},
    {'F', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x10}},
    {'G', {0x0f, 0x10, 0x10, 0x13, 0x11, 0x11, 0x0f}},
    {'H', {0x11, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11}},
    {'I', {0x0e, 0x04, 0x04, 0x04, 0x04, 0x04, 0x0e}},
    {'J', {0x01, 0x01, 0x01, 0x01, 0x01, 0x11, 0x0e}},
    {'K', {0x11, 0x12, 0x14, 0x18, 0x14, 0x12, 0x11}},
    {'L', {0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f}},
    {'M', {0x11, 0x1b, 0x15, 0x15, 0x11, 0x11, 0x11}},
    {'N', {0x11, 0x19, 0x19, 0x15, 0x13, 0x13, 0x11}},
    {'O', {0x0e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}},
    {'P', {0x1e, 0x11, 0x11, 0x1e, 0x10, 0x10, 0x10}},
    {'Q', {0x0e, 0x11, 0x11, 0x11, 0x15, 0x12, 0x0d}},
    {'R', {0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11}},
    {'S', {0x0f, 0x10, 0x10, 0x0e, 0x01, 0x01, 0x1e}},
    {'T', {0x1f, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04}},
    {'U', {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}},
    {'V', {0x11, 0x11, 0x11, 0x11, 0x0a, 0x0a, 0x04}},
    {'W', {0x11, 0x11, 0x11, 0x15, 0x15, 0x1b, 0x11}},
    {'X', {0x11, 0x11, 0x0a, 0x04, 0x0a, 0x11, 0x11}},
    {'Y', {0x11, 0x11, 0x0a, 0x04, 0x04, 0x04, 0x04}},
    {'Z', {0x1f, 0x01, 0x02, 0x04, 0x08, 0x10, 0x1f}},
    {'0', {0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e}},
    {'1', {0x04, 0x0c, 0x14, 0x04, 0x04, 0x04, 0x1f}},
    {'2', {0x0e, 0x11, 0x01, 0x06, 0x08, 0x10, 0x1f}},
    {'3', {0x0e, 0x11, 0x01, 0x06, 0x01, 0x11, 0x0e}},
    {'4', {0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02}},
    {'5', {0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e}},
    {'6', {0x0e, 0x10, 0x10, 0x1e, 0x11, 0x11, 0x0e}},
    {'7', {0x1f, 0x01, 0x02, 0x02, 0x04, 0x04, 0x04}},
    {'8', {0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e}},
    {'9', {0x0e, 0x11, 0x11, 0x0f, 0x01, 0x01, 0x0e}},
    {'.', {0, 0, 0, 0, 0, 0x0c, 0x0c}},
    {',', {0, 0, 0, 0, 0x0c, 0x04, 0x08}},
    {':', {0, 0x0c, 0x0c, 0, 0x0c, 0x0c, 0}},
    {'-', {0, 0, 0, 0x0e, 0, 0, 0}},
    {'_', {0, 0, 0, 0, 0, 0, 0x1f}},
    {'+', {0, 0x04, 0x04, 0x1f, 0x04, 0x04, 0}},
    {'=', {0, 0, 0x1f, 0, 0x1f, 0, 0}},
    {'/', {0x01, 0x01, 0x02, 0x04, 0x08, 0x10, 0x10}},
    {'(', {0x02, 0x04, 0x08, 0x08, 0x08, 0x04, 0x02}},
    {')', {0x08, 0x04, 0x02, 0x02, 0x02, 0x04, 0x08}},
    {'%', {0x19, 0x19, 0x02, 0x04, 0x08, 0x13, 0x13}},
};
constexpr Glyph kUnknown{0x1f, 0x11, 0x11, 0x11, 0x11, 0x11, 0x1f};
constexpr Rgb kPaper{250, 250, 250}, kInk{30, 30, 30};
constexpr int kMargin = 10, kGap = 6, kLine = 14;  // pixels

void fill_box(Picture& p, int x, int y, int w, int h, Rgb colour) {
  for (int j = std::max(y, 0); j < std::min(y + h, p.height); ++j) {
    for (int i = std::max(x, 0); i < std::min(x + w, p.width); ++i) p.at(i, j) = colour;
  }
}

template <class F>
void draw_tile(Picture& p, int left, int top, int height, int width, int zoom, F&& colour_of) {
  for (int y = 0; y < height * zoom; ++y) {
    for (int x = 0; x < width * zoom; ++x) p.at(left + x, top + y) = colour_of(y / zoom, x / zoom);
  }
}

}  // namespace

std::vector<Rgb> default_colours(int n) {
  constexpr Rgb base[] = {{40, 40, 40}, {230, 159, 0}, {86, 180, 233}, {240, 228, 66},
                          {213, 94, 0}, {0, 158, 115}, {0, 114, 178},  {204, 121, 167}};
  std::vector<Rgb> colours;
  for (int i = 0; i < n; ++i) {
    Rgb c = base[i % 8];
    for (int round = 0; round < i / 8; ++round) {
      for (uint8_t* part : {&c.r, &c.g, &c.b}) *part = static_cast<uint8_t>((*part + 255) / 2);
    }
    colours.push_back(c);
  }
  return colours;
}

int text_width(const std::string& text, int scale) { return 6 * scale * static_cast<int>(text.size()); }

void draw_text(Picture& picture, int x, int y, const std::string& text, Rgb colour, int scale) {
  for (const char c : text) {
    const auto at = kFont.find(static_cast<char>(std::toupper(static_cast<unsigned char>(c))));
    const Glyph& glyph = at == kFont.end() ? kUnknown : at->second;
    for (int row = 0; row < 7; ++row) {
      for (int column = 0; column < 5; ++column) {
        if (glyph[row] >> (4 - column) & 1)
          fill_box(picture, x + column * scale, y + row * scale, scale, scale, colour);
      }
    }
    x += 6 * scale;
  }
}

Picture draw_panel(std::span<const PanelRow> rows, int height, int width, int channels,
                   std::span<const LegendEntry> legend) {
  const bool truths = std::any_of(rows.begin(), rows.end(), [](const PanelRow& r) { return r.truth != nullptr; });
  const bool predictions =
      std::any_of(rows.begin(), rows.end(), [](const PanelRow& r) { return r.prediction != nullptr; });
  const bool captions = std::any_of(rows.begin(), rows.end(), [](const PanelRow& r) { return !r.caption.empty(); });
  const int zoom = std::max(1, 256 / std::max(width, 1)), w = width * zoom, h = height * zoom;
  const int columns = 1 + truths + predictions, row_height = h + (captions ? kLine : 0) + kGap;
  const int full = std::max(columns * (w + kGap) - kGap, 160) + 2 * kMargin;
  struct Label {
    int x, y;
    const LegendEntry* entry;
  };
  std::vector<Label> labels;
  int x = kMargin, y = kMargin + kLine + static_cast<int>(rows.size()) * row_height + 4;
  for (const LegendEntry& e : legend) {
    const int needs = 18 + text_width(e.name) + 14;
    if (x > kMargin && x + needs > full - kMargin) x = kMargin, y += kLine + 4;
    labels.push_back({x, y, &e});
    x += needs;
  }
  Picture p(full, y + kLine + kMargin, kPaper);

  int left = kMargin;
  for (const char* title : {"image", "truth", "prediction"}) {
    if ((title[0] == 't' && !truths) || (title[0] == 'p' && !predictions)) continue;
    draw_text(p, left, kMargin, title, kInk);
    left += w + kGap;
  }
  int top = kMargin + kLine;
  for (const PanelRow& row : rows) {
    left = kMargin;
    draw_tile(p, left, top, height, width, zoom, [&](int j, int i) {
      const uint8_t* c = row.image + (static_cast<size_t>(j) * width + i) * channels;
      return channels >= 3 ? Rgb{c[0], c[1], c[2]} : Rgb{c[0], c[0], c[0]};
    });
    const std::pair<const uint8_t*, bool> masks[] = {{row.truth, truths}, {row.prediction, predictions}};
    for (const auto& [mask, shown] : masks) {
      if (shown) left += w + kGap;
      if (mask == nullptr) continue;
      draw_tile(p, left, top, height, width, zoom, [&, ids = mask](int j, int i) {
        const uint8_t id = ids[static_cast<size_t>(j) * width + i];
        const uint8_t grey = (i / 2 + j / 2) % 2 == 0 ? 150 : 200;
        return id < legend.size() ? legend[id].colour : Rgb{grey, grey, grey};
      });
    }
    if (!row.caption.empty()) draw_text(p, kMargin, top + h + 4, row.caption, {110, 110, 110});
    top += row_height;
  }
  for (const Label& l : labels) {
    fill_box(p, l.x, l.y, 12, 9, kInk);
    fill_box(p, l.x + 1, l.y + 1, 10, 7, l.entry->colour);
    draw_text(p, l.x + 17, l.y + 1, l.entry->name, kInk);
  }
  return p;
}

}  // namespace regolith
