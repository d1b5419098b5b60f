// The products of matrices of Winograd convolutions: rows of tiles, or of channels, by panels of channels.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/core/register_tile.h"

namespace regolith::winograd {

using namespace kernels::fast;
using V = Vec<kL>;

constexpr int kPanel = 2 * kL;            // channels that lie together, two vectors
constexpr int kRows = kL == 16 ? 12 : 6;  // a register tile: rows of two vectors

inline int width_of_panel(int channels, int panel) { return std::min(kPanel, channels - panel * kPanel); }
inline int panels_of(int channels) { return (channels + kPanel - 1) / kPanel; }
inline size_t padded(int channels) { return static_cast<size_t>(panels_of(channels)) * kPanel; }

// out (Rows, ld) = or += the sum over i < count of a_i (Rows) b_i (Vecs vectors): a_i at a + i * a_step, its rows
// `a_row` apart; b_i at b + i * b_step.
template <int Rows, int Vecs>
void product(const float* a, ptrdiff_t a_row, ptrdiff_t a_step, const float* b, ptrdiff_t b_step, int count, float* out,
             ptrdiff_t ld, bool add) {
  RegisterTile<Factor<float>, Rows, Vecs> tile([&](int i, int j) { return add ? Stored{out, ld}(i, j) : V(0); });
  tile.add(
      a, [&](int i) { return i * a_row; }, a_step, b, b_step, count);
  tile.store_to(out, ld);
}

// The same for any number of rows; a multiple of kRows / 3 is computed, from whatever lies in `a` beyond them. width of
// b's vectors: kPanel or kL.
inline void products(int rows, int width, const float* a, ptrdiff_t a_row, ptrdiff_t a_step, const float* b,
                     ptrdiff_t b_step, int count, float* out, ptrdiff_t ld, bool add) {
  for (int i = 0; i < rows;) {
    const auto pick = [&]<int Vecs>() {
      const int left = rows - i;
      const auto run = [&]<int Rows>() {
        product<Rows, Vecs>(a + i * a_row, a_row, a_step, b, b_step, count, out + i * ld, ld, add);
        i += Rows;
      };
      if (left > 2 * kRows / 3)
        run.template operator()<kRows>();
      else if (left > kRows / 3)
        run.template operator()<2 * kRows / 3>();
      else
        run.template operator()<kRows / 3>();
    };
    width == kPanel ? pick.template operator()<2>() : pick.template operator()<1>();
  }
}

}  // namespace regolith::winograd
