// What tiles say of an image, gathered pixel by pixel: what computes per pixel of a Segmenter.
#pragma once

#include <deque>
#include <vector>

#include "deploy/segmenter.h"
#include "deploy/tiles.h"

namespace regolith {

struct TileSize {
  int height, width;
};
struct Turn {  // of a tile
  bool flip_rows = false, flip_columns = false;
};

// Takes tiles of an image and sums up their probabilities, row by row: only rows that a tile may still change, or that
// nobody has taken yet, are in memory.
class Canvas {
 public:
  // A tile covers `region` of the image, and is resampled to the size of the network's input where they differ.
  Canvas(const ImageView& image, TileSize region, TileSize tile, int classes, double overlap);

  const TileAxis& rows() const { return rows_; }
  const TileAxis& columns() const { return columns_; }

  // Tile (r, c) of the image to `pixels` (tile height, tile width, channels): bilinear, pixel centres at halves.
  void read(int r, int c, Turn turn, uint8_t* pixels) const;
  // Adds what the network said of it: (tile height, tile width, classes).
  void add(int r, int c, Turn turn, const float* probabilities);
  // Rows that are summed up, before this one.
  int complete() const { return complete_; }
  void set_complete(int row_of_tiles) { complete_ = rows_.complete(row_of_tiles); }
  // (width, classes): the weighted sums of image row y; times scale(y) and column_scale() they are the mean.
  const float* row(int y) const { return sums_[y - taken_].data(); }
  float scale(int y) const { return 1 / rows_.divisor[y]; }
  const std::vector<float>& column_scale() const { return column_scale_; }
  void take(int rows);  // those before `rows` are not asked for any more

 private:
  struct Tap {  // value = (1 - t) * [a] + t * [b]
    int a, b;
    float t;
  };
  static std::vector<Tap> taps(int from, int to);  // positions of `to` pixels among `from`, the ends beyond them

  ImageView image_;
  TileSize region_, tile_;
  int classes_;
  TileAxis rows_, columns_;
  std::vector<Tap> row_in_, column_in_, row_out_, column_out_;  // region to tile, tile to region
  std::vector<float> column_scale_;                             // (width)
  std::deque<std::vector<float>> sums_;                         // of rows from taken_ on
  int taken_ = 0, complete_ = 0;
};

// Writes rows [begin, end) of a segmentation from the mean of the canvases, each of `repeats` tiles at a place.
void write_rows(const std::vector<Canvas>& canvases, int begin, int end, int repeats, Segmentation& to);

}  // namespace regolith
