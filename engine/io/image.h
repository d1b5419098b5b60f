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

// An image file as bytes.
struct ImageBytes {
  int height = 0, width = 0, channels = 1;  // 1 grey, 3 RGB
  std::vector<uint8_t> bytes;               // (height, width, channels)
};

// Reads PNG (any depth; drops alpha, cuts 16 bits to 8) and JPEG; the first bytes of the file say which it is. `raw` is
// for class ids: PNG only, one channel, palette indices or grey values as stored. Throws DataError that names the file.
ImageBytes read_image(const std::string& path, bool raw = false);

}  // namespace regolith
