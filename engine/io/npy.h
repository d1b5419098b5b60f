// NumPy's array files: .npy (formats 1 to 3) and .npz, a zip archive of them (stored or deflated). The format is that
// of numpy.lib.format; the container is read and written by libzip.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace regolith {

// An array in the element type of its file. The bytes are in this machine's order, the elements in C order.
struct NpyArray {
  std::vector<int64_t> shape;
  char kind = 'u';    // 'b' bool, 'u' unsigned, 'i' signed, 'f' float
  int item = 1;       // bytes of an element: 1, 2, 4, 8 (floats from 2)
  std::string where;  // "mars.npz: array 'training_set'", for messages
  std::vector<uint8_t> bytes;

  int64_t count() const;
  std::string type_name() const;  // "uint8", "float64"
  double at(int64_t i) const;     // element i in C order; 64-bit integers beyond 2^53 are rounded
  std::vector<double> as_f64() const;
  std::vector<float> as_f32() const;
  // Elements as bytes. Throws DataError naming the first element that is no whole number of 0..255.
  std::vector<uint8_t> as_u8() const;
};

// Throws DataError for what is no .npy, is truncated, has an element type that is not numeric (complex, text, objects).
NpyArray parse_npy(std::span<const uint8_t> file, const std::string& where);
NpyArray read_npy(const std::string& path);

class NpzReader {
 public:
  // Throws DataError for a missing file and for one that is no zip archive, or is a truncated one.
  explicit NpzReader(const std::string& path);
  ~NpzReader();
  const std::vector<std::string>& names() const { return names_; }  // without ".npy"
  bool has(const std::string& name) const;
  // Throws DataError listing the arrays found where `name` is not among them, and for damaged contents.
  NpyArray read(const std::string& name) const;

 private:
  struct Archive;
  std::string path_;
  std::vector<std::string> names_;
  std::unique_ptr<Archive> archive_;
};

// One array to write. `data` must outlive write_npz.
struct NpzEntry {
  std::string name;
  std::vector<int64_t> shape;
  const void* data;
  std::string descr;  // NumPy's: "<f4", "<f8", "|u1", "<i8"
};
template <class T>
NpzEntry npz_entry(std::string name, std::vector<int64_t> shape, const T* data) {
  const char* kind = std::is_floating_point_v<T> ? "<f" : std::is_signed_v<T> ? "<i" : sizeof(T) > 1 ? "<u" : "|u";
  return {std::move(name), std::move(shape), data, kind + std::to_string(sizeof(T))};
}

// Writes stored arrays to a temporary file and renames it. Throws IoError; an earlier file then stays as it was.
void write_npz(const std::string& path, std::span<const NpzEntry> entries);

}  // namespace regolith
