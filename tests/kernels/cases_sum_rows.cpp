// Sums of vectors in a given order.
#include "kernels/sum_rows.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

// order: empty: as they stand.
TestCase rows_case(const char* name, int rows, int count, std::vector<int> order, bool mean = false) {
  return {.name = std::string("sum_rows_") + name,
          .make =
              [=](Fixture& fixture) {
                Buffer& in = fixture.input("rows", {1, 1, rows, count}, normal());
                Buffer& table = fixture.input("order", {1, 1, 1, static_cast<int>(std::max<size_t>(order.size(), 1))},
                                              Values(order.begin(), order.end()), DType::i32);
                Buffer& out = fixture.output("out", {1, 1, 1, count}, DType::f32);
                const int terms = order.empty() ? rows : static_cast<int>(order.size());
                const kernels::SumRows args{.rows = in.as<void>(),
                                            .type = fixture.dtype(),
                                            .order = order.empty() ? nullptr : table.as<int32_t>(),
                                            .terms = terms,
                                            .count = count,
                                            .mean = mean,
                                            .out = out.as<float>()};
                const auto check = [=, &in, &out] {
                  Values expected(count);
                  for (int k = 0; k < count; ++k) {
                    float sum = 0;  // the same additions: not a bit may differ
                    double exact = 0;
                    for (int j = 0; j < terms; ++j) {
                      const double v = in.values()[static_cast<size_t>(order.empty() ? j : order[j]) * count + k];
                      sum = j == 0 ? static_cast<float>(v) : sum + static_cast<float>(v);
                      exact += v;
                    }
                    expected[k] = mean ? static_cast<float>(exact / terms) : sum;
                  }
                  out.expect(expected, Tolerance{});
                };
                return CaseRun{.run = [&fixture, args] { kernels::sum_rows(fixture.stream(), args); },
                               .check = check,
                               .bytes = int64_t{count} * (terms * static_cast<int64_t>(size_of(fixture.dtype())) + 4),
                               .flops = int64_t{count} * (terms - 1)};
              },
          .dtypes = mean ? std::vector{DType::f32} : std::vector{DType::f32, DType::bf16}};
}

const Register cases_of_sum_rows([] {
  std::vector<TestCase> list{rows_case("in_order", 5, 1032, {}), rows_case("by_order", 4, 520, {2, 0, 3, 1}),
                             rows_case("some", 4, 264, {3, 1, 2}), rows_case("one", 1, 8, {}),
                             rows_case("mean", 3, 264, {}, true)};
  TestCase large = rows_case("large", 8, 1 << 20, {});
  large.large = true;
  list.push_back(large);
  return list;
}());

}  // namespace
}  // namespace regolith::testing
