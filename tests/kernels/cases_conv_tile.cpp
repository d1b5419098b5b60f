// Tile convolutions with the norms around them. Small integers and powers of two: what is read through a norm is exact
// in every element type, sums of products are exact in fp32, and a map rounds once when it is stored.
#include <algorithm>

#include "kernels/conv_tile.h"
#include "tests/support/cases.h"
#include "tests/support/conv_oracle.h"
#include "tests/support/dropout_oracle.h"

namespace regolith::testing {
namespace {

enum class Around { none, batch, images };  // statistics of the batch, or of each image

struct Tile {
  const char* name;
  ConvShape shape;
  Around before = Around::none, behind = Around::none;  // norms
  bool relu_before = true, relu_behind = false;         // their activations
  float rate = 0;                                       // of the dropout of both
  bool spatial = false;
  bool bias = false, relu = false;  // of the convolution
  bool residual = false;            // the norm behind added one: its masks come from its output
  bool squeezed = false;            // a squeeze behind that norm left its gradient
  bool moments = true;              // wanted of y, and the sums of dx
  bool dx = true, accumulate = false;
  int beside = 0;  // channels of the parents of maps on both sides of them
  bool large = false;

  ConvOracle oracle() const { return {shape}; }
  Layout x() const { return oracle().x(beside, beside); }
  Layout y() const { return oracle().y(beside, beside); }
  DropoutDraws draws(uint64_t key, const int64_t* step) const { return {rate, spatial, key, step, 5}; }
  kernels::TileWindow window() const { return {shape.R, shape.S, {shape.pad_before[0], shape.pad_before[1]}}; }
};
constexpr int64_t kStep = 3;
constexpr uint64_t kKeyBefore = 0x1111, kKeyBehind = 0x2222;
const Fill kSmall = integers(-2, 2);
const Fill kScales = [](Random& random) { return std::ldexp(1.0, random.integer(-1, 1)); };
const Fill kSlopes = [](Random& random) { return 0.25 * random.integer(-1, 1); };

int samples(const Tile& k, Around a) { return a == Around::images ? k.shape.N : 1; }

// Rows of C coefficients of each sample: means, scales, betas, then, of a gradient, slopes and offsets.
Buffer* coefficients(Fixture& fixture, const Tile& k, const char* name, Around around, int C, int rows) {
  if (around == Around::none) return nullptr;
  Values v;
  for (int s = 0; s < samples(k, around); ++s)
    for (int r = 0; r < rows; ++r)
      for (double e : fixture.draw(C, r == 1 ? kScales : r == 3 ? kSlopes : integers(-1, 1), DType::f32))
        v.push_back(e);
  return &fixture.input(name, {1, 1, samples(k, around) * rows, C}, v, DType::f32);
}
// That of row `row` for element i of a map of the layout.
double coefficient(const Values& v, const Layout& l, Around around, int rows, int row, size_t i) {
  const size_t n = around == Around::images ? i / (static_cast<size_t>(l.H) * l.W * l.C) : 0;
  return v[(n * rows + row) * l.C + i % l.C];
}

// x as the convolution reads it. `slope`: of the activation and dropout, where it is wanted.
Values activated(const Tile& k, const Values& x, const Buffer* coefs, Values* slope = nullptr) {
  if (coefs == nullptr) return x;
  const Layout l = k.oracle().x();
  Values a(x.size());
  const Values drop = dropout_factors(l, k.draws(kKeyBefore, nullptr), kStep);
  if (slope) slope->resize(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const auto of = [&](int row) { return coefficient(coefs->values(), l, k.before, 3, row, i); };
    const double h = (x[i] - of(0)) * of(1) + of(2);
    const bool blocked = k.relu_before && h <= 0;
    a[i] = (blocked ? 0 : h) * drop[i];
    if (slope) (*slope)[i] = blocked ? 0 : drop[i];
  }
  return a;
}

// Of each strip of rows: f(strip, channel, element) for all its elements.
template <class F>
void each_of_strips(const Layout& l, F&& f) {
  const size_t image = static_cast<size_t>(l.H) * l.W * l.C, row = static_cast<size_t>(l.W) * l.C;
  for (size_t i = 0; i < l.size(); ++i)
    f(static_cast<int>(i / image) * kernels::tile_strips(l.H) + static_cast<int>(i % image / row) / kernels::kTileStrip,
      static_cast<int>(i % l.C), i);
}

TestCase forward_case(const Tile& k) {
  const auto make = [k](Fixture& fixture) {
    const ConvOracle oracle = k.oracle();
    Buffer &x = fixture.input("x", k.x(), kSmall), &w = fixture.input("w", oracle.w(), kSmall);
    Buffer* coefs = coefficients(fixture, k, "norm", k.before, k.shape.C, 3);
    Buffer* bias = k.bias ? &fixture.input("bias", oracle.bias(), integers(-9, 9), DType::f32) : nullptr;
    Buffer& y = fixture.output("y", k.y());
    const Layout l = oracle.y();
    const Layout strips{1, l.N * kernels::tile_strips(l.H), 2, l.C};
    Buffer* moments = k.moments ? &fixture.output("moments", strips, DType::f32) : nullptr;
    const int64_t* step = step_in(fixture, kStep);
    const Values expected = rounded_to(fixture.dtype(), oracle.forward(activated(k, x.values(), coefs), w.values(),
                                                                       bias ? bias->values() : Values{}, k.relu));
    Values mean(strips.size() / 2), m2(mean.size()), count(mean.size()), both;
    each_of_strips(l, [&](int s, int c, size_t i) { mean[s * l.C + c] += expected[i], ++count[s * l.C + c]; });
    for (size_t i = 0; i < mean.size(); ++i) mean[i] /= count[i];
    each_of_strips(l, [&](int s, int c, size_t i) { m2[s * l.C + c] += std::pow(expected[i] - mean[s * l.C + c], 2); });
    for (size_t s = 0; s < mean.size() / l.C; ++s)
      for (const Values& from : {mean, m2}) both.insert(both.end(), &from[s * l.C], &from[s * l.C] + l.C);
    return CaseRun{.run =
                       [&, k, coefs, bias, moments, step] {
                         kernels::tile_forward(fixture.stream(), {.x = x.map(),
                                                                  .norm = {coefs ? coefs->as<float>() : nullptr,
                                                                           k.before == Around::images, k.relu_before,
                                                                           k.draws(kKeyBefore, step)},
                                                                  .w = w.as<void>(),
                                                                  .bias = bias ? bias->as<float>() : nullptr,
                                                                  .y = y.map(),
                                                                  .window = k.window(),
                                                                  .relu = k.relu,
                                                                  .moments = moments ? moments->as<float>() : nullptr});
                       },
                   .check =
                       [&y, moments, expected, both] {
                         y.expect(expected, kExact);
                         if (moments)
                           moments->expect(both, {.atol = 2e-3, .rtol = 1e-4});  // about values of 100; 1024 * 2^-24
                       },
                   .bytes = static_cast<int64_t>((l.size() + x.values().size()) * size_of(fixture.dtype())),
                   .flops = 2 * k.shape.macs()};
  };
  return {.name = std::string("tile_forward_") + k.name,
          .make = make,
          .gradient = [k](uint64_t seed) { k.oracle().check(seed); },
          .dtypes = {DType::bf16, DType::f16},
          .large = k.large};
}

TestCase backward_case(const Tile& k) {
  const auto make = [k](Fixture& fixture) {
    const ConvOracle oracle = k.oracle();
    const bool sums_wanted = k.moments && k.dx && k.before != Around::none;
    Buffer &x = fixture.input("x", k.x(), kSmall), &w = fixture.input("w", oracle.w(), kSmall);
    Buffer& dy = fixture.input("dy", k.y(), kSmall);
    Buffer *coefs = coefficients(fixture, k, "norm", k.before, k.shape.C, 3),
           *gradient = coefficients(fixture, k, "norm behind", k.behind, k.shape.K, 5);
    Buffer *raw = gradient ? &fixture.input("y", k.y(), kSmall) : nullptr,
           *made = gradient && k.residual ? &fixture.input("norm's output", k.y(), integers(0, 1)) : nullptr;
    const Layout in = oracle.x(), out = oracle.y();
    Values of_squeeze;
    for (int row = 0; row < 2 * k.shape.N; ++row)
      for (double e : fixture.draw(k.shape.K, row % 2 == 0 ? kScales : integers(-1, 1), DType::f32))
        of_squeeze.push_back(e);
    Buffer* squeeze =
        k.squeezed ? &fixture.input("squeeze", {1, 1, 2 * k.shape.N, k.shape.K}, of_squeeze, DType::f32) : nullptr;
    Buffer* dx = !k.dx ? nullptr : k.accumulate ? &fixture.inout("dx", k.x(), kSmall) : &fixture.output("dx", k.x());
    const Layout strips{1, in.N * kernels::tile_strips(in.H), 2, in.C};
    Buffer* sums = sums_wanted ? &fixture.output("sums", strips, DType::f32) : nullptr;
    Buffer& dw = k.accumulate ? fixture.inout("dw", oracle.w(), kSmall, DType::f32)
                              : fixture.output("dw", oracle.w(), DType::f32);
    const int64_t* step = step_in(fixture, kStep);
    void* workspace =
        fixture.workspace(kernels::tile_workspace(k.shape.N, k.shape.H, k.shape.C, k.shape.K, k.shape.R, k.shape.S));

    Values g = dy.values();
    if (gradient) {
      const Values drop = dropout_factors(out, k.draws(kKeyBehind, nullptr), kStep);
      for (size_t i = 0; i < g.size(); ++i) {
        const auto of = [&](int row) { return coefficient(gradient->values(), out, k.behind, 5, row, i); };
        const double d = raw->values()[i] - of(0);
        if (made)
          g[i] = made->values()[i] > 0 ? g[i] / (1 - static_cast<double>(k.rate)) : 0;
        else
          g[i] *= drop[i];
        const size_t image = out.size() / out.N, row = i / image * 2 * out.C + i % out.C;
        if (squeeze) g[i] = g[i] * of_squeeze[row] + of_squeeze[row + out.C];
        if (!made && k.relu_behind && d * of(1) + of(2) <= 0) g[i] = 0;
        g[i] = of(1) * g[i] + of(3) * d + of(4);
      }
    }
    Values slope;
    const Values a = activated(k, x.values(), coefs, &slope);
    Values dx_expected = rounded_to(fixture.dtype(), oracle.dgrad(g, w.values()));
    Values sum(strips.size()), most(strips.size());
    for (size_t i = 0; i < dx_expected.size(); ++i) {
      if (k.dx && k.accumulate) dx_expected[i] += dx->values()[i];
      if (sums) dx_expected[i] *= slope[i];
    }
    dx_expected = rounded_to(fixture.dtype(), dx_expected);
    if (sums) {
      each_of_strips(in, [&](int s, int c, size_t i) {
        const double terms[2] = {
            dx_expected[i], dx_expected[i] * (x.values()[i] - coefficient(coefs->values(), in, k.before, 3, 0, i))};
        for (int t = 0; t < 2; ++t)
          sum[(s * 2 + t) * in.C + c] += terms[t], most[(s * 2 + t) * in.C + c] += std::abs(terms[t]);
      });
    }
    Values dw_expected = oracle.wgrad(a, g);
    for (size_t i = 0; i < dw_expected.size() && k.accumulate; ++i) dw_expected[i] += dw.values()[i];
    const double largest = *std::max_element(most.begin(), most.end());
    return CaseRun{.run =
                       [&, k, coefs, gradient, raw, made, squeeze, dx, sums, step, workspace] {
                         const auto map = [](Buffer* b) { return b ? b->map() : TensorView{}; };
                         kernels::tile_backward(
                             fixture.stream(),
                             {.x = x.map(),
                              .norm = {coefs ? coefs->as<float>() : nullptr, k.before == Around::images, k.relu_before,
                                       k.draws(kKeyBefore, step)},
                              .w = w.as<void>(),
                              .dy = dy.map(),
                              .gradient = {map(raw), gradient ? gradient->as<float>() : nullptr,
                                           k.behind == Around::images, k.relu_behind, k.draws(kKeyBehind, step),
                                           map(made), squeeze ? squeeze->as<float>() : nullptr},
                              .window = k.window(),
                              .dx = map(dx),
                              .accumulate_dx = k.accumulate,
                              .sums = sums ? sums->as<float>() : nullptr,
                              .dw = dw.as<float>(),
                              .accumulate_dw = k.accumulate,
                              .workspace = workspace});
                       },
                   .check =
                       [&dw, dx, sums, dx_expected, dw_expected, sum, largest] {
                         if (dx) dx->expect(dx_expected, kExact);
                         if (sums) sums->expect(sum, {.atol = 1e-6 * largest});
                         dw.expect(dw_expected, kExact);
                       },
                   .bytes = static_cast<int64_t>((out.size() + 2 * in.size()) * size_of(fixture.dtype())),
                   .flops = 4 * k.shape.macs()};
  };
  return {.name = std::string("tile_backward_") + k.name,
          .make = make,
          .dtypes = {DType::bf16, DType::f16},
          .large = k.large};
}

constexpr ConvShape same3(int N, int H, int W, int C, int K) {
  return {N, H, W, C, K, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
}
constexpr ConvShape same2(int N, int H, int W, int C, int K) {
  return {N, H, W, C, K, 2, 2, {1, 1}, {1, 1}, {0, 0}, {1, 1}};
}

const Tile kTiles[] = {
    {.name = "plain_3x3", .shape = same3(2, 9, 37, 32, 32), .bias = true, .relu = true},
    {.name = "plain_2x2_slices", .shape = same2(2, 10, 5, 16, 16), .moments = false, .accumulate = true, .beside = 8},
    {.name = "odd_slices",
     .shape = {1, 3, 4, 32, 16, 1, 1},
     .before = Around::batch,
     .behind = Around::batch,
     .beside = 3},
    {.name = "valid_3x3", .shape = {1, 11, 9, 16, 48, 3, 3}, .before = Around::batch, .relu_before = false},
    {.name = "batch_norms_3x3",
     .shape = same3(2, 17, 33, 32, 32),
     .before = Around::batch,
     .behind = Around::batch,
     .relu_behind = true},
    {.name = "batch_norms_64", .shape = same3(2, 8, 16, 64, 64), .before = Around::batch, .behind = Around::batch},
    {.name = "image_norms_2x2",
     .shape = same2(3, 9, 35, 64, 64),
     .before = Around::images,
     .behind = Around::images,
     .relu_behind = true,
     .residual = true},
    {.name = "dropout_3x3",
     .shape = same3(2, 8, 20, 32, 32),
     .before = Around::images,
     .behind = Around::images,
     .relu_behind = true,
     .rate = 0.5},
    {.name = "spatial_dropout",
     .shape = same3(3, 4, 6, 48, 32),
     .before = Around::batch,
     .behind = Around::images,
     .rate = 0.75,
     .spatial = true,
     .accumulate = true},
    {.name = "widest_in", .shape = same3(1, 9, 8, 96, 32), .before = Around::batch, .behind = Around::batch},
    {.name = "narrow_in_2x2", .shape = same2(1, 8, 33, 32, 64), .behind = Around::batch, .relu_behind = true},
    {.name = "no_dx",
     .shape = same3(2, 5, 7, 64, 32),
     .before = Around::images,
     .behind = Around::images,
     .rate = 0.5,
     .dx = false},
    {.name = "pointwise", .shape = {2, 9, 40, 64, 32, 1, 1}, .before = Around::images, .behind = Around::batch},
    {.name = "one_channel_in", .shape = same3(2, 9, 35, 1, 32), .behind = Around::batch, .relu_behind = true},
    {.name = "few_channels_out",
     .shape = {2, 9, 40, 32, 5, 1, 1},
     .before = Around::images,
     .rate = 0.5,
     .bias = true,
     .beside = 3},
    {.name = "few_channels", .shape = same3(1, 8, 33, 5, 3), .bias = true, .relu = true, .accumulate = true},
    {.name = "half_vectors_2x2", .shape = same2(2, 9, 20, 24, 40), .before = Around::images, .behind = Around::batch},
    {.name = "squeezed",
     .shape = same3(2, 9, 20, 32, 32),
     .before = Around::images,
     .behind = Around::images,
     .relu_behind = true,
     .squeezed = true},
    {.name = "squeezed_dropout",
     .shape = same2(2, 9, 7, 16, 104),
     .behind = Around::images,
     .relu_behind = true,
     .rate = 0.5,
     .squeezed = true},
    {.name = "slices_2x2",
     .shape = same2(2, 9, 7, 128, 112),
     .before = Around::images,
     .behind = Around::images,
     .relu_behind = true,
     .rate = 0.5},
    {.name = "slices_3x3",
     .shape = same3(1, 5, 9, 128, 128),
     .before = Around::batch,
     .behind = Around::batch,
     .bias = true,
     .residual = true,
     .accumulate = true},
    {.name = "slices_in_1x1", .shape = {2, 3, 9, 232, 64, 1, 1}, .before = Around::images, .beside = 8},
    {.name = "slices_out_3x3",
     .shape = same3(1, 4, 5, 16, 104),
     .before = Around::batch,
     .rate = 0.75,
     .spatial = true},
    {.name = "one_pixel", .shape = same3(1, 1, 1, 16, 16), .before = Around::batch},
    {.name = "large",
     .shape = same3(2, 64, 128, 32, 32),
     .before = Around::batch,
     .behind = Around::batch,
     .large = true},
    {.name = "large_2x2",
     .shape = same2(2, 64, 128, 64, 64),
     .before = Around::images,
     .behind = Around::images,
     .large = true},
};

const Register cases_of_tiles([] {
  std::vector<TestCase> list;
  for (const Tile& k : kTiles) {
    list.push_back(forward_case(k));
    if (k.large || k.shape.macs() > 4'000'000) list.back().gradient = nullptr;
    list.push_back(backward_case(k));
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
