// The registry of kernel cases. A case is described once, in tests/kernels/cases_*.cpp, and serves correctness (every
// execution, every element type), gradients and benchmarks.
//
//   const Register cases_of_add({{.name = "add_slice", .make = [](Fixture& fixture) {
//     Buffer &a = fixture.input("a", {2, 3, 5, 8, 8, 0}, normal()), &y = fixture.output("y", {2, 3, 5, 8});
//     return CaseRun{.run = [&] { kernels::add_forward(fixture.stream(), {.a = a.map(), .y = y.map()}); },
//                     .check = [&] { y.expect(a.values(), tolerance(fixture.dtype())); }, .bytes = ..., .flops = ...};
//   }}});
#pragma once

#include "tests/support/fixture.h"

namespace regolith::testing {

struct CaseRun {
  std::function<void()> run = {};    // enqueues the kernel on the fixture's stream
  std::function<void()> check = {};  // after the first run is done; throws Mismatch
  int64_t bytes = 0, flops = 0;      // that the algorithm must move and compute
};

struct TestCase {
  std::string name;                             // letters, digits and underscores; the kernel's name first
  std::function<CaseRun(Fixture&)> make = {};   // null: only a gradient
  std::function<void(uint64_t)> gradient = {};  // checks the oracle's backward by finite differences; takes a seed
  std::vector<DType> dtypes = {DType::f32, DType::bf16, DType::f16};
  bool large = false;  // for benchmarks: too slow for the checked execution
};

std::vector<TestCase>& cases();
struct Register {
  explicit Register(std::vector<TestCase> more);
};

// Makes, runs and checks a case, looks for stray writes, then does it again from the same bytes and compares. Throws
// Mismatch.
void verify(const TestCase&, Device&, DType, uint64_t seed);

// The seed of a case: that of the environment's REGOLITH_SEED, or one made of its name.
uint64_t seed_of(const TestCase&);

}  // namespace regolith::testing
