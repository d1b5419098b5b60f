#include "kernels/position_embedding.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Embedding {
  const char* name;
  Layout x, y;
  bool in_place = false, accumulate = false, large = false;
  Layout row() const { return {1, x.H, x.W, x.C}; }
};

// Small integers: sums are exact in every type.
TestCase forward(const Embedding& k) {
  return {.name = std::string("position_embedding_forward_") + k.name,
          .make =
              [k](Fixture& fixture) {
                const Fill small = integers(-9, 9);
                Buffer& x = k.in_place ? fixture.inout("x", k.x, small) : fixture.input("x", k.x, small);
                Buffer& embedding = fixture.input("embedding", k.row(), small, DType::f32);
                Buffer& y = k.in_place ? x : fixture.output("y", k.y);
                Values expected = x.values();
                for (size_t i = 0; i < expected.size(); ++i) expected[i] += embedding.values()[i % k.row().size()];
                const kernels::PositionEmbeddingForward args{x.map(), embedding.as<float>(), y.map()};
                return CaseRun{.run = [&fixture, args] { kernels::position_embedding_forward(fixture.stream(), args); },
                               .check = [&y, expected] { y.expect(expected, kExact); },
                               .bytes = 2 * static_cast<int64_t>(k.x.size() * size_of(fixture.dtype())),
                               .flops = static_cast<int64_t>(k.x.size())};
              },
          .large = k.large};
}

TestCase backward(const Embedding& k) {
  TestCase c{.name = std::string("position_embedding_backward_") + k.name,
             .make =
                 [k](Fixture& fixture) {
                   const Fill small = integers(-9, 9);
                   Buffer& dy = fixture.input("dy", k.x, small);
                   Buffer& sum = k.accumulate ? fixture.inout("dembedding", k.row(), small, DType::f32)
                                              : fixture.output("dembedding", k.row(), DType::f32);
                   Values expected = k.accumulate ? sum.values() : Values(k.row().size());
                   for (size_t i = 0; i < k.x.size(); ++i) expected[i % expected.size()] += dy.values()[i];
                   const kernels::PositionEmbeddingBackward args{dy.map(), sum.as<float>(), k.accumulate};
                   return CaseRun{
                       .run = [&fixture, args] { kernels::position_embedding_backward(fixture.stream(), args); },
                       .check = [&sum, expected] { sum.expect(expected, kExact); },
                       .bytes = static_cast<int64_t>(k.x.size() * size_of(fixture.dtype())),
                       .flops = static_cast<int64_t>(k.x.size())};
                 },
             .large = k.large};
  return c;
}

const Embedding kCases[] = {
    {"whole", {3, 4, 5, 32}, {3, 4, 5, 32}},
    {"slices", {2, 3, 9, 24, 8, 16}, {2, 3, 9, 24, 32, 0}},
    {"odd_channels", {3, 4, 3, 5, 1, 0}, {3, 4, 3, 5, 0, 2}},
    {"in_place", {2, 6, 5, 16, 16, 0}, {2, 6, 5, 16, 16, 0}, true},
    {"accumulates", {4, 2, 3, 64, 8, 8}, {4, 2, 3, 64}, false, true},
    {"one_value", {1, 1, 1, 1}, {1, 1, 1, 1}},
    {"large", {16, 16, 32, 128}, {16, 16, 32, 128}, false, false, true},
};
const Register cases_of_position_embedding([] {
  std::vector<TestCase> all;
  for (const Embedding& k : kCases) {
    all.push_back(forward(k));
    all.push_back(backward(k));
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
