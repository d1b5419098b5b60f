// Squeeze and excitation against plain loops in double precision.
#include <algorithm>
#include <cmath>

#include "kernels/squeeze_excite.h"
#include "tests/support/dropout_oracle.h"

namespace regolith::testing {
namespace {

struct Squeeze {
  std::string name;
  int N, H, W, C, hidden;
  bool pool = false;
  float rate = 0;
  bool spatial = false;
  bool slices = false;      // of wider parents, all of them
  bool sums = false;        // forward is given the sums of x
  bool accumulate = false;  // all gradients
  bool in_place = false;    // y over x, dx over dy
  bool large = false;
  bool normed = false;  // x is what a norm makes of the map

  Layout x(int before = 0, int after = 0) const { return {N, H, W, C, slices ? before : 0, slices ? after : 0}; }
  Layout y(int before = 0, int after = 0) const {
    return {N, pool ? H / 2 : H, pool ? W / 2 : W, C, slices ? before : 0, slices ? after : 0};
  }
  DropoutDraws draws(const int64_t* step = nullptr) const { return {rate, spatial, 99, step, 4}; }
  // What x * s is multiplied by; and which pixel of x a value of y is made of.
  Values factors() const { return dropout_factors(y(), draws(), kStep); }
  std::vector<size_t> sources(const Values& values) const {
    std::vector<size_t> from(y().size());
    const size_t c_count = C, w_count = y().W, h_count = y().H, wide = W, high = H;
    for (size_t i = 0; i < from.size(); ++i) {
      from[i] = i;
      if (!pool) continue;
      const size_t c = i % c_count, q = i / c_count % w_count, p = i / c_count / w_count % h_count,
                   n = i / c_count / w_count / h_count;
      const auto at = [&](size_t r, size_t t) { return ((n * high + 2 * p + r) * wide + 2 * q + t) * c_count + c; };
      from[i] = at(0, 0);
      for (const size_t j : {at(0, 1), at(1, 0), at(1, 1)})
        if (values[j] > values[from[i]]) from[i] = j;
    }
    return from;
  }
  static constexpr int64_t kStep = 21;
};

struct Weights {
  Values reduce, reduce_bias, expand, expand_bias;
};
Weights draw_weights(const Squeeze& k, const std::function<Values(size_t, double)>& normal_values) {
  const double C = k.C, hidden = k.hidden;
  return {normal_values(k.C * k.hidden, 2 / std::sqrt(C)), normal_values(k.hidden, 0.5),
          normal_values(k.C * k.hidden, 2 / std::sqrt(hidden)), normal_values(k.C, 0.5)};
}

struct Excited {
  Values sums, mean, activation, scale, y;
};
Excited forward(const Squeeze& k, const Values& x, const Weights& w) {
  const size_t C = k.C, hidden = k.hidden, N = k.N, pixels = static_cast<size_t>(k.H) * k.W;
  Excited e{Values(N * C), Values(N * C), Values(N * hidden), Values(N * C), Values(k.y().size())};
  for (size_t i = 0; i < x.size(); ++i) e.sums[i / C / pixels * C + i % C] += x[i];
  for (size_t i = 0; i < N * C; ++i) e.mean[i] = e.sums[i] / static_cast<double>(pixels);
  for (size_t n = 0; n < N; ++n) {
    for (size_t j = 0; j < hidden; ++j) {
      double h = w.reduce_bias[j];
      for (size_t c = 0; c < C; ++c) h += w.reduce[j * C + c] * e.mean[n * C + c];
      e.activation[n * hidden + j] = std::max(0.0, h);
    }
    for (size_t c = 0; c < C; ++c) {
      double z = w.expand_bias[c];
      for (size_t j = 0; j < hidden; ++j) z += w.expand[c * hidden + j] * e.activation[n * hidden + j];
      e.scale[n * C + c] = 1 / (1 + std::exp(-z));
    }
  }
  const Values factors = k.factors();
  const std::vector<size_t> from = k.sources(x);
  for (size_t i = 0; i < e.y.size(); ++i) e.y[i] = x[from[i]] * e.scale[from[i] / C / pixels * C + i % C] * factors[i];
  return e;
}

struct Gradients {
  Values dx;
  Weights w;
  Values offset = {};  // of dx: the part of every pixel of an image
};
Gradients backward(const Squeeze& k, const Values& x, const Weights& w, const Excited& e, const Values& dy) {
  const size_t C = k.C, hidden = k.hidden, N = k.N, pixels = static_cast<size_t>(k.H) * k.W;
  Gradients d{Values(x.size()), {Values(C * hidden), Values(hidden), Values(C * hidden), Values(C)}};
  Values dscale(N * C), dmean(N * C);
  const Values factors = k.factors();
  const std::vector<size_t> from = k.sources(x);
  for (size_t i = 0; i < dy.size(); ++i) {
    const size_t s = from[i] / C / pixels * C + i % C;
    dscale[s] += dy[i] * factors[i] * x[from[i]];
    d.dx[from[i]] += dy[i] * factors[i] * e.scale[s];
  }
  for (size_t n = 0; n < N; ++n) {
    Values unit(hidden);
    for (size_t c = 0; c < C; ++c) {
      const double s = e.scale[n * C + c], gate = dscale[n * C + c] * s * (1 - s);
      d.w.expand_bias[c] += gate;
      for (size_t j = 0; j < hidden; ++j) {
        d.w.expand[c * hidden + j] += gate * e.activation[n * hidden + j];
        unit[j] += gate * w.expand[c * hidden + j];
      }
    }
    for (size_t j = 0; j < hidden; ++j) {
      if (e.activation[n * hidden + j] <= 0) continue;
      d.w.reduce_bias[j] += unit[j];
      for (size_t c = 0; c < C; ++c) {
        d.w.reduce[j * C + c] += unit[j] * e.mean[n * C + c];
        dmean[n * C + c] += unit[j] * w.reduce[j * C + c];
      }
    }
  }
  for (double& m : dmean) m /= static_cast<double>(pixels);
  for (size_t i = 0; i < x.size(); ++i) d.dx[i] += dmean[i / C / pixels * C + i % C];
  d.offset = dmean;
  return d;
}

// A norm of each image before the squeeze: mean, scale and beta of each channel, and what it makes of a map.
struct NormBefore {
  Values coefficients, centred, x;
  NormBefore(const Squeeze& k, Fixture& fixture, const Values& map) : centred(map), x(map) {
    if (!k.normed) return;
    const size_t C = k.C, rows = 3 * C, image = static_cast<size_t>(k.H) * k.W * C;
    coefficients = fixture.draw(k.N * rows, normal(1, 0.5), DType::f32);
    for (size_t i = 0; i < x.size(); ++i) {
      const double* const of = &coefficients[i / image * rows + i % C];
      centred[i] = map[i] - of[0];
      x[i] = std::max(0.0, centred[i] * of[C] + of[2 * C]);
    }
  }
  // (N, 2, C): sums over the images of g where x is not zero, and of that times `centred`.
  Values sums(const Squeeze& k, const Values& g) const {
    const size_t C = k.C, image = static_cast<size_t>(k.H) * k.W * C;
    Values sum(2 * C * k.N);
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] <= 0) continue;
      sum[i / image * 2 * C + i % C] += g[i];
      sum[i / image * 2 * C + C + i % C] += g[i] * centred[i];
    }
    return sum;
  }
};

Weights draw_weights(const Squeeze& k, Fixture& fixture) {
  return draw_weights(k, [&](size_t n, double sigma) { return fixture.draw(n, normal(sigma), DType::f32); });
}
Values rounded(Values v) {
  for (double& x : v) x = round_to(DType::f32, x);
  return v;
}
kernels::SqueezeExcite shared_arguments(const Squeeze& k, Fixture& fixture, const Weights& w) {
  kernels::SqueezeExcite op{};
  op.hidden = k.hidden;
  op.reduce = fixture.input("reduce", {1, 1, k.hidden, k.C}, w.reduce, DType::f32).as<float>();
  op.reduce_bias = fixture.input("reduce_bias", {1, 1, 1, k.hidden}, w.reduce_bias, DType::f32).as<float>();
  op.expand = fixture.input("expand", {1, 1, k.C, k.hidden}, w.expand, DType::f32).as<float>();
  op.expand_bias = fixture.input("expand_bias", {1, 1, 1, k.C}, w.expand_bias, DType::f32).as<float>();
  op.pool = k.pool;
  op.dropout = k.draws(step_in(fixture, Squeeze::kStep));
  op.workspace = fixture.workspace(kernels::squeeze_excite_workspace(k.N, k.C, k.hidden));
  return op;
}

CaseRun forward_instance(const Squeeze& k, Fixture& fixture) {
  const Weights w = draw_weights(k, fixture);
  const Values values = fixture.draw(k.x().size(), normal(1, 0.5), fixture.dtype());
  const NormBefore norm(k, fixture, values);
  const Excited e = forward(k, norm.x, w);
  Buffer& x = k.in_place ? fixture.inout("x", k.x(16, 8), values) : fixture.input("x", k.x(16, 8), values);
  Buffer& y = k.in_place ? x : fixture.output("y", k.y(0, 32));
  const Layout gates{1, 1, k.N, k.C}, units{1, 1, k.N, k.hidden};
  Buffer &mean = fixture.output("mean", gates, DType::f32),
         &activation = fixture.output("activation", units, DType::f32),
         &scale = fixture.output("scale", gates, DType::f32);
  kernels::SqueezeExciteForward args{.op = shared_arguments(k, fixture, w), .y = y.map()};
  args.op.x = x.map();
  args.op.mean = mean.as<float>();
  args.op.activation = activation.as<float>();
  args.op.scale = scale.as<float>();
  if (k.sums) args.sums = fixture.input("sums", gates, rounded(e.sums), DType::f32).as<float>();
  const Layout pairs{1, 1, 2 * k.N, k.C};
  Buffer* const slopes = k.normed ? &fixture.output("slopes", pairs, DType::f32) : nullptr;
  if (k.normed) {
    args.op.norm = fixture.input("norm", {1, 1, 3 * k.N, k.C}, norm.coefficients, DType::f32).as<float>();
    args.op.slopes = slopes->as<float>();
  }
  const Values of_slopes = norm.sums(k, Values(k.x().size(), 1));
  const int64_t maps = static_cast<int64_t>(k.x().size()) * (k.sums ? 1 : 2) + static_cast<int64_t>(k.y().size());
  return {.run = [&fixture, args] { kernels::squeeze_excite_forward(fixture.stream(), args); },
          .check =
              [&, e, slopes, of_slopes] {
                const Tolerance within = tolerance(DType::f32, 256, 4);
                if (slopes) slopes->expect(of_slopes, {.atol = 1e-3, .rtol = 1e-4});  // a thread adds up thousands
                mean.expect(e.mean, within);
                activation.expect(e.activation, within);
                scale.expect(e.scale, within);
                y.expect(e.y, tolerance(fixture.dtype(), 64, 4));
              },
          .bytes = maps * static_cast<int64_t>(size_of(fixture.dtype()))};
}

CaseRun backward_instance(const Squeeze& k, Fixture& fixture) {
  const Weights w = draw_weights(k, fixture);
  const Values values = fixture.draw(k.x().size(), normal(1, 0.5), fixture.dtype());
  const Values dy_values = fixture.draw(k.y().size(), normal(), fixture.dtype());
  const NormBefore norm(k, fixture, values);
  const Excited e = forward(k, norm.x, w);
  Gradients d = backward(k, norm.x, w, e, dy_values);
  Buffer& x = fixture.input("x", k.x(16, 8), values);
  Buffer& dy = k.in_place ? fixture.inout("dy", k.y(0, 16), dy_values) : fixture.input("dy", k.y(0, 16), dy_values);
  const auto gradient = [&](const char* name, const Layout& layout, Values& expected,
                            std::optional<DType> t) -> Buffer& {
    if (!k.accumulate) return fixture.output(name, layout, t);
    Buffer& b = fixture.inout(name, layout, normal(), t);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += b.values()[i];
    return b;
  };
  Buffer& dx = k.in_place || k.normed ? dy : gradient("dx", k.x(8, 8), d.dx, fixture.dtype());
  Buffer& reduce = gradient("dreduce", {1, 1, k.hidden, k.C}, d.w.reduce, DType::f32);
  Buffer& reduce_bias = gradient("dreduce_bias", {1, 1, 1, k.hidden}, d.w.reduce_bias, DType::f32);
  Buffer& expand = gradient("dexpand", {1, 1, k.C, k.hidden}, d.w.expand, DType::f32);
  Buffer& expand_bias = gradient("dexpand_bias", {1, 1, 1, k.C}, d.w.expand_bias, DType::f32);
  const Layout gates{1, 1, k.N, k.C}, units{1, 1, k.N, k.hidden};
  kernels::SqueezeExciteBackward args{.op = shared_arguments(k, fixture, w),
                                      .dy = dy.map(),
                                      .dx = k.normed ? TensorView{} : dx.map(),
                                      .dreduce = reduce.as<float>(),
                                      .dreduce_bias = reduce_bias.as<float>(),
                                      .dexpand = expand.as<float>(),
                                      .dexpand_bias = expand_bias.as<float>(),
                                      .accumulate_dx = k.accumulate,
                                      .accumulate_parameters = k.accumulate};
  args.op.x = x.map();
  args.op.mean = fixture.input("mean", gates, rounded(e.mean), DType::f32).as<float>();
  args.op.activation = fixture.input("activation", units, rounded(e.activation), DType::f32).as<float>();
  args.op.scale = fixture.input("scale", gates, rounded(e.scale), DType::f32).as<float>();
  const Layout pairs{1, 1, 2 * k.N, k.C};
  Buffer* const sums = k.normed ? &fixture.output("sums", pairs, DType::f32) : nullptr;
  Buffer* const affine = k.normed ? &fixture.output("affine", pairs, DType::f32) : nullptr;
  if (k.normed) {
    args.op.norm = fixture.input("norm", {1, 1, 3 * k.N, k.C}, norm.coefficients, DType::f32).as<float>();
    args.op.slopes =
        fixture.input("slopes", pairs, rounded(norm.sums(k, Values(values.size(), 1))), DType::f32).as<float>();
    args.sums = sums->as<float>();
    args.affine = affine->as<float>();
  }
  Values expected_affine;
  for (int n = 0; n < k.N; ++n)
    for (const Values& from : {e.scale, d.offset})
      expected_affine.insert(expected_affine.end(), &from[n * k.C], &from[n * k.C] + k.C);
  const Values expected_sums = norm.sums(k, d.dx);
  const bool normed = k.normed;
  const int64_t maps = static_cast<int64_t>(k.x().size()) * (k.pool ? 3 + k.accumulate : 2 + k.accumulate) +
                       2 * static_cast<int64_t>(k.y().size());
  return {.run = [&fixture, args] { kernels::squeeze_excite_backward(fixture.stream(), args); },
          .check =
              [&, d, sums, affine, expected_sums, expected_affine, normed] {
                const Tolerance within = tolerance(DType::f32, 4096, 32);
                if (normed) {
                  sums->expect(expected_sums, tolerance(DType::f32, 4096, 64));
                  affine->expect(expected_affine, within);
                }
                reduce.expect(d.w.reduce, within);
                reduce_bias.expect(d.w.reduce_bias, within);
                expand.expect(d.w.expand, within);
                expand_bias.expect(d.w.expand_bias, within);
                if (!normed) dx.expect(d.dx, tolerance(fixture.dtype(), 256, 4));
              },
          .bytes = maps * static_cast<int64_t>(size_of(fixture.dtype()))};
}

void check_oracle(const Squeeze& k, uint64_t seed) {
  Random random(seed);
  const auto draw = [&](size_t n, double sigma) {
    Values v(n);
    for (double& x : v) x = sigma * random.normal();
    return v;
  };
  const Weights w = draw_weights(k, draw);
  const Values x = draw(k.x().size(), 1), dy = draw(k.y().size(), 1);
  const Gradients d = backward(k, x, w, forward(k, x, w), dy);
  const auto loss = [&](const Values& at, const Weights& weights) {
    const Values y = forward(k, at, weights).y;
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  };
  expect_gradient(
      "dx", [&](const Values& at) { return loss(at, w); }, x, d.dx);
  for (Values Weights::*member : {&Weights::reduce, &Weights::reduce_bias, &Weights::expand, &Weights::expand_bias}) {
    const auto with = [&](const Values& at) {
      Weights moved = w;
      moved.*member = at;
      return loss(x, moved);
    };
    expect_gradient("a parameter's gradient", with, w.*member, d.w.*member);
  }
}

const Squeeze kSqueezes[] = {
    {.name = "whole", .N = 3, .H = 5, .W = 6, .C = 32, .hidden = 4},
    {.name = "slices", .N = 2, .H = 4, .W = 7, .C = 64, .hidden = 4, .slices = true},
    {.name = "odd_channels", .N = 2, .H = 4, .W = 5, .C = 15, .hidden = 3, .slices = true},
    {.name = "one_hidden_unit", .N = 2, .H = 3, .W = 3, .C = 16, .hidden = 1},
    {.name = "one_pixel", .N = 5, .H = 1, .W = 1, .C = 16, .hidden = 16},
    {.name = "given_sums", .N = 3, .H = 5, .W = 6, .C = 48, .hidden = 3, .sums = true},
    {.name = "one_sample", .N = 1, .H = 33, .W = 20, .C = 24, .hidden = 6},
    {.name = "wide", .N = 2, .H = 4, .W = 4, .C = 320, .hidden = 20},
    {.name = "in_place", .N = 2, .H = 6, .W = 5, .C = 32, .hidden = 8, .in_place = true},
    {.name = "accumulates", .N = 3, .H = 7, .W = 6, .C = 48, .hidden = 4, .slices = true, .accumulate = true},
    {.name = "pool", .N = 3, .H = 6, .W = 8, .C = 32, .hidden = 2, .pool = true},
    {.name = "pool_given_sums", .N = 2, .H = 8, .W = 6, .C = 64, .hidden = 4, .pool = true, .sums = true},
    {.name = "pool_odd_channels",
     .N = 2,
     .H = 4,
     .W = 6,
     .C = 7,
     .hidden = 2,
     .pool = true,
     .slices = true,
     .accumulate = true},
    {.name = "dropout", .N = 3, .H = 5, .W = 7, .C = 32, .hidden = 2, .rate = 0.3f},
    {.name = "dropout_slices",
     .N = 2,
     .H = 5,
     .W = 3,
     .C = 160,
     .hidden = 10,
     .rate = 0.1f,
     .slices = true,
     .sums = true,
     .accumulate = true},
    {.name = "dropout_odd_channels", .N = 2, .H = 3, .W = 5, .C = 13, .hidden = 4, .rate = 0.5f, .in_place = true},
    {.name = "spatial_dropout", .N = 3, .H = 4, .W = 5, .C = 48, .hidden = 3, .rate = 0.2f, .spatial = true},
    {.name = "normed", .N = 3, .H = 5, .W = 6, .C = 48, .hidden = 3, .accumulate = true, .normed = true},
    {.name = "normed_dropout",
     .N = 2,
     .H = 6,
     .W = 5,
     .C = 32,
     .hidden = 4,
     .rate = 0.3f,
     .slices = true,
     .normed = true},
    {.name = "normed_odd_channels",
     .N = 2,
     .H = 3,
     .W = 5,
     .C = 13,
     .hidden = 4,
     .rate = 0.5f,
     .spatial = true,
     .normed = true},
    {.name = "large_normed",
     .N = 4,
     .H = 64,
     .W = 128,
     .C = 32,
     .hidden = 2,
     .rate = 0.1f,
     .large = true,
     .normed = true},
    {.name = "large", .N = 4, .H = 64, .W = 128, .C = 32, .hidden = 2, .sums = true, .large = true},
    {.name = "large_dropout",
     .N = 4,
     .H = 64,
     .W = 128,
     .C = 32,
     .hidden = 2,
     .rate = 0.1f,
     .sums = true,
     .large = true},
    {.name = "large_pool", .N = 4, .H = 64, .W = 128, .C = 32, .hidden = 2, .pool = true, .sums = true, .large = true},
    {.name = "large_own_sums", .N = 4, .H = 64, .W = 128, .C = 64, .hidden = 4, .large = true},
};

const Register cases_of_squeeze_excite([] {
  std::vector<TestCase> all;
  for (const Squeeze& k : kSqueezes) {
    if (!k.accumulate) {
      all.push_back({.name = "squeeze_excite_forward_" + k.name,
                     .make = [k](Fixture& fixture) { return forward_instance(k, fixture); },
                     .large = k.large});
    }
    if (k.sums && !k.accumulate && !k.large) continue;  // backward knows nothing of them
    const bool small = !k.large && !k.accumulate && !k.in_place;
    all.push_back({.name = "squeeze_excite_backward_" + k.name,
                   .make = [k](Fixture& fixture) { return backward_instance(k, fixture); },
                   .gradient = small ? [k](uint64_t seed) { check_oracle(k, seed); } : std::function<void(uint64_t)>(),
                   .large = k.large});
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
