#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "data/sources.h"
#include "engine/base/error.h"
#include "engine/io/image.h"
#include "engine/io/npy.h"
#include "kernels/sample.h"
#include "places.h"

namespace regolith {
namespace {

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
  void grey_png(const std::string& name, int w, int h, uint8_t value) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    write_png(path(name), Picture(w, h, {value, value, value}));
  }
  std::string folder_;
};

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const DataError& e) {
    return e.what();
  }
  return "no DataError";
}

TEST_F(Sources, StudyLayout) {
  std::vector<uint8_t> training(2 * 2 * 2 * 3), test(1 * 2 * 3, 9);
  std::iota(training.begin(), training.end(), 0);  // image 0: 0..5, mask 0: 6..11, image 1: 12..17, mask 1: 18..23
  const std::string file =
      npz({npz_entry("training_set", {2, 2, 2, 3}, training.data()), npz_entry("test_set", {1, 2, 3}, test.data())});
  const Dataset l = load_npz(file, 24);
  EXPECT_EQ(l.count, 2);
  EXPECT_EQ(l.height, 2);
  EXPECT_EQ(l.width, 3);
  EXPECT_THAT(l.images, ElementsAre(0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17));
  EXPECT_THAT(l.masks, ElementsAre(6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23));
  EXPECT_THAT(l.source, ElementsAre(0, 1));
  EXPECT_TRUE(l.unlabelled_samples().empty());
  const Dataset both = load_npz(file, 24, {}, true);
  EXPECT_EQ(both.count, 3);
  EXPECT_THAT(both.labelled_samples(), ElementsAre(0, 1));
  EXPECT_THAT(both.unlabelled_samples(), ElementsAre(2));
  EXPECT_THAT(both.source, ElementsAre(0, 1, 0));
  EXPECT_EQ(std::vector<uint8_t>(both.image(2), both.image(2) + 6), test);
  EXPECT_EQ(std::vector<uint8_t>(both.mask(2), both.mask(2) + 6), std::vector<uint8_t>(6, kernels::kAbsentClass));
  EXPECT_EQ(std::vector<uint8_t>(both.images.begin(), both.images.end() - 6), l.images);
}

TEST_F(Sources, PlainLayoutAndFloats) {
  const std::vector<double> images{0, 0.5, 1, 0.2, 0, 1, 1, 0};
  const std::vector<int64_t> masks{0, 1, 2, 0};
  const std::string file =
      npz({npz_entry("image", {1, 2, 2, 2}, images.data()), npz_entry("mask", {1, 2, 2}, masks.data())});
  const Dataset l = load_npz(file, 3);
  EXPECT_EQ(l.channels, 2);
  EXPECT_THAT(l.images, ElementsAre(0, 128, 255, 51, 0, 255, 255, 0));
  EXPECT_THAT(l.masks, ElementsAre(0, 1, 2, 0));
  NpzNames alone;
  alone.masks = "";
  EXPECT_EQ(load_npz(file, 3, alone).unlabelled, 1);
}

TEST_F(Sources, FloatsOfBytesStay) {
  const std::vector<float> images{0, 254.6f, 1, 17};
  EXPECT_THAT(load_npz(npz({npz_entry("x", {1, 2, 2}, images.data())}), 3, {.images = "x", .masks = ""}).images,
              ElementsAre(0, 255, 1, 17));
}

// Fractions until a value above 1 turns up: then all are read as bytes, and a fault is one of bytes.
TEST_F(Sources, TheScaleOfFloatsIsThatOfTheWholeArray) {
  std::vector<double> images(2 * 64 * 64, 0.6);
  const auto load = [&] {
    return load_npz(npz({npz_entry("x", {2, 64, 64}, images.data())}), 3, {.images = "x", .masks = ""}).images;
  };
  images[1] = -0.001;
  EXPECT_EQ(load()[0], 153);
  images[1] = -0.3;
  EXPECT_THAT(message_of([&] { load(); }), HasSubstr("sample 0, row 0, column 1: image value -0.3"));
  images.back() = 200;
  EXPECT_THAT(load()[0], 1);
  EXPECT_THAT(load()[1], 0);
  EXPECT_THAT(load().back(), 200);
}

int64_t kilobytes(const std::string& key) {  // of /proc/self/status
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != key) continue;
    int64_t n = 0;
    status >> n;
    return n;
  }
  return 0;
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
  std::ofstream clear("/proc/self/clear_refs");  // 5: the peak begins anew
  if (!(clear << "5" << std::flush)) GTEST_SKIP() << "the peak of the memory cannot be reset here";
  const int64_t before = kilobytes("VmRSS:");
  const Dataset d = load_npz(file, 5);
  EXPECT_EQ(d.images[kElements / 2 - 1], 3);
  EXPECT_LE(kilobytes("VmHWM:") - before, 1.3 * kElements / 1024);
}

TEST_F(Sources, EveryFaultOfAnArrayIsNamed) {
  std::vector<uint8_t> bytes(24, 1);
  std::vector<double> doubles(24, 1);
  const auto study = [&](std::vector<int64_t> shape) {
    const std::string file = npz({npz_entry("training_set", std::move(shape), bytes.data())});
    return message_of([&] { load_npz(file, 5); });
  };
  EXPECT_THAT(study({2, 3, 4}),
              HasSubstr("data.npz: array 'training_set': expected shape (N, 2, H, W), found (2, 3, 4)"));
  EXPECT_THAT(study({2, 3, 2, 2}), HasSubstr("found (2, 3, 2, 2)"));
  EXPECT_THAT(study({0, 2, 2, 2}), HasSubstr("found (0, 2, 2, 2)"));
  bytes[6 + 4] = 5;
  EXPECT_THAT(study({2, 2, 2, 3}), HasSubstr("'training_set': sample 0, row 1, column 1: class id 5: expected 0 to 4"));

  const auto plain = [&](std::vector<int64_t> images, std::vector<int64_t> masks) {
    const std::string file = npz(
        {npz_entry("image", std::move(images), doubles.data()), npz_entry("mask", std::move(masks), doubles.data())});
    return message_of([&] { load_npz(file, 5); });
  };
  EXPECT_THAT(plain({1, 4, 6}, {1, 4, 5}),
              HasSubstr("array 'mask': expected shape (1, 4, 6) to match the images, found (1, 4, 5)"));
  doubles[3] = 1.5;
  EXPECT_THAT(plain({1, 4, 6}, {1, 4, 6}), HasSubstr("array 'mask': sample 0, row 0, column 3: class id 1.5"));
  doubles[3] = -1;
  EXPECT_THAT(plain({1, 4, 6}, {1, 4, 6}),
              HasSubstr("array 'image': sample 0, row 0, column 3: image value -1: expected 0 to 255"));
  doubles[3] = std::nan("");
  EXPECT_THAT(plain({1, 4, 6}, {1, 4, 6}), HasSubstr("image value nan"));
  const std::string other = npz({npz_entry("foo", {24}, doubles.data()), npz_entry("bar", {24}, doubles.data())});
  EXPECT_THAT(message_of([&] { load_npz(other, 5); }),
              HasSubstr("neither 'training_set' (the study's layout) nor 'image'; found: foo, bar"));
  EXPECT_THAT(message_of([&] { load_npz(path("none.npz"), 5); }), HasSubstr("none.npz: cannot be opened"));
  std::ofstream(path("text.npz")) << "not a zip archive";
  EXPECT_THAT(message_of([&] { load_npz(path("text.npz"), 5); }), HasSubstr("text.npz: not an .npz file"));
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
  const Dataset d = load_npy(path("x.npy"), path("y.npy"), 2);
  EXPECT_THAT(d.images, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(d.masks, ElementsAre(0, 1, 1, 0));
  EXPECT_THAT(message_of([&] { load_npy(path("x.npy"), path("x.npy"), 2); }),
              HasSubstr("x.npy: sample 0, row 0, column 1: class id 2"));
}

TEST_F(Sources, Folder) {
  grey_png("images/a.png", 6, 4, 10);
  grey_png("images/b.png", 6, 4, 20);
  // A mask as programs write it: eight bits of grey. A picture of ours is RGB, which a mask may not be.
  grey_png("rgb/a.png", 6, 4, 1);
  grey_png("rgb/b.png", 6, 4, 1);
  EXPECT_THAT(message_of([&] { load_folder(path("images"), path("rgb"), 5); }), HasSubstr("a.png: expected a mask"));
  const std::string masks =
      REGOLITH_SOURCE_DIR "/tests/data/masks";  // a: grey, 4-bit; b: palette. 6x4, class = column % 3
  const Dataset d = load_folder(path("images"), masks, 3);
  EXPECT_EQ(d.count, 2);
  EXPECT_EQ(d.images[0], 10);
  EXPECT_EQ(d.images[24], 20);
  for (int i = 0; i < 48; ++i) EXPECT_EQ(d.masks[i], i % 6 % 3) << i;
  EXPECT_EQ(load_folder(path("images"), "", 3, 3).images.size(), 2u * 24 * 3);
  EXPECT_THAT(message_of([&] { load_folder(path("images"), masks, 2); }),
              HasSubstr("a.png: row 0, column 2: class id 2: expected 0 to 1"));

  grey_png("images/b.png", 5, 4, 20);
  EXPECT_THAT(message_of([&] { load_folder(path("images"), masks, 3); }),
              HasSubstr("b.png: is 5x4 (width x height); "));
  fs::remove(path("images/b.png"));
  EXPECT_THAT(message_of([&] { load_folder(path("images"), masks, 3); }),
              HasSubstr("b.png: has no image of this name"));
  grey_png("images/c.png", 6, 4, 20);
  EXPECT_THAT(message_of([&] { load_folder(path("images"), masks, 3); }), HasSubstr("c.png: has no mask"));
  std::ofstream(path("images/c.png")) << "text";
  EXPECT_THAT(message_of([&] { load_folder(path("images"), "", 3); }), HasSubstr("c.png: expected a PNG or JPEG"));
  EXPECT_THAT(message_of([&] { load_folder(path("nowhere"), "", 3); }), HasSubstr("nowhere: cannot be listed"));
  fs::create_directories(path("empty"));
  EXPECT_THAT(message_of([&] { load_folder(path("empty"), "", 3); }), HasSubstr("empty: has no PNG or JPEG files"));
}

TEST_F(Sources, Jpeg) {
  const Dataset d = load_folder(REGOLITH_SOURCE_DIR "/tests/data/photos", "", 3);  // 16x8, grey 100; colour
  ASSERT_EQ(d.count, 2);
  EXPECT_NEAR(d.image(0)[5], 100, 2);
  EXPECT_NEAR(d.image(1)[5], 0.299 * 200 + 0.587 * 100 + 0.114 * 50, 3);
}

TEST_F(Sources, DamagedImagesAreRefused) {
  for (const std::string name : {"photos/a.jpg", "photos/b.jpg", "masks/a.png", "masks/b.png"}) {
    std::ifstream in(REGOLITH_SOURCE_DIR "/tests/data/" + name, std::ios::binary);
    const std::string whole((std::istreambuf_iterator<char>(in)), {}), file = path(fs::path(name).filename().string());
    ASSERT_GT(whole.size(), 60u);
    for (size_t n = 0; n + 20 < whole.size(); n += 3) {
      std::ofstream(file, std::ios::binary | std::ios::trunc) << whole.substr(0, n);
      EXPECT_THAT(message_of([&] { read_image(file); }), HasSubstr(file)) << "cut at " << n;
    }
  }
}

}  // namespace
}  // namespace regolith
