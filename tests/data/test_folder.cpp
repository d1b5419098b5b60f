// Folders of pictures: every kind of file as other programs write it, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "data/sources.h"
#include "engine/base/error.h"
#include "engine/io/image.h"
#include "kernels/sample.h"
#include "places.h"
#include "tests/support/message.h"
#include "tests/support/png.h"

namespace regolith {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::exif_of;
using ::testing::HasSubstr;
using testing::PngFile;
namespace fs = std::filesystem;

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

ImageFolders pair(const std::string& images, const std::string& masks) {
  ImageFolders f;
  f.images.path = images, f.masks.path = masks;
  return f;
}

class Folders : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        ::testing::TempDir() + "regolith_folders_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(path("images"));
    fs::create_directories(path("masks"));
    context_.classes = 3;
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  void picture(const std::string& name, int w, int h, uint8_t value) const {
    write_png(path(name), Picture(w, h, {value, value, value}));
  }
  // An image of 3x1 pixels and its mask.
  void sample(const std::string& name, const PngFile& mask,
              const PngFile& image = {.width = 3, .height = 1, .values = {10, 20, 30}}) const {
    image.write(path("images/" + name + ".png"));
    mask.write(path("masks/" + name + ".png"));
  }
  Dataset load() const { return load_folder(pair(path("images"), path("masks")), context_); }
  std::string refusal() const {
    return testing::message<DataError>([&] { load(); });
  }
  static PngFile ids(std::vector<uint16_t> values, int bits = 8) {
    return {.width = 3, .height = 1, .bits = bits, .values = std::move(values)};
  }
  static PngFile indices(std::vector<uint16_t> values, const std::string& palette) {
    return {.width = 3, .height = 1, .colour = 3, .values = std::move(values), .palette = palette};
  }

  SourceContext context_;
  std::string folder_;
};

TEST_F(Folders, Folder) {
  picture("images/a.png", 6, 4, 10);
  picture("images/b.png", 6, 4, 20);
  const std::string masks =
      REGOLITH_SOURCE_DIR "/tests/data/masks";  // a: grey, 4-bit; b: palette. 6x4, class = column % 3
  const auto load = [&](int classes, int channels = 1) {
    return load_folder(pair(path("images"), masks), {.classes = classes, .channels = channels});
  };
  const auto refusal = [&](int classes) { return testing::message<DataError>([&] { load(classes); }); };
  const Dataset d = load(3);
  EXPECT_EQ(d.count, 2);
  EXPECT_EQ(d.images[0], 10);
  EXPECT_EQ(d.images[24], 20);
  for (int i = 0; i < 48; ++i) EXPECT_EQ(d.masks[i], i % 6 % 3) << i;
  EXPECT_THAT(d.names, ElementsAre("a.png", "b.png"));
  EXPECT_EQ(d.notes, "2 colour images turned to grey\n");
  EXPECT_EQ(load(3, 3).images.size(), 2u * 24 * 3);
  EXPECT_THAT(refusal(2), HasSubstr("a.png: row 0, column 2: class id 2: expected 0 to 1"));

  picture("images/b.png", 5, 4, 20);
  EXPECT_THAT(refusal(3), HasSubstr("b.png: is 5x4 (width x height); "));
  fs::remove(path("images/b.png"));
  EXPECT_THAT(refusal(3), HasSubstr("b.png: has no image of this name"));
  std::ofstream(path("images/b.bmp")) << "text";
  EXPECT_THAT(refusal(3), AllOf(HasSubstr("b.png: its image is there as "), HasSubstr("b.bmp")));
  picture("images/b.png", 6, 4, 20);
  std::ofstream(path("images/._a.png")) << "text";
  fs::create_directories(path("images/site"));
  ASSERT_EQ(mkfifo(path("images/pipe.png").c_str(), 0600), 0);
  EXPECT_THAT(load(3).notes, HasSubstr("images: left out: 1 .bmp, 1 folder, 1 hidden file, 1 that are no files\n"));
  picture("images/c.png", 6, 4, 20);
  EXPECT_THAT(refusal(3), HasSubstr("c.png: has no mask"));
  fs::rename(path("images/c.png"), path("images/b.png"));
  std::ofstream(path("images/a.png")) << "text";
  EXPECT_THAT(refusal(3), HasSubstr("a.png: expected a PNG or JPEG"));
  EXPECT_THAT(testing::message<DataError>([&] { load_folder(pair(path("nowhere"), masks), {.classes = 3}); }),
              HasSubstr("nowhere: cannot be listed"));
  fs::create_directories(path("empty"));
  EXPECT_THAT(testing::message<DataError>([&] { load_folder(pair(path("empty"), masks), {.classes = 3}); }),
              HasSubstr("empty: has no PNG or JPEG files"));
}

TEST_F(Folders, Jpeg) {
  const std::string photos = REGOLITH_SOURCE_DIR "/tests/data/photos";  // 16x8, grey 100; colour
  EXPECT_NEAR(read_image(photos + "/a.jpg").bytes[5], 100, 2);
  EXPECT_NEAR(read_image(photos + "/b.jpg").bytes[1], 100, 3);
  EXPECT_EQ(read_image(photos + "/b.jpg").channels, 3);
}

TEST_F(Folders, DamagedImagesAreRefused) {
  for (const std::string name : {"photos/a.jpg", "photos/b.jpg", "masks/a.png", "masks/b.png"}) {
    const std::string whole = read_file(REGOLITH_SOURCE_DIR "/tests/data/" + name);
    const std::string file = path(fs::path(name).filename().string());
    ASSERT_GT(whole.size(), 60u);
    for (size_t n = 0; n + 20 < whole.size(); n += 3) {
      std::ofstream(file, std::ios::binary | std::ios::trunc) << whole.substr(0, n);
      EXPECT_THAT(testing::message<DataError>([&] { read_image(file); }), HasSubstr(file)) << "cut at " << n;
    }
  }
}

// Orientation 6: shown turned clockwise.
TEST_F(Folders, PixelsStandAsTheOrientationShowsThem) {
  const std::vector<std::vector<uint16_t>> shown{{1, 2, 3, 4, 5, 6}, {3, 2, 1, 6, 5, 4}, {6, 5, 4, 3, 2, 1},
                                                 {4, 5, 6, 1, 2, 3}, {1, 4, 2, 5, 3, 6}, {4, 1, 5, 2, 6, 3},
                                                 {6, 3, 5, 2, 4, 1}, {3, 6, 2, 5, 1, 4}};
  const std::string jpeg = read_file(REGOLITH_SOURCE_DIR "/tests/data/photos/a.jpg");
  for (int orientation = 1; orientation <= 8; ++orientation) {
    PngFile file{.width = 3, .height = 2, .values = shown[0]};
    file.exif = exif_of(orientation);
    file.exif_last = orientation % 3 == 0;
    file.write(path("images/a.png"));
    const ImageValues image = read_image(path("images/a.png"));
    EXPECT_THAT(image.bytes, ElementsAreArray(shown[orientation - 1])) << orientation;
    EXPECT_EQ(image.width, orientation < 5 ? 3 : 2);
    EXPECT_EQ(read_image_header(path("images/a.png")).width, image.width);
    std::string app1(
        "\xff\xe1\0\x22"
        "Exif\0\0",
        10);
    std::ofstream(path("a.jpg"), std::ios::binary)  // what stands in a second segment does not count
        << jpeg.substr(0, 2) + app1 + exif_of(orientation) + app1 + exif_of(1) + jpeg.substr(2);
    EXPECT_EQ(read_image_header(path("a.jpg")).width, orientation < 5 ? 16 : 8) << orientation;
    EXPECT_EQ(read_image(path("a.jpg")).height, orientation < 5 ? 8 : 16) << orientation;
  }
}

// JPEG's prefix in a PNG, and an orientation of four bytes in big endian.
TEST_F(Folders, OrientationsAsOddWritersLeaveThem) {
  PngFile file{.width = 3, .height = 1, .values = {1, 2, 3}};
  const std::string wide("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x03\0\0\0\0", 26);
  for (const std::string& exif : {std::string("Exif\0\0", 6) + exif_of(3), wide}) {
    file.exif = exif;
    file.write(path("images/a.png"));
    EXPECT_THAT(read_image(path("images/a.png")).bytes, ElementsAre(3, 2, 1));
  }
}

TEST_F(Folders, OrientationsAreToldAndCountInSizes) {
  PngFile image{.width = 1, .height = 3, .values = {30, 20, 10}};
  image.exif = exif_of(6);
  sample("a", ids({0, 1, 2}), image);
  EXPECT_THAT(load().images, ElementsAre(10, 20, 30));
  EXPECT_EQ(load().notes, "turned as their EXIF orientation says: 1 image, 0 masks\n");
  sample("a", {.width = 1, .height = 3, .values = {0, 1, 2}}, image);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("masks/a.png: is 1x3 (width x height); "),
                               HasSubstr("is 3x1 (width x height, turned as its EXIF orientation 6 says)")));
}

TEST_F(Folders, SixteenBits) {
  const PngFile dark{.width = 3, .height = 1, .bits = 16, .values = {0, 200, 255}};
  const PngFile wide{.width = 3, .height = 1, .bits = 16, .values = {0, 2048, 4095}};
  sample("a", ids({0, 1, 2}, 16), dark);
  EXPECT_THAT(load().images, ElementsAre(0, 200, 255));
  EXPECT_THAT(load().masks, ElementsAre(0, 1, 2));
  sample("a", ids({0, 1, 2}), wide);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("a.png: row 0, column 1: image value 2048"), HasSubstr("from 0 to 4095"),
                               HasSubstr("data.normalise: {bits: 12}")));
  context_.normalise.bits = 12;
  EXPECT_THAT(load().images, ElementsAre(0, 128, 255));
  sample("b", ids({0, 1, 2}));
  EXPECT_THAT(refusal(), HasSubstr("b.png: holds 8 bits, but data.normalise.bits is 12"));
  fs::remove(path("images/b.png"));
  fs::remove(path("masks/b.png"));
  sample("a", ids({0, 1, 300}, 16), wide);
  EXPECT_THAT(refusal(), HasSubstr("column 2: class id 300: expected 0 to 2"));
}

TEST_F(Folders, OnlyTheNamedValueIsIgnored) {
  sample("a", ids({0, 255, 2}));
  EXPECT_THAT(refusal(), AllOf(HasSubstr("a.png: row 0, column 1: class id 255"), HasSubstr("loss.ignore")));
  context_.ignore = 255;
  EXPECT_THAT(load().masks, ElementsAre(0, kernels::kAbsentClass, 2));
  sample("a", ids({0, 254, 2}));
  EXPECT_THAT(refusal(), HasSubstr("class id 254"));
  context_.ignore = 0;
  sample("a", ids({0, 1, 2}));
  EXPECT_THAT(load().masks, ElementsAre(kernels::kAbsentClass, 1, 2));
}

TEST_F(Folders, IdsAreMapped) {
  context_.coding.map.ids = {{255, 1}, {1, IdMap::kIgnore}, {700, 2}};
  sample("a", ids({255, 1, 700}, 16));
  EXPECT_THAT(load().masks, ElementsAre(1, kernels::kAbsentClass, 2));
  context_.coding.map.ids = {{1, 3}};
  try {
    load();
    ADD_FAILURE();
  } catch (const OptionError& e) {
    EXPECT_EQ(e.path, "classes.map.1");
    EXPECT_THAT(e.text, HasSubstr("expected a class, 0 to 2, or ignore; found 3"));
  }
}

TEST_F(Folders, GreyPalettesAndGreyColoursAreIds) {
  sample("a", indices({0, 1, 2}, std::string("\2\2\2\0\0\0\1\1\1", 9)));  // as an optimiser leaves it
  sample("b", {.width = 3, .height = 1, .colour = 2, .values = {2, 2, 2, 0, 0, 0, 1, 1, 1}});
  sample("c", {.width = 3, .height = 1, .colour = 6, .values = {2, 2, 2, 9, 0, 0, 0, 0, 1, 1, 1, 255}});
  EXPECT_THAT(load().masks, ElementsAre(2, 0, 1, 2, 0, 1, 2, 0, 1));
  sample("d", indices({0, 1, 2}, std::string("\0\0\0\x7f\x7f\x7f\xff\xff\xff", 9)));
  EXPECT_THAT(refusal(), AllOf(HasSubstr("d.png: its palette has the greys 0, 127, 255"),
                               HasSubstr("data.classes.map: {0: 0, 127: 1, 255: 2}")));
  context_.coding.map.ids = {{127, 1}, {255, 2}};
  EXPECT_EQ(load().masks[11], 2);
}

TEST_F(Folders, ColourPalettesAreOfOneOrder) {
  const std::string one("\0\0\0\x80\0\0\0\x80\0", 9), other("\0\0\0\0\x80\0\x80\0\0", 9);
  sample("a", indices({0, 1, 2}, one));
  sample("b", indices({0, 0, 2}, one + std::string(3, '\7')));  // longer, the same where it is used
  EXPECT_THAT(load().masks, ElementsAre(0, 1, 2, 0, 0, 2));
  sample("b", indices({0, 0, 2}, other));
  EXPECT_THAT(refusal(), AllOf(HasSubstr("b.png: index 2 of its palette is the colour [128, 0, 0], in "),
                               HasSubstr("a.png it is [0, 128, 0]"), HasSubstr("data.classes.from: colours")));
  context_.coding.colours = {{0, 0, 0}, {128, 0, 0}, {0, 128, 0}};
  context_.coding.from = MaskCoding::colours;
  EXPECT_THAT(load().masks, ElementsAre(0, 1, 2, 0, 0, 1));
  fs::remove(path("images/a.png"));
  fs::remove(path("masks/a.png"));
  context_.coding.from = MaskCoding::ids;
  sample("b", indices({0, 1, 2}, std::string("\0\0\0\2\2\2\1\1\1\xff\0\0", 12)));
  EXPECT_THAT(refusal(), HasSubstr("b.png: index 1 of its palette is the grey 2: both may be the class id"));
}

TEST_F(Folders, ColoursAreNotGuessed) {
  const std::vector<uint16_t> colours{0, 0, 0, 200, 0, 0, 0, 200, 0};
  sample("a", {.width = 3, .height = 1, .colour = 2, .values = colours});
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("a.png: row 0, column 1: colour [200, 0, 0]"), HasSubstr("data.classes.from: colours")));
  context_.coding.from = MaskCoding::colours;
  context_.coding.colours = {{0, 0, 0}, {0, 200, 0}, {200, 0, 0}};
  EXPECT_THAT(load().masks, ElementsAre(0, 2, 1));
  context_.coding.colours[1] = {0, 201, 0};
  EXPECT_THAT(refusal(), HasSubstr("row 0, column 2: colour [0, 200, 0] is none of data.classes.colours"));
  context_.coding.colours[1] = context_.coding.colours[0];
  EXPECT_THROW(load(), OptionError);
}

TEST_F(Folders, ASizeIsLookedAtBeforePixels) {
  sample("a", ids({0, 1, 2}));
  sample("b", ids({0, 1, 2}), {.width = 900000, .height = 900000, .values = std::vector<uint16_t>(900000)});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("b.png: is 900000x900000 (width x height); "), HasSubstr("a.png is 3x1")));
  sample("b", ids({0, 1, 2}), {.width = 30000, .height = 30000, .values = std::vector<uint16_t>(30000)});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("b.png: is 30000x30000"), HasSubstr("a.png is 3x1")));
  sample("a", ids({0, 1, 2}), {.width = 900000, .height = 900000, .values = std::vector<uint16_t>(900000)});
  EXPECT_THAT(refusal(), HasSubstr("a.png: is 900000x900000 (width x height); images of up to 32768 pixels"));
}

TEST_F(Folders, NamesInTwoFormsOfUnicode) {
  sample("Gel\u00e4nde", ids({0, 1, 2}));
  fs::rename(path("masks/Gel\u00e4nde.png"), path("masks/Gela\u0308nde.png"));
  EXPECT_THAT(refusal(), HasSubstr("is spelt in another Unicode form"));
  fs::rename(path("masks/Gela\u0308nde.png"), path("masks/Gelonde.png"));
  EXPECT_THAT(refusal(), HasSubstr("has no mask: expected"));
}

TEST_F(Folders, GroupsByName) {
  for (const char* name : {"sol1_a", "sol1_b", "sol2_a"}) sample(name, ids({0, 1, 2}));
  context_.group = "^(sol[0-9]+)_";
  EXPECT_THAT(load().group, ElementsAre(0, 0, 1));
  context_.group = "b";
  EXPECT_THAT(refusal(), HasSubstr("sol1_a.png: data.split.group, 'b', finds nothing"));
  context_.group = "^(sol1_)?";
  EXPECT_THAT(refusal(), HasSubstr("sol2_a.png: data.split.group, '^(sol1_)?', finds nothing"));
}

TEST_F(Folders, JpegThatOthersReadIsRead) {
  const std::string photo = read_file(REGOLITH_SOURCE_DIR "/tests/data/photos/a.jpg");
  const std::vector<uint8_t> bytes_of_it = read_image(REGOLITH_SOURCE_DIR "/tests/data/photos/a.jpg").bytes;
  std::string revision = photo;
  revision[11] = 2;
  const std::string body = photo.substr(0, photo.size() - 2);
  for (const std::string& bytes : {body + std::string("\0\0\0\0\0\0\0\0\xff\xd9", 10), body, revision}) {
    std::ofstream(path("a.jpg"), std::ios::binary | std::ios::trunc) << bytes;
    const ImageValues image = read_image(path("a.jpg"));
    EXPECT_EQ(image.bytes, bytes_of_it);
    EXPECT_NE(image.warning, "") << bytes.size() - photo.size();
  }
}

TEST_F(Folders, CmykBecomesColour) {
  const ImageValues image = read_image(REGOLITH_SOURCE_DIR "/tests/data/photos/cmyk.jpg");  // 200, 100, 50
  ASSERT_EQ(image.channels, 3);
  EXPECT_NEAR(image.bytes[0], 200, 3);
  EXPECT_NEAR(image.bytes[1], 100, 3);
  EXPECT_NEAR(image.bytes[2], 50, 3);
}

}  // namespace
}  // namespace regolith
