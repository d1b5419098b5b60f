#include <algorithm>

#include "kernels/add.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Add {
  const char* name;
  Layout a, b, y;  // b.C = 0: absent
  bool accumulate = false;
  bool relu = false;
};

TestCase make_case(const Add& k) {
  return {.name = std::string("add_") + k.name, .make = [k](Fixture& fixture) {
            const Fill small = integers(-20, 20);  // sums are exact in every type
            Buffer& a = fixture.input("a", k.a, small);
            Buffer* b = k.b.C > 0 ? &fixture.input("b", k.b, small) : nullptr;
            Buffer& y = k.accumulate ? fixture.inout("y", k.y, small) : fixture.output("y", k.y);
            Values sum = a.values();
            for (size_t i = 0; i < sum.size(); ++i) {
              sum[i] += (b ? b->values()[i] : 0) + (k.accumulate ? y.values()[i] : 0);
              if (k.relu) sum[i] = std::max(0.0, sum[i]);
            }
            const int64_t maps = 2 + (b != nullptr) + k.accumulate;
            const kernels::AddForward args{a.map(), b ? b->map() : TensorView{}, y.map(), k.accumulate, k.relu};
            return CaseRun{.run = [&fixture, args] { kernels::add_forward(fixture.stream(), args); },
                           .check = [&y, sum] { y.expect(sum, kExact); },
                           .bytes = maps * static_cast<int64_t>(k.y.size() * size_of(fixture.dtype())),
                           .flops = (maps - 2) * static_cast<int64_t>(k.y.size())};
          }};
}

const Layout kNone{0, 0, 0, 0};
TestCase large(TestCase c) {
  c.large = true;
  return c;
}
const Register cases_of_add({
    make_case({"whole", {2, 3, 5, 16}, {2, 3, 5, 16}, {2, 3, 5, 16}}),
    make_case({"copies_slice", {2, 3, 5, 16, 16, 8}, kNone, {2, 3, 5, 16}}),
    make_case({"into_slice", {2, 3, 5, 16}, kNone, {2, 3, 5, 16, 8, 16}}),
    make_case({"odd_channels", {1, 4, 3, 5, 1, 2}, {1, 4, 3, 5}, {1, 4, 3, 5, 3, 0}}),
    make_case({"accumulates", {2, 5, 7, 32}, {2, 5, 7, 32, 32, 0}, {2, 5, 7, 32, 0, 32}, true}),
    make_case({"relu", {2, 5, 7, 32}, {2, 5, 7, 32, 32, 0}, {2, 5, 7, 32, 0, 32}, false, true}),
    make_case({"one_pixel", {1, 1, 1, 1}, kNone, {1, 1, 1, 1}, true}),
    large(make_case({"large", {4, 64, 128, 32}, {4, 64, 128, 32}, {4, 64, 128, 32}})),
    large(make_case({"large_copy", {4, 64, 128, 32}, kNone, {4, 64, 128, 32}})),
});

}  // namespace
}  // namespace regolith::testing
