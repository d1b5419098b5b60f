// What a small network makes of inputs that are always the same: for runs that must be equal.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/run/network.h"
#include "kernels/core/random.h"
#include "models/reader.h"

namespace regolith {

inline Graph model(const std::string& nodes) {
  return read_model(Yaml::load_string("input: {height: 8, width: 16}\nnodes:\n" + nodes, "model.yaml"));
}

struct Outcome {
  std::vector<float> logits;
  std::vector<std::vector<float>> gradients;
};

struct Variant {
  int N = 4, slice = 4;
  int64_t step = 7;
  Mode mode = Mode::train;
  NetworkOptions network;
  Variant() {
    network.conv.provider = "reference";
    network.seed = 3;
  }
};

// The elements of a map in its type, and back.
inline std::vector<unsigned char> stored(DType type, const std::vector<float>& values) {
  std::vector<unsigned char> bytes(values.size() * size_of(type));
  const auto fill = [&](auto t) {
    for (size_t i = 0; i < values.size(); ++i) {
      const auto e = static_cast<decltype(t)>(values[i]);
      std::memcpy(&bytes[i * sizeof e], &e, sizeof e);
    }
  };
  type == DType::bf16 ? fill(bf16{}) : type == DType::f16 ? fill(fp16{}) : fill(0.f);
  return bytes;
}
inline std::vector<float> loaded(DType type, const std::vector<unsigned char>& bytes) {
  std::vector<float> values(bytes.size() / size_of(type));
  const auto fill = [&](auto e) {
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&e, &bytes[i * sizeof e], sizeof e);
      values[i] = static_cast<float>(e);
    }
  };
  type == DType::bf16 ? fill(bf16{}) : type == DType::f16 ? fill(fp16{}) : fill(0.f);
  return values;
}

// Forward and backward of `N` images, in slices, from weights, images and gradients that are always the same.
inline Outcome run(Device& device, Graph graph, const Variant& setup) {
  Network network(std::move(graph), device, setup.network);
  auto stream = device.make_stream();
  network.parameters().initialise(5, *stream);
  for (size_t i = 0; i < network.parameters().entries().size(); ++i) {  // biases that are not zero
    if (network.parameters().entries()[i].init != Init::zeros) continue;
    std::vector<float> values(network.parameters().entries()[i].elements);
    for (size_t j = 0; j < values.size(); ++j) values[j] = 0.1f * static_cast<float>(j % 7) - 0.2f;
    network.parameters().write(static_cast<int>(i), ParamField::weight, values, *stream);
  }
  const DeviceBuffer step(device, sizeof(int64_t));
  device.upload(step.as(), &setup.step, sizeof setup.step, *stream);
  network.step_counter(step.as<int64_t>());
  const auto draw = [](const TensorView& m, int first, uint32_t what) {
    std::vector<float> v(m.elements());
    const int64_t each = m.elements() / m.N;
    for (size_t i = 0; i < v.size(); ++i) {
      const int64_t e = static_cast<int64_t>(i) + first * each;
      v[i] = 2 * uniform(philox(9, static_cast<uint32_t>(e), what, 0, 0).v[0]) - 1;
    }
    return v;
  };
  Outcome o;
  for (int first = 0; first < setup.N; first += setup.slice) {
    Program& p = network.program(setup.slice, setup.mode);
    const std::vector<unsigned char> image = stored(p.image().dtype, draw(p.image(), first, 0));
    device.upload(p.image().data, image.data(), image.size(), *stream);
    p.pack(*stream);
    p.forward(*stream, first);
    const TensorView y = p.value(p.graph().output);
    std::vector<unsigned char> bytes(y.elements() * size_of(y.dtype));
    device.download(bytes.data(), y.data, bytes.size(), *stream);
    stream->synchronize();
    const std::vector<float> logits = loaded(y.dtype, bytes);
    o.logits.insert(o.logits.end(), logits.begin(), logits.end());
    if (setup.mode == Mode::eval) continue;
    const TensorView dy = p.gradient(p.graph().output);
    const std::vector<unsigned char> gradient = stored(dy.dtype, draw(dy, first, 1));
    device.upload(dy.data, gradient.data(), gradient.size(), *stream);
    p.backward(*stream, first > 0);
    stream->synchronize();
  }
  if (setup.mode == Mode::eval) return o;
  for (size_t i = 0; i < network.parameters().entries().size(); ++i)
    o.gradients.push_back(network.parameters().read(static_cast<int>(i), ParamField::gradient, *stream));
  return o;
}

inline void expect_close(const std::vector<float>& a, const std::vector<float>& b, const std::string& what,
                         double noise = 1e-6) {
  ASSERT_EQ(a.size(), b.size());
  double most = 0;
  for (const float v : b) most = std::max(most, std::abs(static_cast<double>(v)));
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_TRUE(std::abs(a[i] - b[i]) <= 1e-5 * most + noise) << what << "[" << i << "]: " << a[i] << " and " << b[i];
}
// noise: of what is zero but for rounding.
inline void expect_close(const Outcome& a, const Outcome& b, double noise = 1e-6) {
  expect_close(a.logits, b.logits, "logits");
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  for (size_t i = 0; i < a.gradients.size(); ++i)
    expect_close(a.gradients[i], b.gradients[i], "gradient of parameter " + std::to_string(i), noise);
}
inline void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.logits, b.logits);
  EXPECT_EQ(a.gradients, b.gradients);
}

}  // namespace regolith
