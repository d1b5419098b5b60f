// Pictures in files.
#pragma once

#include <cstdint>
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

// An 8-bit RGB PNG, written atomically. Throws IoError (no such folder, no space left, no permission).
void write_png(const std::string& path, const Picture& picture);

// What the first bytes of an image file say.
struct ImageHeader {
  int height = 0, width = 0, channels = 1;  // as shown: turned as `orientation` says; 1 grey, 3 RGB
  int bits = 8;                             // of a value: 8, or 16
  int orientation = 1;                      // EXIF's, 1 to 8
};

// An image file as numbers, turned as its EXIF orientation says; alpha is dropped.
struct ImageValues : ImageHeader {
  std::vector<uint16_t> values;  // (height, width, channels)
  std::vector<Rgb> palette;      // of an image read as stored: its values are then indices
  std::string warning;           // what the decoder remarked on a file whose pixels are all there
};

// Read PNG (any depth) and JPEG (grey, colour, CMYK); the first bytes of the file say which it is. `stored` is for
// class ids: PNG only; palettes and grey values of few bits stay as they are, and are not spread over a byte. Throw
// DataError that names the file.
ImageHeader read_image_header(const std::string& path, bool stored = false);
ImageValues read_image(const std::string& path, bool stored = false);
void check_sides(const ImageHeader& image, const std::string& path);  // at most 32768 pixels, as read_image() asks for

}  // namespace regolith
