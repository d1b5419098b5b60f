// Sums of projected branches (aspp) and the passes about them, against convolutions by their definition. Small
// integers: every sum is exact in fp32, and rounds once when it is stored.
#include "kernels/aspp.h"
#include "kernels/channel_sum.h"
#include "tests/support/cases.h"
#include "tests/support/conv_oracle.h"

namespace regolith::testing {
namespace {

struct Branch {
  int K, rows, columns, rate;
  kernels::AsppTaps taps() const { return {rows, columns, rate}; }
};

struct Sum {
  const char* name;
  int N, H, W, C, F;
  std::vector<Branch> branches;
  bool bias = false, image = false, accumulate = false;
  bool slices = false;  // of wider maps
  Layout map(int channels) const { return {N, H, W, channels, slices ? 16 : 0, slices ? 32 : 0}; }
  Layout whole(int channels) const { return {N, H, W, channels}; }
  Layout pixel(int channels) const { return {N, 1, 1, channels}; }
  ConvOracle conv(const Branch& b) const {
    const int down = b.rows / 2 * b.rate, right = b.columns / 2 * b.rate, rate = std::max(b.rate, 1);
    return {{N, H, W, C, b.K, b.rows, b.columns, {1, 1}, {rate, rate}, {down, right}, {down, right}}};
  }
  ConvOracle projection(const Branch& b) const { return {{N, H, W, b.K, F, 1, 1}}; }
  int64_t macs() const {
    int64_t n = 0;
    for (const Branch& b : branches) n += conv(b).shape.macs() + projection(b).shape.macs();
    return n;
  }
};

const Fill kSmall = integers(-2, 2);

void add(Values& to, const Values& more, double scale = 1) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += scale * more[i];
}
// Adds what belongs to image n and channel c to each of its pixels.
void add_image(Values& map, const Layout& l, const Values& image, double scale) {
  for (size_t i = 0; i < map.size(); ++i)
    map[i] += scale * image[i / (static_cast<size_t>(l.H) * l.W * l.C) * l.C + i % l.C];
}

// Buffers, and what they hold in the end.
using Expected = std::vector<std::pair<Buffer*, Values>>;
std::function<void()> each_exact(const Expected& expected) {
  return [expected] {
    for (const auto& [buffer, values] : expected) buffer->expect(values, kExact);
  };
}

// The whole sum in double precision, with both gradients of a branch.
void check_gradients(const Sum& k, uint64_t seed) {
  Random random(seed);
  const auto draw = [&](size_t n) {
    Values v(n);
    for (double& e : v) e = random.normal();
    return v;
  };
  const Values x = draw(k.whole(k.C).size()), dy = draw(k.whole(k.F).size());
  std::vector<Values> w, p;
  for (const Branch& b : k.branches) {
    w.push_back(draw(k.conv(b).w().size()));
    p.push_back(draw(k.projection(b).w().size()));
  }
  const auto loss = [&](const Values& x, const std::vector<Values>& w, const std::vector<Values>& p) {
    double sum = 0;
    for (size_t g = 0; g < w.size(); ++g) {
      const Values y = k.projection(k.branches[g]).forward(k.conv(k.branches[g]).forward(x, w[g]), p[g]);
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    }
    return sum;
  };
  Values dx(x.size());
  for (size_t g = 0; g < w.size(); ++g) {
    const ConvOracle conv = k.conv(k.branches[g]), projection = k.projection(k.branches[g]);
    const Values dz = projection.dgrad(dy, p[g]);
    add(dx, conv.dgrad(dz, w[g]));
    const auto with = [&](std::vector<Values> all, const Values& one) {
      all[g] = one;
      return all;
    };
    expect_gradient(
        "dw", [&](const Values& at) { return loss(x, with(w, at), p); }, w[g], conv.wgrad(x, dz), 1e-3, 1e-6, 8);
    expect_gradient(
        "dproject", [&](const Values& at) { return loss(x, w, with(p, at)); }, p[g],
        projection.wgrad(conv.forward(x, w[g]), dy), 1e-3, 1e-6, 8);
  }
  expect_gradient(
      "dx", [&](const Values& at) { return loss(at, w, p); }, x, dx, 1e-3, 1e-6, 16);
}

TestCase forward_case(const Sum& k) {
  return {
      .name = std::string("aspp_forward_") + k.name,
      .make =
          [k](Fixture& fixture) {
            Buffer& x = fixture.input("x", k.map(k.C), kSmall);
            Buffer& y = fixture.output("y", k.map(k.F));
            Buffer* bias = k.bias ? &fixture.input("bias", {1, 1, 1, k.F}, kSmall, DType::f32) : nullptr;
            Buffer* image = k.image ? &fixture.input("image", k.pixel(k.F), kSmall) : nullptr;
            kernels::AsppForward args;
            args.x = x.map();
            args.y = y.map();
            Values sum(k.whole(k.F).size());
            Expected expected;
            for (const Branch& b : k.branches) {
              const ConvOracle conv = k.conv(b), projection = k.projection(b);
              Buffer &w = fixture.input("w", conv.w(), kSmall), &p = fixture.input("project", projection.w(), kSmall);
              Buffer* branch_bias = k.bias ? &fixture.input("branch bias", conv.bias(), kSmall, DType::f32) : nullptr;
              Buffer& z = fixture.output("z", k.map(b.K));
              args.branches[args.count++] = {w.as<void>(), branch_bias ? branch_bias->as<float>() : nullptr,
                                             p.as<void>(), z.map(), b.taps()};
              const Values z_values =
                  rounded_to(fixture.dtype(),
                             conv.forward(x.values(), w.values(), branch_bias ? branch_bias->values() : Values{}));
              add(sum, projection.forward(z_values, p.values()));
              expected.emplace_back(&z, z_values);
            }
            if (bias) {
              args.bias = bias->as<float>();
              for (size_t i = 0; i < sum.size(); ++i) sum[i] += bias->values()[i % k.F];
            }
            if (image) {
              args.image = image->map();
              add_image(sum, k.whole(k.F), image->values(), 1);
            }
            expected.emplace_back(&y, rounded_to(fixture.dtype(), sum));
            return CaseRun{.run = [&fixture, args] { kernels::aspp_forward(fixture.stream(), args); },
                           .check = each_exact(expected),
                           .bytes = static_cast<int64_t>((x.values().size() + sum.size()) * size_of(fixture.dtype())),
                           .flops = 2 * k.macs()};
          },
      .gradient = [k](uint64_t seed) { check_gradients(k, seed); }};
}

TestCase data_gradient_case(const Sum& k) {
  return {.name = std::string("aspp_data_gradient_") + k.name, .make = [k](Fixture& fixture) {
            Buffer& dx = k.accumulate ? fixture.inout("dx", k.map(k.C), kSmall) : fixture.output("dx", k.map(k.C));
            Buffer* image = k.image ? &fixture.input("image", k.pixel(k.C), kSmall) : nullptr;
            kernels::AsppDataGradient args;
            args.image_scale = 0.25f;
            args.dx = dx.map();
            args.accumulate = k.accumulate;
            Values sum(k.whole(k.C).size());
            int64_t flops = 0;
            for (const Branch& b : k.branches) {
              const ConvOracle conv = k.conv(b);
              Buffer &w = fixture.input("w", conv.w(), kSmall), &dz = fixture.input("dz", k.map(b.K), kSmall);
              args.branches[args.count++] = {w.as<void>(), dz.map(), b.taps()};
              add(sum, conv.dgrad(dz.values(), w.values()));
              flops += 2 * conv.shape.macs();
            }
            if (image) {
              args.image = image->map();
              add_image(sum, k.whole(k.C), image->values(), 0.25);
            }
            if (k.accumulate) add(sum, dx.values());
            const Values expected = rounded_to(fixture.dtype(), sum);
            return CaseRun{.run = [&fixture, args] { kernels::aspp_data_gradient(fixture.stream(), args); },
                           .check = [&dx, expected] { dx.expect(expected, kExact); },
                           .bytes = static_cast<int64_t>(2 * sum.size() * size_of(fixture.dtype())),
                           .flops = flops};
          }};
}

// Of all branches at once, and of one over maps of one pixel, as the pooled branch has them. Every other one with the
// sums of dz.
TestCase weight_gradients_case(const Sum& k) {
  return {.name = std::string("aspp_weight_gradients_") + k.name, .make = [k](Fixture& fixture) {
            kernels::AsppWeightGradients args;
            Expected expected;
            size_t bytes = 0;
            int64_t flops = 0;
            const auto add_product = [&](const Sum& s, const Branch& b) {
              const ConvOracle conv = s.conv(b);
              Buffer &x = fixture.input("x", s.map(s.C), kSmall), &dz = fixture.input("dz", s.map(b.K), kSmall);
              const auto result = [&](const char* name, const Layout& layout, Values sum) {
                Buffer& to = k.accumulate ? fixture.inout(name, layout, kSmall, DType::f32)
                                          : fixture.output(name, layout, DType::f32);
                if (k.accumulate) add(sum, to.values());
                expected.emplace_back(&to, std::move(sum));
                return to.as<float>();
              };
              float* const dw = result("dw", conv.w(), conv.wgrad(x.values(), dz.values()));
              float* db = nullptr;
              if (args.count % 2 == 0) {
                Values sum(b.K);
                for (size_t i = 0; i < dz.values().size(); ++i) sum[i % b.K] += dz.values()[i];
                db = result("db", {1, 1, 1, b.K}, std::move(sum));
              }
              args.products[args.count++] = {dz.map(), x.map(), dw, db, b.taps(), k.accumulate};
              bytes += kernels::aspp_product_workspace(int64_t{s.N} * s.H * s.W, b.K, s.C, b.taps().count());
              flops += 2 * conv.shape.macs();
            };
            for (const Branch& b : k.branches) add_product(k, b);
            Sum mean = k;
            mean.H = mean.W = 1;
            add_product(mean, {k.branches[0].K, 1, 1, 1});
            args.workspace = fixture.workspace(bytes);
            return CaseRun{.run = [&fixture, args] { kernels::aspp_weight_gradients(fixture.stream(), args); },
                           .check = each_exact(expected),
                           .bytes = static_cast<int64_t>(k.N) * k.H * k.W * (k.C + k.branches[0].K) * args.count *
                                    static_cast<int64_t>(size_of(fixture.dtype())),
                           .flops = flops};
          }};
}

// Of all branches at once, the last of them over maps of one pixel.
TestCase projection_gradients_case(const Sum& k) {
  return {.name = std::string("aspp_projection_gradients_") + k.name, .make = [k](Fixture& fixture) {
            kernels::AsppProjectionGradients args;
            Expected expected;
            int64_t bytes = 0, flops = 0;
            for (const Branch& b : k.branches) {
              Sum s = k;
              if (&b == &k.branches.back()) s.H = s.W = 1;
              const ConvOracle conv = s.projection(b);
              Buffer &dy = fixture.input("dy", s.map(k.F), kSmall), &p = fixture.input("project", conv.w(), kSmall);
              Buffer& dz = fixture.output("dz", s.map(b.K));
              args.branches[args.count++] = {dy.map(), p.as<void>(), dz.map()};
              expected.emplace_back(&dz, rounded_to(fixture.dtype(), conv.dgrad(dy.values(), p.values())));
              bytes += static_cast<int64_t>((dy.values().size() + s.whole(b.K).size()) * size_of(fixture.dtype()));
              flops += 2 * conv.shape.macs();
            }
            return CaseRun{.run = [&fixture, args] { kernels::aspp_projection_gradients(fixture.stream(), args); },
                           .check = each_exact(expected),
                           .bytes = bytes,
                           .flops = flops};
          }};
}

TestCase image_sum_case(const char* name, Layout x_layout, int before) {
  return {.name = std::string("image_sum_") + name, .make = [=](Fixture& fixture) {
            Buffer& x = fixture.input("x", x_layout, kSmall);
            const Layout result{x_layout.N, 1, 1, x_layout.C, before, before};
            Buffer& sum = fixture.output("sum", result);
            Values expected(result.size());
            const size_t per_image = static_cast<size_t>(x_layout.H) * x_layout.W * x_layout.C;
            for (size_t i = 0; i < x.values().size(); ++i)
              expected[i / per_image * x_layout.C + i % x_layout.C] += 0.5 * x.values()[i];
            expected = rounded_to(fixture.dtype(), expected);
            const kernels::ImageSum args{x.map(), sum.map(), 0.5f,
                                         fixture.workspace(kernels::image_sum_workspace(x.map()))};
            return CaseRun{.run = [&fixture, args] { kernels::image_sum(fixture.stream(), args); },
                           .check = [&sum, expected] { sum.expect(expected, kExact); },
                           .bytes = static_cast<int64_t>(x.values().size() * size_of(fixture.dtype())),
                           .flops = static_cast<int64_t>(x.values().size())};
          }};
}

TestCase add_images_case(const char* name, Layout y_layout, int parts, bool image, bool accumulate, bool bias = false) {
  return {.name = std::string("add_images_") + name, .make = [=](Fixture& fixture) {
            kernels::AddImages args;
            args.count = parts;
            args.scale = 0.5f;
            args.accumulate = accumulate;
            Buffer& y = accumulate ? fixture.inout("y", y_layout, kSmall) : fixture.output("y", y_layout);
            args.y = y.map();
            Values expected = accumulate ? y.values() : Values(y_layout.size());
            for (int i = 0; i < parts; ++i) {
              Buffer& part = fixture.input("part", {y_layout.N, y_layout.H, y_layout.W, y_layout.C}, kSmall);
              args.parts[i] = part.map();
              add(expected, part.values());
            }
            if (image) {
              Buffer& one = fixture.input("image", {y_layout.N, 1, 1, y_layout.C}, kSmall);
              args.image = one.map();
              add_image(expected, y_layout, one.values(), 0.5);
            }
            if (bias) {
              Buffer& each = fixture.input("bias", {1, 1, 1, y_layout.C}, kSmall, DType::f32);
              args.bias = each.as<float>();
              for (size_t i = 0; i < expected.size(); ++i) expected[i] += each.values()[i % y_layout.C];
            }
            expected = rounded_to(fixture.dtype(), expected);
            return CaseRun{.run = [&fixture, args] { kernels::add_images(fixture.stream(), args); },
                           .check = [&y, expected] { y.expect(expected, kExact); },
                           .bytes = static_cast<int64_t>((parts + 1) * y_layout.size() * size_of(fixture.dtype())),
                           .flops = static_cast<int64_t>(parts * y_layout.size())};
          }};
}

const Sum kSums[] = {
    {"one_pixel", 1, 1, 1, 16, 16, {{16, 1, 1, 0}}},
    {"pooled", 5, 1, 1, 32, 48, {{48, 1, 1, 0}}, true},
    {"nine_taps", 1, 5, 7, 16, 32, {{16, 3, 3, 2}}, true, true},
    {"three_taps_across", 2, 2, 5, 32, 16, {{16, 1, 1, 0}, {32, 1, 3, 3}}, true, true, true},
    {"three_taps_down", 1, 6, 2, 16, 16, {{16, 3, 1, 4}}, false, true, true},
    {"dead_taps_kept", 1, 2, 3, 16, 16, {{16, 1, 1, 0}, {16, 3, 3, 6}}, true},
    {"merged_and_dilated", 3, 4, 8, 80, 48, {{144, 1, 1, 0}, {48, 1, 3, 6}}, true, true},
    {"slices_accumulate", 1, 3, 5, 48, 16, {{32, 1, 1, 0}, {16, 3, 3, 1}}, true, true, true, true},
    {"many_pixels", 2, 9, 33, 16, 16, {{16, 3, 3, 5}}, false, false, true},
    {"taps_miss_tiles", 1, 12, 32, 16, 16, {{16, 3, 3, 8}}},
    {"long_rows", 1, 2, 100, 16, 16, {{16, 1, 3, 70}}},
    {"many_branches",
     1,
     2,
     2,
     16,
     16,
     {{16, 1, 1, 0},
      {16, 1, 1, 0},
      {16, 3, 3, 1},
      {16, 3, 1, 1},
      {16, 1, 3, 1},
      {16, 3, 3, 2},
      {16, 1, 1, 0},
      {16, 3, 3, 1}}},
};
// The bottleneck of a double U-Net, 4x8 maps of 256 channels to 512 filters.
const Sum kLarge{"large", 4, 4, 8, 256, 512, {{1536, 1, 1, 0}, {512, 1, 3, 6}}, true, true};

const Register cases_of_aspp([] {
  std::vector<TestCase> list;
  for (const Sum& k : kSums) {
    list.push_back(forward_case(k));
    list.push_back(data_gradient_case(k));
    list.push_back(projection_gradients_case(k));
    list.push_back(weight_gradients_case(k));
  }
  list.push_back(image_sum_case("whole", {2, 4, 8, 32}, 0));
  list.push_back(image_sum_case("slice_of_odd_channels", {3, 3, 5, 7, 2, 3}, 4));
  list.push_back(image_sum_case("one_pixel", {2, 1, 1, 16}, 0));
  list.push_back(image_sum_case("many_channels", {1, 2, 3, 2112}, 0));
  list.push_back(image_sum_case("in_parts", {3, 24, 33, 48}, 0));
  list.push_back(image_sum_case("slice", {2, 3, 5, 16, 16, 0}, 16));
  list.push_back(add_images_case("several", {2, 3, 5, 32}, 3, true, false));
  list.push_back(add_images_case("image_accumulates", {2, 4, 3, 16, 16, 16}, 0, true, true));
  list.push_back(add_images_case("odd_channels", {2, 3, 5, 5, 1, 2}, 1, true, false));
  list.push_back(add_images_case("bias", {2, 3, 5, 32}, 2, false, false, true));
  list.push_back(add_images_case("bias_of_odd_channels", {2, 3, 5, 5, 1, 2}, 3, true, true, true));
  list.push_back(add_images_case("eight_parts", {1, 2, 2, 16}, 8, false, true));
  const size_t small = list.size();
  list.push_back(forward_case(kLarge));
  list.push_back(data_gradient_case(kLarge));
  list.push_back(projection_gradients_case(kLarge));
  list.push_back(weight_gradients_case(kLarge));
  list.push_back(image_sum_case("large", {8, 64, 128, 32}, 0));
  list.push_back(add_images_case("large", {64, 4, 8, 512}, 2, true, false));
  for (size_t i = small; i < list.size(); ++i) {
    list[i].large = true;
    list[i].gradient = nullptr;
  }
  return list;
}());

}  // namespace
}  // namespace regolith::testing
