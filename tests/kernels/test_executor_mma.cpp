// Tensor-core fragments and products in the checked executor, against a plain product of small integers: no tolerance.
#define REGOLITH_CHECKED 1
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/mma.h"

namespace regolith::kernels::checked {
namespace {

// Each operand in the way that a kernel may have it in shared memory.
template <class T>
void compare_with_plain_product(bool a_transposed, bool b_transposed) {
  constexpr int M = 16, N = 8, K = 48, kWarps = 2, pitch = 56;
  const auto a = [](int m, int k) { return static_cast<float>((7 * m + 3 * k) % 17 - 8); };
  const auto b = [](int k, int n) { return static_cast<float>((5 * k + 11 * n) % 13 - 6); };
  std::vector<float> c(kWarps * M * N, NAN);
  const size_t tile = shared_bytes<T>(K * pitch);
  host::run_grid("product", {1}, {kWarps * 32}, 2 * tile, [&] {
    Shared shared;
    T* as = shared.take<T>(K * pitch);
    T* bs = shared.take<T>(K * pitch);
    for (int i = thread_rank(); i < M * K; i += block_threads()) {
      const int m = i / K, k = i % K;
      as[a_transposed ? k * pitch + m : m * pitch + k] = T(a(m, k));
    }
    for (int i = thread_rank(); i < K * N; i += block_threads()) {
      const int k = i / N, n = i % N;
      bs[b_transposed ? n * pitch + k : k * pitch + n] = T(b(k, n));
    }
    sync_block();
    MmaC sum;
    for (int k = 0; k < K; k += 16) {
      const MmaA<T> fa = a_transposed ? load_a_transposed(as + k * pitch, pitch) : load_a(as + k, pitch);
      const MmaB<T> fb = b_transposed ? load_b_transposed(bs + k, pitch) : load_b(bs + k * pitch, pitch);
      mma_16x8x16(sum, fa, fb);
    }
    for (int i = 0; i < 4; ++i) c[(warp_rank() * M + mma_row(i)) * N + mma_column(i)] = sum.v[i];
  });
  for (int m = 0; m < kWarps * M; ++m)
    for (int n = 0; n < N; ++n) {
      float expected = 0;
      for (int k = 0; k < K; ++k) expected += a(m % M, k) * b(k, n);
      EXPECT_EQ(c[m * N + n], expected) << "row " << m << ", column " << n;
    }
}

TEST(TensorCore, ProductsOfIntegersAreExact) {
  for (const bool a_transposed : {false, true})
    for (const bool b_transposed : {false, true}) {
      compare_with_plain_product<bf16>(a_transposed, b_transposed);
      compare_with_plain_product<fp16>(a_transposed, b_transposed);
    }
}

TEST(TensorCore, RefusesTilesThatTheGpuCannotLoad) {
  const auto load_with = [](int offset, int pitch) {
    host::run_grid("load", {1}, {32}, shared_bytes<bf16>(32 * 32), [=] {
      Shared shared;
      const bf16* tile = shared.take<bf16>(32 * 32);
      load_a(tile + offset, pitch);
    });
  };
  EXPECT_NO_THROW(load_with(8, 24));
  EXPECT_THROW(load_with(4, 24), KernelError);
  EXPECT_THROW(load_with(0, 20), KernelError);
}

TEST(TensorCore, CountsBankConflicts) {
  const auto conflicts_of = [](int pitch) {
    const int64_t before = host::bank_conflicts();
    host::run_grid("load", {1}, {32}, shared_bytes<bf16>(16 * 64), [=] {
      Shared shared;
      bf16* tile = shared.take<bf16>(16 * 64);
      for (int i = lane(); i < 16 * 64; i += 32) tile[i] = bf16(0.0f);
      sync_warp();
      load_a(tile, pitch);
    });
    return host::bank_conflicts() - before;
  };
  EXPECT_EQ(conflicts_of(24), 0);
  EXPECT_EQ(conflicts_of(16), 4);      // of each of 4 matrices two rows meet in every bank
  EXPECT_EQ(conflicts_of(64), 4 * 7);  // all 8
}

}  // namespace
}  // namespace regolith::kernels::checked
