// The entry of libFuzzer for the reader that the build names. Its first argument, a folder, gets the reader's seeds.
#include <algorithm>

#include "tests/fuzz/readers.h"

using namespace regolith::testing;

namespace {
const Reader& reader() {
  return *std::find_if(readers().begin(), readers().end(),
                       [](const Reader& r) { return r.name == REGOLITH_FUZZ_READER; });
}
}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc > 1 && std::filesystem::is_directory((*argv)[1])) reader().write_seeds((*argv)[1]);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Reader& fuzzed = reader();
  try_reader(fuzzed, {data, size});
  return 0;
}
