// Every reader on sound files, and on the same files damaged: each is read, or refused with one of our errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "engine/base/error.h"
#include "engine/io/image.h"
#include "places.h"
#include "tests/fuzz/readers.h"
#include "tests/support/fixture.h"

namespace regolith::testing {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;

class Readers : public ::testing::TestWithParam<Reader> {
 protected:
  // Seeds, and files on which a reader once failed. tests/fuzz/run.sh starts from the same folder.
  std::vector<Bytes> corpus() {
    const fs::path folder = fs::path(REGOLITH_BINARY_DIR) / "corpus" / GetParam().name;
    fs::create_directories(folder);
    GetParam().write_seeds(folder);
    std::vector<Bytes> files;
    for (const fs::path& from : {folder, fs::path(REGOLITH_SOURCE_DIR) / "tests/fuzz/found" / GetParam().name}) {
      if (!fs::exists(from)) continue;
      for (const fs::directory_entry& e : fs::directory_iterator(from)) {
        std::ifstream in(e.path(), std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
      }
    }
    return files;
  }
};

TEST_P(Readers, TakeSoundFiles) {
  int sound = 0;
  for (const Bytes& file : corpus()) sound += try_reader(GetParam(), file);
  EXPECT_GT(sound, 0);
}

TEST_P(Readers, RefuseDamagedFilesWithAnErrorOfOurs) {
  Random random(1);
  int refused = 0;
  for (const Bytes& file : corpus()) {
    const int size = static_cast<int>(file.size());
    for (int i = 0; i < 40; ++i) {
      const Bytes cut(file.begin(), file.begin() + random.integer(0, size - 1));
      refused += !try_reader(GetParam(), cut);
      Bytes changed = file;
      for (int n = random.integer(1, 4); n > 0; --n)
        changed[random.integer(0, std::min(size, 2048) - 1)] = static_cast<uint8_t>(random.integer(0, 255));
      refused += !try_reader(GetParam(), changed);
    }
  }
  EXPECT_GT(refused, 0);
}

TEST(JpegReader, RefusesMorePixelsThanTheFileCanHold) {
  const fs::path file = fs::path(REGOLITH_SOURCE_DIR) / "tests/fuzz/found/jpeg/more_pixels_than_bytes.jpg";
  EXPECT_THAT([&] { read_image(file.string()); },
              ::testing::ThrowsMessage<DataError>(::testing::HasSubstr("more pixels than its 205 bytes can hold")));
}

INSTANTIATE_TEST_SUITE_P(All, Readers, ::testing::ValuesIn(readers().begin(), readers().end()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace regolith::testing
