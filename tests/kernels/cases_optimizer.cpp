// One update of the weights, and the norm of the gradients before it. What a step does as a whole stands in
// tests/engine/test_optimizer.cpp.
#include <cmath>
#include <cstring>

#include "kernels/adamw.h"
#include "kernels/ema.h"
#include "kernels/gradient_norm.h"
#include "tests/support/cases.h"

namespace regolith::testing {
namespace {

Values bytes_of(const StepState& state) {
  unsigned char bytes[sizeof state];
  std::memcpy(bytes, &state, sizeof state);
  return Values(bytes, bytes + sizeof state);
}
StepState state_in(const Buffer& buffer) {
  unsigned char bytes[sizeof(StepState)];
  const Values values = buffer.read();
  for (size_t i = 0; i < sizeof bytes; ++i) bytes[i] = static_cast<unsigned char>(values[i]);
  StepState state;
  std::memcpy(&state, bytes, sizeof state);
  return state;
}
const Layout kState{1, 1, 1, sizeof(StepState)};

// The copy of the weights is of the fixture's type; none in fp32.
TestCase adamw_case(const char* name, int count, bool epsilon_hat = true) {
  return {.name = std::string("adamw_") + name, .make = [=](Fixture& fixture) {
            StepState state;
            state.learning_rate = 1e-2f;
            state.gradient_scale = 0.5f;
            state.bias_correction[0] = 0.19;
            state.bias_correction[1] = 0.002;
            const Layout flat{1, 1, 1, count};
            Buffer& where = fixture.input("state", kState, bytes_of(state), DType::u8);
            Buffer& w = fixture.inout("weights", flat, normal(), DType::f32);
            Buffer& g = fixture.input("gradient", flat, normal(), DType::f32);
            Buffer& m = fixture.inout("m", flat, normal(), DType::f32);
            Buffer& v = fixture.inout("v", flat, uniform(0.1, 2), DType::f32);
            Buffer* copy = fixture.dtype() == DType::f32 ? nullptr : &fixture.output("copy", flat);
            const kernels::AdamW args{.state = where.as<StepState>(),
                                      .weights = w.as<float>(),
                                      .gradient = g.as<float>(),
                                      .m = m.as<float>(),
                                      .v = v.as<float>(),
                                      .copy = copy == nullptr ? nullptr : copy->as<void>(),
                                      .copy_type = fixture.dtype(),
                                      .count = count,
                                      .epsilon = 1e-2f,
                                      .epsilon_hat = epsilon_hat};
            const double epsilon = epsilon_hat ? 1e-2 / std::sqrt(0.002) : 1e-2;
            const auto check = [=, &w, &g, &m, &v] {
              Values new_w(count), new_m(count), new_v(count);
              for (int i = 0; i < count; ++i) {
                const double d = 0.5 * g.values()[i];
                new_m[i] = 0.9 * m.values()[i] + 0.1 * d;
                new_v[i] = 0.999 * v.values()[i] + 0.001 * d * d;
                new_w[i] = w.values()[i] * (1 - 1e-2 * 0.004) -
                           1e-2 * (new_m[i] / 0.19) / (std::sqrt(new_v[i] / 0.002) + epsilon);
              }
              m.expect(new_m, tolerance(DType::f32, 1, 2));
              v.expect(new_v, tolerance(DType::f32, 1, 2));
              w.expect(new_w, tolerance(DType::f32, 1, 2));
              if (copy != nullptr) copy->expect(new_w, tolerance(copy->dtype(), 1, 2));
            };
            const int64_t low = copy == nullptr ? 0 : static_cast<int64_t>(size_of(fixture.dtype()));
            return CaseRun{.run = [&fixture, args] { kernels::adamw(fixture.stream(), args); },
                           .check = check,
                           .bytes = count * (7 * static_cast<int64_t>(sizeof(float)) + low),
                           .flops = int64_t{15} * count};
          }};
}

// Clipped to 1, the loss scale of 8 taken out.
TestCase norm_case(const char* name, int count) {
  return {.name = std::string("begin_update_") + name,
          .make =
              [=](Fixture& fixture) {
                StepState state;
                state.loss_scale = 8;
                state.updates = 1;
                Buffer& where = fixture.inout("state", kState, bytes_of(state), DType::u8);
                Buffer& g = fixture.input("gradient", {1, 1, 1, count}, normal(), DType::f32);
                void* const workspace = fixture.workspace(kernels::gradient_norm_partials(count) * sizeof(double));
                const kernels::BeginUpdate args{.state = where.as<StepState>(),
                                                .gradient = g.as<float>(),
                                                .count = count,
                                                .clip_norm = 0.01f,
                                                .beta1 = 0.9,
                                                .beta2 = 0.99,
                                                .workspace = static_cast<double*>(workspace)};
                const auto check = [&where, &g] {
                  double squares = 0;
                  for (const double x : g.values()) squares += x * x;
                  const double norm = std::sqrt(squares) / 8;
                  const StepState now = state_in(where);
                  expect_close("norm, its clip, the bias corrections, finite",
                               {now.gradient_norm, now.gradient_scale, now.bias_correction[0], now.bias_correction[1],
                                static_cast<double>(now.finite)},
                               {norm, 0.01 / std::max(norm, 0.01) / 8, 1 - 0.9 * 0.9, 1 - 0.99 * 0.99, 1}, {0, 1e-5});
                };
                return CaseRun{.run = [&fixture, args] { kernels::begin_update(fixture.stream(), args); },
                               .check = check,
                               .bytes = count * static_cast<int64_t>(sizeof(float)),
                               .flops = int64_t{2} * count};
              },
          .dtypes = {DType::f32}};
}

// updates: of the state, the one just made counted.
TestCase ema_case(const char* name, int count, int64_t updates, bool finite = true, bool warm_up = true) {
  return {.name = std::string("ema_") + name,
          .make =
              [=](Fixture& fixture) {
                StepState state;
                state.updates = updates;
                state.finite = finite;
                const Layout flat{1, 1, 1, count};
                Buffer& where = fixture.input("state", kState, bytes_of(state), DType::u8);
                Buffer& w = fixture.input("weights", flat, normal(), DType::f32);
                Buffer& average = fixture.inout("average", flat, normal(), DType::f32);
                const kernels::Ema args{.state = where.as<StepState>(),
                                        .weights = w.as<float>(),
                                        .average = average.as<float>(),
                                        .count = count,
                                        .decay = 0.95,
                                        .warm_up = warm_up};
                const double t = static_cast<double>(updates);
                const double decay = updates == 1 ? 0 : warm_up ? std::min(0.95, (1 + t) / (10 + t)) : 0.95;
                const auto check = [=, &w, &average] {
                  Values expected = average.values();
                  for (int i = 0; finite && i < count; ++i)
                    expected[i] = decay * expected[i] + (1 - decay) * w.values()[i];
                  average.expect(expected, finite ? tolerance(DType::f32, 1, 2) : Tolerance{});
                };
                return CaseRun{.run = [&fixture, args] { kernels::ema(fixture.stream(), args); },
                               .check = check,
                               .bytes = count * 3 * static_cast<int64_t>(sizeof(float)),
                               .flops = int64_t{3} * count};
              },
          .dtypes = {DType::f32}};
}

TestCase exchange_case(const char* name, int count) {
  return {.name = std::string("exchange_") + name,
          .make =
              [=](Fixture& fixture) {
                Buffer& a = fixture.inout("a", {1, 1, 1, count}, normal(), DType::f32);
                Buffer& b = fixture.inout("b", {1, 1, 1, count}, normal(), DType::f32);
                const kernels::Exchange args{a.as<float>(), b.as<float>(), count};
                const auto check = [&a, &b] {
                  a.expect(b.values(), Tolerance{});
                  b.expect(a.values(), Tolerance{});
                };
                return CaseRun{.run = [&fixture, args] { kernels::exchange(fixture.stream(), args); },
                               .check = check,
                               .bytes = count * 4 * static_cast<int64_t>(sizeof(float))};
              },
          .dtypes = {DType::f32}};
}

const Register cases_of_optimizer([] {
  std::vector<TestCase> list{
      adamw_case("vectors", 1024),        adamw_case("odd", 771),           adamw_case("torch", 771, false),
      norm_case("one_block", 1000),       norm_case("three_blocks", 40001), ema_case("first", 771, 1),
      ema_case("warm_up", 771, 2),        ema_case("warm", 1024, 2000),     ema_case("constant", 5, 2, true, false),
      ema_case("skipped", 771, 7, false), exchange_case("vectors", 1024),   exchange_case("odd", 771)};
  for (TestCase c : {adamw_case("large", 1 << 20), norm_case("large", 1 << 20), ema_case("large", 1 << 20, 5)}) {
    c.large = true;
    list.push_back(c);
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
