// Memory that is left, from the files of made-up systems.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "engine/tensor/host_memory.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

class HostMemory : public testing::Test {
 protected:
  HostMemory() {
    write("proc/meminfo", "MemTotal: 32000 kB\nMemFree: 1000 kB\nMemAvailable:   20000 kB\nCached: 19000 kB\n");
  }
  ~HostMemory() override { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  size_t left() const { return available_memory(root_.string()); }

  fs::path root_ = fs::path(testing::TempDir()) /
                   (std::string("regolith_") + testing::UnitTest::GetInstance()->current_test_info()->name());
};
constexpr size_t kAll = size_t{20000} << 10;

TEST_F(HostMemory, FilesInThePageCacheAreFree) { EXPECT_EQ(left(), kAll); }

TEST_F(HostMemory, TheLowestLimitOfTheGroupsAboveCounts) {
  write("proc/self/cgroup", "0::/pod/container\n");
  write("sys/fs/cgroup/pod/container/memory.max", "max\n");
  write("sys/fs/cgroup/pod/container/memory.current", "5000000\n");
  EXPECT_EQ(left(), kAll);
  write("sys/fs/cgroup/pod/memory.max", "9000000\n");
  write("sys/fs/cgroup/pod/memory.current", "6000000\n");
  EXPECT_EQ(left(), 3000000u);
  write("sys/fs/cgroup/pod/memory.stat", "anon 1000000\nfile 5000000\ninactive_file 3000000\nactive_file 1000000\n");
  EXPECT_EQ(left(), 7000000u) << "what the group read is given back";
  write("sys/fs/cgroup/pod/container/memory.max", "4000000\n");
  EXPECT_EQ(left(), 0u) << "beyond its limit";
}

TEST_F(HostMemory, AContainerSeesItsGroupAtTheTop) {
  write("proc/self/cgroup", "0::/not/to/be/seen\n");
  write("sys/fs/cgroup/memory.max", "8000000\n");
  write("sys/fs/cgroup/memory.current", "1000000\n");
  EXPECT_EQ(left(), 7000000u);
}

TEST_F(HostMemory, GroupsOfVersion1) {
  write("proc/self/cgroup", "12:cpu,cpuacct:/job\n9:memory:/job\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "6000000\n");
  write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "5000000\n");
  write("sys/fs/cgroup/memory/job/memory.stat",
        "inactive_file 7\ntotal_inactive_file 1000000\ntotal_active_file 500000\n");
  EXPECT_EQ(left(), 2500000u);
}

TEST_F(HostMemory, ThisSystemHasSome) { EXPECT_GT(available_memory(), size_t{1} << 20); }

}  // namespace
}  // namespace regolith
