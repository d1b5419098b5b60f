// Every registered case, in every execution that this machine has.
#include <gtest/gtest.h>

#include <ostream>

#include "kernels/host/checked.h"
#include "places.h"
#include "tests/support/cases.h"

namespace regolith::testing {

void PrintTo(const TestCase& c, std::ostream* out) { *out << c.name; }

namespace {

std::string repeat(const TestCase& c, uint64_t seed) {
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  return "seed " + std::to_string(seed) + " of " + c.name +
         "; repeat it with\n  REGOLITH_SEED=" + std::to_string(seed) +
         " " REGOLITH_BINARY_DIR "/tests/test_kernels --gtest_filter='" + info->test_suite_name() + "." + info->name() +
         "'";
}

class KernelCase : public ::testing::TestWithParam<TestCase> {
 protected:
  void verify_on(Device& device) {
    const TestCase& c = GetParam();
    const uint64_t seed = seed_of(c);
    const Execution execution = device.execution();
    for (const DType t : c.dtypes) {
      if (t == DType::f16 && execution == Execution::fast) continue;  // with_float_type refuses it there
      try {
        verify(c, device, t, seed);
      } catch (const std::exception& e) {
        ADD_FAILURE() << name_of(t) << ": " << e.what() << "\n" << repeat(c, seed);
      }
    }
  }
};

std::vector<TestCase> chosen(bool (*wanted)(const TestCase&)) {
  std::vector<TestCase> list;
  for (const TestCase& c : cases()) {
    if (wanted(c)) list.push_back(c);
  }
  return list;
}
[[maybe_unused]] bool has_run(const TestCase& c) { return c.make != nullptr; }  // not under a sanitizer
bool is_small(const TestCase& c) { return c.make != nullptr && !c.large; }
bool has_gradient(const TestCase& c) { return c.gradient != nullptr; }
std::string name_of_case(const ::testing::TestParamInfo<TestCase>& info) { return info.param.name; }

class FastCase : public KernelCase {};
TEST_P(FastCase, Runs) { verify_on(*make_cpu_device(2, Execution::fast)); }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // those programs have the checked kernels alone
INSTANTIATE_TEST_SUITE_P(Kernels, FastCase, ::testing::ValuesIn(chosen(has_run)), name_of_case);
#endif
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FastCase);

class CheckedCase : public KernelCase {};
TEST_P(CheckedCase, Runs) {
  const int64_t before = host::bank_conflicts();
  verify_on(*make_cpu_device(1, Execution::checked));
  if (GetParam().name.starts_with("tile_")) {
    EXPECT_EQ(host::bank_conflicts() - before, 0);
  }
}
INSTANTIATE_TEST_SUITE_P(Kernels, CheckedCase, ::testing::ValuesIn(chosen(is_small)), name_of_case);

#if defined(REGOLITH_CUDA)
class CudaCase : public KernelCase {};
TEST_P(CudaCase, Runs) {
  if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
  verify_on(*make_cuda_device());
}
INSTANTIATE_TEST_SUITE_P(Kernels, CudaCase, ::testing::ValuesIn(chosen(has_run)), name_of_case);
#endif

class OracleCase : public KernelCase {};
TEST_P(OracleCase, GradientMatchesFiniteDifferences) {
  const uint64_t seed = seed_of(GetParam());
  try {
    GetParam().gradient(seed);
  } catch (const std::exception& e) {
    FAIL() << e.what() << "\n" << repeat(GetParam(), seed);
  }
}
INSTANTIATE_TEST_SUITE_P(Kernels, OracleCase, ::testing::ValuesIn(chosen(has_gradient)), name_of_case);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OracleCase);

}  // namespace
}  // namespace regolith::testing
