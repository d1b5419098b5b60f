// Images to be predicted: files, folders and arrays, one at a time.
#include "data/images.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "engine/base/error.h"
#include "engine/io/image.h"
#include "engine/io/npy.h"
#include "kernels/sample.h"
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

class Images : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        ::testing::TempDir() + "regolith_images_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(path("images"));
    fs::create_directories(path("masks"));
    context_.classes = 3;
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  void grey(const std::string& name, int w, int h, std::vector<uint16_t> values, int bits = 8) const {
    PngFile{.width = w, .height = h, .bits = bits, .values = std::move(values)}.write(path(name));
  }
  std::string npz(const std::vector<NpzEntry>& entries) const {
    write_npz(path("data.npz"), entries);
    return path("data.npz");
  }
  std::unique_ptr<ImageSource> images(const std::string& name, const std::string& key = "") const {
    return open_images(path(name), key, context_);
  }
  std::unique_ptr<ImageSource> labelled(const std::string& name, const std::string& masks = "",
                                        const std::string& key = "") const {
    return open_labelled(path(name), key, masks, context_);
  }
  static std::string refusal(const std::function<void()>& f) { return testing::message<DataError>(f); }

  SourceContext context_;
  std::string folder_;
};

TEST_F(Images, AFolderOfAnySizesByName) {
  grey("images/b.png", 2, 1, {7, 8});
  grey("images/a.png", 1, 3, {1, 2, 3});
  std::ofstream(path("images/notes.txt")) << "text";
  const auto source = images("images");
  ASSERT_EQ(source->count(), 2);
  EXPECT_FALSE(source->has_masks());
  EXPECT_EQ(source->name(0), "a");
  const NamedImage b = source->read(1), a = source->read(0);
  EXPECT_EQ(b.name, "b");
  EXPECT_THAT(b.pixels, ElementsAre(7, 8));
  EXPECT_THAT((std::array{a.height, a.width, a.channels}), ElementsAre(3, 1, 1));
  EXPECT_THAT(source->notes(), HasSubstr("images: left out: 1 .txt\n"));
  write_png(path("images/a.jpg"), Picture(1, 1, {}));
  EXPECT_THAT(refusal([&] { images("images"); }), HasSubstr("two images of one name: "));
  EXPECT_THAT(refusal([&] { images("nowhere"); }), HasSubstr("nowhere: there is no such file or folder"));
}

TEST_F(Images, ADamagedFileIsToldWhenItIsReadAndTheNextIsRead) {
  std::ofstream(path("images/a.png")) << "text";
  grey("images/b.png", 2, 1, {0, 300}, 16);
  grey("images/c.png", 2, 1, {0, 200}, 16);
  grey("images/d.png", 2, 1, {5, 6});
  const auto source = images("images");
  EXPECT_THAT(refusal([&] { source->read(0); }), HasSubstr("a.png: expected a PNG or JPEG"));
  EXPECT_THAT(refusal([&] { source->read(1); }),
              AllOf(HasSubstr("b.png: row 0, column 1: image value 300"), HasSubstr("data.normalise: {bits: 10}")));
  EXPECT_THAT(source->read(2).pixels, ElementsAre(0, 200));
  EXPECT_THAT(source->read(3).pixels, ElementsAre(5, 6));
  context_.normalise.bits = 10;
  EXPECT_THAT(images("images")->read(1).pixels, ElementsAre(0, 75));
}

TEST_F(Images, ColourBecomesWhatTheModelTakes) {
  write_png(path("images/a.png"), Picture(1, 1, {10, 20, 30}));
  const auto grey = images("images/a.png");
  EXPECT_THAT(grey->read(0).pixels, ElementsAre(18));
  EXPECT_EQ(grey->name(0), "a");
  EXPECT_EQ(grey->notes(), "1 colour image turned to grey\n");
  context_.channels = 3;
  EXPECT_THAT(images("images/a.png")->read(0).pixels, ElementsAre(10, 20, 30));
  context_.channels = 2;
  EXPECT_THAT(refusal([&] { images("images/a.png"); }), HasSubstr("pictures have 1 or 3 channels, not 2"));
}

TEST_F(Images, MasksOfPictures) {
  grey("images/a.png", 3, 1, {1, 2, 3});
  grey("masks/a.png", 3, 1, {0, 255, 2});
  context_.ignore = 255;
  for (const auto& source : {labelled("images", path("masks")), labelled("images/a.png", path("masks/a.png"))}) {
    EXPECT_TRUE(source->has_masks());
    EXPECT_THAT(source->read_mask(0), ElementsAre(0, kernels::kAbsentClass, 2));
  }
  EXPECT_THAT(refusal([&] { labelled("images"); }), HasSubstr("images: its masks are not named"));
  grey("masks/a.png", 2, 1, {0, 1});
  const auto source = labelled("images", path("masks"));
  EXPECT_THAT(refusal([&] { source->read_mask(0); }),
              AllOf(HasSubstr("masks/a.png: is 2x1 (width x height); its image"), HasSubstr("is 3x1")));
  grey("images/b.png", 3, 1, {1, 2, 3});
  EXPECT_THAT(refusal([&] { labelled("images", path("masks")); }), HasSubstr("b.png: has no mask: expected"));
}

TEST_F(Images, PalettesOfTwoOrdersAreFoundAsTheyAreRead) {
  const std::string one("\0\0\0\x80\0\0\0\x80\0", 9), other("\0\0\0\0\x80\0\x80\0\0", 9);
  for (const auto& [name, palette] : {std::pair{"a.png", one}, {"b.png", other}}) {
    grey(std::string("images/") + name, 2, 1, {1, 2});
    PngFile{.width = 2, .height = 1, .colour = 3, .values = {1, 2}, .palette = palette}.write(
        path(std::string("masks/") + name));
  }
  const auto source = labelled("images", path("masks"));
  EXPECT_THAT(source->read_mask(0), ElementsAre(1, 2));
  EXPECT_THAT(refusal([&] { source->read_mask(1); }), HasSubstr("b.png: index 1 of its palette"));
}

TEST_F(Images, TheStudysFileInAnyOrder) {
  std::vector<uint8_t> training(12 * 2 * 2 * 3), test(11 * 2 * 3);
  for (size_t i = 0; i < training.size(); ++i) training[i] = static_cast<uint8_t>(i / 6 % 2 == 0 ? i : i % 3);
  std::iota(test.begin(), test.end(), 0);
  npz({npz_entry("training_set", {12, 2, 2, 3}, training.data()), npz_entry("test_set", {11, 2, 3}, test.data())});
  const auto to_predict = images("data.npz");
  ASSERT_EQ(to_predict->count(), 11);
  EXPECT_EQ(to_predict->name(3), "03");
  EXPECT_THAT(to_predict->notes(), HasSubstr("data.npz: array 'test_set': 11 images of 2x3x1\n"));
  for (const int i : {4, 5, 0, 10, 10})
    EXPECT_THAT(to_predict->read(i).pixels, ElementsAre(6 * i, 6 * i + 1, 6 * i + 2, 6 * i + 3, 6 * i + 4, 6 * i + 5));
  EXPECT_THAT(images("data.npz", "training_set")->read(1).pixels, ElementsAre(12, 13, 14, 15, 16, 17));
  const auto with_truth = labelled("data.npz");
  ASSERT_EQ(with_truth->count(), 12);
  for (const int i : {0, 1, 11, 2}) {
    EXPECT_EQ(with_truth->read(i).pixels[0], 12 * i);
    EXPECT_THAT(with_truth->read_mask(i), ElementsAre(0, 1, 2, 0, 1, 2));
  }
  EXPECT_THAT(refusal([&] { labelled("data.npz", "", "test_set"); }),
              AllOf(HasSubstr("'test_set'"), HasSubstr("no array of masks is named")));
}

TEST_F(Images, ArraysByNameAndWithoutOne) {
  const std::vector<float> images_{0, 0.5f, 1, 0.25f};
  const std::vector<int64_t> masks{0, 1, 2, 9};
  const std::vector<uint8_t> times(2), test{1, 2};
  context_.coding.map.ids = {{9, IdMap::kIgnore}};
  const NpzEntry x = npz_entry("X", {2, 1, 2}, images_.data()), y = npz_entry("y", {2, 1, 2}, masks.data()),
                 t = npz_entry("t", {2}, times.data()), Xt = npz_entry("Xt", {1, 1, 2}, test.data());
  npz({x, t});
  EXPECT_THAT(images("data.npz")->read(1).pixels, ElementsAre(255, 64));
  npz({x, y, t, Xt});
  EXPECT_THAT(refusal([&] { images("data.npz"); }),
              HasSubstr("which array holds the images? Found: X (2, 1, 2), y (2, 1, 2), t (2,), Xt (1, 1, 2)"));
  EXPECT_THAT(images("data.npz", "X")->read(0).pixels, ElementsAre(0, 128));
  EXPECT_THAT(refusal([&] { images("data.npz", "Z"); }), HasSubstr("'Z'"));
  const auto named = labelled("data.npz", "y", "X");
  for (const int i : {0, 1, 0}) EXPECT_THAT(named->read(i).pixels[0], i == 0 ? 0 : 255);
  EXPECT_THAT(named->read_mask(1), ElementsAre(2, kernels::kAbsentClass));
  context_.arrays.images = "X", context_.arrays.masks = "y";
  EXPECT_THAT(labelled("data.npz")->read_mask(0), ElementsAre(0, 1));
  EXPECT_EQ(images("data.npz")->count(), 2);
  context_.arrays.test = NpzPair{"Xt", "yt"};
  EXPECT_THAT(images("data.npz")->read(0).pixels, ElementsAre(1, 2));
  context_.channels = 3;
  EXPECT_THAT(refusal([&] { images("data.npz", "X"); }),
              HasSubstr("X': holds images of 1 channels, (2, 1, 2); the model takes 3"));
}

// Floats of 0 to 255 whose first image is dark: all of an array are of one range.
TEST_F(Images, TheRangeOfAnArrayIsThatOfAllItsImages) {
  const std::vector<double> images_{0.5, 1, 3, 200};
  npz({npz_entry("image", {2, 1, 2}, images_.data())});
  EXPECT_THAT(refusal([&] { images("data.npz"); }), HasSubstr("sample 1, row 0, column 0: image value 3, but "));
  const std::vector<double> bytes{0, 1, 2, 200};
  npz({npz_entry("image", {2, 1, 2}, bytes.data())});
  EXPECT_THAT(images("data.npz")->read(0).pixels, ElementsAre(0, 1));
  const std::vector<int16_t> wide{0, 1, 2, 900};
  npz({npz_entry("image", {2, 1, 2}, wide.data())});
  EXPECT_THAT(refusal([&] { images("data.npz"); }), HasSubstr("data.normalise: {bits: 10}"));
}

TEST_F(Images, NpyFilesAndOneImageOfThem) {
  const auto write = [&](const char* name, const std::string& shape, const std::string& bytes) {
    std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + ", }";
    header.resize(117, ' ');
    std::ofstream(path(name), std::ios::binary) << "\x93NUMPY\x01" << '\0' << 'v' << '\0' << header << '\n' << bytes;
  };
  write("scan.npy", "(1, 2)", "\5\6");
  write("truth.npy", "(1, 2)", "\1\2");
  const auto scan = labelled("scan.npy", path("truth.npy"));
  EXPECT_EQ(scan->name(0), "scan");
  EXPECT_THAT(scan->read(0).pixels, ElementsAre(5, 6));
  EXPECT_THAT(scan->read_mask(0), ElementsAre(1, 2));
  EXPECT_THAT(refusal([&] { images("scan.npy", "image"); }), HasSubstr("scan.npy: is no .npz"));
  write("colour.npy", "(1, 1, 3)", "abc");
  context_.channels = 3;
  EXPECT_EQ(images("colour.npy")->read(0).channels, 3);
  write("cut.npy", "(2, 1, 2, 3)", "abcdefgh");
  EXPECT_THAT(refusal([&] { images("cut.npy"); }), HasSubstr("cut.npy: truncated"));
}

TEST_F(Images, ALargePictureIsReadWithoutACopy) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory is in the peak";
#endif
  constexpr int kSide = 4096;
  const std::vector<uint8_t> row(kSide, 2);
  write_png(path("images/a.png"), {kSide, kSide, std::vector<Rgb>(3, Rgb{9, 9, 9})}, [&](int) { return row.data(); });
  context_.channels = 3;  // as the file has them
  const auto source = images("images/a.png");
  if (!testing::reset_peak()) GTEST_SKIP() << "the peak of the memory cannot be reset here";
  const int64_t before = testing::process_bytes("VmRSS:");
  EXPECT_EQ(source->read(0).pixels.back(), 9);
  EXPECT_LE(testing::process_bytes("VmHWM:") - before, 1.1 * 3 * kSide * kSide);
}

}  // namespace
}  // namespace regolith
