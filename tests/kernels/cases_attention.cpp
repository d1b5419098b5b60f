// Attention against plain loops in double precision.
#include <cmath>
#include <limits>

#include "kernels/attention.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Attention {
  std::string name;
  int N, H, W, heads, d;
  double sigma = 1;     // of q and k: softmax is flat for small ones, and picks single keys for large ones
  bool slices = false;  // of wider parents, all of them
  bool nan = false;     // one number of q
  bool large = false;

  int C() const { return heads * d; }
  int positions() const { return H * W; }
  Layout qkv() const { return {N, H, W, 3 * C(), slices ? 8 : 0, slices ? 16 : 0}; }
  Layout out() const { return {N, H, W, C(), slices ? 24 : 0, slices ? 8 : 0}; }
  Layout statistics() const { return {1, N, heads, positions()}; }
  size_t at(int n, int p, int head) const { return (static_cast<size_t>(n) * positions() + p) * C() + head * d; }
  size_t row(int n, int head, int p) const { return (static_cast<size_t>(n) * heads + head) * positions() + p; }
  int64_t products() const { return int64_t{2} * N * heads * positions() * positions() * d; }  // flops of one
};

// Forward keeps the probabilities, (N, heads, queries, keys).
struct Oracle {
  const Attention& k;
  const Values& qkv;
  Values y, lse, probability;

  // Channel c of part `which` (q, k, v) of a head.
  size_t in(int n, int p, int which, int head) const {
    return (static_cast<size_t>(n) * k.positions() + p) * 3 * k.C() + which * k.C() + head * k.d;
  }
  template <class F>
  void each_row(F&& f) const {
    for (int n = 0; n < k.N; ++n)
      for (int head = 0; head < k.heads; ++head)
        for (int p = 0; p < k.positions(); ++p) f(n, head, p);
  }
  Oracle(const Attention& attention, const Values& values)
      : k(attention),
        qkv(values),
        y(k.out().size()),
        lse(k.statistics().size()),
        probability(lse.size() * k.positions()) {
    const int P = k.positions();
    each_row([&](int n, int head, int p) {
      double* s = probability.data() + k.row(n, head, p) * P;
      double most = -INFINITY, sum = 0;
      for (int j = 0; j < P; ++j) {
        for (int c = 0; c < k.d; ++c) s[j] += qkv[in(n, p, 0, head) + c] * qkv[in(n, j, 1, head) + c];
        s[j] /= std::sqrt(static_cast<double>(k.d));
        most = s[j] > most ? s[j] : most;
      }
      for (int j = 0; j < P; ++j) sum += std::exp(s[j] - most);
      lse[k.row(n, head, p)] = most + std::log(sum);
      for (int j = 0; j < P; ++j) {
        s[j] = std::exp(s[j] - most) / sum;
        for (int c = 0; c < k.d; ++c) y[k.at(n, p, head) + c] += s[j] * qkv[in(n, j, 2, head) + c];
      }
    });
  }
  Values backward(const Values& dy) const {
    const int P = k.positions();
    Values dqkv(qkv.size()), dp(P);
    const double scale = 1 / std::sqrt(static_cast<double>(k.d));
    each_row([&](int n, int head, int p) {
      const double* probabilities = probability.data() + k.row(n, head, p) * P;
      const double* up = dy.data() + k.at(n, p, head);
      double mean = 0;
      for (int j = 0; j < P; ++j) {
        dp[j] = 0;
        for (int c = 0; c < k.d; ++c) {
          dp[j] += up[c] * qkv[in(n, j, 2, head) + c];
          dqkv[in(n, j, 2, head) + c] += probabilities[j] * up[c];
        }
        mean += probabilities[j] * dp[j];
      }
      for (int j = 0; j < P; ++j) {
        const double ds = probabilities[j] * (dp[j] - mean) * scale;
        for (int c = 0; c < k.d; ++c) {
          dqkv[in(n, p, 0, head) + c] += ds * qkv[in(n, j, 1, head) + c];
          dqkv[in(n, j, 1, head) + c] += ds * qkv[in(n, p, 0, head) + c];
        }
      }
    });
    return dqkv;
  }
};

// fp32 sums of d, then of all positions. Where maps are bf16 or fp16, probabilities and their gradients are rounded to
// that type between the products: independent errors, in sums of `magnitude`.
Tolerance within(const Attention& k, DType t, double magnitude = 1) {
  Tolerance close = tolerance(t, k.positions() + k.d, 4 * magnitude * (1 + k.sigma * k.sigma));
  if (t != DType::f32) close.atol += close.rtol * magnitude / 2;
  return close;
}

Values draw_qkv(const Attention& k, Random& random) {
  Values v(k.qkv().size());
  for (size_t i = 0; i < v.size(); ++i)
    v[i] = random.normal() * (i % (3 * k.C()) < static_cast<size_t>(2 * k.C()) ? k.sigma : 1);
  return v;
}

CaseRun forward(const Attention& k, Fixture& fixture) {
  Values values = draw_qkv(k, fixture.random());
  if (k.nan) values[5 * 3 * k.C() + 1] = std::numeric_limits<double>::quiet_NaN();
  Buffer &qkv = fixture.input("qkv", k.qkv(), values), &y = fixture.output("y", k.out()),
         &lse = fixture.output("lse", k.statistics(), DType::f32);
  const kernels::AttentionForward args{qkv.map(), y.map(), lse.as<float>(), k.heads};
  const Oracle oracle(k, qkv.values());
  return {.run = [&fixture, args] { kernels::attention_forward(fixture.stream(), args); },
          .check =
              [=, &y, &lse, expected = oracle.y, sums = oracle.lse, t = fixture.dtype()] {
                y.expect(expected, within(k, t));
                lse.expect(sums, tolerance(DType::f32, k.d, 4 * (1 + k.sigma * k.sigma)));
              },
          .bytes = static_cast<int64_t>((k.qkv().size() + k.out().size()) * size_of(fixture.dtype())),
          .flops = 2 * k.products()};
}

CaseRun backward(const Attention& k, Fixture& fixture) {
  Buffer& qkv = fixture.input("qkv", k.qkv(), draw_qkv(k, fixture.random()));
  const Oracle oracle(k, qkv.values());
  Buffer &y = fixture.input("y", k.out(), oracle.y), &dy = fixture.input("dy", k.out(), normal()),
         &lse = fixture.input("lse", k.statistics(), oracle.lse, DType::f32), &dqkv = fixture.output("dqkv", k.qkv());
  const kernels::AttentionBackward args{qkv.map(),
                                        y.map(),
                                        dy.map(),
                                        dqkv.map(),
                                        lse.as<float>(),
                                        k.heads,
                                        fixture.workspace(kernels::attention_workspace(k.N, k.heads, k.positions()))};
  const Values expected = oracle.backward(dy.values());
  return {.run = [&fixture, args] { kernels::attention_backward(fixture.stream(), args); },
          .check = [=, &dqkv, t = fixture.dtype()] { dqkv.expect(expected, within(k, t, 4 * k.sigma * k.sigma)); },
          .bytes = static_cast<int64_t>((2 * k.qkv().size() + 2 * k.out().size()) * size_of(fixture.dtype())),
          .flops = 5 * k.products()};
}

// The oracle's gradient of a random linear loss, by finite differences.
void check_oracle(const Attention& k, uint64_t seed) {
  Random random(seed);
  const Values qkv = draw_qkv(k, random);
  Values weight(k.out().size());
  for (double& w : weight) w = random.normal();
  const auto loss = [&](const Values& at) {
    const Oracle oracle(k, at);
    double sum = 0;
    for (size_t i = 0; i < weight.size(); ++i) sum += weight[i] * oracle.y[i];
    return sum;
  };
  expect_gradient("dqkv", loss, qkv, Oracle(k, qkv).backward(weight), 1e-5, 1e-5, 30);
}

const Attention kCases[] = {
    {.name = "whole", .N = 2, .H = 8, .W = 8, .heads = 2, .d = 32},
    {.name = "odd_positions", .N = 2, .H = 5, .W = 7, .heads = 3, .d = 8},
    {.name = "slices", .N = 2, .H = 9, .W = 11, .heads = 2, .d = 16, .slices = true},
    {.name = "width_40", .N = 1, .H = 6, .W = 7, .heads = 1, .d = 40},
    {.name = "width_64", .N = 1, .H = 4, .W = 17, .heads = 2, .d = 64},
    {.name = "width_128", .N = 1, .H = 9, .W = 9, .heads = 1, .d = 128},
    {.name = "one_position", .N = 3, .H = 1, .W = 1, .heads = 2, .d = 8},
    {.name = "sharp", .N = 1, .H = 10, .W = 10, .heads = 2, .d = 24, .sigma = 3},
    {.name = "nan", .N = 2, .H = 6, .W = 6, .heads = 2, .d = 16, .nan = true},
    {.name = "most_positions", .N = 1, .H = 32, .W = 32, .heads = 1, .d = 8},
    {.name = "large", .N = 2, .H = 16, .W = 32, .heads = 4, .d = 32, .large = true},
    {.name = "large_head", .N = 1, .H = 16, .W = 32, .heads = 1, .d = 128, .large = true},
};
const Register cases_of_attention([] {
  std::vector<TestCase> all;
  for (const Attention& k : kCases) {
    all.push_back({.name = "attention_forward_" + k.name,
                   .make = [k](Fixture& fixture) { return forward(k, fixture); },
                   .large = k.large});
    if (k.nan) continue;
    TestCase c{.name = "attention_backward_" + k.name,
               .make = [k](Fixture& fixture) { return backward(k, fixture); },
               .large = k.large};
    if (!k.large && k.positions() < 100) c.gradient = [k](uint64_t seed) { check_oracle(k, seed); };
    all.push_back(c);
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
