// A confusion matrix to be read: (classes, classes) pixels by truth (row) and prediction (column).
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "engine/io/image.h"

namespace regolith {

// Two tables, of pixels to three digits and of percents of each row. Columns go by the classes' numbers.
std::string confusion_text(std::span<const std::string> names, std::span<const int64_t> confusion);
// The same as a picture: the darker a cell, the larger its share of the row.
Picture draw_confusion(std::span<const std::string> names, std::span<const int64_t> confusion);

std::string short_count(int64_t n);  // "9999", "12.3k", "456k", "7.89M", "1.23G"

}  // namespace regolith
