#include "engine/io/npy.h"

#include <zip.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "kernels/core/dtype.h"

namespace regolith {
namespace {

static_assert(std::endian::native == std::endian::little, "the readers and writers of arrays assume little endian");

// Reads the Python dictionary of a header: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class Header {
 public:
  Header(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  std::string_view quoted(const char* key) {
    const std::string_view v = value(key);
    const size_t end = v.size() > 1 ? v.find(v[0], 1) : v.npos;
    if (end == v.npos || (v[0] != '\'' && v[0] != '"')) bad(key, "a quoted element type");
    return v.substr(1, end - 1);
  }
  bool boolean(const char* key) {
    const std::string_view v = value(key);
    if (!v.starts_with("True") && !v.starts_with("False")) bad(key, "True or False");
    return v[0] == 'T';
  }
  std::vector<int64_t> tuple(const char* key) {
    const std::string_view v = value(key);
    if (!v.starts_with("(") || v.find(')') == v.npos) bad(key, "a tuple");
    std::vector<int64_t> numbers;
    for (const char *at = v.data() + 1, *end = v.data() + v.find(')'); at < end;) {
      if (*at == ',' || *at == ' ' || *at == 'L') {
        ++at;
        continue;
      }
      const auto [next, error] = std::from_chars(at, end, numbers.emplace_back());
      if (error == std::errc::result_out_of_range) bad(key, "sizes below 2^63");
      if (error != std::errc() || numbers.back() < 0) bad(key, "a tuple of whole numbers");
      at = next;
    }
    return numbers;
  }

 private:
  std::string_view value(const char* key) {
    size_t at = text_.find(std::string(key) + "'");
    if (at != text_.npos) at = text_.find(':', at);
    if (at == text_.npos) bad(key, "this key");
    return text_.substr(std::min(text_.find_first_not_of(' ', at + 1), text_.size()));
  }
  [[noreturn]] void bad(const char* key, const char* expected) {
    throw DataError(where_ + ": damaged .npy header: expected " + expected + " at '" + key + "'");
  }
  std::string_view text_;
  const std::string& where_;
};

constexpr size_t kMostDimensions = 64;  // NumPy's own bound

// Moves elements from Fortran order (first index fastest) to C order.
std::vector<uint8_t> to_c_order(const std::vector<uint8_t>& in, const std::vector<int64_t>& shape, int item) {
  std::vector<uint8_t> out(in.size());
  const size_t dims = shape.size();
  std::array<int64_t, kMostDimensions> index{}, stride{};  // strides of the Fortran array
  for (size_t d = 0; d < dims; ++d) stride[d] = d == 0 ? item : stride[d - 1] * shape[d - 1];
  int64_t from = 0;
  for (auto to = out.begin(); to != out.end(); to += item) {
    std::copy_n(in.begin() + from, item, to);
    for (size_t d = dims; d-- > 0;) {
      from += stride[d];
      if (++index[d] < shape[d]) break;
      from -= stride[d] * shape[d];
      index[d] = 0;
    }
  }
  return out;
}

template <class T>
double read_element(const uint8_t* at) {
  T x;
  std::memcpy(&x, at, sizeof x);
  if constexpr (std::is_same_v<T, fp16>) {
    return static_cast<float>(x);
  } else {
    return static_cast<double>(x);
  }
}

struct ElementType {
  char kind;
  int item;
  const char* name;
  double (*read)(const uint8_t*);
};
constexpr ElementType kTypes[] = {
    {'b', 1, "bool", read_element<uint8_t>},    {'u', 1, "uint8", read_element<uint8_t>},
    {'u', 2, "uint16", read_element<uint16_t>}, {'u', 4, "uint32", read_element<uint32_t>},
    {'u', 8, "uint64", read_element<uint64_t>}, {'i', 1, "int8", read_element<int8_t>},
    {'i', 2, "int16", read_element<int16_t>},   {'i', 4, "int32", read_element<int32_t>},
    {'i', 8, "int64", read_element<int64_t>},   {'f', 2, "float16", read_element<fp16>},
    {'f', 4, "float32", read_element<float>},   {'f', 8, "float64", read_element<double>}};

const ElementType* find_type(char kind, int item) {
  const auto type = std::ranges::find_if(kTypes, [&](const auto& t) { return t.kind == kind && t.item == item; });
  return type == std::end(kTypes) ? nullptr : type;
}

template <class T>
std::vector<T> converted(const NpyArray& a) {
  const auto read = find_type(a.kind, a.item)->read;
  std::vector<T> out(a.count());
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(read(a.bytes.data() + i * a.item));
  return out;
}

}  // namespace

int64_t NpyArray::count() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string NpyArray::type_name() const { return find_type(kind, item)->name; }
double NpyArray::at(int64_t i) const { return find_type(kind, item)->read(bytes.data() + i * item); }
std::vector<double> NpyArray::as_f64() const { return converted<double>(*this); }
std::vector<float> NpyArray::as_f32() const { return converted<float>(*this); }

std::vector<uint8_t> NpyArray::as_u8() const {
  if (kind == 'u' && item == 1) return bytes;
  const std::vector<double> values = as_f64();
  for (size_t i = 0; i < values.size(); ++i)
    if (const double x = values[i]; !(x >= 0 && x <= 255) || x != std::floor(x))
      throw DataError(where + ": element " + std::to_string(i) + " is " + std::to_string(x) +
                      ": expected whole numbers of 0 to 255");
  return converted<uint8_t>(*this);
}

NpyArray parse_npy(std::span<const uint8_t> file, const std::string& where) {
  const auto fail = [&](const std::string& what) { throw DataError(where + ": " + what); };
  if (file.size() < 10 || std::memcmp(file.data(), "\x93NUMPY", 6) != 0)
    fail("not a .npy array: its first bytes differ");
  const int version = file[6];
  if (version < 1 || version > 3) fail("written in .npy format " + std::to_string(version) + ": 1 to 3 can be read");
  const size_t prefix = version == 1 ? 10 : 12;
  if (file.size() < prefix) fail("truncated in its header");
  const size_t length = file[8] | file[9] << 8 | (version == 1 ? 0 : size_t{file[10]} << 16 | size_t{file[11]} << 24);
  if (file.size() < prefix + length) fail("truncated in its header");
  Header header({reinterpret_cast<const char*>(file.data()) + prefix, length}, where);
  const std::string_view descr = header.quoted("descr");
  NpyArray a;
  a.where = where;
  a.shape = header.tuple("shape");
  const bool fortran = header.boolean("fortran_order");
  const bool order = !descr.empty() && std::string_view("<>|=").find(descr[0]) != std::string_view::npos;
  const std::string_view type = order ? descr.substr(1) : descr;
  a.kind = type.size() == 2 ? type[0] : 0;
  a.item = type.size() == 2 ? type[1] - '0' : 0;
  if (!find_type(a.kind, a.item)) {
    fail("has element type '" + std::string(descr) + "': expected bool, (u)int8 to 64 or float16 to 64");
  }
  if (a.shape.size() > kMostDimensions)
    fail("has " + std::to_string(a.shape.size()) + " dimensions: at most 64 can be read");
  uint64_t bytes = a.item;
  for (const int64_t d : a.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(d), &bytes))
      fail("has a size beyond 2^64: " + shape_text(a.shape));
  }
  const uint64_t found = file.size() - prefix - length;
  if (found != bytes) {
    fail((found < bytes ? "truncated: " : "longer than it says: ") + shape_text(a.shape) + " of " + a.type_name() +
         " takes " + std::to_string(bytes) + " bytes, found " + std::to_string(found));
  }
  a.bytes.assign(file.begin() + prefix + length, file.end());
  if (descr[0] == '>' && a.item > 1) {
    for (size_t i = 0; i < a.bytes.size(); i += a.item) std::reverse(&a.bytes[i], &a.bytes[i] + a.item);
  }
  if (fortran && a.shape.size() > 1) a.bytes = to_c_order(a.bytes, a.shape, a.item);
  return a;
}

NpyArray read_npy(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw DataError(path + ": cannot be opened: " + std::strerror(errno));
  const std::vector<uint8_t> file((std::istreambuf_iterator<char>(in)), {});
  if (in.bad()) throw DataError(path + ": cannot be read");
  return parse_npy(file, path);
}

struct NpzReader::Archive {
  zip_t* zip = nullptr;
  ~Archive() {
    if (zip != nullptr) zip_discard(zip);
  }
};

NpzReader::NpzReader(const std::string& path) : path_(path), archive_(std::make_unique<Archive>()) {
  int code = 0;
  archive_->zip = zip_open(path.c_str(), ZIP_RDONLY | ZIP_CHECKCONS, &code);
  if (archive_->zip == nullptr) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    const bool there = code != ZIP_ER_NOENT && code != ZIP_ER_OPEN;
    throw DataError(path + (there ? ": not an .npz file, or a truncated one: " : ": cannot be opened: ") + text);
  }
  for (zip_int64_t i = 0; i < zip_get_num_entries(archive_->zip, 0); ++i) {
    const char* name = zip_get_name(archive_->zip, i, 0);
    if (std::string_view n = name != nullptr ? name : ""; n.ends_with(".npy"))
      names_.emplace_back(n.substr(0, n.size() - 4));
  }
}

NpzReader::~NpzReader() = default;

bool NpzReader::has(const std::string& name) const {
  return std::find(names_.begin(), names_.end(), name) != names_.end();
}

NpyArray NpzReader::read(const std::string& name) const {
  if (!has(name)) {
    throw DataError(path_ + ": has no array '" + name + "'; found: " + (names_.empty() ? "none" : join(names_)));
  }
  const std::string where = path_ + ": array '" + name + "'";
  const std::unique_ptr<zip_file_t, decltype(&zip_fclose)> file(zip_fopen(archive_->zip, (name + ".npy").c_str(), 0),
                                                                &zip_fclose);
  if (!file) throw DataError(where + ": cannot be read: " + zip_strerror(archive_->zip));
  std::vector<uint8_t> bytes;  // grows with what is there: the size in a damaged archive may be anything
  constexpr size_t kChunk = size_t{1} << 22;
  for (;;) {
    const size_t at = bytes.size();
    bytes.resize(at + kChunk);
    const zip_int64_t got = zip_fread(file.get(), bytes.data() + at, kChunk);
    if (got < 0)
      throw DataError(where + ": damaged or truncated: " + zip_error_strerror(zip_file_get_error(file.get())));
    bytes.resize(at + got);
    if (got == 0) break;
  }
  return parse_npy(bytes, where);
}

void write_npz(const std::string& path, std::span<const NpzEntry> entries) {
  int code = 0;
  zip_t* zip = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &code);
  const auto fail = [&](const std::string& what) {
    if (zip != nullptr) zip_discard(zip);
    throw IoError(path + ": cannot be written: " + what);
  };
  if (zip == nullptr) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    fail(text);
  }
  std::deque<std::string> headers;  // libzip reads headers and parts when the archive is closed
  std::deque<std::array<zip_buffer_fragment_t, 2>> parts;
  for (const NpzEntry& e : entries) {
    std::string text = "{'descr': '" + e.descr + "', 'fortran_order': False, 'shape': " + shape_text(e.shape) + ", }";
    text.resize((10 + text.size() + 1 + 63) / 64 * 64 - 10, ' ');  // the data starts on a multiple of 64
    text.back() = '\n';
    std::string& header = headers.emplace_back(std::string("\x93NUMPY\x01\0", 8));
    header += {static_cast<char>(text.size() & 255), static_cast<char>(text.size() >> 8)};
    header += text;
    uint64_t bytes = e.descr.back() - '0';
    for (const int64_t d : e.shape) bytes *= d;
    auto& fragments = parts.emplace_back();
    fragments[0] = {reinterpret_cast<zip_uint8_t*>(header.data()), header.size()};
    fragments[1] = {static_cast<zip_uint8_t*>(const_cast<void*>(e.data)), bytes};
    zip_source_t* source = zip_source_buffer_fragment(zip, fragments.data(), bytes > 0 ? 2 : 1, 0);
    const zip_int64_t index = zip_file_add(zip, (e.name + ".npy").c_str(), source, ZIP_FL_OVERWRITE | ZIP_FL_ENC_UTF_8);
    if (index < 0) {
      zip_source_free(source);
      fail(zip_strerror(zip));
    }
    zip_set_file_compression(zip, index, ZIP_CM_STORE, 0);
    zip_file_set_dostime(zip, index, 0, 1 << 5 | 1, 0);  // 1980-01-01: the same arrays give the same bytes
  }
  if (zip_close(zip) != 0) fail(zip_strerror(zip));  // libzip writes to a temporary file and renames it
}

}  // namespace regolith
