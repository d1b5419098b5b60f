// The attention gate against plain loops in double precision. x, g, theta and phi are small multiples of a power of
// two, so that every execution computes the same q before it rounds: the sign of q decides what flows back.
#include <algorithm>
#include <cmath>

#include "kernels/attention_gate.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

struct Gate {
  std::string name;
  int N, H, W, Cx, Cg, Ci;
  bool slices = false;      // x, g, y and their gradients are slices of wider maps
  bool accumulate = false;  // all gradients add to what is there
  bool in_place = false;    // dx is dy
  bool wants_dx = true, wants_dg = true;
  bool large = false;

  Layout layout(int C, int before, int after) const { return {N, H, W, C, slices ? before : 0, slices ? after : 0}; }
  int64_t pixels() const { return static_cast<int64_t>(N) * H * W; }
};

struct Inputs {
  Values x, g, theta, phi, psi, bias;
};

struct Forward {
  Values q, a, y;
};
Forward forward(const Gate& k, const Inputs& in) {
  Forward r{Values(k.pixels() * k.Ci), Values(k.pixels()), Values(k.pixels() * k.Cx)};
  for (int64_t p = 0; p < k.pixels(); ++p) {
    double logit = in.bias[0];
    for (int n = 0; n < k.Ci; ++n) {
      double q = 0;
      for (int c = 0; c < k.Cx; ++c) q += in.theta[n * k.Cx + c] * in.x[p * k.Cx + c];
      for (int c = 0; c < k.Cg; ++c) q += in.phi[n * k.Cg + c] * in.g[p * k.Cg + c];
      r.q[p * k.Ci + n] = std::max(0.0, q);
      logit += in.psi[n] * std::max(0.0, q);
    }
    r.a[p] = 1 / (1 + std::exp(-logit));
    for (int c = 0; c < k.Cx; ++c) r.y[p * k.Cx + c] = in.x[p * k.Cx + c] * r.a[p];
  }
  return r;
}

// Of sum(y * dy). dq is rounded to `t`, as the factor of a product that it is.
struct Gradients {
  Values dx, dg, dtheta, dphi, dpsi, dbias;
};
Gradients backward(const Gate& k, const Inputs& in, const Forward& f, const Values& dy, DType t) {
  Gradients r{Values(in.x.size()),   Values(in.g.size()), Values(in.theta.size()),
              Values(in.phi.size()), Values(k.Ci),        Values(1)};
  for (int64_t p = 0; p < k.pixels(); ++p) {
    double da = 0;
    for (int c = 0; c < k.Cx; ++c) {
      da += dy[p * k.Cx + c] * in.x[p * k.Cx + c];
      r.dx[p * k.Cx + c] += dy[p * k.Cx + c] * f.a[p];
    }
    const double dlogit = da * f.a[p] * (1 - f.a[p]);
    r.dbias[0] += dlogit;
    for (int n = 0; n < k.Ci; ++n) {
      r.dpsi[n] += f.q[p * k.Ci + n] * dlogit;
      if (f.q[p * k.Ci + n] <= 0) continue;
      const double dq = round_to(t, in.psi[n] * dlogit);
      for (int c = 0; c < k.Cx; ++c) {
        r.dx[p * k.Cx + c] += in.theta[n * k.Cx + c] * dq;
        r.dtheta[n * k.Cx + c] += dq * in.x[p * k.Cx + c];
      }
      for (int c = 0; c < k.Cg; ++c) {
        r.dg[p * k.Cg + c] += in.phi[n * k.Cg + c] * dq;
        r.dphi[n * k.Cg + c] += dq * in.g[p * k.Cg + c];
      }
    }
  }
  return r;
}

double root(int n) { return std::sqrt(static_cast<double>(n)); }
Fill weights_fill(int C) {  // multiples of a power of two near 1 / sqrt(C)
  const double unit = std::exp2(std::floor(std::log2(0.5 / root(C))));
  return [unit](Random& random) { return unit * random.integer(-2, 2); };
}

// The buffers that both directions read.
struct Bench {
  Buffer &x, &g, &theta, &phi, &psi, &bias;
  void* packed;
  Bench(const Gate& k, Fixture& fixture)
      : x(fixture.input("x", k.layout(k.Cx, 16, 0), integers(-3, 3))),
        g(fixture.input("g", k.layout(k.Cg, 0, 32), integers(-3, 3))),
        theta(fixture.input("theta", {1, 1, k.Ci, k.Cx}, weights_fill(k.Cx + k.Cg))),
        phi(fixture.input("phi", {1, 1, k.Ci, k.Cg}, weights_fill(k.Cx + k.Cg))),
        psi(fixture.input("psi", {1, 1, 1, k.Ci}, normal(1 / root(k.Ci)), DType::f32)),
        bias(fixture.input("bias", {1, 1, 1, 1}, normal(), DType::f32)),
        packed(fixture.workspace(kernels::attention_gate_packed(k.Cx, k.Cg, k.Ci))) {
    kernels::attention_gate_pack(fixture.stream(), {.theta = theta.as<void>(),
                                                    .phi = phi.as<void>(),
                                                    .dtype = fixture.dtype(),
                                                    .Cx = k.Cx,
                                                    .Cg = k.Cg,
                                                    .Ci = k.Ci,
                                                    .packed = packed});
  }
  Inputs inputs() const { return {x.values(), g.values(), theta.values(), phi.values(), psi.values(), bias.values()}; }
  kernels::AttentionGateWeights weights(const Gate& k) const {
    return {.theta = theta.as<void>(),
            .phi = phi.as<void>(),
            .psi = psi.as<float>(),
            .bias = bias.as<float>(),
            .packed = packed,
            .Ci = k.Ci};
  }
};

int64_t product_flops(const Gate& k) { return 2 * k.pixels() * k.Ci * (k.Cx + k.Cg); }

CaseRun forward_instance(const Gate& k, Fixture& fixture) {
  const Bench b(k, fixture);
  Buffer& y = fixture.output("y", k.layout(k.Cx, 8, 16));
  Buffer& a = fixture.output("a", {k.N, k.H, k.W, 1}, DType::f32);
  const kernels::AttentionGateForward args{
      .x = b.x.map(), .g = b.g.map(), .weights = b.weights(k), .y = y.map(), .a = a.as<float>()};
  const Inputs in = b.inputs();
  return {.run = [&fixture, args] { kernels::attention_gate_forward(fixture.stream(), args); },
          .check =
              [&fixture, &y, &a, k, in] {
                const Forward f = forward(k, in);
                a.expect(f.a, tolerance(DType::f32, k.Ci, 2));
                y.expect(f.y, tolerance(fixture.dtype(), k.Ci, 6));
              },
          .bytes = k.pixels() * (2 * k.Cx + k.Cg) * static_cast<int64_t>(size_of(fixture.dtype())),
          .flops = product_flops(k)};
}

CaseRun backward_instance(const Gate& k, Fixture& fixture) {
  const Bench b(k, fixture);
  const Inputs in = b.inputs();
  const Forward f = forward(k, in);
  Buffer& a = fixture.input("a", {k.N, k.H, k.W, 1}, f.a, DType::f32);
  Buffer& dy = k.in_place ? fixture.inout("dy", k.layout(k.Cx, 8, 8), normal())
                          : fixture.input("dy", k.layout(k.Cx, 8, 8), normal());
  const auto gradient = [&](const char* name, Layout layout, std::optional<DType> t = {}) {
    return k.accumulate ? &fixture.inout(name, layout, normal(), t) : &fixture.output(name, layout, t);
  };
  Buffer* dx = !k.wants_dx ? nullptr : k.in_place ? &dy : gradient("dx", k.layout(k.Cx, 16, 0));
  Buffer* dg = !k.wants_dg ? nullptr : gradient("dg", k.layout(k.Cg, 0, 16));
  Buffer* dtheta = gradient("dtheta", {1, 1, k.Ci, k.Cx}, DType::f32);
  Buffer* dphi = gradient("dphi", {1, 1, k.Ci, k.Cg}, DType::f32);
  Buffer* dpsi = gradient("dpsi", {1, 1, 1, k.Ci}, DType::f32);
  Buffer* dbias = gradient("dbias", {1, 1, 1, 1}, DType::f32);
  const kernels::AttentionGateWorkspace layout(b.x.map(), b.g.map(), k.Ci);
  const kernels::AttentionGateBackward args{.x = b.x.map(),
                                            .g = b.g.map(),
                                            .weights = b.weights(k),
                                            .a = a.as<float>(),
                                            .dy = dy.map(),
                                            .dx = dx != nullptr ? dx->map() : TensorView{},
                                            .dg = dg != nullptr ? dg->map() : TensorView{},
                                            .accumulate_dx = k.accumulate,
                                            .accumulate_dg = k.accumulate,
                                            .dtheta = dtheta->as<float>(),
                                            .dphi = dphi->as<float>(),
                                            .dpsi = dpsi->as<float>(),
                                            .dbias = dbias->as<float>(),
                                            .accumulate_grads = k.accumulate,
                                            .workspace = fixture.workspace(layout.bytes)};
  const auto check = [=, &fixture, &dy] {
    const DType t = fixture.dtype();
    const Gradients d = backward(k, in, f, dy.values(), t);
    const auto expect = [&](const Buffer* buffer, Values expected, Tolerance close) {
      if (buffer == nullptr) return;
      for (size_t i = 0; k.accumulate && i < expected.size(); ++i) expected[i] += buffer->values()[i];
      buffer->expect(expected, close);
    };
    // dq is rounded to half a unit here and there, at times to the other side; so is q, of which dpsi is the sum.
    const double unit = t == DType::bf16 ? 0x1p-8 : t == DType::f16 ? 0x1p-11 : 0x1p-22;
    const double dlogit = root(k.Cx), dq = dlogit * 3 / root(k.Ci), many = root(static_cast<int>(k.pixels()));
    const auto close = [&](DType stored, int64_t terms, double magnitude, double factors) {
      Tolerance r = tolerance(stored, terms, magnitude);
      r.atol += unit * factors;
      return r;
    };
    expect(dx, d.dx, close(t, k.Ci, dq, dq));
    expect(dg, d.dg, close(t, k.Ci, dq, dq));
    expect(dtheta, d.dtheta, close(DType::f32, k.pixels(), 3 * dq * many, 3 * dq * many));
    expect(dphi, d.dphi, close(DType::f32, k.pixels(), 3 * dq * many, 3 * dq * many));
    expect(dpsi, d.dpsi, close(DType::f32, k.pixels(), 3 * dlogit * many, 3 * dlogit * many));
    expect(dbias, d.dbias, close(DType::f32, k.pixels(), dlogit * many, 0));
  };
  return {.run = [&fixture, args] { kernels::attention_gate_backward(fixture.stream(), args); },
          .check = check,
          .bytes = k.pixels() * (3 * k.Cx + 2 * k.Cg) * static_cast<int64_t>(size_of(fixture.dtype())),
          .flops = 3 * product_flops(k)};
}

// The oracle's gradients of a random linear loss, by finite differences.
void check_oracle(const Gate& k, uint64_t seed) {
  Random random(seed);
  const auto draw = [&](int64_t count, const Fill& fill) {
    Values v(count);
    for (double& value : v) value = fill(random);
    return v;
  };
  const Fill weight = normal(1 / root(k.Cx + k.Cg));
  const Inputs in{draw(k.pixels() * k.Cx, normal()),
                  draw(k.pixels() * k.Cg, normal()),
                  draw(k.Ci * k.Cx, weight),
                  draw(k.Ci * k.Cg, weight),
                  draw(k.Ci, normal()),
                  draw(1, normal())};
  const Values dy = draw(k.pixels() * k.Cx, normal());
  const Gradients d = backward(k, in, forward(k, in), dy, DType::f64);
  const auto check = [&](const char* name, Values Inputs::*member, const Values& gradient) {
    const auto loss = [&](const Values& v) {
      Inputs moved = in;
      moved.*member = v;
      const Values y = forward(k, moved).y;
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
      return sum;
    };
    expect_gradient(name, loss, in.*member, gradient, 1e-7);
  };
  check("dx", &Inputs::x, d.dx);
  check("dg", &Inputs::g, d.dg);
  check("dtheta", &Inputs::theta, d.dtheta);
  check("dphi", &Inputs::phi, d.dphi);
  check("dpsi", &Inputs::psi, d.dpsi);
  check("dbias", &Inputs::bias, d.dbias);
}

// That a map of another size is refused by name.
TestCase refuses(const char* name, int H, int Ci, const char* expected) {
  return {.name = std::string("attention_gate_refuses_") + name, .make = [=](Fixture& fixture) {
            const Gate k{.name = "", .N = 1, .H = 2, .W = 2, .Cx = 8, .Cg = 8, .Ci = 8};
            const Bench b(k, fixture);
            TensorView g = b.g.map();
            g.H = H;
            kernels::AttentionGateWeights w = b.weights(k);
            w.Ci = Ci;
            return CaseRun{.run =
                               [=, &fixture, x = b.x.map()] {
                                 try {
                                   kernels::attention_gate_forward(
                                       fixture.stream(), {.x = x, .g = g, .weights = w, .y = x, .a = nullptr});
                                 } catch (const KernelError& e) {
                                   if (std::string(e.what()).find(expected) != std::string::npos) return;
                                   throw Mismatch(std::string("another error: ") + e.what());
                                 }
                                 throw Mismatch("no error");
                               },
                           .check = [] {}};
          }};
}

const Register cases_of_attention_gate([] {
  const std::vector<Gate> gates{
      {.name = "plain", .N = 2, .H = 6, .W = 7, .Cx = 32, .Cg = 32, .Ci = 32},
      {.name = "tiles", .N = 2, .H = 13, .W = 15, .Cx = 96, .Cg = 80, .Ci = 80},
      {.name = "slices", .N = 2, .H = 5, .W = 7, .Cx = 16, .Cg = 48, .Ci = 64, .slices = true},
      {.name = "odd_channels", .N = 1, .H = 5, .W = 9, .Cx = 5, .Cg = 3, .Ci = 7, .slices = true},
      {.name = "accumulates", .N = 2, .H = 4, .W = 9, .Cx = 32, .Cg = 64, .Ci = 16, .slices = true, .accumulate = true},
      {.name = "odd_accumulates", .N = 2, .H = 3, .W = 3, .Cx = 33, .Cg = 9, .Ci = 20, .accumulate = true},
      {.name = "in_place", .N = 1, .H = 8, .W = 9, .Cx = 64, .Cg = 32, .Ci = 32, .in_place = true},
      {.name = "no_dg", .N = 1, .H = 5, .W = 4, .Cx = 32, .Cg = 16, .Ci = 32, .wants_dg = false},
      {.name = "no_dx", .N = 1, .H = 5, .W = 4, .Cx = 32, .Cg = 16, .Ci = 32, .wants_dx = false},
      {.name = "one_pixel", .N = 1, .H = 1, .W = 1, .Cx = 8, .Cg = 8, .Ci = 8},
      {.name = "most_channels", .N = 1, .H = 2, .W = 4, .Cx = 256, .Cg = 256, .Ci = 256},
      {.name = "large", .N = 2, .H = 64, .W = 128, .Cx = 32, .Cg = 32, .Ci = 32, .large = true},
      {.name = "large_64", .N = 2, .H = 32, .W = 64, .Cx = 64, .Cg = 64, .Ci = 64, .large = true},
      {.name = "large_128", .N = 2, .H = 16, .W = 32, .Cx = 128, .Cg = 128, .Ci = 128, .large = true},
  };
  std::vector<TestCase> all{refuses("sizes", 3, 8, "x of 1x2x2 pixels and g of 1x3x2"),
                            refuses("many_channels", 2, 257, "257 intermediate channels")};
  for (const Gate& k : gates) {
    if (!k.accumulate && !k.in_place && k.wants_dx && k.wants_dg)
      all.push_back({.name = "attention_gate_forward_" + k.name,
                     .make = [k](Fixture& fixture) { return forward_instance(k, fixture); },
                     .gradient = {},
                     .large = k.large});
    TestCase c{.name = "attention_gate_backward_" + k.name,
               .make = [k](Fixture& fixture) { return backward_instance(k, fixture); },
               .gradient = {},
               .large = k.large};
    if (!k.large) c.gradient = [k](uint64_t seed) { check_oracle(k, seed); };
    all.push_back(c);
  }
  return all;
}());

}  // namespace
}  // namespace regolith::testing
