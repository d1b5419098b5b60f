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

// An image file as bytes. Palettes are not applied and grey is not rescaled where `raw` asks for class ids.
struct ImageBytes {
  int height = 0, width = 0, channels = 1;  // 1 grey, 3 RGB
  std::vector<uint8_t> bytes;               // (height, width, channels)
};

// Reads PNG (any depth; alpha dropped, 16 bits cut to 8) and JPEG by their first bytes. `raw`: PNG only; one channel of
// palette indices or grey values as stored. Throws DataError naming the file.
ImageBytes read_image(const std::string& path, bool raw = false);

}  // namespace regolith
