// A provider of convolution, through the interface, against the oracle: all directions.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "tests/support/conv_oracle.h"

namespace regolith::testing {

inline std::unique_ptr<Convolution> take(ConvProvider& provider, Device& device, const ConvRequest& request) {
  auto answer = provider.create(device, request);
  if (auto* refusal = std::get_if<UnsupportedReason>(&answer)) throw Mismatch("refused: " + refusal->reason);
  return std::get<std::unique_ptr<Convolution>>(std::move(answer));
}

// Small integers, so that every result is exact but for its rounding to the element type.
inline void check(ConvProvider& provider, Device& device, const ConvRequest& request) {
  SCOPED_TRACE(std::string(provider.name()) + " of " + std::string(name_of(request.type)));
  const auto convolution = take(provider, device, request);
  EXPECT_EQ(convolution->provider(), provider.name());
  Fixture fixture(device, request.type, 7);
  const ConvOracle oracle{request.shape};
  const Fill small = integers(-2, 2);
  Buffer &x = fixture.input("x", oracle.x(), small), &w = fixture.input("w", oracle.w(), small),
         &bias = fixture.input("bias", oracle.bias(), small, DType::f32),
         &rounded = fixture.input("bias, rounded", oracle.bias(), bias.values()),
         &dy = fixture.input("dy", oracle.y(), small);
  Buffer &y = fixture.output("y", oracle.y()), &dx = fixture.output("dx", oracle.x()),
         &dw = fixture.output("dw", oracle.w(), DType::f32), &db = fixture.output("db", oracle.bias(), DType::f32);
  Buffer& twice = fixture.inout("dw, accumulated", oracle.w(), small, DType::f32);
  const auto workspace = [&](size_t bytes) { return fixture.workspace(bytes); };
  convolution->forward(fixture.stream(), x.map(), w.as<void>(), nullptr,
                       request.bias ? ChannelBias(bias.as<float>(), rounded.as<void>()) : ChannelBias(), y.map(),
                       workspace(convolution->forward_workspace()));
  convolution->dgrad(fixture.stream(), dy.map(), w.as<void>(), nullptr, dx.map(),
                     workspace(convolution->dgrad_workspace()));
  void* scratch = workspace(convolution->wgrad_workspace());
  convolution->wgrad(fixture.stream(), x.map(), dy.map(), dw.as<float>(), db.as<float>(), false, scratch);
  convolution->wgrad(fixture.stream(), x.map(), dy.map(), twice.as<float>(), nullptr, true, scratch);
  fixture.stream().synchronize();
  const Values bias_values = request.bias ? bias.values() : Values{}, gradient = oracle.wgrad(x.values(), dy.values());
  y.expect(rounded_to(request.type, oracle.forward(x.values(), w.values(), bias_values, request.relu)), kExact);
  dx.expect(rounded_to(request.type, oracle.dgrad(dy.values(), w.values())), kExact);
  dw.expect(gradient, kExact);
  db.expect(oracle.db(dy.values()), kExact);
  Values sum = twice.values();
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += gradient[i];
  twice.expect(sum, kExact);
  fixture.expect_untouched();
}

}  // namespace regolith::testing
