// What this process takes.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace regolith::testing {

// A line of /proc/self/status in bytes: "VmRSS:" now, "VmHWM:" the peak.
inline int64_t process_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != key) continue;
    int64_t kilobytes = 0;
    status >> kilobytes;
    return 1024 * kilobytes;
  }
  return 0;
}

// From now on the peak begins anew. False where that cannot be.
inline bool reset_peak() {
  std::ofstream clear("/proc/self/clear_refs");
  return static_cast<bool>(clear << "5" << std::flush);
}

}  // namespace regolith::testing
