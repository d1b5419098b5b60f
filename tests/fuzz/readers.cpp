#include "tests/fuzz/readers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "data/sources.h"
#include "engine/base/error.h"
#include "engine/config/yaml.h"
#include "engine/io/image.h"
#include "engine/io/npy.h"
#include "engine/io/safetensors.h"
#include "places.h"

namespace regolith::testing {
namespace {

namespace fs = std::filesystem;

// Files of the repository that serve as seeds.
void copy_files(const std::string& from, const std::string& extension, const fs::path& folder) {
  for (const fs::directory_entry& e : fs::recursive_directory_iterator(fs::path(REGOLITH_SOURCE_DIR) / from))
    if (e.path().extension() == extension)
      fs::copy_file(e.path(), folder / e.path().filename(), fs::copy_options::overwrite_existing);
}

template <class T>
std::vector<T> counted(size_t n) {
  std::vector<T> values(n);
  std::iota(values.begin(), values.end(), T{});
  return values;
}

void write_npz_seeds(const fs::path& folder) {
  const std::vector<uint8_t> bytes = counted<uint8_t>(2 * 2 * 2 * 3);
  const std::vector<double> doubles(2 * 2 * 3, 0.5);
  const std::vector<uint8_t> masks(2 * 2 * 3, 1);
  const std::array study{npz_entry("training_set", {2, 2, 2, 3}, bytes.data())};
  const std::array plain{npz_entry("image", {2, 2, 3}, doubles.data()), npz_entry("mask", {2, 2, 3}, masks.data())};
  write_npz((folder / "study.npz").string(), study);
  write_npz((folder / "plain.npz").string(), plain);
  copy_files("tests/data", ".npz", folder);
}

template <class T>
void write_npy(const fs::path& file, const std::string& type) {
  const std::vector<T> values = counted<T>(2 * 2 * 3);
  std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (2, 2, 3), }";
  header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
  header += '\n';
  std::string text("\x93NUMPY\x01\x00", 8);
  text += {static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
  text += header;
  text.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  std::FILE* out = std::fopen(file.c_str(), "wb");
  if (out == nullptr || std::fwrite(text.data(), 1, text.size(), out) != text.size() || std::fclose(out) != 0)
    throw IoError(file.string() + ": cannot be written");
}
void write_npy_seeds(const fs::path& folder) {
  write_npy<uint8_t>(folder / "bytes.npy", "|u1");
  write_npy<int64_t>(folder / "integers.npy", "<i8");
  write_npy<int32_t>(folder / "big_endian.npy", ">i4");
  write_npy<float>(folder / "floats.npy", "<f4");
}

void write_png_seeds(const fs::path& folder) {
  copy_files("tests/data", ".png", folder);
  Picture colour(3, 2, {10, 20, 30});
  colour.at(1, 1) = {200, 100, 0};
  write_png((folder / "colour.png").string(), colour);
}

void write_safetensors_seeds(const fs::path& folder) {
  Checkpoint checkpoint;
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const std::vector<int64_t> steps{7};
  checkpoint.set<float>("conv.weight", {1, 2, 3}, values);
  checkpoint.set<int64_t>("step", {}, steps);
  checkpoint.metadata["run"] = "{\"epoch\": 3}";
  save_checkpoint((folder / "weights.safetensors").string(), checkpoint);
}

void read_npz(const std::string& path) {
  const NpzReader npz(path);
  for (const std::string& name : npz.names()) npz.read(name).as_f64();
  load_npz(path, {.classes = 5});
}

const std::array<Reader, 6> kReaders{{
    {"npz", read_npz, write_npz_seeds},
    {"npy", [](const std::string& path) { read_npy(path).as_f32(); }, write_npy_seeds},
    {"png",
     [](const std::string& path) {
       read_image(path);
       read_image(path, true);
     },
     write_png_seeds},
    {"jpeg", [](const std::string& path) { read_image(path); },
     [](const fs::path& folder) { copy_files("tests/data", ".jpg", folder); }},
    {"safetensors",
     [](const std::string& path) {
       load_checkpoint(path);
       for (const auto& [name, tensor] : load_checkpoint(path, Loading::when_used).tensors)
         if (tensor.source) tensor.source();
     },
     write_safetensors_seeds},
    {"yaml", [](const std::string& path) { Yaml::load(path); },
     [](const fs::path& folder) { copy_files("configs", ".yaml", folder); }},
}};

}  // namespace

std::span<const Reader> readers() { return kReaders; }

bool try_reader(const Reader& reader, std::span<const uint8_t> bytes) {
  const int file = memfd_create("input", MFD_CLOEXEC);
  if (file < 0 || write(file, bytes.data(), bytes.size()) != std::ssize(bytes)) throw IoError("no memory for a file");
  bool sound = true;
  try {
    reader.read("/proc/self/fd/" + std::to_string(file));
  } catch (const Error&) {
    sound = false;
  }
  close(file);
  return sound;
}

}  // namespace regolith::testing
