#include "tests/support/cases.h"

#include <cstdlib>

namespace regolith::testing {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

Register::Register(std::vector<Case> more) {
  for (Case& c : more) cases().push_back(std::move(c));
}

void verify(const Case& c, Device& device, DType dtype, uint64_t seed) {
  std::vector<std::vector<unsigned char>> first;
  for (int round = 0; round < 2; ++round) {
    Lab lab(device, dtype, seed);
    const Instance instance = c.make(lab);
    instance.run();
    lab.stream().synchronize();
    if (round == 1) {
      if (lab.written() != first) throw Mismatch(c.name + ": a second run from the same inputs gives other bytes");
      continue;
    }
    instance.check();
    lab.expect_untouched();
    first = lab.written();
  }
}

uint64_t seed_of(const Case& c) {
  if (const char* given = std::getenv("REGOLITH_SEED")) return std::strtoull(given, nullptr, 10);
  uint64_t hash = 14695981039346656037ull;  // FNV-1a: the same on every machine
  for (const char letter : c.name) hash = (hash ^ static_cast<unsigned char>(letter)) * 1099511628211ull;
  return hash % 1000000;
}

}  // namespace regolith::testing
