// How kernels on the CPU divide maps and channels.
#pragma once

#include <algorithm>
#include <cstdint>

namespace regolith {

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

// The size of a part, where `whole` rows, or images, of `pixels` each are divided into equal parts of `target` pixels
// or so.
inline int equal_parts(int whole, int pixels, int target) {
  const int64_t parts = std::max<int64_t>(1, (int64_t{whole} * pixels + target / 2) / target);
  return ceil_div(whole, static_cast<int>(std::min<int64_t>(whole, parts)));
}

}  // namespace regolith
