// Pictures in files.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace regolith {

struct Rgb {
  uint8_t r = 0, g = 0, b = 0;
  bool operator==(const Rgb&) const = default;
};

struct Picture {
  int width = 0, height = 0;
  std::vector<Rgb> pixels;  // (height, width)

  Picture() = default;
  Picture(int w, int h, Rgb fill) : width(w), height(h), pixels(static_cast<size_t>(w) * h, fill) {}
  Rgb& at(int x, int y) { return pixels[static_cast<size_t>(y) * width + x]; }
  const Rgb& at(int x, int y) const { return pixels[static_cast<size_t>(y) * width + x]; }
};

// What programs show beside a PNG (Pillow: image.text, ImageMagick: identify -verbose): tEXt, or iTXt where it is not
// ASCII. The key has 1 to 79 characters.
struct PngText {
  std::string key, text;
};
// The names of the classes under "regolith:classes": a JSON list, whose places are the ids.
PngText classes_text(std::span<const std::string> names);

// What stands before the rows of a PNG of 8 bits.
struct PngHeader {
  int height = 0, width = 0;
  std::vector<Rgb> palette = {};  // a byte of a row is an index of it; empty: rows of RGB, three bytes a pixel
  std::vector<PngText> texts = {};
};

// Writes row after row, atomically, and keeps none: `row(y)` gives the bytes of row y, which stay as they are until the
// next call. Compressed little, so that it takes less than making the rows. Not flushed to the disk, which would take
// longer than all else: after a power cut the file may be gone. Throws IoError (no such folder, no space left, no
// permission, an index beyond the palette).
void write_png(const std::string& path, const PngHeader& header, const std::function<const uint8_t*(int y)>& row);
void write_png(const std::string& path, const Picture& picture);
std::string png_bytes(const Picture& picture);  // the file's contents

// What the first bytes of an image file say.
struct ImageHeader {
  int height = 0, width = 0, channels = 1;  // as shown: turned as `orientation` says; 1 grey, 3 RGB
  int bits = 8;                             // of a value: 8, or 16
  int orientation = 1;                      // EXIF's, 1 to 8
};

// An image file as numbers, turned as its EXIF orientation says; alpha is dropped.
struct ImageValues : ImageHeader {
  std::vector<uint8_t> bytes;   // (height, width, channels) of 8 bits, else empty
  std::vector<uint16_t> words;  // (height, width, channels) of 16 bits, else empty
  std::vector<Rgb> palette;     // of an image read as stored: its values are then indices
  std::string warning;          // what the decoder remarked on a file whose pixels are all there

  int value(size_t i) const { return bits == 16 ? words[i] : bytes[i]; }
};

// Read PNG (any depth) and JPEG (grey, colour, CMYK); the first bytes of the file say which it is. `stored` is for
// class ids: PNG only; palettes and grey values of few bits stay as they are, and are not spread over a byte. Throw
// DataError that names the file.
ImageHeader read_image_header(const std::string& path, bool stored = false);
ImageValues read_image(const std::string& path, bool stored = false);
void check_sides(const ImageHeader& image, const std::string& path);  // at most 32768 pixels, as read_image() asks for

}  // namespace regolith
