// Direct and thin convolutions. Small integers: every sum is exact in fp32, and rounds once when it is stored.
#include "kernels/conv_direct.h"
#include "kernels/conv_thin.h"
#include "tests/support/cases.h"
#include "tests/support/conv_oracle.h"

namespace regolith::testing {
namespace {

struct Conv {
  const char* name;
  ConvShape shape;
  bool bias = false, relu = false, accumulate = false;
  bool slices = false;  // x and y, dx and dy are slices of wider maps
  Layout x() const { return slices ? ConvOracle{shape}.x(16, 0) : ConvOracle{shape}.x(); }
  Layout y() const { return slices ? ConvOracle{shape}.y(0, 16) : ConvOracle{shape}.y(); }
};

int64_t bytes_of(const Conv& k, const Fixture& fixture) {
  return static_cast<int64_t>((k.x().size() + k.y().size()) * size_of(fixture.dtype()));
}
Values plus(Values a, const Values& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

const Fill kSmall = integers(-2, 2);

kernels::ConvWindow window(const ConvShape& o) {
  return {o.R, o.S, {o.stride[0], o.stride[1]}, {o.dilation[0], o.dilation[1]}, {o.pad_before[0], o.pad_before[1]}};
}
kernels::ThinWindow thin_window(const ConvShape& o, bool taps_first = false) {
  return {o.R, o.S, {o.pad_before[0], o.pad_before[1]}, taps_first};
}

// Both kinds of forward take the same maps.
template <class Launch>
TestCase forward_case(const std::string& kernel, const Conv& k, Launch launch) {
  return {.name = kernel + "_" + k.name,
          .make =
              [=](Fixture& fixture) {
                const ConvOracle oracle{k.shape};
                Buffer& x = fixture.input("x", k.x(), kSmall);
                Buffer& w = fixture.input("w", oracle.w(), kSmall);
                Buffer* b = k.bias ? &fixture.input("bias", oracle.bias(), integers(-9, 9), DType::f32) : nullptr;
                Buffer& y = fixture.output("y", k.y());
                const Values expected = rounded_to(
                    fixture.dtype(), oracle.forward(x.values(), w.values(), b ? b->values() : Values{}, k.relu));
                return CaseRun{
                    .run = [&, launch,
                            b] { launch(fixture, x.map(), w.as<void>(), b ? b->as<float>() : nullptr, y.map()); },
                    .check = [&y, expected] { y.expect(expected, kExact); },
                    .bytes = bytes_of(k, fixture),
                    .flops = 2 * k.shape.macs()};
              },
          .gradient = [k](uint64_t seed) { ConvOracle{k.shape}.check(seed); }};
}

template <class Launch>
TestCase dgrad_case(const std::string& kernel, const Conv& k, Launch launch) {
  return {.name = kernel + "_" + k.name, .make = [=](Fixture& fixture) {
            const ConvOracle oracle{k.shape};
            Buffer& dy = fixture.input("dy", k.y(), kSmall);
            Buffer& w = fixture.input("w", oracle.w(), kSmall);
            Buffer& dx = k.accumulate ? fixture.inout("dx", k.x(), kSmall) : fixture.output("dx", k.x());
            Values expected = oracle.dgrad(dy.values(), w.values());
            if (k.accumulate) expected = plus(expected, dx.values());
            expected = rounded_to(fixture.dtype(), expected);
            return CaseRun{.run = [&, launch] { launch(fixture, dy.map(), w.as<void>(), dx.map()); },
                           .check = [&dx, expected] { dx.expect(expected, kExact); },
                           .bytes = bytes_of(k, fixture),
                           .flops = 2 * k.shape.macs()};
          }};
}

template <class Launch>
TestCase wgrad_case(const std::string& kernel, const Conv& k, Launch launch) {
  return {.name = kernel + "_" + k.name, .make = [=](Fixture& fixture) {
            const ConvOracle oracle{k.shape};
            Buffer& x = fixture.input("x", k.x(), kSmall);
            Buffer& dy = fixture.input("dy", k.y(), kSmall);
            const auto result = [&](const char* name, const Layout& l) -> Buffer& {
              return k.accumulate ? fixture.inout(name, l, kSmall, DType::f32) : fixture.output(name, l, DType::f32);
            };
            Buffer& dw = result("dw", oracle.w());
            Buffer* db = k.bias ? &result("db", oracle.bias()) : nullptr;
            Values w_expected = oracle.wgrad(x.values(), dy.values()), b_expected = oracle.db(dy.values());
            if (k.accumulate) w_expected = plus(w_expected, dw.values());
            if (k.accumulate && db) b_expected = plus(b_expected, db->values());
            return CaseRun{.run = launch(fixture, x.map(), dy.map(), dw.as<float>(), db ? db->as<float>() : nullptr),
                           .check =
                               [&dw, db, w_expected, b_expected] {
                                 dw.expect(w_expected, kExact);
                                 if (db) db->expect(b_expected, kExact);
                               },
                           .bytes = bytes_of(k, fixture),
                           .flops = 2 * k.shape.macs()};
          }};
}

void add_direct(std::vector<TestCase>& list, const Conv& k) {
  const auto o = window(k.shape);
  list.push_back(
      forward_case("conv_direct_forward", k, [=](Fixture& fixture, TensorView x, void* w, float* bias, TensorView y) {
        kernels::conv_direct_forward(fixture.stream(), {x, w, bias, y, o, k.relu});
      }));
  list.push_back(dgrad_case("conv_direct_dgrad", k, [=](Fixture& fixture, TensorView dy, void* w, TensorView dx) {
    kernels::conv_direct_dgrad(fixture.stream(), {dy, w, dx, o, k.accumulate});
  }));
  Conv without_bias = k;  // which is channel_sum's part
  without_bias.bias = false;
  list.push_back(wgrad_case(
      "conv_direct_wgrad", without_bias, [=](Fixture& fixture, TensorView x, TensorView dy, float* dw, float*) {
        return [=, &fixture] { kernels::conv_direct_wgrad(fixture.stream(), {x, dy, dw, o, k.accumulate}); };
      }));
}

// Few channels in: forward and wgrad.
void add_thin_in(std::vector<TestCase>& list, const Conv& k) {
  const auto o = thin_window(k.shape);
  list.push_back(
      forward_case("thin_spread", k, [=](Fixture& fixture, TensorView x, void* w, float* bias, TensorView y) {
        kernels::thin_spread(fixture.stream(), {x, w, bias, y, o, k.relu});
      }));
  list.push_back(wgrad_case("thin_gather", k, [=](Fixture& fixture, TensorView x, TensorView dy, float* dw, float* db) {
    void* workspace = fixture.workspace(kernels::thin_gather_workspace(dy, k.shape.R * k.shape.S * k.shape.C));
    return [=, &fixture] { kernels::thin_gather(fixture.stream(), {x, dy, dw, db, o, k.accumulate, workspace}); };
  }));
}

// 1x1 to few channels: forward, and the other two with the parts of x and y exchanged.
void add_thin_out(std::vector<TestCase>& list, const Conv& k) {
  const auto o = thin_window(k.shape, true);
  list.push_back(forward_case("thin_dot", k, [=](Fixture& fixture, TensorView x, void* w, float* bias, TensorView y) {
    kernels::thin_dot(fixture.stream(), {x, w, bias, y, k.relu});
  }));
  Conv plain = k;
  plain.bias = false;
  list.push_back(wgrad_case(
      "thin_gather_transposed", plain, [=](Fixture& fixture, TensorView x, TensorView dy, float* dw, float*) {
        void* workspace = fixture.workspace(kernels::thin_gather_workspace(x, dy.C));
        return [=, &fixture] {
          kernels::thin_gather(fixture.stream(), {dy, x, dw, nullptr, o, k.accumulate, workspace});
        };
      }));
  plain.accumulate = false;  // a spread only writes
  list.push_back(
      dgrad_case("thin_spread_transposed", plain, [=](Fixture& fixture, TensorView dy, void* w, TensorView dx) {
        kernels::thin_spread(fixture.stream(), {dy, w, nullptr, dx, o});
      }));
}

const Conv kDirect[] = {
    {"same_3x3", {2, 5, 7, 16, 8, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, true, true},
    {"pads_after_2x2", {1, 4, 5, 16, 16, 2, 2, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, true},
    {"stride_2", {2, 7, 8, 8, 5, 3, 3, {2, 2}, {1, 1}, {0, 1}, {1, 0}}},
    {"stride_3_of_2x2", {1, 8, 7, 8, 6, 2, 2, {3, 3}, {1, 1}, {0, 0}, {0, 0}}},
    {"dilated", {1, 6, 9, 16, 7, 3, 3, {1, 1}, {2, 3}, {2, 3}, {2, 3}}, false, true},
    {"mostly_padding", {1, 2, 3, 8, 4, 3, 3, {1, 1}, {4, 4}, {4, 4}, {4, 4}}},
    {"one_channel", {2, 5, 6, 1, 9, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, true},
    {"pointwise", {2, 3, 4, 32, 5, 1, 1}, true},
    {"slices_accumulate", {1, 4, 6, 16, 16, 3, 2, {1, 2}, {1, 1}, {1, 0}, {1, 1}}, true, false, true, true},
    {"odd_slices_accumulate", {1, 4, 3, 3, 5, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, false, false, true, true},
};
const Conv kThinIn[] = {
    {"one_channel_3x3", {2, 9, 37, 1, 32, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, true, true},
    {"several_strips", {1, 40, 96, 1, 16, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, true},
    {"three_channels_2x2", {1, 6, 11, 3, 64, 2, 2, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, false, false, true},
    {"four_channels_5x3", {1, 7, 5, 4, 48, 5, 3, {1, 1}, {1, 1}, {2, 1}, {2, 1}}, true, false, true},
    {"valid_slices", {2, 5, 8, 2, 32, 3, 3}, true, true, true, true},
    {"odd_outputs", {1, 4, 5, 1, 5, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, true},
    {"image_smaller_than_window", {1, 1, 2, 1, 16, 3, 3, {1, 1}, {1, 1}, {2, 4}, {2, 4}}, true},
};
const Conv kThinOut[] = {
    {"five_classes", {2, 9, 37, 32, 5, 1, 1}, true},
    {"eight_of_64", {1, 16, 33, 64, 8, 1, 1}, false, true, true},
    {"one_of_16_slices", {2, 5, 7, 16, 1, 1, 1}, true, false, true, true},
    {"three_of_odd", {1, 4, 5, 7, 3, 1, 1}, true},
};

const Register cases_of_conv([] {
  std::vector<TestCase> list;
  for (const Conv& k : kDirect) add_direct(list, k);
  for (const Conv& k : kThinIn) add_thin_in(list, k);
  for (const Conv& k : kThinOut) add_thin_out(list, k);
  const size_t small = list.size();
  add_thin_in(list, {"large", {2, 64, 128, 1, 32, 3, 3, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, true, true});
  add_thin_out(list, {"large", {2, 64, 128, 32, 5, 1, 1}, true});
  for (size_t i = small; i < list.size(); ++i) {
    list[i].large = true;
    list[i].gradient = nullptr;
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
