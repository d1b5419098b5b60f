#include "kernels/copy_matrices.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Copies {
  const char* name;
  int count, rows, columns, from_gap, to_gap;  // elements between a row and the next
  bool accumulate = false;
};

TestCase make_case(const Copies& k) {
  return {.name = std::string("copy_matrices_") + k.name, .make = [k](Fixture& fixture) {
            kernels::CopyMatrices args;
            args.type = fixture.dtype();
            args.accumulate = k.accumulate;
            std::vector<std::pair<Buffer*, Values>> expected;
            int64_t elements = 0;
            for (int i = 0; i < k.count; ++i) {
              const int rows = k.rows + i % 3;
              const bool zeros = i % 4 == 1;
              const Layout to_layout{1, 1, rows, k.columns, k.to_gap, 0};
              Buffer& to =
                  k.accumulate ? fixture.inout("to", to_layout, integers(-9, 9)) : fixture.output("to", to_layout);
              Values sum = k.accumulate ? to.values() : Values(to_layout.size());
              kernels::MatrixCopy copy{nullptr, to.as<void>(), rows, k.columns, 0, k.columns + k.to_gap};
              if (!zeros) {
                Buffer& from = fixture.input("from", {1, 1, rows, k.columns, 0, k.from_gap}, integers(-9, 9));
                copy.from = from.as<void>();
                copy.from_pitch = k.columns + k.from_gap;
                for (size_t j = 0; j < sum.size(); ++j) sum[j] += from.values()[j];
              }
              args.copies.push_back(copy);
              expected.emplace_back(&to, sum);
              elements += static_cast<int64_t>(rows) * k.columns;
            }
            return CaseRun{.run = [&fixture, args] { kernels::copy_matrices(fixture.stream(), args); },
                           .check =
                               [expected] {
                                 for (const auto& [buffer, values] : expected) buffer->expect(values, kExact);
                               },
                           .bytes = 2 * elements * static_cast<int64_t>(size_of(fixture.dtype())),
                           .flops = 0};
          }};
}

const Register cases_of_copy_matrices([] {
  std::vector<TestCase> list{
      make_case({"gathers", 5, 7, 32, 64, 0}),
      make_case({"scatters_and_adds", 6, 9, 16, 0, 128, true}),
      make_case({"odd_columns", 3, 4, 5, 2, 3}),
      make_case({"one_number", 2, 1, 1, 0, 0, true}),
      make_case({"more_than_a_launch_takes", 130, 1, 16, 0, 16}),
  };
  list.push_back(make_case({"large", 12, 512, 256, 2048, 0}));
  list.back().large = true;
  return list;
}());

}  // namespace
}  // namespace regolith::testing
