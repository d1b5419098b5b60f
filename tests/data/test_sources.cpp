#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "data/sources.h"
#include "engine/base/error.h"
#include "engine/io/npy.h"
#include "tests/support/memory.h"
#include "tests/support/message.h"

namespace regolith {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Sources : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        ::testing::TempDir() + "regolith_sources_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string npz(const std::vector<NpzEntry>& entries) const {
    write_npz(path("data.npz"), entries);
    return path("data.npz");
  }
  std::string folder_;
};

SourceContext of(int classes, const NpzNames& names = {}) { return {.classes = classes, .arrays = names}; }
TEST_F(Sources, StudyLayout) {
  std::vector<uint8_t> training(2 * 2 * 2 * 3), test(1 * 2 * 3, 9);
  std::iota(training.begin(), training.end(), 0);  // image 0: 0..5, mask 0: 6..11, image 1: 12..17, mask 1: 18..23
  const std::string file =
      npz({npz_entry("training_set", {2, 2, 2, 3}, training.data()), npz_entry("test_set", {1, 2, 3}, test.data())});
  const Dataset l = load_npz(file, of(24));
  EXPECT_EQ(l.count, 2);
  EXPECT_EQ(l.height, 2);
  EXPECT_EQ(l.width, 3);
  EXPECT_THAT(l.images, ElementsAre(0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17));
  EXPECT_THAT(l.masks, ElementsAre(6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23));
  EXPECT_THAT(l.source, ElementsAre(0, 1));
  EXPECT_THAT(l.notes, HasSubstr("not read: test_set"));
}

TEST_F(Sources, PlainLayoutAndFloats) {
  const std::vector<double> images{0, 0.5, 1, 0.2, 0, 1, 1, 0};
  const std::vector<int64_t> masks{0, 1, 2, 0};
  const std::string file =
      npz({npz_entry("image", {1, 2, 2, 2}, images.data()), npz_entry("mask", {1, 2, 2}, masks.data())});
  const Dataset l = load_npz(file, of(3));
  EXPECT_EQ(l.channels, 2);
  EXPECT_THAT(l.images, ElementsAre(0, 128, 255, 51, 0, 255, 255, 0));
  EXPECT_THAT(l.masks, ElementsAre(0, 1, 2, 0));
}

// An .npz of one row of pixels per image, all of class 0.
class Numbers : public Sources {
 protected:
  template <class T>
  Dataset load(const std::vector<T>& images, int64_t count = 1, const Normalise& stated = {}) const {
    const int64_t width = std::ssize(images) / count;
    const std::vector<uint8_t> masks(images.size(), 0);
    SourceContext c = of(2);
    c.normalise = stated;
    return load_npz(
        npz({npz_entry("image", {count, 1, width}, images.data()), npz_entry("mask", {count, 1, width}, masks.data())}),
        c);
  }
  template <class T>
  std::string refusal(const std::vector<T>& images, int64_t count = 1, const Normalise& stated = {}) const {
    return testing::message<DataError>([&] { load(images, count, stated); });
  }
};

TEST_F(Numbers, FloatsOfBytesStay) {
  EXPECT_THAT(load<float>({0, 254.6f, 1, 17}).images, ElementsAre(0, 255, 1, 17));
  EXPECT_THAT(load<double>({0, 3, 1, 2}).images, ElementsAre(0, 3, 1, 2));  // whole numbers: dark, and sound
}

TEST_F(Numbers, TheOvershootOfAResizeIsClippedAndTold) {
  const Dataset d = load<float>({-0.05f, 0.5f, 1.0000002f, 1.1f});
  EXPECT_THAT(d.images, ElementsAre(0, 128, 255, 255));
  EXPECT_THAT(d.notes, HasSubstr("array 'image': 3 image values beyond 0 to 1"));
  EXPECT_EQ(load<float>({0, 0.5f, 1}).notes, "");
  EXPECT_THAT(load<double>({-20, 0, 255, 270}, 1, {.low = 0, .high = 255}).images, ElementsAre(0, 0, 255, 255));
}

TEST_F(Numbers, OtherRangesAreRefusedWithWhatToWrite) {
  EXPECT_THAT(refusal<double>({0, 0.25, 1.5, 2}), AllOf(HasSubstr("sample 0, row 0, column 2: image value 1.5"),
                                                        HasSubstr("go from 0 to 2"), HasSubstr("{low: 0, high: 2}")));
  EXPECT_THAT(refusal<double>({-0.3, 0.5, 1}), HasSubstr("row 0, column 0: image value -0.3: expected 0 to 255"));
  EXPECT_THAT(refusal<double>({0.5, std::nan(""), 1}), HasSubstr("column 1: image value nan"));
  EXPECT_THAT(refusal<double>({-3, 0.5, 256}), HasSubstr("data.normalise: {low: 0, high: 255}"));
  EXPECT_THAT(refusal<int16_t>({0, 900}), AllOf(HasSubstr("image value 900"), HasSubstr("{bits: 10}")));
  EXPECT_THAT(refusal<uint16_t>({0, 65535}), HasSubstr("{bits: 16}"));
  EXPECT_THAT(refusal<int16_t>({-7, 30}), HasSubstr("{low: -7, high: 30}"));
  EXPECT_THAT(refusal<float>({0.5f, 0.2f, 200, 17}, 2),
              AllOf(HasSubstr("sample 1, row 0, column 0: image value 200"), HasSubstr("images of two kinds")));
}

TEST_F(Numbers, AStatedRangeIsThatOfEveryType) {
  for (const Normalise& stated : {Normalise{.bits = 12}, Normalise{.low = 0, .high = 4095}}) {
    EXPECT_THAT(load<uint16_t>({0, 2048, 4095}, 1, stated).images, ElementsAre(0, 128, 255));
    EXPECT_THAT(load<float>({0, 2048, 4095}, 1, stated).images, ElementsAre(0, 128, 255));
    EXPECT_THAT(refusal<int32_t>({0, 4096}, 1, stated), HasSubstr("data.normalise states 0 to 4095, but"));
  }
  EXPECT_THAT(refusal<uint8_t>({0, 4}, 1, {.bits = 12}), HasSubstr("holds 8 bits, but data.normalise.bits is 12"));
  EXPECT_EQ(ByteScale({.bits = 1}, 'b', 1, "").byte(1, 0, 0), 255);
  EXPECT_THAT(load<uint8_t>({50, 100, 150}, 1, {.low = 50, .high = 150}).images, ElementsAre(0, 128, 255));
}

// An array of doubles becomes bytes as it is read: the peak is that of the bytes.
TEST_F(Sources, ReadingTakesLittleMoreThanTheBytes) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory is in the peak";
#endif
  constexpr int64_t kCount = 600, kElements = kCount * 2 * 64 * 128;
  std::string file;
  {
    const std::vector<double> values(kElements, 3);
    file = npz({npz_entry("training_set", {kCount, 2, 64, 128}, values.data())});
  }
  if (!testing::reset_peak()) GTEST_SKIP() << "the peak of the memory cannot be reset here";
  const int64_t before = testing::process_bytes("VmRSS:");
  const Dataset d = load_npz(file, of(5));
  EXPECT_EQ(d.images[kElements / 2 - 1], 3);
  EXPECT_LE(testing::process_bytes("VmHWM:") - before, 1.3 * kElements);
}

TEST_F(Sources, EveryFaultOfAnArrayIsNamed) {
  std::vector<uint8_t> bytes(24, 1);
  std::vector<double> doubles(24, 1);
  const auto study = [&](std::vector<int64_t> shape) {
    const std::string file = npz({npz_entry("training_set", std::move(shape), bytes.data())});
    return testing::message<DataError>([&] { load_npz(file, of(5)); });
  };
  EXPECT_THAT(study({2, 3, 4}),
              HasSubstr("data.npz: array 'training_set': expected shape (N, 2, H, W), found (2, 3, 4)"));
  EXPECT_THAT(study({2, 3, 2, 2}), HasSubstr("found (2, 3, 2, 2)"));
  EXPECT_THAT(study({0, 2, 2, 2}), HasSubstr("holds no images: (0, 2, 2, 2)"));
  bytes[6 + 4] = 5;
  EXPECT_THAT(study({2, 2, 2, 3}), HasSubstr("'training_set': sample 0, row 1, column 1: class id 5: expected 0 to 4"));

  const auto plain = [&](std::vector<int64_t> images, std::vector<int64_t> masks) {
    const std::string file = npz(
        {npz_entry("image", std::move(images), doubles.data()), npz_entry("mask", std::move(masks), doubles.data())});
    return testing::message<DataError>([&] { load_npz(file, of(5)); });
  };
  EXPECT_THAT(plain({1, 4, 6}, {1, 4, 5}),
              HasSubstr("array 'mask': expected shape (1, 4, 6) to match the images, found (1, 4, 5)"));
  doubles[3] = 1 - 1e-9;
  const std::string fraction =
      npz({npz_entry("image", {1, 4, 6}, bytes.data()), npz_entry("mask", {1, 4, 6}, doubles.data())});
  EXPECT_THAT(testing::message<DataError>([&] { load_npz(fraction, of(5)); }),
              HasSubstr("array 'mask': sample 0, row 0, column 3: class id 0.999999999 is no whole number"));
  doubles[3] = -1;
  EXPECT_THAT(plain({1, 4, 6}, {1, 4, 6}),
              HasSubstr("array 'image': sample 0, row 0, column 3: image value -1: expected 0 to 255"));
  doubles[3] = std::nan("");
  EXPECT_THAT(plain({1, 4, 6}, {1, 4, 6}), HasSubstr("image value nan"));
  const std::string other = npz({npz_entry("foo", {24}, doubles.data()), npz_entry("bar", {24}, doubles.data())});
  EXPECT_THAT(testing::message<DataError>([&] { load_npz(other, of(5)); }),
              HasSubstr("neither 'training_set' (the study's layout) nor 'image'; found: foo, bar"));
  EXPECT_THAT(testing::message<DataError>([&] { load_npz(path("none.npz"), of(5)); }),
              HasSubstr("none.npz: cannot be opened"));
  std::ofstream(path("text.npz")) << "not a zip archive";
  EXPECT_THAT(testing::message<DataError>([&] { load_npz(path("text.npz"), of(5)); }),
              HasSubstr("text.npz: not an .npz file"));
}

TEST_F(Sources, GroupsOfAnArray) {
  const std::vector<uint8_t> pixels(3, 0);
  const auto groups_of = [&](const auto& groups) {
    SourceContext c = of(2);
    c.group = "scene";
    return load_npz(npz({npz_entry("image", {3, 1, 1}, pixels.data()), npz_entry("mask", {3, 1, 1}, pixels.data()),
                         npz_entry("scene", {3}, groups.data())}),
                    c)
        .group;
  };
  const int64_t time = 1'732'830'000'000'000'000;  // nanoseconds: a double does not tell it from the next
  EXPECT_THAT(groups_of(std::vector{time, time + 1, time}), ElementsAre(0, 1, 0));
  EXPECT_THAT(groups_of(std::vector{0.5, 0.5, 2.0}), ElementsAre(0, 0, 1));
  EXPECT_THAT(testing::message<DataError>([&] {
                groups_of(std::vector{0.5, std::nan(""), 2.0});
              }),
              HasSubstr("'scene': holds nan"));
}

TEST_F(Sources, NpyPair) {
  const auto write = [&](const char* name, const std::vector<uint8_t>& values) {
    std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 2), }";
    header.resize(117, ' ');
    header += '\n';
    std::ofstream out(path(name), std::ios::binary);
    out << "\x93NUMPY\x01" << '\0' << static_cast<char>(header.size()) << '\0' << header;
    out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size()));
  };
  write("x.npy", {1, 2, 3, 4});
  write("y.npy", {0, 1, 1, 0});
  NpyFiles files;
  files.images.path = path("x.npy"), files.masks.path = path("y.npy");
  const Dataset d = load_npy(files, of(2));
  EXPECT_THAT(d.images, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(d.masks, ElementsAre(0, 1, 1, 0));
  EXPECT_TRUE(d.part.empty());
  files.test = files;
  const Dataset both = load_npy(files, of(2));
  EXPECT_THAT(both.images, ElementsAre(1, 2, 3, 4, 1, 2, 3, 4));
  EXPECT_THAT(both.part, ElementsAre(Part::train, Part::test));
  EXPECT_THAT(both.source, ElementsAre(0, 0));
  files.masks = files.images;
  EXPECT_THAT(testing::message<DataError>([&] { load_npy(files, of(2)); }),
              HasSubstr("x.npy: sample 0, row 0, column 1: class id 2"));
}

}  // namespace
}  // namespace regolith
