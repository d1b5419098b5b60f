// Kernels that treat every element alike: maps of any number of channels as whole vectors.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <tuple>

#include "kernels/core/error.h"
#include "kernels/core/execution.h"
#include "kernels/core/launch.h"
#include "kernels/core/tensor_view.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// For kernels that treat every element alike: whole maps of one shape, looked at as pixels of 64 channels where their
// elements divide, so that one channel goes in vectors as well. Slices, and odd sizes, stay as they are. Null maps are
// left out.
inline void flatten(std::initializer_list<TensorView*> maps) {
  constexpr int kChannels = 64;
  const auto odd = [](const TensorView* m) { return *m && (!m->whole() || m->elements() % kChannels != 0); };
  if (std::any_of(maps.begin(), maps.end(), odd)) return;
  for (TensorView* m : maps) {
    if (*m) *m = {m->data, 1, 1, static_cast<int>(m->elements() / kChannels), kChannels, kChannels, m->dtype};
  }
}

// Calls f(element type, pack) for such a kernel over these maps, which it flattens; `kernel` names it in the
// KernelError for maps that differ in shape or type.
template <class F, class... M>
void with_elements(const char* kernel, F&& f, M&... maps) {
  const TensorView& x = std::get<0>(std::tie(maps...));
  for (const TensorView& m : {maps...}) {
    if (m.N != x.N || m.H != x.H || m.W != x.W || m.C != x.C || m.dtype != x.dtype)
      throw KernelError(std::string(kernel) + ": all maps must have one shape and one element type");
  }
  flatten({&maps...});
  with_float_type(x.dtype, kernel, [&](auto t) {
    with_lanes<decltype(t)>(
        {maps...}, [&](auto lanes) { with_pack<lanes>(x.C, [&](auto packs) { f(t, Pack<lanes, packs>{}); }); });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
