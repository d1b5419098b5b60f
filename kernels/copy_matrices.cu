#include "kernels/copy_matrices.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

inline constexpr int kMostCopies = 64;  // of a launch, whose arguments they are
struct Copies {
  MatrixCopy at[kMostCopies];
};
static_assert(sizeof(MatrixCopy) == 2 * sizeof(void*) + 4 * sizeof(int));  // no padding: see Branches in aspp.cu

// Grid: shares of the rows of a copy, copies.
template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads) copy(Copies copies, bool accumulate) {
  using V = Vec<L>;
  const MatrixCopy k = copies.at[blockIdx.y];
  const Range rows = block_range(k.rows);
  for (int64_t row = rows.begin + threadIdx.y; row < rows.end; row += blockDim.y) {
    const T* from = k.from == nullptr ? nullptr : static_cast<const T*>(k.from) + row * k.from_pitch;
    T* to = static_cast<T*>(k.to) + row * k.to_pitch;
    for (int j = static_cast<int>(threadIdx.x) * L; j < k.columns; j += static_cast<int>(blockDim.x) * L) {
      V value = from != nullptr ? load<V>(from + j) : V(0);
      if (accumulate) value += load<V>(to + j);
      store(to + j, value);
    }
  }
}

template <class T>
bool whole_vectors(const CopyMatrices& k) {
  constexpr int L = kLanes<T>;
  constexpr size_t align = std::min<size_t>(16, L * sizeof(T));
  return std::all_of(k.copies.begin(), k.copies.end(), [](const MatrixCopy& c) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % align == 0; };
    return c.columns % L == 0 && c.from_pitch % L == 0 && c.to_pitch % L == 0 && aligned(c.from) && aligned(c.to);
  });
}

}  // namespace

void copy_matrices(Stream& stream, const CopyMatrices& k) {
  with_float_type(k.type, "copy_matrices", [&](auto t) {
    using T = decltype(t);
    const bool whole = whole_vectors<T>(k);
    for (size_t begin = 0; begin < k.copies.size(); begin += kMostCopies) {
      const size_t count = std::min<size_t>(kMostCopies, k.copies.size() - begin);
      Copies copies;
      int rows = 1, columns = 1;
      for (size_t i = 0; i < count; ++i) {
        copies.at[i] = k.copies[begin + i];
        rows = std::max(rows, copies.at[i].rows);
        columns = std::max(columns, copies.at[i].columns);
      }
      const int L = whole ? kLanes<T> : 1;
      const Dim3 block = columns_block(columns / L);
      const Dim3 grid{blocks_for(stream, rows, 4 * std::max(1, kColumnThreads * L / columns)),
                      static_cast<unsigned>(count)};
      launch(stream, "copy_matrices", grid, block, 0, whole ? copy<T, kLanes<T>> : copy<T, 1>, copies, k.accumulate);
    }
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
