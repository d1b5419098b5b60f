// Checkpoints: what is written comes back, bit for bit; every kind of damage is told, never followed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "engine/io/atomic_file.h"
#include "engine/io/safetensors.h"

namespace regolith {
namespace {
namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    folder_ = fs::temp_directory_path() / ("regolith_checkpoint_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    path_ = (folder_ / "w.safetensors").string();
  }
  ~CheckpointTest() override { fs::remove_all(folder_); }

  void write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }
  std::string bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write_header(const std::string& json, size_t data) const {
    const uint64_t length = json.size();
    std::string text(sizeof length, '\0');
    std::memcpy(text.data(), &length, sizeof length);
    write(text + json + std::string(data, 'x'));
  }
  std::string load_error() const {
    try {
      load_checkpoint(path_);
    } catch (const CheckpointError& error) {
      EXPECT_THAT(error.what(), testing::StartsWith(path_ + ": "));
      return error.what();
    }
    return "no error";
  }
  std::string header_error(const std::string& json, size_t data) const {
    write_header(json, data);
    return load_error();
  }

  fs::path folder_;
  std::string path_;
};

Checkpoint example() {
  Checkpoint c;
  const std::vector<float> f{1.5f, -0.0f, 3e38f, std::nanf(""), 5, 6};
  const std::vector<bf16> b{bf16(1.0f), bf16(-2.0f), bf16(0.5f)};
  const std::vector<int64_t> i{-1, 1LL << 60};
  const std::vector<uint8_t> u{0, 255, 7};
  c.set<float>("net/e1/kernel", {2, 3}, f);
  c.set<bf16>("low", {3}, b);
  c.set<int64_t>("step", {2}, i);
  c.set<uint8_t>("mask", {3, 1}, u);
  c.set<float>("scalar", {}, std::span(f).first(1));
  c.set<float>("empty", {0, 4}, {});
  c.metadata = {{"epoch", "3"}, {"text", "a \"quote\"\nand ümlaut"}};
  return c;
}

TEST_F(CheckpointTest, SavesWhatASourceGivesAsItGivesValues) {
  Checkpoint values = example(), sources = example();
  const std::vector<float> f{1, 2, 3, 4, 5, 6};
  values.set<float>("weights", {3, 2}, f);
  sources.set("weights", {3, 2}, [&] { return f; });
  save_checkpoint(path_, values);
  const std::string expected = bytes();
  save_checkpoint(path_, sources);
  EXPECT_EQ(bytes(), expected);
}

TEST_F(CheckpointTest, LeavesWeightsInTheFileUntilTheyAreUsed) {
  save_checkpoint(path_, example());
  const Checkpoint back = load_checkpoint(path_, Loading::when_used);
  save_checkpoint(path_, Checkpoint{});  // the file that was opened is still there
  EXPECT_TRUE(back.tensor("net/e1/kernel").bytes.empty());
  EXPECT_EQ(back.tensor("net/e1/kernel").source()[5], 6);
  EXPECT_EQ(back.tensor("scalar").source(), (std::vector<float>{1.5f}));
  EXPECT_THAT(back.values<int64_t>("step"), ElementsAre(-1, 1LL << 60));
}

TEST_F(CheckpointTest, ComesBackAsItWas) {
  const Checkpoint c = example();
  save_checkpoint(path_, c);
  const Checkpoint back = load_checkpoint(path_);
  EXPECT_EQ(back.metadata, c.metadata);
  ASSERT_EQ(back.tensors.size(), c.tensors.size());
  for (const auto& [name, tensor] : c.tensors) {
    EXPECT_EQ(back.tensor(name).type, tensor.type) << name;
    EXPECT_EQ(back.tensor(name).shape, tensor.shape) << name;
    EXPECT_EQ(back.tensor(name).bytes, tensor.bytes) << name;
  }
  EXPECT_THAT(back.values<int64_t>("step"), ElementsAre(-1, 1LL << 60));
  EXPECT_EQ(back.values<bf16>("low")[1].bits, bf16(-2.0f).bits);
  const std::string first = bytes();
  save_checkpoint(path_, back);
  EXPECT_EQ(bytes(), first);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);  // no temporary file
}

TEST_F(CheckpointTest, LaysOutTheFileAsTheFormatSays) {
  Checkpoint c;
  const std::vector<float> f{1, 2};
  const std::vector<uint8_t> u{9};
  c.set<uint8_t>("a", {1}, u);
  c.set<float>("b", {2}, f);
  save_checkpoint(path_, c);
  const std::string text = bytes();
  uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof length);
  EXPECT_EQ(length % 8, 0u);
  const std::string header =
      R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})";
  EXPECT_EQ(text.substr(8, header.size()), header);
  ASSERT_EQ(text.size(), 8 + length + 9);
  EXPECT_EQ(std::memcmp(text.data() + 8 + length, f.data(), 8), 0);
  EXPECT_EQ(text.back(), '\x09');
}

TEST_F(CheckpointTest, AnotherNetworkIsTold) {
  save_checkpoint(path_, example());
  const Checkpoint c = load_checkpoint(path_);
  const auto error = [&](auto action) -> std::string {
    try {
      action();
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error([&] { c.tensor("net/e2/kernel"); }),
            path_ + ": there is no tensor 'net/e2/kernel'; it was written for another network");
  EXPECT_THAT(error([&] {
                c.tensor("net/e1/kernel", DType::f32, std::array<int64_t, 2>{3, 2});
              }),
              HasSubstr("tensor 'net/e1/kernel' has the shape (2, 3), expected (3, 2)"));
  EXPECT_EQ(error([&] { c.tensor("net/e1/kernel", DType::f32, std::array<int64_t, 2>{2, 3}); }), "no error");
  EXPECT_THAT(error([&] { c.values<float>("low"); }), HasSubstr("tensor 'low' is bf16, expected fp32"));
  EXPECT_THAT(error([&] { c.meta("optimizer"); }), HasSubstr("it holds weights, not a training state"));
}

TEST_F(CheckpointTest, TruncationAtAnyByteIsTold) {
  save_checkpoint(path_, example());
  const std::string whole = bytes();
  for (size_t size = 0; size < whole.size(); ++size) {
    write(whole.substr(0, size));
    EXPECT_NE(load_error(), "no error") << size << " of " << whole.size() << " bytes";
  }
  write(whole + "x");
  EXPECT_THAT(load_error(), HasSubstr("1 bytes after the last tensor"));
}

TEST_F(CheckpointTest, BadHeadersAreTold) {
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  EXPECT_EQ(header_error(entry("F32", "[2]", "[0,8]"), 8), "no error");
  write("not a checkpoint at all, just some text");
  EXPECT_THAT(load_error(), HasSubstr("not a safetensors file"));
  EXPECT_THAT(header_error("{\"t\": ", 0), HasSubstr("the header is not a JSON object"));
  EXPECT_THAT(header_error("[1, 2]", 0), HasSubstr("the header is not a JSON object"));
  EXPECT_THAT(header_error(R"({"t": 3})", 0), HasSubstr("expected an entry with dtype"));
  EXPECT_THAT(header_error(entry("F8", "[2]", "[0,2]"), 2), HasSubstr("element type \"F8\" is not known"));
  EXPECT_THAT(header_error(entry("F32", "[-2]", "[0,8]"), 8), HasSubstr("bad shape [-2]"));
  EXPECT_THAT(header_error(entry("F32", "[2.0]", "[0,8]"), 8), HasSubstr("bad shape"));
  EXPECT_THAT(header_error(entry("F32", "2", "[0,8]"), 8), HasSubstr("bad shape"));
  EXPECT_THAT(header_error(entry("F32", "[2]", "[0]"), 8), HasSubstr("bad data_offsets"));
  EXPECT_THAT(header_error(entry("F32", "[2]", "[8,0]"), 8), HasSubstr("lies outside"));
  EXPECT_THAT(header_error(entry("F32", "[2]", "[0,8]"), 4), HasSubstr("lies outside"));
  EXPECT_THAT(header_error(entry("F32", "[2]", "[0,18446744073709551615]"), 8), HasSubstr("lies outside"));
  EXPECT_THAT(header_error(entry("F32", "[3]", "[0,8]"), 8), HasSubstr("needs 12 bytes, data_offsets hold 8"));
  EXPECT_THAT(header_error(entry("F32", "[4611686018427387904,4]", "[0,0]"), 0), HasSubstr("overflows"));
  EXPECT_THAT(header_error(entry("U8", "[18446744073709551615]", "[0,8]"), 8), HasSubstr("overflows"));
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
  EXPECT_THAT(header_error("{" + a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6),
              HasSubstr("overlap"));
  EXPECT_THAT(header_error("{" + a + R"("b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}})", 6), HasSubstr("a gap"));
  EXPECT_THAT(header_error("{" + a + a.substr(0, a.size() - 1) + "}", 4), HasSubstr("'a' is there twice"));
  EXPECT_THAT(header_error(R"({"__metadata__":{"k":1}})", 0), HasSubstr("'k' is not a text"));
  EXPECT_THAT(header_error(R"({"__metadata__":"k"})", 0), HasSubstr("not a map of texts"));
  EXPECT_THAT(header_error(std::string(100000, '['), 0), HasSubstr("not a JSON object"));
  EXPECT_EQ(header_error("{}", 0), "no error");
}

TEST_F(CheckpointTest, RandomDamageNeverEscapes) {
  save_checkpoint(path_, example());
  const std::string whole = bytes();
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 500; ++round) {
    std::string damaged = whole;
    for (uint32_t n = 1 + random() % 3; n > 0; --n)
      damaged[random() % (whole.size() - 60)] = static_cast<char>(random());
    write(damaged);
    refused += load_error() != "no error";
  }
  EXPECT_GT(refused, 250);
}

TEST_F(CheckpointTest, AFullDiskLeavesTheOldFile) {
  save_checkpoint(path_, example());
  const std::string before = bytes();
  Checkpoint large = example();
  large.set<uint8_t>("large", {1 << 20}, std::vector<uint8_t>(1 << 20));
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1 << 16, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message = "no error";
  try {
    save_checkpoint(path_, large);
  } catch (const IoError& error) {
    message = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(message, HasSubstr("cannot write " + path_));
  EXPECT_THAT(message, HasSubstr("free some space"));
  EXPECT_EQ(bytes(), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(CheckpointTest, NoFileAndNoFolderAreIoErrors) {
  EXPECT_THROW(load_checkpoint(path_), IoError);
  EXPECT_THROW(load_checkpoint(folder_.string()), IoError);
  EXPECT_THROW(save_checkpoint((folder_ / "none" / "w").string(), example()), IoError);
  fs::create_directory(path_);
  EXPECT_THROW(save_checkpoint(path_, example()), IoError);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace regolith
