// Text for messages, tables and files.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace regolith {

// std::printf into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

// "a, b, c". The items are texts or whole numbers.
template <class Items>
std::string join(const Items& items, std::string_view separator = ", ") {
  std::string text;
  bool first = true;
  for (const auto& item : items) {
    if (!first) text += separator;
    first = false;
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(item)>>) {
      text += std::to_string(item);
    } else {
      text += item;
    }
  }
  return text;
}

inline std::string size_text(std::initializer_list<int64_t> sizes) { return join(sizes, "x"); }  // "64x128x1"
std::string shape_text(std::span<const int64_t> shape);  // as Python writes a tuple: "(2, 64, 128)", "(3,)"
std::string number(double value);                        // the shortest text that reads back as the same number
std::string number(float value);
std::string thousands(int64_t value);                 // "1,837,509"
std::string mebibytes(double bytes, int digits = 0);  // "216 MiB"

std::string csv_quoted(const std::string& text);  // "a ""word"""
// A field of a .csv (RFC 4180): within quotes where it holds a comma, a quote or the end of a line.
std::string csv_field(const std::string& text);

// "; did you mean 'filters'?" where a candidate is close to the name by edit distance, else "".
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

}  // namespace regolith
