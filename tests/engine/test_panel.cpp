#include <gtest/gtest.h>

#include "engine/report/panel.h"

namespace regolith {
namespace {

TEST(Panel, ShowsImageTruthPredictionAndLegend) {
  const std::vector<uint8_t> image{0, 50, 100, 150, 200, 250, 30, 60}, truth{0, 1, 0, 1, 1, 0, 255, 0},
      prediction(8, 1);
  const std::vector<LegendEntry> legend{{"background", {9, 9, 9}}, {"sand", {240, 228, 66}}};
  const std::vector<PanelRow> rows{{image.data(), truth.data(), prediction.data(), "row 3"},
                                   {image.data(), truth.data(), nullptr, ""}};
  const Picture p = draw_panel(rows, 2, 4, 1, legend);
  // Enlarged 64 times to 256 x 128, from (10, 24), columns 262 apart, rows 148 apart.
  const auto at = [&](int column, int row, int y, int x) {
    return p.at(10 + column * 262 + x * 64 + 32, 24 + row * 148 + y * 64 + 32);
  };
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(at(0, 0, i / 4, i % 4), (Rgb{image[i], image[i], image[i]}));
    EXPECT_EQ(truth[i] < 2 && at(1, 0, i / 4, i % 4) == legend[truth[i] % 2].colour, truth[i] < 2) << i;
    EXPECT_EQ(at(2, 0, i / 4, i % 4), legend[1].colour);
    EXPECT_EQ(at(2, 1, i / 4, i % 4), (Rgb{250, 250, 250}));
  }
  EXPECT_NE(at(1, 0, 1, 2), legend[0].colour);  // no class: grey checks
  const int below = 24 + 2 * 148 + 4;
  EXPECT_EQ(p.at(10 + 5, below + 4), legend[0].colour);
  EXPECT_GT(p.height, below + 14);
}

TEST(Panel, TextIsDrawnByTheFont) {
  Picture p(20, 9, {255, 255, 255});
  draw_text(p, 1, 1, "it", {0, 0, 0});
  std::string drawn;
  for (int y = 1; y < 8; ++y) {
    for (int x = 1; x < 12; ++x) drawn += p.at(x, y).r == 0 ? '#' : '.';
    drawn += '\n';
  }
  EXPECT_EQ(drawn,
            ".###..#####\n"
            "..#.....#..\n"
            "..#.....#..\n"
            "..#.....#..\n"
            "..#.....#..\n"
            "..#.....#..\n"
            ".###....#..\n");
  EXPECT_EQ(text_width("it"), 12);
  draw_text(p, -3, -3, "outside", {0, 0, 0}, 4);  // clipped
}

TEST(Panel, ColoursDiffer) {
  const auto colours = default_colours(16);
  for (size_t i = 0; i < colours.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(colours[i], colours[j]) << i << " and " << j;
  }
}

}  // namespace
}  // namespace regolith
