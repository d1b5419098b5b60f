#include "engine/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "engine/base/text.h"
#include "engine/io/atomic_file.h"

namespace regolith {
namespace {
using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the format's own reader
constexpr const char* kMetadata = "__metadata__";
constexpr const char* kNames[] = {"F32", "BF16", "F16", "U8", "I32", "I64", "F64"};  // in the order of DType

// A tensor as the header describes it.
struct Entry {
  std::string name;
  DType type;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

Entry read_entry(const std::string& path, const std::string& name, const Json& json, uint64_t data_bytes) {
  const auto fail = [&](const std::string& message) {
    throw CheckpointError(path + ": tensor '" + name + "': " + message);
  };
  const auto is_size = [](const Json& value) { return value.is_number_unsigned(); };
  if (!json.is_object() || !json.contains("dtype") || !json.contains("shape") || !json.contains("data_offsets"))
    fail("expected an entry with dtype, shape and data_offsets");
  const Json &dtype = json["dtype"], &shape = json["shape"], &offsets = json["data_offsets"];
  const auto type = std::ranges::find_if(kNames, [&](const char* name) { return dtype == name; });
  if (type == std::end(kNames)) fail("element type " + dtype.dump() + " is not known here");
  if (!shape.is_array() || !std::ranges::all_of(shape, is_size)) fail("bad shape " + shape.dump());
  if (!offsets.is_array() || offsets.size() != 2 || !is_size(offsets[0]) || !is_size(offsets[1]))
    fail("bad data_offsets " + offsets.dump());
  Entry entry{name, static_cast<DType>(type - kNames), {}, offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>()};
  if (entry.begin > entry.end || entry.end > data_bytes)
    fail("its data (" + std::to_string(entry.begin) + " to " + std::to_string(entry.end) + ") lies outside of the " +
         std::to_string(data_bytes) + " bytes of the file; the file is truncated or damaged");
  uint64_t bytes = size_of(entry.type);
  for (const Json& extent : shape) {
    const uint64_t n = extent.get<uint64_t>();
    if (n > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) || __builtin_mul_overflow(bytes, n, &bytes))
      fail("the size of shape " + shape.dump() + " overflows");
    entry.shape.push_back(static_cast<int64_t>(n));
  }
  if (bytes != entry.end - entry.begin)
    fail("shape " + shape_text(entry.shape) + " of " + *type + " needs " + std::to_string(bytes) +
         " bytes, data_offsets hold " + std::to_string(entry.end - entry.begin));
  return entry;
}

Json parse_header(const std::string& path, const std::string& text) {
  std::set<std::string> names;
  const auto unique = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth == 1 && event == Json::parse_event_t::key && !names.insert(value.get<std::string>()).second)
      throw CheckpointError(path + ": tensor '" + value.get<std::string>() + "' is there twice");
    return true;
  };
  try {
    Json header = Json::parse(text, unique);
    if (header.is_object()) return header;
  } catch (const Json::exception&) {
  }
  throw CheckpointError(path + ": the header is not a JSON object; this is not a safetensors file, or a damaged one");
}

}  // namespace

void Checkpoint::set(const std::string& name, DType type, std::vector<int64_t> shape, const void* data) {
  size_t bytes = size_of(type);
  for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  const uint8_t* first = static_cast<const uint8_t*>(data);
  tensors[name] = {type, std::move(shape), std::vector<uint8_t>(first, first + bytes)};
}

const CheckpointTensor& Checkpoint::tensor(const std::string& name) const {
  const auto found = tensors.find(name);
  if (found == tensors.end())
    throw CheckpointError(origin + ": there is no tensor '" + name + "'; it was written for another network");
  return found->second;
}

const CheckpointTensor& Checkpoint::tensor(const std::string& name, DType type, std::span<const int64_t> shape) const {
  const CheckpointTensor& found = tensor(name);
  if (found.type != type) wrong_type(name, found.type, type);
  if (!std::equal(shape.begin(), shape.end(), found.shape.begin(), found.shape.end()))
    throw CheckpointError(origin + ": tensor '" + name + "' has the shape " + shape_text(found.shape) + ", expected " +
                          shape_text(shape) + "; it was written for another network");
  return found;
}

std::vector<float> CheckpointTensor::floats() const {
  if (source) return source();
  std::vector<float> values(static_cast<size_t>(count()));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<float> Checkpoint::floats(const std::string& name) const {
  const CheckpointTensor& found = tensor(name);
  if (found.type != DType::f32) wrong_type(name, found.type, DType::f32);
  return found.floats();
}

void Checkpoint::wrong_type(const std::string& name, DType found, DType expected) const {
  throw CheckpointError(origin + ": tensor '" + name + "' is " + std::string(name_of(found)) + ", expected " +
                        std::string(name_of(expected)));
}

const std::string& Checkpoint::meta(const std::string& key) const {
  const auto found = metadata.find(key);
  if (found == metadata.end())
    throw CheckpointError(origin + ": there is no '" + key +
                          "' in its metadata; it holds weights, not a training state");
  return found->second;
}

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) {
  // Larger elements first, then by name: every tensor then starts on a multiple of its element's size.
  std::vector<const std::pair<const std::string, CheckpointTensor>*> order;
  for (const auto& entry : checkpoint.tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return size_of(a->second.type) > size_of(b->second.type); });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!checkpoint.metadata.empty()) header[kMetadata] = checkpoint.metadata;
  uint64_t offset = 0;
  for (const auto* entry : order) {
    const CheckpointTensor& tensor = entry->second;
    uint64_t end = offset + size_of(tensor.type);
    for (const int64_t extent : tensor.shape) end = offset + (end - offset) * static_cast<uint64_t>(extent);
    header[entry->first] = {
        {"dtype", kNames[static_cast<int>(tensor.type)]}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception& error) {
    throw CheckpointError(path + ": a name or a text is not UTF-8: " + error.what());
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  if (length > kMaxHeader) throw CheckpointError(path + ": the header has more than 100 MB; store less text in it");
  AtomicFile file(path);
  file.write(&length, sizeof length);
  file.write(text);
  for (const auto* entry : order) {
    const CheckpointTensor& tensor = entry->second;
    const std::vector<float> values = tensor.source ? tensor.source() : std::vector<float>{};
    file.write(values.data(), values.size() * sizeof(float));
    file.write(tensor.bytes.data(), tensor.bytes.size());
  }
  file.commit();
}

Checkpoint load_checkpoint(const std::string& path, Loading loading) {
  const auto file = std::make_shared<std::ifstream>(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = *file ? static_cast<std::streamoff>(file->tellg()) : -1;
  std::error_code error;
  if (size < 0 || std::filesystem::is_directory(path, error))
    throw IoError(path + ": cannot read this file; expected weights in the safetensors format");
  const auto truncated = [&](const char* what) {
    throw CheckpointError(path + ": the file ends inside of its " + what +
                          "; it is truncated, or not a safetensors file");
  };
  const auto read = [path, file](void* to, uint64_t at, uint64_t bytes) {
    if (!file->seekg(static_cast<std::streamoff>(at)) ||
        !file->read(static_cast<char*>(to), static_cast<std::streamsize>(bytes)))
      throw IoError(path + ": reading failed before the end of the file");
  };
  uint64_t length = 0;
  const uint64_t total = static_cast<uint64_t>(size);
  if (total < sizeof length) truncated("header");
  read(&length, 0, sizeof length);
  if (length > kMaxHeader || length > total - sizeof length) truncated("header");
  std::string text(length, ' ');
  read(text.data(), sizeof length, length);
  const Json header = parse_header(path, text);

  Checkpoint checkpoint;
  checkpoint.origin = path;
  std::vector<Entry> entries;
  const uint64_t data_bytes = total - sizeof length - length;
  for (const auto& [name, json] : header.items()) {
    if (name != kMetadata) {
      entries.push_back(read_entry(path, name, json, data_bytes));
      continue;
    }
    if (!json.is_object()) throw CheckpointError(path + ": __metadata__ is not a map of texts");
    for (const auto& [key, value] : json.items()) {
      if (!value.is_string()) throw CheckpointError(path + ": __metadata__ '" + key + "' is not a text");
      checkpoint.metadata[key] = value.get<std::string>();
    }
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t offset = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != offset)
      throw CheckpointError(path + ": tensor '" + entry.name + "' starts at " + std::to_string(entry.begin) +
                            ", expected " + std::to_string(offset) + "; tensors overlap or leave a gap");
    offset = entry.end;
    CheckpointTensor& tensor = checkpoint.tensors[entry.name];
    const uint64_t at = total - data_bytes + entry.begin, bytes = entry.end - entry.begin;
    tensor = {entry.type, entry.shape, {}};
    if (loading == Loading::when_used && entry.type == DType::f32) {
      tensor.source = [read, at, bytes] {
        std::vector<float> values(bytes / sizeof(float));
        read(values.data(), at, bytes);
        return values;
      };
    } else {
      tensor.bytes.resize(bytes);
      read(tensor.bytes.data(), at, bytes);
    }
  }
  if (offset != data_bytes)
    throw CheckpointError(path + ": " + std::to_string(data_bytes - offset) +
                          " bytes after the last tensor belong to none");
  return checkpoint;
}

}  // namespace regolith
