// How much memory the system can still give to this process.
#pragma once

#include <cstddef>
#include <string>

namespace regolith {

// What could be allocated without swapping: the kernel's MemAvailable, in which files in the page cache count as free,
// or less, where a control group (a container's, versions 1 and 2) has a lower limit; of the group and of all above it.
// root: in place of /, for tests.
size_t available_memory(const std::string& root = "");

}  // namespace regolith
