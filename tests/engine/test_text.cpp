// Text helpers: what messages, tables and files are made of.
#include <gtest/gtest.h>

#include <limits>

#include "engine/base/text.h"

namespace regolith {
namespace {

TEST(Text, FormatsAnyLength) {
  EXPECT_EQ(format("%d %s %.2f", 3, "x", 0.125), "3 x 0.12");
  EXPECT_EQ(format("<%s>", std::string(1000, 'a').c_str()), "<" + std::string(1000, 'a') + ">");
}

TEST(Text, Joins) {
  EXPECT_EQ(join(std::vector<std::string>{"a", "", "c"}), "a, , c");
  EXPECT_EQ(join(std::vector<int>{6, 12}, " | "), "6 | 12");
  EXPECT_EQ(join(std::vector<std::string>{}), "");
  EXPECT_EQ(size_text({64, 128, 1}), "64x128x1");
  EXPECT_EQ(shape_text(std::vector<int64_t>{2, 64, 128}), "(2, 64, 128)");
  EXPECT_EQ(shape_text(std::vector<int64_t>{3}), "(3,)");
  EXPECT_EQ(shape_text({}), "()");
}

TEST(Text, WritesNumbers) {
  EXPECT_EQ(number(3.0), "3");
  EXPECT_EQ(number(-0.1), "-0.1");
  EXPECT_EQ(number(1e-7), "1e-07");
  EXPECT_EQ(number(std::numeric_limits<double>::infinity()), "inf");
  EXPECT_EQ(thousands(0), "0");
  EXPECT_EQ(thousands(999), "999");
  EXPECT_EQ(thousands(1837509), "1,837,509");
  EXPECT_EQ(thousands(-123456), "-123,456");
  EXPECT_EQ(mebibytes(1 << 20), "1 MiB");
  EXPECT_EQ(mebibytes(1.5 * (1 << 20), 1), "1.5 MiB");
}

TEST(Text, SuggestsTheNearestName) {
  const std::vector<std::string> names{"filters", "kernel", "stride"};
  EXPECT_EQ(did_you_mean("filtres", names), "; did you mean 'filters'?");
  EXPECT_EQ(did_you_mean("ker", names), "; did you mean 'kernel'?");
  EXPECT_EQ(did_you_mean("padding", names), "");
  EXPECT_EQ(did_you_mean("x", {}), "");
}

}  // namespace
}  // namespace regolith
