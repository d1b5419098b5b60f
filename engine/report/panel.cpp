#include "engine/report/panel.h"

#include <algorithm>
#include <cctype>
#include <string_view>

namespace regolith {
namespace {

// A character, then its seven rows from the top as digits of base 32: the leftmost of five pixels is the highest bit.
constexpr std::string_view kFont =
    " 0000000AehhhvhhBuhhuhhuCfgggggfDuhhhhhuEvgguggvFvggugggGfggjhhfHhhhvhhhIe44444eJ11111heKhikokih"
    "LggggggvMhrllhhhNhppljjhOehhhhhePuhhugggQehhhlidRuhhukihSfgge11uTv444444UhhhhhheVhhhhaa4Whhhllrh"
    "Xhha4ahhYhha4444Zv1248gv0ehjlphe14ck444v2eh168gv3eh161he426aiv225vgu11he6egguhhe7v1224448ehhehhe"
    "9ehhf11e.00000cc,0000c48:0cc0cc0-000e000_000000v+044v440=00v0v00/11248gg(2488842)8422248%pp248jj";
constexpr std::string_view kUnknown = "vhhhhhv";
constexpr Rgb kPaper{250, 250, 250}, kInk{30, 30, 30};
constexpr int kMargin = 10, kGap = 6, kLine = 14;  // pixels

std::string_view glyph_of(char c) {
  for (size_t at = 0; at < kFont.size(); at += 8)
    if (kFont[at] == std::toupper(static_cast<unsigned char>(c))) return kFont.substr(at + 1, 7);
  return kUnknown;
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

void fill_box(Picture& p, int x, int y, int w, int h, Rgb colour) {
  for (int j = std::max(y, 0); j < std::min(y + h, p.height); ++j) {
    for (int i = std::max(x, 0); i < std::min(x + w, p.width); ++i) p.at(i, j) = colour;
  }
}

int text_width(const std::string& text, int scale) { return 6 * scale * static_cast<int>(text.size()); }

void draw_text(Picture& picture, int x, int y, const std::string& text, Rgb colour, int scale) {
  for (const char c : text) {
    const std::string_view glyph = glyph_of(c);
    for (int row = 0; row < 7; ++row) {
      const int bits = glyph[row] <= '9' ? glyph[row] - '0' : glyph[row] - 'a' + 10;
      for (int column = 0; column < 5; ++column)
        if (bits >> (4 - column) & 1) fill_box(picture, x + column * scale, y + row * scale, scale, scale, colour);
    }
    x += 6 * scale;
  }
}

std::vector<LegendEntry> legend_of(std::span<const std::string> names,
                                   std::span<const std::array<uint8_t, 3>> colours) {
  std::vector<LegendEntry> legend;
  for (size_t k = 0; k < names.size(); ++k) legend.push_back({names[k], {colours[k][0], colours[k][1], colours[k][2]}});
  return legend;
}

Picture draw_sheet(std::span<const std::string> titles, std::span<const SheetRow> rows, int height, int width,
                   int channels, std::span<const LegendEntry> legend) {
  const bool captions = std::any_of(rows.begin(), rows.end(), [](const SheetRow& r) { return !r.caption.empty(); });
  const int zoom = std::max(1, 256 / std::max(width, 1)), w = width * zoom, h = height * zoom;
  const int columns = static_cast<int>(titles.size()), row_height = h + (captions ? kLine : 0) + kGap;
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

  for (int i = 0; i < columns; ++i) draw_text(p, kMargin + i * (w + kGap), kMargin, titles[i], kInk);
  int top = kMargin + kLine;
  for (const SheetRow& row : rows) {
    int left = kMargin;
    for (const Tile& tile : row.tiles) {
      const uint8_t* const values = tile.values;
      if (values != nullptr) {
        draw_tile(p, left, top, height, width, zoom, [&](int j, int i) {
          const size_t pixel = static_cast<size_t>(j) * width + i;
          if (!tile.classes) {
            const uint8_t* c = values + pixel * channels;
            return channels >= 3 ? Rgb{c[0], c[1], c[2]} : Rgb{c[0], c[0], c[0]};
          }
          const uint8_t id = values[pixel], grey = (i / 2 + j / 2) % 2 == 0 ? 150 : 200;
          return id < legend.size() ? legend[id].colour : Rgb{grey, grey, grey};
        });
      }
      left += w + kGap;
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

Picture draw_panel(std::span<const PanelRow> rows, int height, int width, int channels,
                   std::span<const LegendEntry> legend) {
  const bool truths = std::any_of(rows.begin(), rows.end(), [](const PanelRow& r) { return r.truth != nullptr; });
  const bool predictions =
      std::any_of(rows.begin(), rows.end(), [](const PanelRow& r) { return r.prediction != nullptr; });
  std::vector<std::string> titles{"image"};
  if (truths) titles.push_back("truth");
  if (predictions) titles.push_back("prediction");
  std::vector<SheetRow> sheet;
  for (const PanelRow& row : rows) {
    SheetRow r{{{row.image}}, row.caption};
    if (truths) r.tiles.push_back({row.truth, true});
    if (predictions) r.tiles.push_back({row.prediction, true});
    sheet.push_back(r);
  }
  return draw_sheet(titles, sheet, height, width, channels, legend);
}

}  // namespace regolith
