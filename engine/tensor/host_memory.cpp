#include "engine/tensor/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

namespace regolith {
namespace {

namespace fs = std::filesystem;

// The number after a word of a file; without a word the first number.
std::optional<size_t> number_in(const fs::path& file, const std::string& word = "") {
  std::ifstream in(file);
  size_t number = 0;
  for (std::string w; !word.empty() && w != word;)
    if (!(in >> w)) return {};
  if (!(in >> number)) return {};  // "max": no limit
  return number;
}

struct Controller {
  const char *name, *folder;  // in /proc/self/cgroup, under /sys/fs/cgroup
  const char *limit, *usage, *cache;
};
constexpr Controller kControllers[] = {
    {"", "", "memory.max", "memory.current", ""},
    {"memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"}};

// Of one group: its limit less what is used, files in the page cache not counted.
std::optional<size_t> left_of(const fs::path& group, const Controller& c) {
  const auto limit = number_in(group / c.limit);
  if (!limit) return {};
  size_t used = number_in(group / c.usage).value_or(0);
  for (const char* list : {"inactive_file", "active_file"})
    used -= std::min(used, number_in(group / "memory.stat", std::string(c.cache) + list).value_or(0));
  return *limit - std::min(*limit, used);
}

}  // namespace

size_t available_memory(const std::string& root) {
  size_t left = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (const auto kibibytes = number_in(root + "/proc/meminfo", "MemAvailable:")) left = *kibibytes * 1024;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path", "9:memory:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == line.npos) continue;
    for (const Controller& c : kControllers) {
      if (line.substr(first + 1, second - first - 1) != c.name) continue;
      const fs::path top = fs::path(root + "/sys/fs/cgroup") / c.folder;
      // A container may see its own group at the top: folders that are not there have no limit.
      for (fs::path path = fs::path(line.substr(second + 1)).relative_path();; path = path.parent_path()) {
        left = std::min(left, left_of(top / path, c).value_or(left));
        if (path.empty()) break;
      }
    }
  }
  return left;
}

}  // namespace regolith
