// Every provider of the build, on every request that it takes, against plain loops in double precision.
#include <gmock/gmock.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "engine/base/error.h"
#include "engine/conv/builtin.h"
#include "engine/conv/pairs.h"
#include "engine/conv/tiled_pass.h"
#include "kernels/core/random.h"
#include "tests/support/simulated_device.h"
#if defined(REGOLITH_ONEDNN)
#include "engine/conv/onednn.h"
#include "engine/conv/tiled_wgrad.h"
#endif

namespace regolith {
namespace {

using testing::HasSubstr;

ConvShape same(int N, int H, int W, int C, int K, int R, int S, int stride = 1, int dilation = 1) {
  ConvShape s{N, H, W, C, K, R, S, {stride, stride}, {dilation, dilation}};
  const int in[] = {H, W}, k[] = {R, S};
  for (int i = 0; i < 2; ++i) {  // the odd pixel after, as TensorFlow has it
    const int total = std::max(((in[i] + stride - 1) / stride - 1) * stride + (k[i] - 1) * dilation + 1 - in[i], 0);
    s.pad_before[i] = total / 2;
    s.pad_after[i] = total - total / 2;
  }
  return s;
}

const std::vector<ConvShape>& shapes() {
  static const std::vector<ConvShape> list = {
      same(2, 8, 16, 32, 32, 3, 3),
      same(2, 8, 8, 32, 48, 2, 2),
      same(3, 7, 9, 16, 8, 1, 1),
      same(1, 12, 14, 16, 16, 3, 3, 1, 6),
      same(1, 14, 13, 8, 24, 3, 3, 1, 12),
      same(2, 20, 24, 8, 16, 3, 3, 1, 18),
      same(2, 4, 8, 16, 16, 3, 3, 1, 6),
      same(2, 8, 12, 16, 32, 2, 2, 2),
      same(2, 9, 11, 24, 16, 3, 3, 2),
      same(2, 16, 16, 1, 32, 3, 3),
      same(2, 8, 8, 64, 5, 1, 1),
      same(3, 5, 7, 3, 7, 3, 3),
      same(2, 6, 10, 5, 33, 5, 3),
      same(2, 33, 17, 20, 36, 3, 3),
      same(1, 1, 1, 40, 12, 3, 3),
      same(1, 20, 37, 24, 40, 3, 3),
      same(1, 3, 2, 192, 192, 3, 3),
      same(2, 13, 18, 96, 176, 3, 3),
      same(2, 19, 28, 16, 32, 3, 3),
      same(1, 25, 40, 48, 16, 3, 3),
      same(1, 9, 11, 16, 272, 3, 3),
      same(1, 9, 11, 8, 272, 3, 3),
      same(1, 52, 60, 16, 16, 3, 3),
      same(1, 6, 7, 80, 64, 3, 3),
      {1, 6, 7, 8, 8, 3, 3, {1, 1}, {1, 1}, {0, 2}, {1, 0}},
      {1, 6, 7, 16, 32, 3, 3, {1, 1}, {1, 1}, {0, 2}, {1, 0}},
      {1, 6, 7, 16, 32, 3, 3, {1, 1}, {1, 1}, {2, 0}, {0, 2}},
      same(2, 13, 18, 96, 176, 2, 2),
      same(1, 11, 26, 32, 16, 2, 2),
      {1, 6, 7, 16, 32, 2, 2, {1, 1}, {1, 1}, {1, 0}, {0, 1}},
      {1, 9, 8, 32, 16, 3, 3, {1, 1}, {1, 1}, {0, 0}, {0, 0}},
  };
  return list;
}

// Small integers are exact in every type here, and so are their sums in fp32.
std::vector<double> integers(size_t n, uint32_t stream, int most) {
  std::vector<double> v(n);
  for (size_t i = 0; i < n; ++i)
    v[i] = static_cast<int>(philox(7, static_cast<uint32_t>(i), stream, 0, 0).v[0] % (2 * most + 1)) - most;
  return v;
}

struct Oracle {
  std::vector<double> x, w, bias, dy, y, dx, dw, db;
  Oracle(const ConvShape& s, bool has_bias, bool relu)
      : x(integers(static_cast<size_t>(s.N) * s.H * s.W * s.C, 1, 2)),
        w(integers(s.weights(), 2, 1)),
        bias(integers(has_bias ? s.K : 0, 3, 5)),
        dy(integers(static_cast<size_t>(s.N) * s.P() * s.Q() * s.K, 4, 2)),
        y(dy.size()),
        dx(x.size()),
        dw(w.size()),
        db(s.K) {
    size_t o = 0;
    for (int n = 0; n < s.N; ++n)
      for (int p = 0; p < s.P(); ++p)
        for (int q = 0; q < s.Q(); ++q)
          for (int k = 0; k < s.K; ++k, ++o) {
            double sum = has_bias ? bias[k] : 0;
            for (int r = 0; r < s.R; ++r)
              for (int t = 0; t < s.S; ++t) {
                const int h = p * s.stride[0] - s.pad_before[0] + r * s.dilation[0];
                const int v = q * s.stride[1] - s.pad_before[1] + t * s.dilation[1];
                if (h < 0 || h >= s.H || v < 0 || v >= s.W) continue;
                const size_t in = ((static_cast<size_t>(n) * s.H + h) * s.W + v) * s.C;
                const size_t at = ((static_cast<size_t>(k) * s.R + r) * s.S + t) * s.C;
                for (int c = 0; c < s.C; ++c) {
                  sum += w[at + c] * x[in + c];
                  dx[in + c] += w[at + c] * dy[o];
                  dw[at + c] += x[in + c] * dy[o];
                }
              }
            db[k] += dy[o];
            y[o] = relu && sum < 0 ? 0 : sum;
          }
  }
};

// A buffer of the CPU device, poisoned with NaN, or holding `values` rounded to its type.
struct Tensor {
  DeviceBuffer memory;
  DType type;
  size_t n;
  Tensor(Device& device, DType t, size_t count) : memory(device, count * size_of(t)), type(t), n(count) {
    for (size_t i = 0; i < n; ++i) set(i, std::numeric_limits<float>::quiet_NaN());
  }
  Tensor(Device& device, DType t, const std::vector<double>& values) : Tensor(device, t, values.size()) {
    for (size_t i = 0; i < n; ++i) set(i, static_cast<float>(values[i]));
  }
  void set(size_t i, float x) {
    if (type == DType::f32) memory.as<float>()[i] = x;
    if (type == DType::bf16) memory.as<bf16>()[i] = bf16(x);
    if (type == DType::f16) memory.as<fp16>()[i] = fp16(x);
  }
  float get(size_t i) const {
    if (type == DType::f32) return memory.as<float>()[i];
    return type == DType::bf16 ? static_cast<float>(memory.as<bf16>()[i]) : static_cast<float>(memory.as<fp16>()[i]);
  }
};

// Exact sums, rounded once to the type of the result; `times`: how often they were added; `slack`: of the largest.
void expect_equal(const Tensor& got, const std::vector<double>& want, const char* what, double slack, int times = 1) {
  const double unit = got.type == DType::f32 ? 0 : got.type == DType::bf16 ? 0x1p-8 : 0x1p-11;
  double largest = 0;
  for (double w : want) largest = std::max(largest, std::abs(w));
  for (size_t i = 0; i < got.n; ++i) {
    const double expected = times * want[i];
    ASSERT_TRUE(std::abs(got.get(i) - expected) <= unit * std::abs(expected) + slack * times * largest)
        << what << '[' << i << "]: " << got.get(i) << ", not " << expected;
  }
}

void check(Device& device, Convolution& conv, const ConvRequest& request) {
  const ConvShape& s = request.shape;
  // Transforms of six values are not exact: a part of the unit roundoff of 16 bits.
  const bool six = conv.implementation() == "F(4x4, 3x3)" || conv.implementation() == "F(5x5, 2x2)";
  const double slack = six ? 0x1p-17 : 0;
  static std::map<std::tuple<ConvShape, bool, bool>, Oracle> oracles;
  const Oracle& oracle =
      oracles.try_emplace({s, request.bias, request.relu}, s, request.bias, request.relu).first->second;
  const auto stream = device.make_stream();
  const Tensor x(device, request.type, oracle.x), w(device, request.type, oracle.w),
      dy(device, request.type, oracle.dy);
  const Tensor bias(device, DType::f32, oracle.bias);
  Tensor y(device, request.type, oracle.y.size()), dx(device, request.type, oracle.x.size());
  Tensor dw(device, DType::f32, oracle.w.size()), db(device, DType::f32, oracle.db.size());
  const auto map_x = [&](const Tensor& t) { return TensorView{t.memory.as(), s.N, s.H, s.W, s.C, s.C, t.type}; };
  const auto map_y = [&](const Tensor& t) { return TensorView{t.memory.as(), s.N, s.P(), s.Q(), s.K, s.K, t.type}; };
  const auto scratch = [&](size_t bytes) { return Tensor(device, DType::f32, bytes / 4 + 1); };
  const Tensor packed = scratch(conv.prepacked(WeightUse::forward).bytes),
               packed_dgrad = scratch(conv.prepacked(WeightUse::dgrad).bytes);
  conv.prepack_weights(*stream, WeightUse::forward, w.memory.as(), packed.memory.as());
  if (request.needs_dgrad) conv.prepack_weights(*stream, WeightUse::dgrad, w.memory.as(), packed_dgrad.memory.as());
  const auto inputs_bias = request.bias ? bias.memory.as<float>() : nullptr;
  {
    const Tensor ws = scratch(conv.forward_workspace());
    conv.forward(*stream, map_x(x), w.memory.as(), packed.memory.as(), inputs_bias, map_y(y), ws.memory.as());
    stream->synchronize();
    expect_equal(y, oracle.y, "y", slack);
  }
  if (request.needs_dgrad) {
    const Tensor ws = scratch(conv.dgrad_workspace());
    conv.dgrad(*stream, map_y(dy), w.memory.as(), packed_dgrad.memory.as(), map_x(dx), ws.memory.as());
    stream->synchronize();
    expect_equal(dx, oracle.dx, "dx", slack);
    if (conv.has_dgrad_epilogue()) {
      const auto run = [&](const DgradEpilogue& e) {
        conv.dgrad(*stream, map_y(dy), w.memory.as(), packed_dgrad.memory.as(), map_x(dx), ws.memory.as(), e);
        stream->synchronize();
      };
      const Tensor input_bias(device, DType::f32, integers(s.C, 5, 3));
      std::vector<double> biased = oracle.dx;
      for (size_t i = 0; i < biased.size(); ++i) biased[i] += input_bias.get(i % s.C);
      run({.bias = input_bias.memory.as<float>()});
      expect_equal(dx, biased, "dx with bias", slack);
      for (size_t i = 0; i < dx.n; ++i) dx.set(i, static_cast<float>(oracle.x[i]));
      for (size_t i = 0; i < biased.size(); ++i) biased[i] = oracle.dx[i] + oracle.x[i];
      run({.accumulate = true});
      expect_equal(dx, biased, "dx, accumulated", slack);
    }
  }
  for (int times = 1; times <= 2; ++times) {
    const Tensor ws = scratch(conv.wgrad_workspace());
    conv.wgrad(*stream, map_x(x), map_y(dy), dw.memory.as<float>(), request.bias ? db.memory.as<float>() : nullptr,
               times == 2, ws.memory.as());
    stream->synchronize();
    expect_equal(dw, oracle.dw, "dw", slack, times);
    if (request.bias) expect_equal(db, oracle.db, "db", 0, times);
  }
}

class Providers : public testing::TestWithParam<std::string> {};

TEST_P(Providers, MatchPlainLoops) {
  const auto device = make_cpu_device();
  int taken = 0;
  for (ConvProvider* provider : conv_providers()) {
    if (provider->name() != GetParam()) continue;
    for (const ConvShape& shape : shapes()) {
      for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
        for (const bool epilogue : {false, true}) {
          if (epilogue && type == DType::f16) continue;
          ConvRequest request{.shape = shape, .type = type, .bias = epilogue, .relu = epilogue};
          request.needs_dgrad = shape.C > 1;
          auto made = provider->create(*device, request);
          auto* convolution = std::get_if<std::unique_ptr<Convolution>>(&made);
          if (convolution == nullptr) {
            const std::string& reason = std::get<UnsupportedReason>(made).reason;
            EXPECT_FALSE(reason.empty());
            EXPECT_NE(GetParam(), "onednn") << to_string(shape) << " " << name_of(type) << ": " << reason;
            continue;
          }
          ++taken;
          SCOPED_TRACE(to_string(shape) + " " + std::string(name_of(type)) + (epilogue ? " bias relu: " : ": ") +
                       (*convolution)->implementation());
          EXPECT_EQ((*convolution)->provider(), provider->name());
          check(*device, **convolution, request);
        }
      }
    }
  }
  if (taken == 0) GTEST_SKIP() << GetParam() << " takes nothing on the CPU";
}

std::vector<std::string> names() {
  std::vector<std::string> list;
  for (ConvProvider* provider : conv_providers()) list.emplace_back(provider->name());
  return list;
}
INSTANTIATE_TEST_SUITE_P(OnCpu, Providers, testing::ValuesIn(names()), [](const auto& i) { return i.param; });

#if defined(REGOLITH_ONEDNN)
// The machine decides who computes weight gradients; all must be right on every machine, with any number of threads.
TEST(Onednn, WeightGradientsOfEveryKind) {
  const int before = omp_get_max_threads();
  for (const int threads : {1, before, 3}) {
    const auto device = make_cpu_device(threads);
    for (const auto& [who, name] : {std::pair{WeightGradients::library, "wgrad direct"},
                                    {WeightGradients::direct, "wgrad direct"},
                                    {WeightGradients::tiled, "wgrad tiles"}}) {
      if (who == WeightGradients::tiled && !TiledWgrad::available()) continue;
      for (const ConvShape& shape : shapes()) {
        const ConvRequest request{.shape = shape, .type = DType::bf16, .bias = true, .needs_dgrad = false};
        auto made = make_onednn_convolution(*device, request, who);
        ASSERT_TRUE(std::holds_alternative<std::unique_ptr<Convolution>>(made))
            << std::get<UnsupportedReason>(made).reason;
        Convolution& convolution = *std::get<std::unique_ptr<Convolution>>(made);
        SCOPED_TRACE(to_string(shape) + ", " + std::to_string(threads) + " threads: " + convolution.implementation());
        EXPECT_EQ(convolution.implementation().find(name) != std::string::npos, who != WeightGradients::library);
        check(*device, convolution, request);
      }
    }
  }
  omp_set_num_threads(before);
}
#endif

// Its tiles are divided among the threads, the sums of its weight gradients too.
TEST(Winograd, AnyNumberOfThreads) {
  const int before = omp_get_max_threads();
  std::map<std::string, int> taken;
  int all = 0;
  for (const int threads : {1, 3, 8}) {
    const auto device = make_cpu_device(threads);
    for (const ConvShape& shape : shapes()) {
      for (const DType type : {DType::f32, DType::bf16}) {
        const ConvRequest request{.shape = shape, .type = type, .bias = true};
        auto made = winograd_provider().create(*device, request);
        if (std::holds_alternative<UnsupportedReason>(made)) continue;
        ++taken[std::get<std::unique_ptr<Convolution>>(made)->implementation()], ++all;
        SCOPED_TRACE(to_string(shape) + " " + std::string(name_of(type)) + ", threads: " + std::to_string(threads));
        check(*device, *std::get<std::unique_ptr<Convolution>>(made), request);
      }
    }
  }
  omp_set_num_threads(before);
  for (const char* tiles : {"F(4x4, 3x3)", "F(5x5, 2x2)"}) EXPECT_GE(taken[tiles], 12) << tiles;
  EXPECT_GE(all, 30);
}

// A convolution of inference whose maps are slices, with everything that an epilogue has, against sums in double; and
// against the bytes of the first call.
void check_epilogue(Device& device, Convolution& conv, const ConvRequest& request, std::vector<float>& bytes) {
  const ConvShape& s = request.shape;
  const int P = s.P(), Q = s.Q(), x_pitch = s.C + 16, y_pitch = s.K + 32, more = 16;
  const auto stream = device.make_stream();
  const auto numbers = [&](size_t n, uint32_t key) {
    std::vector<double> v(n);
    for (size_t i = 0; i < n; ++i) v[i] = philox(7, static_cast<uint32_t>(i), key, 0, 0).v[0] * 0x1p-31 - 1;
    return v;
  };
  const size_t in = static_cast<size_t>(s.N) * s.H * s.W, out = static_cast<size_t>(s.N) * P * Q;
  const Tensor x(device, request.type, numbers(in * x_pitch, 1)), w(device, request.type, numbers(s.weights(), 2));
  const Tensor residual(device, request.type, numbers(out * s.K, 3)), bias(device, DType::f32, numbers(s.K, 4));
  const Tensor affine(device, DType::f32, numbers(size_t(s.N) * 2 * s.C, 5));
  Tensor y(device, request.type, out * y_pitch), sums(device, DType::f32, size_t{2} * s.N * s.K);
  const Tensor packed(device, DType::f32, conv.prepacked(WeightUse::forward).bytes / 4 + 1);
  const Tensor workspace(device, DType::f32, conv.forward_workspace() / 4 + 1);
  const size_t element = size_of(request.type);
  const TensorView map_x{x.memory.as<char>() + 16 * element, s.N, s.H, s.W, s.C, x_pitch, request.type};
  const TensorView map_y{y.memory.as<char>() + more * element, s.N, P, Q, s.K, y_pitch, request.type};
  const TensorView map_residual{residual.memory.as(), s.N, P, Q, s.K, s.K, request.type};
  conv.prepack_weights(*stream, WeightUse::forward, w.memory.as(), packed.memory.as());
  for (const bool with : {false, true}) {
    ForwardEpilogue e;
    if (with) {
      e = {.residual = map_residual,
           .sums = sums.memory.as<float>(),
           .affine = affine.memory.as<float>(),
           .input_relu = true};
    }
    conv.forward(*stream, map_x, w.memory.as(), packed.memory.as(), bias.memory.as<float>(), map_y,
                 workspace.memory.as(), e);
    stream->synchronize();
    std::vector<double> want_sums(sums.n);
    const double slack = request.type == DType::f32 ? 4e-7 * std::sqrt(9.0 * s.C) : 0x1p-8;
    for (size_t i = 0; i < out; ++i) {
      const int n = static_cast<int>(i / (size_t(P) * Q)), p = static_cast<int>(i / Q % P), q = static_cast<int>(i % Q);
      for (int k = 0; k < s.K; ++k) {
        double sum = bias.get(k) + (with ? residual.get(i * s.K + k) : 0);
        for (int tap = 0; tap < s.R * s.S; ++tap) {
          const int h = p - s.pad_before[0] + tap / s.S, v = q - s.pad_before[1] + tap % s.S;
          if (h < 0 || h >= s.H || v < 0 || v >= s.W) continue;
          for (int c = 0; c < s.C; ++c) {
            double value = x.get(((static_cast<size_t>(n) * s.H + h) * s.W + v) * x_pitch + 16 + c);
            if (with) value = std::max(0.0, value * affine.get(n * 2 * s.C + c) + affine.get((n * 2 + 1) * s.C + c));
            sum += value * w.get((static_cast<size_t>(k) * s.R * s.S + tap) * s.C + c);
          }
        }
        sum = request.relu ? std::max(0.0, sum) : sum;
        want_sums[(n * 2) * s.K + k] += sum, want_sums[(n * 2 + 1) * s.K + k] += sum * sum;
        ASSERT_NEAR(y.get(i * y_pitch + more + k), sum, slack * (10 + std::abs(sum)))
            << "y[" << n << ',' << p << ',' << q << ',' << k << ']' << (with ? " with an epilogue" : "");
      }
      for (int k = 0; k < y_pitch; ++k) {
        ASSERT_TRUE((k >= more && k < more + s.K) || std::isnan(y.get(i * y_pitch + k))) << "beside the slice";
      }
    }
    if (!with) continue;
    for (size_t i = 0; i < sums.n; ++i)
      ASSERT_NEAR(sums.get(i), want_sums[i], 20 * slack * P * Q * (1 + std::abs(want_sums[i]) / (P * Q))) << "sums";
  }
  std::vector<float> got(y.n + sums.n);
  for (size_t i = 0; i < got.size(); ++i) got[i] = i < y.n ? y.get(i) : sums.get(i - y.n);
  if (bytes.empty()) bytes = got;
  EXPECT_EQ(std::memcmp(bytes.data(), got.data(), got.size() * sizeof(float)), 0) << "other bytes";
}

TEST(Providers, EpiloguesOfInferenceOnAnyNumberOfThreads) {
  const std::vector<ConvShape> list = {
      same(5, 4, 8, 48, 5, 1, 1),
      same(2, 8, 12, 32, 40, 2, 2),
      same(2, 17, 23, 48, 16, 2, 2),
      same(1, 7, 70, 16, 80, 2, 2),
      same(2, 16, 16, 32, 64, 3, 3),
      same(1, 13, 33, 32, 32, 3, 3),
      same(1, 6, 7, 80, 64, 3, 3),
      same(1, 3, 2, 32, 272, 3, 3),
      {1, 6, 7, 16, 32, 3, 3, {1, 1}, {1, 1}, {2, 0}, {0, 2}},
  };
  const int before = omp_get_max_threads();
  std::map<std::string, int> taken;
  std::map<std::tuple<ConvProvider*, ConvShape, DType>, std::vector<float>> bytes;
  for (const int threads : {1, 2, 3}) {
    const auto device = make_cpu_device(threads);
    for (ConvProvider* provider : {&winograd_provider(), &amx_provider()}) {
      for (const ConvShape& shape : list) {
        for (const DType type : {DType::f32, DType::bf16}) {
          const ConvRequest request{.shape = shape,
                                    .type = type,
                                    .bias = true,
                                    .relu = shape.C != 32,
                                    .needs_dgrad = false,
                                    .needs_wgrad = false,
                                    .frozen = true};
          auto made = provider->create(*device, request);
          if (std::holds_alternative<UnsupportedReason>(made)) continue;
          Convolution& conv = *std::get<std::unique_ptr<Convolution>>(made);
          ASSERT_TRUE(conv.has_forward_epilogue());
          const std::string name = std::string(conv.provider()) + " " + conv.implementation();
          ++taken[name];
          SCOPED_TRACE(to_string(shape) + " " + std::string(name_of(type)) + ", threads: " + std::to_string(threads) +
                       ": " + name);
          check_epilogue(*device, conv, request, bytes[{provider, shape, type}]);
        }
      }
    }
  }
  omp_set_num_threads(before);
  for (const char* tiles : {"F(2x2, 3x3)", "F(4x4, 3x3)", "F(5x5, 2x2)"})
    EXPECT_GE(taken[std::string("winograd ") + tiles], 6) << tiles;
  if (TiledPass::available()) {
    EXPECT_EQ(taken["amx "], 3 * 9);
  }
}

TEST(Upscale, MatchesPlainLoops) {
  const int before = omp_get_max_threads();
  for (const int threads : {1, 3}) {
    const auto device = make_cpu_device(threads);
    const auto stream = device->make_stream();
    for (const ConvShape& shape : {same(2, 8, 12, 16, 32, 2, 2, 2), same(1, 10, 14, 48, 5, 2, 2, 2),
                                   same(3, 9, 6, 80, 24, 3, 3, 3), same(1, 4, 4, 32, 16, 4, 4, 4)}) {
      SCOPED_TRACE(to_string(shape) + ", threads: " + std::to_string(threads));
      const ConvRequest request{.shape = shape, .needs_wgrad = false, .frozen = true};
      const auto conv = pick_convolution(*device, request, {.provider = "upscale"});
      const Oracle oracle(shape, false, false);
      const Tensor w(*device, DType::f32, oracle.w), dy(*device, DType::f32, oracle.dy);
      const Tensor bias(*device, DType::f32, integers(shape.C, 5, 3));
      Tensor dx(*device, DType::f32, oracle.dx.size());
      const Tensor packed(*device, DType::f32, conv->prepacked(WeightUse::dgrad).bytes / 4);
      conv->prepack_weights(*stream, WeightUse::dgrad, w.memory.as(), packed.memory.as());
      const TensorView map_x{dx.memory.as(), shape.N, shape.H, shape.W, shape.C, shape.C, DType::f32};
      const TensorView map_y{dy.memory.as(), shape.N, shape.P(), shape.Q(), shape.K, shape.K, DType::f32};
      const auto expect = [&](const DgradEpilogue& e, const std::vector<double>& want, const char* what) {
        conv->dgrad(*stream, map_y, w.memory.as(), packed.memory.as(), map_x, nullptr, e);
        stream->synchronize();
        expect_equal(dx, want, what, 0);
      };
      expect({}, oracle.dx, "dx");
      std::vector<double> want = oracle.dx;
      for (double& v : want) v *= 2;
      expect({.accumulate = true}, want, "dx, accumulated");
      for (size_t i = 0; i < want.size(); ++i) want[i] = oracle.dx[i] + bias.get(i % shape.C);
      expect({.bias = bias.memory.as<float>()}, want, "dx with bias");
    }
  }
  omp_set_num_threads(before);
}

TEST(Providers, KeepNaN) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  std::vector<std::pair<const char*, DType>> list = {{"winograd", DType::f32}, {"winograd", DType::bf16}};
  if (TiledPass::available()) list.emplace_back("amx", DType::bf16);
  for (const auto& [provider, type] : list) {
    SCOPED_TRACE(std::string(provider) + " " + std::string(name_of(type)));
    const ConvRequest request{.shape = same(1, 8, 8, 16, 16, 3, 3), .type = type, .bias = true, .relu = true};
    const auto conv = pick_convolution(*device, request, {.provider = provider});
    Tensor x(*device, type, std::vector<double>(8 * 8 * 16, 1)), y(*device, type, 8 * 8 * 16);
    const Tensor w(*device, type, std::vector<double>(16 * 9 * 16, 1)), bias(*device, DType::f32, integers(16, 3, 5));
    const Tensor packed(*device, DType::f32, conv->prepacked(WeightUse::forward).bytes / 4 + 1);
    const Tensor workspace(*device, DType::f32, conv->forward_workspace() / 4 + 1);
    x.set((3 * 8 + 5) * 16 + 7, std::numeric_limits<float>::quiet_NaN());
    conv->prepack_weights(*stream, WeightUse::forward, w.memory.as(), packed.memory.as());
    conv->forward(*stream, {x.memory.as(), 1, 8, 8, 16, 16, type}, w.memory.as(), packed.memory.as(),
                  bias.memory.as<float>(), {y.memory.as(), 1, 8, 8, 16, 16, type}, workspace.memory.as());
    for (int k = 0; k < 16; ++k) EXPECT_TRUE(std::isnan(y.get((3 * 8 + 5) * 16 + k))) << k;
  }
}

TEST(Picker, RefusesSlices) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  const ConvRequest request{.shape = same(1, 8, 8, 16, 16, 3, 3)};
  DeviceBuffer buffer(*device, 8 * 8 * 32 * 4);
  const TensorView whole{buffer.as(), 1, 8, 8, 16, 16, DType::f32}, slice{buffer.as(), 1, 8, 8, 16, 32, DType::f32};
  const auto message = [&](const auto& call) -> std::string {
    try {
      call();
    } catch (const KernelError& e) {
      return e.what();
    }
    return "nothing was thrown";
  };
  for (const std::string provider : {"auto", "winograd"}) {
    SCOPED_TRACE(provider);
    const auto conv = pick_convolution(*device, request, {.provider = provider});
    EXPECT_THAT(message([&] { conv->forward(*stream, slice, nullptr, nullptr, nullptr, whole, nullptr); }),
                HasSubstr("slice"));
    EXPECT_THAT(message([&] { conv->dgrad(*stream, whole, nullptr, nullptr, slice, nullptr); }), HasSubstr("slice"));
    EXPECT_THAT(message([&] { conv->wgrad(*stream, slice, whole, nullptr, nullptr, false, nullptr); }),
                HasSubstr("slice"));
  }
}

TEST(Picker, SaysWhyNobodyTakesIt) {
  const auto device = make_cpu_device();
  const ConvRequest bytes{.shape = same(1, 8, 8, 16, 16, 3, 3), .type = DType::u8};
  try {
    pick_convolution(*device, bytes, {});
    FAIL() << "a convolution of bytes was made";
  } catch (const GraphError& e) {
    EXPECT_THAT(e.what(), HasSubstr("1x8x8x16 -> 16, 3x3 stride 1 pad 1,1,1,1 u8"));
    for (const std::string& name : names()) {
      if (name != "reference") {
        EXPECT_THAT(e.what(), HasSubstr("\n  " + name + ": "));
      }
    }
  }
  const ConvRequest request{.shape = same(1, 8, 8, 16, 16, 3, 3)};
  try {
    pick_convolution(*device, request, {.provider = "miopen"});
    FAIL() << "an unknown provider was found";
  } catch (const GraphError& e) {
    EXPECT_THAT(e.what(), HasSubstr("no provider 'miopen'"));
    EXPECT_THAT(e.what(), HasSubstr("reference"));
  }
}

TEST(Picker, Chooses) {
  const auto cpu = make_cpu_device();
  const auto simulated = make_simulated_device(1);
  const ConvRequest request{.shape = same(1, 8, 8, 16, 16, 3, 3)};
  EXPECT_EQ(pick_convolution(*simulated, request, {})->provider(), "reference");
  const ConvRequest half{.shape = request.shape, .type = DType::bf16};
  EXPECT_EQ(pick_convolution(*simulated, half, {})->provider(), "tile");
  EXPECT_NE(pick_convolution(*cpu, half, {})->provider(), "tile");
  const ConvRequest frozen{.shape = same(1, 16, 32, 16, 16, 3, 3),
                           .type = DType::bf16,
                           .needs_dgrad = false,
                           .needs_wgrad = false,
                           .frozen = true};
  EXPECT_EQ(pick_convolution(*cpu, frozen, {})->provider() == "amx", TiledPass::available());
  EXPECT_EQ(pick_convolution(*cpu, request, {.provider = "reference"})->provider(), "reference");
#if defined(REGOLITH_ONEDNN)
  EXPECT_EQ(pick_convolution(*cpu, request, {.provider = "onednn"})->provider(), "onednn");
#endif
}

TEST(Picker, TakesWinogradWhereItPays) {
  const auto cpu = make_cpu_device();
  const auto is_profitable = [&](const ConvShape& shape, DType type) {
    return pick_convolution(*cpu, {.shape = shape, .type = type}, {.provider = "winograd"})->is_profitable();
  };
  // 32 tiles of 4x4, or one less.
  EXPECT_FALSE(is_profitable(same(1, 4, 124, 16, 16, 3, 3), DType::f32));
  EXPECT_FALSE(is_profitable(same(1, 4, 124, 16, 16, 3, 3), DType::bf16));
#if defined(__AVX2__) && defined(__FMA__)
  EXPECT_TRUE(is_profitable(same(1, 4, 125, 16, 16, 3, 3), DType::f32));
  EXPECT_FALSE(is_profitable(same(60, 1, 8, 16, 16, 3, 3), DType::f32));  // three quarters of a tile are thrown away
  EXPECT_EQ(is_profitable(same(1, 4, 125, 16, 16, 3, 3), DType::bf16), !__builtin_cpu_supports("amx-bf16"));
  EXPECT_EQ(pick_convolution(*cpu, {.shape = same(2, 16, 16, 16, 16, 3, 3)}, {})->provider(), "winograd");
  // 2x2 saves less: not where the processor multiplies pairs of bf16 fast, nor where half of the tiles is thrown away.
  EXPECT_TRUE(is_profitable(same(2, 15, 30, 16, 16, 2, 2), DType::f32));
  EXPECT_FALSE(is_profitable(same(60, 3, 3, 16, 16, 2, 2), DType::f32));
  const bool fast = multiplies_pairs_fast() || __builtin_cpu_supports("amx-bf16");
  EXPECT_EQ(is_profitable(same(2, 20, 25, 16, 16, 2, 2), DType::bf16), !fast);
#endif
  // Somebody must take it all the same, where nobody else does.
  EXPECT_NE(pick_convolution(*cpu, {.shape = same(1, 8, 8, 16, 16, 3, 3)}, {}), nullptr);
}

TEST(Shape, IsReadable) {
  EXPECT_EQ(to_string(same(2, 8, 8, 3, 16, 3, 3, 1, 2)), "2x8x8x3 -> 16, 3x3 stride 1 dilation 2 pad 2,2,2,2");
  EXPECT_EQ(to_string(same(2, 8, 8, 3, 16, 2, 2)), "2x8x8x3 -> 16, 2x2 stride 1 pad 0,0,1,1");
}

}  // namespace
}  // namespace regolith
