// Convolution in double precision, from its definition: one list of terms serves all three directions.
#pragma once

#include <algorithm>

#include "engine/conv/provider.h"
#include "tests/support/fixture.h"

namespace regolith::testing {

struct ConvOracle {
  ConvShape shape;

  // Calls f(index into y, index into x, index into w) for every product that the convolution sums.
  template <class F>
  void each_term(F&& f) const {
    const ConvShape& o = shape;
    const int P = o.P(), Q = o.Q();
    for (int n = 0; n < o.N; ++n)
      for (int p = 0; p < P; ++p)
        for (int q = 0; q < Q; ++q)
          for (int r = 0; r < o.R; ++r)
            for (int s = 0; s < o.S; ++s) {
              const int h = p * o.stride[0] - o.pad_before[0] + r * o.dilation[0];
              const int w = q * o.stride[1] - o.pad_before[1] + s * o.dilation[1];
              if (h < 0 || h >= o.H || w < 0 || w >= o.W) continue;
              const size_t y = ((static_cast<size_t>(n) * P + p) * Q + q) * o.K;
              const size_t x = ((static_cast<size_t>(n) * o.H + h) * o.W + w) * o.C;
              for (int k = 0; k < o.K; ++k)
                for (int c = 0; c < o.C; ++c) f(y + k, x + c, ((static_cast<size_t>(k) * o.R + r) * o.S + s) * o.C + c);
            }
  }

  Layout x(int before = 0, int after = 0) const { return {shape.N, shape.H, shape.W, shape.C, before, after}; }
  Layout y(int before = 0, int after = 0) const { return {shape.N, shape.P(), shape.Q(), shape.K, before, after}; }
  Layout w() const { return {shape.K, shape.R, shape.S, shape.C}; }
  Layout bias() const { return {1, 1, 1, shape.K}; }

  Values forward(const Values& x, const Values& w, const Values& bias = {}, bool relu = false) const {
    Values y(this->y().size());
    for (size_t i = 0; i < y.size() && !bias.empty(); ++i) y[i] = bias[i % shape.K];
    each_term([&](size_t to, size_t from, size_t by) { y[to] += x[from] * w[by]; });
    for (size_t i = 0; i < y.size() && relu; ++i) y[i] = std::max(y[i], 0.0);
    return y;
  }
  Values dgrad(const Values& dy, const Values& w) const {
    Values dx(x().size());
    each_term([&](size_t from, size_t to, size_t by) { dx[to] += dy[from] * w[by]; });
    return dx;
  }
  Values wgrad(const Values& x, const Values& dy) const {
    Values dw(w().size());
    each_term([&](size_t y, size_t from, size_t to) { dw[to] += dy[y] * x[from]; });
    return dw;
  }
  Values db(const Values& dy) const {
    Values sum(shape.K);
    for (size_t i = 0; i < dy.size(); ++i) sum[i % shape.K] += dy[i];
    return sum;
  }

  // Compares the gradients of x, w and the bias with finite differences.
  void check(uint64_t seed) const {
    Random random(seed);
    const auto draw = [&](const Layout& l) {
      Values v(l.size());
      for (double& e : v) e = random.normal();
      return v;
    };
    const Values x = draw(this->x()), w = draw(this->w()), b = draw(bias()), dy = draw(this->y());
    const auto loss = [&](const Values& y) {
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
      return sum;
    };
    expect_gradient(
        "dx", [&](const Values& at) { return loss(forward(at, w, b)); }, x, dgrad(dy, w), 1e-3, 1e-6, 24);
    expect_gradient(
        "dw", [&](const Values& at) { return loss(forward(x, at, b)); }, w, wgrad(x, dy), 1e-3, 1e-6, 24);
    expect_gradient(
        "db", [&](const Values& at) { return loss(forward(x, w, at)); }, b, db(dy), 1e-3, 1e-6, 8);
  }
};

inline Values rounded_to(DType t, Values v) {
  for (double& e : v) e = round_to(t, e);
  return v;
}

}  // namespace regolith::testing
