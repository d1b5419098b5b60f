// The checked executor and the collectives in it; each fault that it is there for is made here and must be reported.
#define REGOLITH_CHECKED 1
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "kernels/core/launch.h"
#include "kernels/host/sanitizers.h"

namespace regolith::kernels::checked {
namespace {

using testing::HasSubstr;

void run(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  host::run_grid("probe", grid, block, shared_bytes, body);
}

// What run() throws: the text of its KernelError, or nothing.
std::string fault_of(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  try {
    run(grid, block, shared_bytes, body);
  } catch (const KernelError& e) {
    return e.what();
  }
  return "no fault";
}

TEST(CheckedExecutor, RunsEveryThreadOfEveryBlockOnce) {
  const Dim3 grid{3, 2, 2}, block{5, 4, 3};
  std::vector<int> runs(12 * 60, 0);
  run(grid, block, 0, [&] {
    const int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    EXPECT_EQ(block_threads(), 60);
    EXPECT_EQ(thread_rank(), static_cast<int>(threadIdx.x + 5 * (threadIdx.y + 4 * threadIdx.z)));
    ++runs[b * 60 + thread_rank()];
  });
  EXPECT_EQ(runs, std::vector<int>(12 * 60, 1));
}

TEST(CheckedExecutor, ShufflesGiveTheOtherLanesValue) {
  const int threads = 96;
  std::vector<int> from(threads), across(threads);
  std::vector<float> sum(threads), most(threads);
  run({1}, {threads}, 0, [&] {
    const int t = thread_rank();
    from[t] = shuffle(t, 7);
    across[t] = shuffle_xor(t, 5);
    sum[t] = warp_sum(static_cast<float>(t));
    most[t] = warp_max(static_cast<float>(-t));
  });
  for (int t = 0; t < threads; ++t) {
    const int first = t / 32 * 32;
    EXPECT_EQ(from[t], first + 7);
    EXPECT_EQ(across[t], t ^ 5);
    EXPECT_EQ(sum[t], 32 * first + 496);
    EXPECT_EQ(most[t], -first);
  }
}

TEST(CheckedExecutor, LanesThatDoNotExistAreZero) {
  std::vector<int> sums(40);
  run({1}, {40}, 0, [&] {
    int mine = 1, all[kWarp];
    host::exchange(&mine, all, sizeof mine);
    sums[thread_rank()] = std::accumulate(all, all + kWarp, 0);
  });
  for (int t = 0; t < 40; ++t) EXPECT_EQ(sums[t], t < 32 ? 32 : 8);
}

TEST(CheckedExecutor, BlockSumIsTheSameBitsInEveryThread) {
  const int threads = 256;
  std::vector<float> sums(threads), twice(threads);
  run({1}, {threads}, shared_bytes<float>(kReduceScratch), [&] {
    Shared shared;
    float* scratch = shared.take<float>(kReduceScratch);
    const float x = 1.0f / static_cast<float>(thread_rank() + 1);
    sums[thread_rank()] = block_sum(x, scratch);
    twice[thread_rank()] = block_sum(2 * x, scratch);  // the scratch again, at once
  });
  double expected = 0;
  for (int t = 0; t < threads; ++t) expected += 1.0 / (t + 1);
  for (int t = 0; t < threads; ++t) {
    EXPECT_EQ(sums[t], sums[0]);
    EXPECT_EQ(twice[t], 2 * sums[0]);
  }
  EXPECT_NEAR(sums[0], expected, 1e-6);
}

TEST(CheckedExecutor, RangesOfBlocksTileTheWhole) {
  for (const int64_t n : {0, 1, 255, 256, 257, 4000})
    for (const int64_t step : {1, 16, 256}) {
      std::vector<int> covered(n, 0);
      run({7}, {1}, 0, [&] {
        const Range r = block_range(n, step);
        EXPECT_TRUE(r.begin == n || r.begin % step == 0);
        for (int64_t i = r.begin; i < r.end; ++i) ++covered[i];
      });
      EXPECT_EQ(covered, std::vector<int>(n, 1)) << n << " in steps of " << step;
    }
}

// A tile is turned round through shared memory, block after block: each barrier is needed, and none is missing.
void turn_round(bool first_barrier, bool second_barrier, std::vector<int>& y) {
  const unsigned threads = 64, blocks = static_cast<unsigned>(y.size()) / threads;
  run({blocks}, {threads}, shared_bytes<int>(threads), [&] {
    Shared shared;
    int* tile = shared.take<int>(threads);
    const int t = thread_rank();
    int value = static_cast<int>(blockIdx.x * threads) + t;
    for (int round = 0; round < 3; ++round) {
      tile[t] = value;
      if (first_barrier || round != 1) sync_block();
      value = tile[threads - 1 - t];
      if (second_barrier || round != 1) sync_block();
    }
    y[blockIdx.x * threads + t] = value;
  });
}

TEST(CheckedExecutor, BarriersOrderSharedMemory) {
  std::vector<int> y(64 * 5);
  turn_round(true, true, y);
  for (int i = 0; i < 64 * 5; ++i) EXPECT_EQ(y[i], i / 64 * 64 + 63 - i % 64);
}

TEST(CheckedExecutor, SyncWarpOrdersSharedMemory) {
  std::vector<int> y(64);
  run({2}, {32}, shared_bytes<int>(32), [&] {
    Shared shared;
    int* tile = shared.take<int>(32);
    for (int round = 0; round < 3; ++round) {
      tile[lane()] = lane() + round;
      sync_warp();
      y[blockIdx.x * 32 + lane()] = tile[31 - lane()];
      sync_warp();
    }
  });
  for (int i = 0; i < 64; ++i) EXPECT_EQ(y[i], 31 - i % 32 + 2);
}

TEST(CheckedExecutor, OneSeedGivesOneOrder) {
  const auto order = [](uint64_t seed) {
    std::vector<int> threads;
    const auto note = [&] {  // in the executor's order, which no barrier gives: nothing of the kernel's to be watched
      const host::Unwatched unwatched;
      threads.push_back(static_cast<int>(blockIdx.x * 1000 + threadIdx.x));
    };
    host::set_seed(seed);
    run({4}, {64}, 0, [&] {
      note();
      sync_block();
      note();
    });
    return threads;
  };
  const std::vector<int> a = order(5), b = order(6);
  EXPECT_EQ(a, order(5));
  EXPECT_NE(a, b);
  EXPECT_EQ(std::set<int>(a.begin(), a.end()), std::set<int>(b.begin(), b.end()));
  EXPECT_FALSE(std::is_sorted(a.begin(), a.begin() + 64));
}

TEST(CheckedExecutor, SharedMemoryIsPoisonedWithNaN) {
  for (int grid = 0; grid < 2; ++grid)  // also where an earlier block has written
    run({3}, {32}, shared_bytes<float>(32) + shared_bytes<bf16>(33), [&] {
      Shared shared;
      float* a = shared.take<float>(32);
      bf16* b = shared.take<bf16>(33);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % 16, 0u);
      EXPECT_TRUE(std::isnan(a[lane()]));
      EXPECT_TRUE(std::isnan(static_cast<float>(b[lane()])));
      sync_block();
      a[lane()] = 1;
      b[lane()] = bf16(1.0f);
    });
}

TEST(CheckedExecutor, ReportsABarrierReachedByHalfTheBlock) {
  host::set_seed(77);
  const std::string fault = fault_of({2, 1, 1}, {256}, 0, [] {
    if (threadIdx.x < 128) sync_block();
  });
  EXPECT_THAT(fault, HasSubstr("kernel probe, block ("));
  EXPECT_THAT(fault, HasSubstr("seed 77"));
  EXPECT_THAT(fault, HasSubstr("a barrier was reached by 128 of 256 threads (128 left the kernel"));
}

TEST(CheckedExecutor, ReportsAShuffleThatALaneDoesNotReach) {
  EXPECT_THAT(fault_of({1}, {64}, 0,
                       [] {
                         if (threadIdx.x != 40) warp_sum(1.0f);
                       }),
              HasSubstr("an exchange in warp 1 was reached by 31 of 32 lanes"));
  EXPECT_THAT(fault_of({1}, {32}, 0, [] { lane() < 16 ? sync_warp() : void(shuffle(1, 0)); }),
              HasSubstr("the lanes of warp 0 meet in different exchanges"));
}

TEST(CheckedExecutor, ReportsSharedMemoryTakenWrongly) {
  EXPECT_THAT(fault_of({1}, {32}, 64, [] { Shared().take<float>(17); }),
              HasSubstr("takes 80 bytes of shared memory, but was launched with 64"));
  EXPECT_THAT(fault_of({1}, {32}, 1024, [] { Shared().take<float>(threadIdx.x == 3 ? 8 : 9); }),
              HasSubstr("all must take the same"));
}

TEST(CheckedExecutor, ReportsLaunchesThatNoGpuTakes) {
  EXPECT_THAT(fault_of({1}, {1025}, 0, [] {}), HasSubstr("no GPU runs a block of this size"));
  EXPECT_THAT(fault_of({1, 70000}, {32}, 0, [] {}), HasSubstr("no GPU runs a grid of this size"));
  EXPECT_THAT(fault_of({1}, {32}, 1 << 20, [] {}), HasSubstr("more shared memory than any GPU has"));
}

TEST(CheckedExecutor, ThrowsWhatTheKernelThrowsAndGoesOn) {
  int alive = 0;
  struct Counted {
    int& n;
    explicit Counted(int& count) : n(count) { ++n; }
    ~Counted() { --n; }
  };
  EXPECT_THROW(run({3}, {128}, 0,
                   [&] {
                     const host::Unwatched unwatched;  // the count is shared by all threads
                     const Counted counted(alive);
                     if (threadIdx.x == 77) throw std::invalid_argument("in the kernel");
                     sync_block();
                   }),
               std::invalid_argument);
  EXPECT_EQ(alive, 0);  // the threads that waited were unwound
  std::vector<int> y(64 * 2);
  turn_round(true, true, y);
  EXPECT_EQ(y[0], 63);
}

TEST(CheckedExecutor, ManyBlocksReuseTheirFibers) {
  std::vector<int64_t> sums(400, 0);
  run({400}, {256}, shared_bytes<float>(kReduceScratch), [&] {
    Shared shared;
    const float s = block_sum(1.0f, shared.take<float>(kReduceScratch));
    if (thread_rank() == 0) sums[blockIdx.x] = static_cast<int64_t>(s);
  });
  EXPECT_EQ(sums, std::vector<int64_t>(400, 256));
}

#if defined(REGOLITH_ASAN)
TEST(CheckedExecutorDeathTest, AddressSanitizerReportsAReadPastSharedMemory) {
  const auto read_at = [](int i) {
    float sum = 0;
    run({1}, {32}, shared_bytes<float>(30) + shared_bytes<float>(8), [&] {
      Shared shared;
      float* a = shared.take<float>(30);
      float* b = shared.take<float>(8);
      if (threadIdx.x == 9) sum = a[i] + b[0];
    });
    return sum;
  };
  EXPECT_TRUE(std::isnan(read_at(29)));
  EXPECT_DEATH(read_at(30), "AddressSanitizer: use-after-poison");
  EXPECT_DEATH(read_at(100), "AddressSanitizer: use-after-poison");
  EXPECT_DEATH(read_at(-1), "AddressSanitizer: use-after-poison");
}

TEST(CheckedExecutorDeathTest, AddressSanitizerReportsAReadPastAnArrayOfTheHeap) {
  std::vector<float> x(32), y(32);
  EXPECT_DEATH(run({1}, {32}, 0, [x = x.data(), y = y.data()] { y[threadIdx.x] = x[threadIdx.x + 1]; }),
               "AddressSanitizer: heap-buffer-overflow");
}
#else
TEST(CheckedExecutor, ReportsAWriteToAGuard) {
  const auto write_at = [](int i) {
    return fault_of({1}, {32}, shared_bytes<float>(30) + shared_bytes<float>(8), [&] {
      Shared shared;
      float* a = shared.take<float>(30);
      shared.take<float>(8);
      if (threadIdx.x == 9) a[i] = NAN;
    });
  };
  EXPECT_EQ(write_at(29), "no fault");
  EXPECT_THAT(write_at(30), HasSubstr("byte 120 of piece 0 of shared memory (120 bytes) was written to"));
  EXPECT_THAT(write_at(100), HasSubstr("of piece 0 of shared memory (120 bytes) was written to"));
  EXPECT_THAT(write_at(-1), HasSubstr("byte -"));
}
#endif

#if defined(REGOLITH_TSAN)
// In a child, which ThreadSanitizer ends with an exit code of its own once it has reported.
#define EXPECT_RACE(statement)                                                                                   \
  do {                                                                                                           \
    GTEST_FLAG_SET(death_test_style, "threadsafe");                                                              \
    EXPECT_EXIT(                                                                                                 \
        {                                                                                                        \
          statement;                                                                                             \
          std::exit(0);                                                                                          \
        },                                                                                                       \
        [](int status) { return WIFEXITED(status) && WEXITSTATUS(status) != 0; }, "ThreadSanitizer: data race"); \
  } while (false)

TEST(CheckedExecutorDeathTest, ThreadSanitizerReportsAMissingBarrier) {
  std::vector<int> y(64);
  EXPECT_RACE(turn_round(false, true, y));  // a write, then another thread's read; barriers before and after
  EXPECT_RACE(turn_round(true, false, y));  // a read, then another thread's write
}

TEST(CheckedExecutorDeathTest, ThreadSanitizerReportsAMissingWarpBarrier) {
  EXPECT_RACE(run({1}, {32}, shared_bytes<int>(32), [] {
    Shared shared;
    int* tile = shared.take<int>(32);
    tile[lane()] = lane();
    const int any = shuffle(tile[lane()], 0);  // orders no memory
    sync_warp();
    tile[(lane() + 1) % 32] = any;
    volatile int other = tile[lane()];
    (void)other;
  }));
}

TEST(CheckedExecutorDeathTest, ThreadSanitizerReportsBlocksThatWriteTheSameBytes) {
  int total = 0;
  EXPECT_RACE(run({2}, {64}, 0, [&] {
    sync_block();
    if (threadIdx.x == 0) total = static_cast<int>(blockIdx.x);
    sync_block();
  }));
}
#endif

}  // namespace
}  // namespace regolith::kernels::checked
