#include "tests/support/cases.h"

#include <cstdlib>

namespace regolith::testing {

std::vector<TestCase>& cases() {
  static std::vector<TestCase> all;
  return all;
}

Register::Register(std::vector<TestCase> more) {
  for (TestCase& c : more) cases().push_back(std::move(c));
}

void verify(const TestCase& c, Device& device, DType dtype, uint64_t seed) {
  Fixture fixture(device, dtype, seed);
  const CaseRun instance = c.make(fixture);
  fixture.mark_workspaces();
  const auto run = [&] {
    instance.run();
    fixture.stream().synchronize();
    return fixture.written();
  };
  const auto first = run();
  instance.check();
  fixture.expect_untouched();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which find in one run what they are there for
  fixture.rewind();
  if (run() != first) throw Mismatch(c.name + ": a second run from the same inputs gives other bytes");
#endif
}

uint64_t seed_of(const TestCase& c) {
  if (const char* given = std::getenv("REGOLITH_SEED")) return std::strtoull(given, nullptr, 10);
  uint64_t hash = 14695981039346656037ull;  // FNV-1a: the same on every machine
  for (const char letter : c.name) hash = (hash ^ static_cast<unsigned char>(letter)) * 1099511628211ull;
  return hash % 1000000;
}

}  // namespace regolith::testing
