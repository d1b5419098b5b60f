// Maps of any number of channels as whole vectors.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "kernels/core/execution.h"
#include "kernels/core/map.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// For kernels that treat every element alike: whole maps of one shape, looked at as pixels of 64 channels where their
// elements divide, so that one channel goes in vectors as well. Slices, and odd sizes, stay as they are. Null maps are
// left out.
inline void flatten(std::initializer_list<Map*> maps) {
  constexpr int kChannels = 64;
  const auto odd = [](const Map* m) { return *m && (!m->whole() || m->elements() % kChannels != 0); };
  if (std::any_of(maps.begin(), maps.end(), odd)) return;
  for (Map* m : maps) {
    if (*m) *m = {m->data, 1, 1, static_cast<int>(m->elements() / kChannels), kChannels, kChannels, m->dtype};
  }
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
