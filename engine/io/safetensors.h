// Named tensors and text on disk, in the safetensors format: 8 bytes of header length (little-endian), a JSON header
// {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {"key": "value"}}, then the data without
// gaps. Any safetensors reader opens what is written here, and the other way round.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"
#include "kernels/core/dtype.h"

namespace regolith {

struct CheckpointTensor {
  DType type = DType::f32;
  std::vector<int64_t> shape;  // {} is a scalar
  std::vector<uint8_t> bytes;  // in C order
  // In place of bytes, of fp32: gives the values when they are written to a file, or read from one, so that no more
  // than one tensor is in memory at a time.
  std::function<std::vector<float>()> source = {};

  std::vector<float> floats() const;  // of an fp32 tensor, wherever its values are
  int64_t count() const { return static_cast<int64_t>(bytes.size() / size_of(type)); }
};

struct Checkpoint {
  std::map<std::string, CheckpointTensor> tensors;
  std::map<std::string, std::string> metadata;
  std::string origin = "this checkpoint";  // the file it was read from, for messages

  // Adds or replaces a tensor of count(shape) elements.
  void set(const std::string& name, DType type, std::vector<int64_t> shape, const void* data);
  template <class T>
  void set(const std::string& name, std::vector<int64_t> shape, std::span<const T> values) {
    set(name, dtype_of<T>(), std::move(shape), values.data());
  }
  void set(const std::string& name, std::vector<int64_t> shape, std::function<std::vector<float>()> source) {
    tensors[name] = {DType::f32, std::move(shape), {}, std::move(source)};
  }
  // Each throws CheckpointError that names the file and what is missing, or has another type or shape.
  const CheckpointTensor& tensor(const std::string& name) const;
  const CheckpointTensor& tensor(const std::string& name, DType type, std::span<const int64_t> shape) const;
  std::vector<float> floats(const std::string& name) const;  // as CheckpointTensor::floats()
  const std::string& meta(const std::string& key) const;
  template <class T>
  std::span<const T> values(const std::string& name) const {
    const CheckpointTensor& found = tensor(name);
    if (found.type != dtype_of<T>()) wrong_type(name, found.type, dtype_of<T>());
    return {reinterpret_cast<const T*>(found.bytes.data()), static_cast<size_t>(found.count())};
  }

 private:
  [[noreturn]] void wrong_type(const std::string& name, DType found, DType expected) const;
};

// Whole or not at all (AtomicFile). The same checkpoint gives the same bytes. Throws IoError where the disk refuses.
void save_checkpoint(const std::string& path, const Checkpoint& checkpoint);
// Throws IoError where the file cannot be read, CheckpointError where it is not a whole safetensors file.
// when_used: fp32 tensors are left in the file, which stays open, for their `source` to read.
enum class Loading { whole, when_used };
Checkpoint load_checkpoint(const std::string& path, Loading loading = Loading::whole);

}  // namespace regolith
