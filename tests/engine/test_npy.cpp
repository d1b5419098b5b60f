#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "data/sources.h"
#include "engine/base/error.h"
#include "engine/io/npy.h"
#include "places.h"
#include "tests/support/message.h"

namespace regolith {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string temporary(const std::string& name) { return ::testing::TempDir() + "regolith_npy_" + name; }

// A file as NumPy writes it.
std::vector<uint8_t> npy(const std::string& descr, bool fortran, const std::string& shape, const std::string& data,
                         int version = 1) {
  std::string text =
      "{'descr': '" + descr + "', 'fortran_order': " + (fortran ? "True" : "False") + ", 'shape': " + shape + ", }";
  const size_t prefix = version == 1 ? 10 : 12;
  text.resize((prefix + text.size() + 1 + 63) / 64 * 64 - prefix, ' ');
  text.back() = '\n';
  std::string file = "\x93NUMPY";
  file += static_cast<char>(version);
  file += '\0';
  for (size_t i = 0; i < prefix - 8; ++i) file += static_cast<char>(text.size() >> 8 * i & 255);
  file += text + data;
  return {file.begin(), file.end()};
}

NpyArray parse(const std::vector<uint8_t>& file) {
  const std::string path =
      temporary(::testing::UnitTest::GetInstance()->current_test_info()->name() + std::string("_f.npy"));
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  return read_npy(path);
}

template <class T>
std::string bytes_of(std::initializer_list<T> values, bool big_endian = false) {
  std::string s;
  for (const T v : values) {
    char b[sizeof(T)];
    std::memcpy(b, &v, sizeof v);
    if (big_endian) std::reverse(b, b + sizeof v);
    s.append(b, sizeof v);
  }
  return s;
}

template <class T>
void expect_type(const std::string& type, std::initializer_list<T> values) {
  for (const bool big : {false, true}) {
    for (const int version : {1, 2, 3}) {
      const std::string order = sizeof(T) == 1 ? "|" : big ? ">" : "<";
      const NpyArray a = parse(npy(order + type, false, "(2,)", bytes_of(values, big), version));
      EXPECT_THAT(a.as_f64(),
                  ElementsAre(static_cast<double>(values.begin()[0]), static_cast<double>(values.begin()[1])))
          << type;
      EXPECT_THAT(a.as_f32(), ElementsAre(static_cast<float>(values.begin()[0]), static_cast<float>(values.begin()[1])))
          << type;
    }
  }
}

TEST(Npy, EveryTypeAndByteOrder) {
  expect_type<uint8_t>("u1", {0, 255});
  expect_type<uint8_t>("b1", {0, 1});
  expect_type<int8_t>("i1", {-128, 127});
  expect_type<uint16_t>("u2", {1, 65535});
  expect_type<int16_t>("i2", {-32768, 258});
  expect_type<uint32_t>("u4", {1, 4000000000u});
  expect_type<int32_t>("i4", {-2000000000, 3});
  expect_type<uint64_t>("u8", {1, 1ull << 52});
  expect_type<int64_t>("i8", {-(1ll << 52), 7});
  expect_type<float>("f4", {-1.5f, 3e30f});
  expect_type<double>("f8", {-1.25, 0x1p-100});
}

TEST(Npy, Half) {
  const NpyArray a = parse(npy("<f2", false, "(3,)", bytes_of<uint16_t>({0x3c00, 0xc100, 0x0001})));
  EXPECT_THAT(a.as_f64(), ElementsAre(1, -2.5, 0x1p-24));
}

TEST(Npy, FortranOrderBecomesCOrder) {
  // a[i, j, k] = 100 i + 10 j + k of shape (2, 3, 2), the first index fastest in the file.
  std::string data;
  for (int k = 0; k < 2; ++k) {
    for (int j = 0; j < 3; ++j) {
      for (int i = 0; i < 2; ++i) data += bytes_of<int16_t>({static_cast<int16_t>(100 * i + 10 * j + k)});
    }
  }
  const NpyArray a = parse(npy("<i2", true, "(2, 3, 2)", data));
  EXPECT_THAT(a.shape, ElementsAre(2, 3, 2));
  EXPECT_THAT(a.as_f64(), ElementsAre(0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121));
}

// The parts of a stream are those of the whole, whatever the order in the file.
TEST(Npy, StreamsInParts) {
  for (const bool fortran : {false, true}) {
    parse(npy(">i2", fortran, "(2, 3)", bytes_of<int16_t>({0, 1, 2, 3, 4, 5}, true)));
    const std::string path = temporary("StreamsInParts_f.npy");
    NpyStream stream = open_npy(path);
    std::vector<double> values(6);
    for (int i = 0; i < 6; i += 2) stream.read(values.data() + i, 2);
    EXPECT_EQ(values, read_npy(path).as_f64());
    EXPECT_EQ(values[1], fortran ? 2 : 1);
  }
}

TEST(Npy, ScalarAndEmpty) {
  EXPECT_THAT(parse(npy("<f8", false, "()", bytes_of({2.5}))).as_f64(), ElementsAre(2.5));
  EXPECT_EQ(parse(npy("<f8", false, "(0, 4)", "")).count(), 0);
}

// Headers that NumPy reads and does not write.
TEST(Npy, HeadersOfOtherWriters) {
  const std::vector<uint8_t> plain = npy("|u1", false, "(2,)", "\1\2");
  const std::string text(plain.begin(), plain.end());
  const auto with = [&](const std::string& header) {
    const size_t end = text.find('\n'), start = text.find('{');
    std::string file = text;
    file.replace(start, end - start, header + std::string(end - start - header.size(), ' '));
    return parse({file.begin(), file.end()});
  };
  EXPECT_THAT(with("{\"descr\": \"|u1\", \"fortran_order\": False, \"shape\": (2,)}").as_f64(), ElementsAre(1, 2));
  EXPECT_THAT(with("{'descr':\t'uint8','fortran_order' :\tFalse,\t'shape':\t(\t2,)}").as_f64(), ElementsAre(1, 2));
  EXPECT_THAT(with("{'descr': '?', 'fortran_order': False, 'shape': (2,)}").type_name(), "bool");
  EXPECT_THAT(
      testing::message<DataError>([&] { with("{'descr': [('id', '|u1')], 'fortran_order': False, 'shape': (2,)}"); }),
      HasSubstr("has fields, [('id', '|u1')]: expected a plain element type"));
}

TEST(Npy, RefusesWhatIsNotAnArrayOfNumbers) {
  const auto refusal = [](const std::vector<uint8_t>& file) {
    return testing::message<DataError>([&] { parse(file); });
  };
  EXPECT_THAT(refusal({'h', 'e', 'l', 'l', 'o', ' ', 'w', 'o', 'r', 'l', 'd'}), HasSubstr("f.npy: not a .npy array"));
  EXPECT_THAT(refusal(npy("<c8", false, "(1,)", "12345678")), HasSubstr("element type '<c8'"));
  EXPECT_THAT(refusal(npy("|O", false, "(1,)", "12345678")), HasSubstr("element type '|O'"));
  EXPECT_THAT(refusal(npy("<U2", false, "(1,)", "12345678")), HasSubstr("element type"));
  EXPECT_THAT(refusal(npy("<f4", false, "(2,)", "1234")),
              HasSubstr("truncated: (2,) of float32 takes 8 bytes, found 4"));
  EXPECT_THAT(refusal(npy("<f4", false, "(1,)", "12345678")), HasSubstr("longer than it says"));
  EXPECT_THAT(refusal(npy("<f4", false, "(99999999999, 99999999999)", "")), HasSubstr("beyond 2^64"));
  EXPECT_THAT(refusal(npy("<f4", false, "(99999999999999999999,)", "")), HasSubstr("'shape'"));
  EXPECT_THAT(refusal(npy("<f4", false, "(1, -1)", "")), HasSubstr("'shape'"));
  EXPECT_THAT(refusal(npy("<f4", false, "(1,)", "1234", 4)), HasSubstr("format 4"));
}

TEST(Npz, WritesWhatItReads) {
  const std::vector<float> f{1, -2, 3.5f, 0, 1e-30f, 7};
  const std::vector<double> d{0.1};
  const std::vector<uint8_t> u{0, 9, 255};
  const std::vector<int64_t> i{-5, int64_t{1} << 40};
  const std::vector<NpzEntry> entries{npz_entry("grad/a.weight", {2, 3}, f.data()), npz_entry("loss", {}, d.data()),
                                      npz_entry("u", {3}, u.data()), npz_entry("i", {2}, i.data())};
  const std::string path = temporary("round.npz");
  write_npz(path, entries);
  const NpzReader npz(path);
  EXPECT_THAT(npz.names(), ElementsAre("grad/a.weight", "loss", "u", "i"));
  EXPECT_THAT(npz.read("grad/a.weight").shape, ElementsAre(2, 3));
  EXPECT_EQ(npz.read("grad/a.weight").as_f32(), f);
  EXPECT_EQ(npz.read("loss").as_f64(), d);
  EXPECT_EQ(npz.read("u").bytes, u);
  EXPECT_EQ(npz.read("i").as_f64()[1], 0x1p40);
  EXPECT_THAT(testing::message<DataError>([&] { npz.read("nothing"); }),
              HasSubstr("no array 'nothing'; found: grad/a.weight, loss, u, i"));
  const auto size = std::filesystem::file_size(path);
  write_npz(path, entries);  // replaces, with the same bytes
  EXPECT_EQ(std::filesystem::file_size(path), size);
}

TEST(Npz, FailedWriteLeavesTheOldFile) {
  const double x = 1;
  EXPECT_THROW(write_npz("/nowhere/at/all/x.npz", std::vector{npz_entry("x", {}, &x)}), IoError);
  EXPECT_THROW(write_npz("/dev/full/x.npz", std::vector{npz_entry("x", {}, &x)}), IoError);
}

// Written by NumPy 2.4: savez_compressed(a=arange(6, dtype='<i4').reshape(2, 3), b=asfortranarray of float16 ones).
TEST(Npz, ReadsDeflatedArrays) {
  const NpzReader npz(REGOLITH_SOURCE_DIR "/tests/data/numpy_deflated.npz");
  EXPECT_THAT(npz.read("a").as_f64(), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(npz.read("a").shape, ElementsAre(2, 3));
  EXPECT_THAT(npz.read("b").as_f64(), ElementsAre(0, 0.5, 1, 1.5, 2, 2.5));
  EXPECT_EQ(npz.read("b").type_name(), "float16");
}

// Whatever is cut off or turned over: an array, or a DataError that names the file.
TEST(Npz, DamagedFilesAreRefused) {
  std::ifstream in(REGOLITH_SOURCE_DIR "/tests/data/numpy_deflated.npz", std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  ASSERT_GT(whole.size(), 300u);
  const std::string path = temporary("damaged.npz");
  const auto attempt = [&](const std::string& contents) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << contents;
    const NpzReader npz(path);
    for (const std::string& name : npz.names()) npz.read(name);
  };
  attempt(whole);
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_THAT(testing::message<DataError>([&] { attempt(whole.substr(0, n)); }), HasSubstr("damaged.npz"))
        << "cut at " << n;
  }
  int refused = 0;
  for (size_t n = 0; n < whole.size(); ++n) {
    std::string turned = whole;
    turned[n] = static_cast<char>(turned[n] ^ (1 << n % 8));
    try {
      attempt(turned);
    } catch (const DataError& e) {
      ++refused;
      EXPECT_THAT(e.what(), HasSubstr("damaged.npz"));
    }
  }
  EXPECT_GT(refused, static_cast<int>(whole.size()) / 2);
}

}  // namespace
}  // namespace regolith
