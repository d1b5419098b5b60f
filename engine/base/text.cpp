#include "engine/base/text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace regolith {
namespace {

template <class T>
std::string shortest(T value) {
  if (value == std::trunc(value) && std::abs(value) < 1e15) return std::to_string(static_cast<int64_t>(value));
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

}  // namespace

std::string format(const char* pattern, ...) {
  char text[256];
  std::va_list arguments;
  va_start(arguments, pattern);
  const int size = std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  if (size < static_cast<int>(sizeof text)) return text;
  std::string longer(static_cast<size_t>(size), '\0');
  va_start(arguments, pattern);
  std::vsnprintf(longer.data(), longer.size() + 1, pattern, arguments);
  va_end(arguments);
  return longer;
}

std::string shape_text(std::span<const int64_t> shape) { return "(" + join(shape) + (shape.size() == 1 ? ",)" : ")"); }

std::string number(double value) { return shortest(value); }
std::string number(float value) { return shortest(value); }

std::string thousands(int64_t value) {
  std::string text = std::to_string(value);
  for (size_t at = text.size(); at > 3 + (value < 0);) text.insert(at -= 3, ",");
  return text;
}

std::string mebibytes(double bytes, int digits) { return format("%.*f MiB", digits, bytes / (1 << 20)); }

std::string csv_quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

std::string csv_field(const std::string& text) {
  return text.find_first_of(",\"\n\r") == text.npos ? text : csv_quoted(text);
}

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
  const std::string* best = nullptr;
  size_t best_distance = 0;
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);  // Levenshtein, one row at a time
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 0; i < name.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i + 1;
      for (size_t j = 0; j < candidate.size(); ++j) {
        const size_t replaced = diagonal + (name[i] != candidate[j]);
        diagonal = row[j + 1];
        row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
      }
    }
    if (!best || row.back() < best_distance) best = &candidate, best_distance = row.back();
  }
  const bool near = best && (best_distance <= std::max<size_t>(1, (std::max(name.size(), best->size()) + 1) / 3) ||
                             (name.size() > 2 && best->starts_with(name)));
  return near ? "; did you mean '" + *best + "'?" : "";
}

}  // namespace regolith
