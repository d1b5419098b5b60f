// Products of maps, repeated or not.
#include "kernels/multiply.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Product {
  const char* name;
  Layout a, b;
  int before = 0, after = 0;                        // channels around y, dy, da and db in their parents
  bool accumulate_a = false, accumulate_b = false;  // in backward
  bool wants_a = true, wants_b = true;
  Layout y() const { return {a.N, a.H, a.W, a.C, before, after}; }
  Layout db() const { return {b.N, b.H, b.W, b.C, before, after}; }
  int64_t repeats() const { return static_cast<int64_t>(a.size() / b.size()); }
};

// Calls f(index into a and y, index into b).
template <class F>
void each_term(const Product& k, F&& f) {
  for (int n = 0; n < k.a.N; ++n)
    for (int h = 0; h < k.a.H; ++h)
      for (int w = 0; w < k.a.W; ++w)
        for (int c = 0; c < k.a.C; ++c)
          f(((static_cast<size_t>(n) * k.a.H + h) * k.a.W + w) * k.a.C + c,
            ((static_cast<size_t>(n) * k.b.H + h % k.b.H) * k.b.W + w % k.b.W) * k.b.C + c % k.b.C);
}
Values forward(const Product& k, const Values& a, const Values& b) {
  Values y(a.size());
  each_term(k, [&](size_t i, size_t j) { y[i] = a[i] * b[j]; });
  return y;
}
std::pair<Values, Values> backward(const Product& k, const Values& a, const Values& b, const Values& dy) {
  Values da(a.size()), db(b.size());
  each_term(k, [&](size_t i, size_t j) {
    da[i] = dy[i] * b[j];
    db[j] += dy[i] * a[i];
  });
  return {da, db};
}

TestCase forward_case(const Product& k) {
  return {.name = std::string("multiply_forward_") + k.name, .make = [k](Fixture& fixture) {
            Buffer &a = fixture.input("a", k.a, integers(-9, 9)), &b = fixture.input("b", k.b, integers(-9, 9));
            Buffer& y = fixture.output("y", k.y());
            const kernels::MultiplyForward args{a.map(), b.map(), y.map()};
            return CaseRun{.run = [&fixture, args] { kernels::multiply_forward(fixture.stream(), args); },
                           .check = [&y, expected = forward(k, a.values(), b.values())] { y.expect(expected, kExact); },
                           .bytes = static_cast<int64_t>((2 * k.a.size() + k.b.size()) * size_of(fixture.dtype())),
                           .flops = static_cast<int64_t>(k.a.size())};
          }};
}

TestCase backward_case(const Product& k) {
  return {.name = std::string("multiply_backward_") + k.name,
          .make =
              [k](Fixture& fixture) {
                // What is not wanted is not given, and what only it would need is not either.
                Buffer* a = k.wants_b ? &fixture.input("a", k.a, normal()) : nullptr;
                Buffer* b = k.wants_a ? &fixture.input("b", k.b, normal()) : nullptr;
                Buffer& dy = fixture.input("dy", k.y(), normal());
                const auto make = [&](bool wanted, bool accumulate, const char* name, Layout l) {
                  return !wanted ? nullptr : accumulate ? &fixture.inout(name, l, normal()) : &fixture.output(name, l);
                };
                Buffer* da = make(k.wants_a, k.accumulate_a, "da", k.y());
                Buffer* db = make(k.wants_b, k.accumulate_b, "db", k.db());
                auto [first, second] = backward(k, a == nullptr ? Values(k.a.size()) : a->values(),
                                                b == nullptr ? Values(k.b.size()) : b->values(), dy.values());
                for (size_t i = 0; k.accumulate_a && da != nullptr && i < first.size(); ++i)
                  first[i] += da->values()[i];
                for (size_t i = 0; k.accumulate_b && db != nullptr && i < second.size(); ++i)
                  second[i] += db->values()[i];
                const auto map = [](const Buffer* m) { return m == nullptr ? TensorView{} : m->map(); };
                const size_t workspace = db == nullptr ? 0 : kernels::multiply_workspace(dy.map(), db->map());
                const kernels::MultiplyBackward args{
                    map(a),  map(b),         dy.map(),       map(da),
                    map(db), k.accumulate_a, k.accumulate_b, fixture.workspace(workspace)};
                const int64_t moved = dy.values().size() + (k.wants_b ? k.a.size() + k.b.size() : 0) +
                                      (k.wants_a ? k.a.size() + k.b.size() : 0);
                return CaseRun{.run = [&fixture, args] { kernels::multiply_backward(fixture.stream(), args); },
                               .check =
                                   [=, first = std::move(first), second = std::move(second)] {
                                     if (da != nullptr) da->expect(first, tolerance(da->dtype(), 1, 4));
                                     if (db != nullptr) db->expect(second, tolerance(db->dtype(), k.repeats(), 4));
                                   },
                               .bytes = moved * static_cast<int64_t>(size_of(fixture.dtype())),
                               .flops = static_cast<int64_t>((k.wants_a + 2 * k.wants_b) * k.a.size())};
              },
          .gradient =
              [k](uint64_t seed) {
                Random random(seed);
                Values a(k.a.size()), b(k.b.size()), dy(k.a.size());
                for (Values* list : {&a, &b, &dy})
                  for (double& v : *list) v = random.normal();
                const auto loss = [&](const Values& at, const Values& bt) {
                  const Values y = forward(k, at, bt);
                  double sum = 0;
                  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
                  return sum;
                };
                const auto [da, db] = backward(k, a, b, dy);
                expect_gradient(
                    "da of the product", [&](const Values& at) { return loss(at, b); }, a, da);
                expect_gradient(
                    "db of the product", [&](const Values& bt) { return loss(a, bt); }, b, db);
              }};
}

// da is dy's memory; or a * a, whose two gradients are one map.
TestCase shared_case(const char* name, Layout b_layout, bool square) {
  const Product k{name, {2, 3, 5, 16}, b_layout};
  return {.name = std::string("multiply_backward_") + name, .make = [=](Fixture& fixture) {
            Buffer& a = fixture.input("a", k.a, integers(-9, 9));
            Buffer& b = square ? a : fixture.input("b", k.b, integers(-9, 9));
            Buffer& dy = fixture.inout("dy", k.a, integers(-3, 3));
            Buffer* db = square ? &dy : &fixture.output("db", k.b);
            auto [first, second] = backward(k, a.values(), b.values(), dy.values());
            if (square)
              for (size_t i = 0; i < first.size(); ++i) first[i] += second[i];
            const kernels::MultiplyBackward args{
                a.map(),   b.map(), dy.map(), dy.map(),
                db->map(), false,   square,   fixture.workspace(kernels::multiply_workspace(dy.map(), db->map()))};
            return CaseRun{.run = [&fixture, args] { kernels::multiply_backward(fixture.stream(), args); },
                           .check =
                               [=, &dy, first = std::move(first), second = std::move(second)] {
                                 dy.expect(first, kExact);
                                 if (!square) db->expect(second, tolerance(db->dtype(), 1, 16));
                               }};
          }};
}

const Product kProducts[] = {
    {"whole", {2, 3, 5, 16}, {2, 3, 5, 16}},
    {"whole_few_channels", {2, 8, 8, 3}, {2, 8, 8, 3}},
    {"slices", {2, 3, 5, 16, 16, 0}, {2, 3, 5, 16, 0, 32}, 16, 16},
    {"odd_slices", {1, 3, 5, 5, 1, 0}, {1, 3, 5, 5, 0, 2}, 2, 0, true, true},
    {"only_a", {1, 3, 5, 8}, {1, 3, 5, 8}, 0, 0, false, false, true, false},
    {"only_b", {1, 3, 5, 8}, {1, 3, 5, 8}, 0, 0, false, true, false, true},
    {"channels", {2, 3, 5, 64}, {2, 3, 5, 1}},
    {"channels_three_vectors", {2, 3, 5, 48}, {2, 3, 5, 1}, 0, 0, true, true},
    {"channels_five", {2, 3, 7, 5}, {2, 3, 7, 1}},
    {"channels_slices", {2, 3, 5, 16, 16, 0}, {2, 3, 5, 1, 3, 1}, 16, 16},
    {"channels_many", {1, 2, 3, 1040}, {1, 2, 3, 1}},
    {"channels_only_a", {2, 3, 7, 5}, {2, 3, 7, 1}, 0, 0, false, false, true, false},
    {"channels_only_b", {2, 3, 5, 16}, {2, 3, 5, 1}, 0, 0, false, false, false, true},
    {"pixels", {2, 5, 7, 64}, {2, 1, 1, 64}},
    {"pixels_in_parts", {2, 24, 33, 48}, {2, 1, 1, 48}, 0, 0, true, true},
    {"pixels_five", {3, 3, 7, 5}, {3, 1, 1, 5}, 1, 2},
    {"pixels_slices", {2, 3, 5, 16, 16, 0}, {2, 1, 1, 16, 16, 0}, 16, 16},
    {"pixels_many", {1, 2, 3, 2080}, {1, 1, 1, 2080}},
    {"pixels_only_a", {2, 3, 7, 16}, {2, 1, 1, 16}, 0, 0, true, false, true, false},
    {"pixels_only_b", {2, 3, 5, 16}, {2, 1, 1, 16}, 0, 0, false, false, false, true},
};

const Register cases_of_multiply([] {
  std::vector<TestCase> list{
      shared_case("in_place", {2, 3, 5, 16}, false), shared_case("channels_in_place", {2, 3, 5, 1}, false),
      shared_case("pixels_in_place", {2, 1, 1, 16}, false), shared_case("square", {2, 3, 5, 16}, true)};
  for (const Product& k : kProducts) {
    if (!k.accumulate_a && !k.accumulate_b && k.wants_a && k.wants_b) list.push_back(forward_case(k));
    list.push_back(backward_case(k));
  }
  std::vector<TestCase> large;
  for (const Product& k :
       {Product{"large", {4, 64, 128, 32}, {4, 64, 128, 32}},
        Product{"channels_large", {4, 64, 128, 32}, {4, 64, 128, 1}},
        Product{"channels_five_large", {8, 64, 128, 5}, {8, 64, 128, 1}, 0, 0, false, false, true, false},
        Product{"pixels_large", {4, 64, 128, 32}, {4, 1, 1, 32}}}) {
    if (k.wants_b) large.push_back(forward_case(k));
    large.push_back(backward_case(k));
  }
  for (TestCase& c : large) {
    c.large = true;
    c.gradient = nullptr;
    list.push_back(c);
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
