// Pictures in files: what is written comes back, and what stands beside it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "engine/base/error.h"
#include "engine/io/image.h"
#include "tests/support/memory.h"
#include "tests/support/message.h"
#include "tests/support/png.h"

namespace regolith {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::PngFile;
namespace fs = std::filesystem;

class ImageFile : public ::testing::Test {
 protected:
  void TearDown() override { fs::remove(path_); }
  // Rows of one value after the other.
  void write(const PngHeader& header, const std::vector<uint8_t>& bytes) const {
    const size_t row = bytes.size() / header.height;
    write_png(path_, header, [&](int y) { return bytes.data() + y * row; });
  }
  std::string contents() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  const std::string path_ =
      ::testing::TempDir() + "regolith_image_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(ImageFile, APictureComesBack) {
  Picture p(3, 2, {1, 2, 3});
  p.at(2, 1) = {200, 100, 50};
  write_png(path_, p);
  const ImageValues image = read_image(path_);
  EXPECT_EQ(image.width, 3);
  EXPECT_EQ(image.height, 2);
  EXPECT_EQ(image.channels, 3);
  EXPECT_THAT(image.bytes, ElementsAre(1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 200, 100, 50));
  EXPECT_TRUE(image.words.empty());
}

TEST_F(ImageFile, AMaskComesBackWithItsPaletteAndClasses) {
  const std::vector<uint8_t> ids{0, 2, 1, 1, 0, 2};
  const std::vector<Rgb> palette{{0, 0, 0}, {250, 0, 0}, {0, 250, 9}};
  const std::vector<std::string> names{"sky", "big rock", "Ger\u00f6ll"};
  write({2, 3, palette, {classes_text(names), {"Software", "regolith"}}}, ids);
  const ImageValues mask = read_image(path_, true), shown = read_image(path_);
  EXPECT_EQ(mask.bytes, ids);
  EXPECT_EQ(mask.palette, palette);
  EXPECT_THAT(std::vector(shown.bytes.begin(), shown.bytes.begin() + 6), ElementsAre(0, 0, 0, 0, 250, 9));
  EXPECT_THAT(contents(), AllOf(HasSubstr(std::string("tEXtSoftware\0regolith", 21)), HasSubstr("iTXtregolith:classes"),
                                HasSubstr("[\"sky\",\"big rock\",\"Ger\u00f6ll\"]")));
  EXPECT_FALSE(fs::exists(path_ + ".tmp"));
}

TEST_F(ImageFile, ManyRowsAreWrittenPieceByPiece) {
  std::vector<uint8_t> ids(600 * 700);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint8_t>(i * i * 2654435761u >> 13 & 7);
  write({600, 700, std::vector<Rgb>(8)}, ids);
  EXPECT_GT(fs::file_size(path_), 1u << 16);
  EXPECT_EQ(read_image(path_, true).bytes, ids);
}

TEST_F(ImageFile, AnIndexBeyondThePaletteIsRefusedAndLeavesNoFile) {
  EXPECT_THAT(testing::message<IoError>([&] {
                write({1, 3, std::vector<Rgb>(3), {}}, {0, 3, 1});
              }),
              AllOf(HasSubstr(path_), HasSubstr("row 0, column 1: index 3 is not in the palette of 3")));
  EXPECT_FALSE(fs::exists(path_) || fs::exists(path_ + ".tmp"));
}

TEST_F(ImageFile, WhatCannotBeWrittenSaysWhy) {
  EXPECT_THAT(testing::message<IoError>([] { write_png("/nowhere/at/all.png", Picture(1, 1, {})); }),
              AllOf(HasSubstr("/nowhere/at/all.png"), HasSubstr("No such file or directory")));
  Picture noise(400, 400, {});
  for (size_t i = 0; i < noise.pixels.size(); ++i) noise.pixels[i].g = static_cast<uint8_t>(i * i * 2654435761u >> 11);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{4096, before.rlim_max};
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string text = testing::message<IoError>([&] { write_png(path_, noise); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, ignored);
  EXPECT_THAT(text, AllOf(HasSubstr(path_), HasSubstr("File too large"), HasSubstr("free some space")));
  EXPECT_FALSE(fs::exists(path_ + ".tmp"));
}

TEST_F(ImageFile, SixteenBitsAreWordsAndEightAreBytes) {
  const PngFile file{.width = 2, .height = 1, .bits = 16, .values = {258, 65535}};
  file.write(path_);
  const ImageValues image = read_image(path_);
  EXPECT_THAT(image.words, ElementsAre(258, 65535));
  EXPECT_TRUE(image.bytes.empty());
  EXPECT_EQ(image.value(0), 258);
  write({1, 2, std::vector<Rgb>(9), {}}, {7, 8});
  EXPECT_EQ(read_image(path_, true).value(1), 8);
}

// The peak is that of the bytes themselves: a large picture of eight bits has no copy in sixteen.
TEST_F(ImageFile, ReadingTakesTheMemoryOfItsBytes) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory is in the peak";
#endif
  constexpr int kSide = 4096;
  const std::vector<uint8_t> row(kSide, 5);
  std::vector<Rgb> greys;
  for (int i = 0; i < 256; ++i) greys.push_back(Rgb{static_cast<uint8_t>(i), 0, 0});
  write_png(path_, {kSide, kSide, greys}, [&](int) { return row.data(); });
  if (!testing::reset_peak()) GTEST_SKIP() << "the peak of the memory cannot be reset here";
  const int64_t before = testing::process_bytes("VmRSS:");
  const ImageValues image = read_image(path_, true);
  EXPECT_EQ(image.bytes.back(), 5);
  EXPECT_LE(testing::process_bytes("VmHWM:") - before, 1.1 * kSide * kSide);
}

}  // namespace
}  // namespace regolith
