#include "engine/io/npy.h"

#include <zip.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <deque>
#include <fstream>
#include <limits>

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
    if (v.starts_with("["))
      throw DataError(where_ + ": has fields, " + std::string(v.substr(0, v.find(']') + 1)) +
                      ": expected a plain element type");
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
      if (*at == ',' || *at == 'L' || kBlank.find(*at) != kBlank.npos) {
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
    size_t at = text_.npos;
    for (const char quote : {'\'', '"'}) at = std::min(at, text_.find(quote + std::string(key) + quote));
    if (at != text_.npos) at = text_.find(':', at);
    if (at == text_.npos) bad(key, "this key");
    return text_.substr(std::min(text_.find_first_not_of(kBlank, at + 1), text_.size()));
  }
  [[noreturn]] void bad(const char* key, const char* expected) {
    throw DataError(where_ + ": damaged .npy header: expected " + expected + " at '" + key + "'");
  }
  static constexpr std::string_view kBlank = " \t\r\n";
  std::string_view text_;
  const std::string& where_;
};

// NumPy's other names of element types, as other writers leave them.
std::string_view plain_type(std::string_view type) {
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"?", "b1"},       {"bool", "b1"},   {"b", "i1"},      {"B", "u1"},      {"h", "i2"},      {"H", "u2"},
      {"i", "i4"},       {"I", "u4"},      {"l", "i8"},      {"L", "u8"},      {"q", "i8"},      {"Q", "u8"},
      {"e", "f2"},       {"f", "f4"},      {"d", "f8"},      {"int8", "i1"},   {"int16", "i2"},  {"int32", "i4"},
      {"int64", "i8"},   {"uint8", "u1"},  {"uint16", "u2"}, {"uint32", "u4"}, {"uint64", "u8"}, {"float16", "f2"},
      {"float32", "f4"}, {"float64", "f8"}};
  for (const auto& [name, plain] : kNames)
    if (type == name) return plain;
  return type;
}

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

template <class T, class Through = double>
void convert(const uint8_t* from, double* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i, from += sizeof(T)) {
    T x;
    std::memcpy(&x, from, sizeof x);
    to[i] = static_cast<Through>(x);
  }
}

void to_doubles(const NpyHeader& type, const uint8_t* from, double* to, int64_t n) {
  using Convert = void (*)(const uint8_t*, double*, int64_t);
  constexpr Convert unsigneds[] = {convert<uint8_t>, convert<uint16_t>, convert<uint32_t>, convert<uint64_t>},
                    signeds[] = {convert<int8_t>, convert<int16_t>, convert<int32_t>, convert<int64_t>},
                    floats[] = {nullptr, convert<fp16, float>, convert<float>, convert<double>};
  const int size = std::countr_zero(static_cast<unsigned>(type.item));  // 1, 2, 4, 8 bytes: 0, 1, 2, 3
  (type.kind == 'f' ? floats : type.kind == 'i' ? signeds : unsigneds)[size](from, to, n);
}

NpyArray whole(NpyStream stream) {
  NpyArray a{stream.header(), {}};
  a.bytes.resize(a.count() * a.item);
  stream.read(a.bytes.data(), a.count());
  return a;
}

}  // namespace

int64_t NpyHeader::count() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string NpyHeader::type_name() const {
  if (kind == 'b') return "bool";
  return (kind == 'u' ? "uint" : kind == 'i' ? "int" : "float") + std::to_string(8 * item);
}

std::vector<double> NpyArray::as_f64() const {
  std::vector<double> out(count());
  to_doubles(*this, bytes.data(), out.data(), count());
  return out;
}

std::vector<float> NpyArray::as_f32() const {
  const std::vector<double> all = as_f64();
  return {all.begin(), all.end()};
}

NpyStream::NpyStream(const std::string& where, uint64_t size, Source source) : source_(std::move(source)) {
  const auto fail = [&](const std::string& what) { throw DataError(where + ": " + what); };
  uint8_t start[12] = {};
  if (source_(start, 10) < 10 || std::memcmp(start, "\x93NUMPY", 6) != 0)
    fail("not a .npy array: its first bytes differ");
  const int version = start[6];
  if (version < 1 || version > 3) fail("written in .npy format " + std::to_string(version) + ": 1 to 3 can be read");
  const size_t prefix = version == 1 ? 10 : 12;
  if (source_(start + 10, prefix - 10) < prefix - 10) fail("truncated in its header");
  const size_t length =
      start[8] | start[9] << 8 | (version == 1 ? 0 : size_t{start[10]} << 16 | size_t{start[11]} << 24);
  if (size < prefix + length) fail("truncated in its header");
  std::string text(length, ' ');
  if (source_(text.data(), length) < length) fail("truncated in its header");
  Header header(text, where);
  const std::string_view descr = header.quoted("descr");
  NpyHeader& a = header_;
  a.where = where;
  a.shape = header.tuple("shape");
  fortran_ = header.boolean("fortran_order") && a.shape.size() > 1;
  const bool order = !descr.empty() && std::string_view("<>|=").find(descr[0]) != std::string_view::npos;
  const std::string_view type = plain_type(order ? descr.substr(1) : descr);
  a.kind = type.size() == 2 ? type[0] : 0;
  a.item = type.size() == 2 ? type[1] - '0' : 0;
  const bool size_known = a.item == 1 || a.item == 2 || a.item == 4 || a.item == 8;
  const bool valid = a.kind == 'b' ? a.item == 1 : a.kind == 'f' ? size_known && a.item > 1 : size_known;
  if (!valid || (a.kind != 'b' && a.kind != 'u' && a.kind != 'i' && a.kind != 'f')) {
    fail("has element type '" + std::string(descr) + "': expected bool, (u)int8 to 64 or float16 to 64");
  }
  big_endian_ = descr[0] == '>' && a.item > 1;
  if (a.shape.size() > kMostDimensions)
    fail("has " + std::to_string(a.shape.size()) + " dimensions: at most 64 can be read");
  uint64_t bytes = a.item;
  for (const int64_t d : a.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(d), &bytes))
      fail("has a size beyond 2^64: " + shape_text(a.shape));
  }
  const uint64_t found = size - prefix - length;
  if (found != bytes) {
    fail((found < bytes ? "truncated: " : "longer than it says: ") + shape_text(a.shape) + " of " + a.type_name() +
         " takes " + std::to_string(bytes) + " bytes, found " + std::to_string(found));
  }
}

void NpyStream::read_source(void* to, size_t bytes) {
  if (source_(to, bytes) < bytes) throw DataError(header_.where + ": truncated");
  auto* p = static_cast<uint8_t*>(to);
  for (size_t i = 0; big_endian_ && i < bytes; i += header_.item) std::reverse(p + i, p + i + header_.item);
}

void NpyStream::read(uint8_t* to, int64_t elements) {
  const int64_t item = header_.item, all = header_.count();
  if (fortran_ && whole_.empty()) {
    whole_.resize(all * item);
    read_source(whole_.data(), whole_.size());
    whole_ = to_c_order(whole_, header_.shape, header_.item);
  }
  if (fortran_) {
    std::copy_n(whole_.begin() + position_ * item, elements * item, to);
  } else {
    read_source(to, elements * item);
  }
  position_ += elements;
  uint8_t more;
  if (position_ == all && source_(&more, 1) > 0)  // an archive's checksum is compared at the end
    throw DataError(header_.where + ": longer than it says");
}

void NpyStream::read(double* to, int64_t elements) {
  uint8_t chunk[1 << 14];
  for (int64_t n; elements > 0; elements -= n, to += n) {
    n = std::min<int64_t>(elements, sizeof chunk / header_.item);
    read(chunk, n);
    to_doubles(header_, chunk, to, n);
  }
}

NpyStream open_npy(const std::string& path) {
  const auto file = std::make_shared<std::ifstream>(path, std::ios::binary | std::ios::ate);
  if (!*file) throw DataError(path + ": cannot be opened: " + std::strerror(errno));
  const auto size = static_cast<uint64_t>(file->tellg());
  file->seekg(0);
  return {path, size, [path, file](void* to, size_t bytes) {
            file->read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
            if (file->bad()) throw DataError(path + ": cannot be read");
            return static_cast<size_t>(file->gcount());
          }};
}
NpyArray read_npy(const std::string& path) { return whole(open_npy(path)); }

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
    if (code == ZIP_ER_EXISTS)
      throw DataError(path + ": holds an array twice, of which NumPy reads the last; write the file anew");
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

NpyStream NpzReader::open(const std::string& name) const {
  if (!has(name)) {
    throw DataError(path_ + ": has no array '" + name + "'; found: " + (names_.empty() ? "none" : join(names_)));
  }
  const std::string where = path_ + ": array '" + name + "'";
  const std::string member = name + ".npy";
  const std::shared_ptr<zip_file_t> file(zip_fopen(archive_->zip, member.c_str(), 0),
                                         [](zip_file_t* f) { f != nullptr ? zip_fclose(f) : 0; });
  zip_stat_t stat;
  if (!file || zip_stat(archive_->zip, member.c_str(), 0, &stat) != 0)
    throw DataError(where + ": cannot be read: " + zip_strerror(archive_->zip));
  // Deflate shortens by at most 1032: the size in a damaged archive may be anything.
  if (stat.size / 1032 > stat.comp_size) throw DataError(where + ": damaged: has an impossible size");
  return {
      where, stat.size, [where, file](void* to, size_t bytes) {
        size_t got = 0;
        for (zip_int64_t n = 1; got < bytes && n > 0; got += n) {
          n = zip_fread(file.get(), static_cast<uint8_t*>(to) + got, bytes - got);
          if (n < 0)
            throw DataError(where + ": damaged or truncated: " + zip_error_strerror(zip_file_get_error(file.get())));
        }
        return got;
      }};
}

NpyArray NpzReader::read(const std::string& name) const { return whole(open(name)); }

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
