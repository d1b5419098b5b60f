// NumPy's array files: .npy (formats 1 to 3) and .npz, a zip archive of them (stored or deflated). The format is that
// of numpy.lib.format; the container is read and written by libzip.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace regolith {

// What stands before the elements.
struct NpyHeader {
  std::vector<int64_t> shape;
  char kind = 'u';    // 'b' bool, 'u' unsigned, 'i' signed, 'f' float
  int item = 1;       // bytes of an element: 1, 2, 4, 8 (floats from 2)
  std::string where;  // "mars.npz: array 'training_set'", for messages

  int64_t count() const;
  std::string type_name() const;  // "uint8", "float64"
};

// A whole array: its element type is kept, the bytes are in this machine's order and in C order.
struct NpyArray : NpyHeader {
  std::vector<uint8_t> bytes;

  std::vector<double> as_f64() const;  // 64-bit integers beyond 2^53 are rounded
  std::vector<float> as_f32() const;
};

// An array read a part at a time, from its first element in C order to its last, so that it need not be in memory as it
// is in the file. One in Fortran order is read whole.
class NpyStream {
 public:
  // Gives the next bytes of the file, fewer than asked for only at its end. May throw DataError.
  using Source = std::function<size_t(void* to, size_t bytes)>;
  NpyStream(const std::string& where, uint64_t size, Source source);  // size: of the file

  const NpyHeader& header() const { return header_; }
  // The next `elements`: as stored, in this machine's byte order; or as numbers. Throw DataError for damaged contents.
  void read(uint8_t* to, int64_t elements);
  void read(double* to, int64_t elements);

 private:
  void read_source(void* to, size_t bytes);

  Source source_;
  NpyHeader header_;
  bool big_endian_ = false, fortran_ = false;
  int64_t position_ = 0;        // elements read
  std::vector<uint8_t> whole_;  // of an array in Fortran order: its elements in C order
};

// Throw DataError for what is no .npy, is truncated, has an element type that is not numeric (complex, text, objects).
NpyStream open_npy(const std::string& path);
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
  NpyStream open(const std::string& name) const;  // the same in parts, as long as this reader lives

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
  const char* type = std::is_floating_point_v<T> ? "f" : std::is_signed_v<T> ? "i" : "u";
  return {std::move(name), std::move(shape), data, (sizeof(T) == 1 ? "|" : "<") + (type + std::to_string(sizeof(T)))};
}

// Writes stored arrays to a temporary file and renames it. Throws IoError; an earlier file then stays as it was.
void write_npz(const std::string& path, std::span<const NpzEntry> entries);

}  // namespace regolith
