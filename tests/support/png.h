// PNG files of any kind, as programs of this trade write them: pixels not compressed, a byte or two to a value.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace regolith::testing {

struct PngFile {
  int width = 0, height = 0, bits = 8;
  int colour = 0;                       // PNG's colour type: 0 grey, 2 RGB, 3 palette, 6 RGBA
  std::vector<uint16_t> values;         // (height, width, channels)
  std::string palette = {}, exif = {};  // contents of their chunks
  bool exif_last = false;               // after the pixels

  std::string bytes() const {
    std::string header = number(width) + number(height) + static_cast<char>(bits) + static_cast<char>(colour);
    std::string file = "\x89PNG\r\n\x1a\n" + chunk("IHDR", header + std::string(3, '\0'));
    if (!palette.empty()) file += chunk("PLTE", palette);
    if (!exif.empty() && !exif_last) file += chunk("eXIf", exif);
    std::string raw;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i % (values.size() / height) == 0) raw += '\0';  // the filter of a row: none
      if (bits == 16) raw += static_cast<char>(values[i] >> 8);
      raw += static_cast<char>(values[i]);
    }
    uint32_t a = 1, b = 0;  // Adler-32
    for (const char c : raw) a = (a + static_cast<uint8_t>(c)) % 65521, b = (b + a) % 65521;
    const auto n = static_cast<uint16_t>(raw.size());
    const auto low = [](int x) { return static_cast<char>(x & 255); };
    const std::string stored{'\x78', '\x01', '\x01', low(n), low(n >> 8), low(~n), low(~n >> 8)};
    file += chunk("IDAT", stored + raw + number(b << 16 | a));
    if (!exif.empty() && exif_last) file += chunk("eXIf", exif);
    return file + chunk("IEND", "");
  }
  void write(const std::string& path) const { std::ofstream(path, std::ios::binary) << bytes(); }

 private:
  static std::string number(uint32_t n) {
    return {static_cast<char>(n >> 24), static_cast<char>(n >> 16), static_cast<char>(n >> 8), static_cast<char>(n)};
  }
  static std::string chunk(const std::string& type, const std::string& data) {
    uint32_t crc = ~0u;
    for (const char c : type + data) {
      crc ^= static_cast<uint8_t>(c);
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
    }
    return number(static_cast<uint32_t>(data.size())) + type + data + number(~crc);
  }
};

// The table of EXIF with nothing but an orientation.
inline std::string exif_of(int orientation) {
  std::string exif("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0", 26);
  exif[18] = static_cast<char>(orientation);
  return exif;
}

}  // namespace regolith::testing
