// The readers of files as programs that take any bytes: for libFuzzer (tests/fuzz/run.sh), and for the tests, which
// give each its seeds, whole and damaged.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace regolith::testing {

struct Reader {
  std::string name;
  void (*read)(const std::string& path);                     // all of the file, as the engine does
  void (*write_seeds)(const std::filesystem::path& folder);  // sound files, of every form that it takes
};
std::span<const Reader> readers();

// Reads `bytes` as a file. An Error of ours says that they are refused: false. Whatever else is thrown is a fault.
bool try_reader(const Reader& reader, std::span<const uint8_t> bytes);

}  // namespace regolith::testing
