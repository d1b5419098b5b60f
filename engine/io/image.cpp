#include "engine/io/image.h"

#include <png.h>

#include <algorithm>
#include <cerrno>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

// After <cstdio>, which it needs and does not include.
#include <jerror.h>
#include <jpeglib.h>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"

namespace regolith {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

constexpr int kLargestSide = 1 << 15;

// The orientation in EXIF data (a TIFF header and a table of tags), 1 where there is none. Some writers put JPEG's
// prefix before a PNG's, and some give the orientation four bytes.
int exif_orientation(std::span<const uint8_t> tiff) {
  if (tiff.size() > 6 && std::memcmp(tiff.data(), "Exif\0", 6) == 0) tiff = tiff.subspan(6);
  const bool little = !tiff.empty() && tiff[0] == 'I';
  const auto number = [&](size_t at, int bytes) {
    uint32_t n = 0;
    for (int i = 0; i < bytes && at + bytes <= tiff.size(); ++i)
      n |= static_cast<uint32_t>(tiff[at + i]) << 8 * (little ? i : bytes - 1 - i);
    return n;
  };
  const size_t table = number(4, 4);
  for (size_t i = 0; i < number(table, 2); ++i) {
    const size_t tag = table + 2 + 12 * i;
    if (tag + 12 > tiff.size()) break;
    const uint32_t value = number(tag + 8, number(tag + 2, 2) == 4 ? 4 : 2);
    if (number(tag, 2) == 0x112 && value >= 1 && value <= 8) return static_cast<int>(value);
  }
  return 1;
}

// From the size as stored to that as shown. Orientations from 5 on exchange rows and columns.
void turn_size(ImageHeader& image) {
  if (image.orientation > 4) std::swap(image.height, image.width);
}

// `image` has the size as shown, its values still stand as stored.
template <class T>
void turn_pixels(const ImageHeader& image, std::vector<T>& values) {
  if (image.orientation == 1 || values.empty()) return;
  const bool transposed = image.orientation > 4;
  const bool flip_rows = image.orientation == 3 || image.orientation == 4 || image.orientation > 6;
  const bool flip_columns =
      image.orientation == 2 || image.orientation == 3 || image.orientation == 6 || image.orientation == 7;
  const int C = image.channels;
  const int64_t stored_width = transposed ? image.height : image.width;
  std::vector<T> shown;
  shown.reserve(values.size());
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      const int v = flip_rows ? image.height - 1 - y : y, u = flip_columns ? image.width - 1 - x : x;
      const auto from = values.begin() + (transposed ? u * stored_width + v : v * stored_width + u) * C;
      shown.insert(shown.end(), from, from + C);
    }
  }
  values = std::move(shown);
}

// libpng and libjpeg report errors by longjmp. Variables that change between setjmp and the jump must not live in
// registers: they are members of an object whose address the library has.
struct PngReading {
  png_structp png = nullptr;
  png_infop info = nullptr;
  ImageValues image;
  std::vector<png_bytep> rows;
  std::string error;
  ~PngReading() { png_destroy_read_struct(&png, &info, nullptr); }
};

struct PngWriting {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::vector<png_color> palette;
  std::vector<png_text> texts;
  std::string pending, error;  // pending: not yet given on; what takes it may throw, and not through libpng
  ~PngWriting() { png_destroy_write_struct(&png, &info); }
};

[[noreturn]] void stop_png(png_structp png, png_const_charp text) {
  *static_cast<std::string*>(png_get_error_ptr(png)) = text;
  png_longjmp(png, 1);
}

// From the chunk eXIf, which may stand before the pixels or after them. The file is read anew afterwards.
int png_orientation(std::FILE* file) {
  int orientation = 1;
  std::fseek(file, 8, SEEK_SET);
  for (uint8_t head[8]; std::fread(head, 1, sizeof head, file) == sizeof head;) {
    const uint32_t size = png_get_uint_32(head);
    if (std::memcmp(head + 4, "eXIf", 4) == 0) {
      std::vector<uint8_t> tiff(std::min<uint32_t>(size, 1 << 16));
      tiff.resize(std::fread(tiff.data(), 1, tiff.size(), file));
      orientation = exif_orientation(tiff);
      break;
    }
    if (std::fseek(file, static_cast<long>(size) + 4, SEEK_CUR) != 0) break;  // its contents and checksum
  }
  std::rewind(file);
  return orientation;
}

ImageValues read_png(std::FILE* file, const std::string& path, bool stored, bool header_only) {
  PngReading r;
  ImageValues& image = r.image;
  r.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r.error, stop_png, [](png_structp, png_const_charp) {});
  if (r.png != nullptr) r.info = png_create_info_struct(r.png);
  if (r.info == nullptr) throw DataError(path + ": no memory to read it");
  if (setjmp(png_jmpbuf(r.png)) != 0) throw DataError(path + ": damaged or truncated PNG: " + r.error);
  image.orientation = png_orientation(file);
  png_init_io(r.png, file);
  png_set_user_limits(r.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the check of the sides names both
  png_read_info(r.png, r.info);
  image.width = static_cast<int>(png_get_image_width(r.png, r.info));
  image.height = static_cast<int>(png_get_image_height(r.png, r.info));
  image.bits = png_get_bit_depth(r.png, r.info) == 16 ? 16 : 8;
  const int colour = png_get_color_type(r.png, r.info);
  image.channels = (colour & PNG_COLOR_MASK_COLOR) != 0 && !(stored && colour == PNG_COLOR_TYPE_PALETTE) ? 3 : 1;
  turn_size(image);
  if (header_only) return std::move(r.image);
  check_sides(image, path);
  if (stored && colour == PNG_COLOR_TYPE_PALETTE) {
    png_colorp entries = nullptr;
    int count = 0;
    png_get_PLTE(r.png, r.info, &entries, &count);
    for (int i = 0; i < count; ++i) image.palette.push_back({entries[i].red, entries[i].green, entries[i].blue});
  }
  png_set_packing(r.png);  // a byte per value
  png_set_swap(r.png);     // 16 bits in this machine's order
  png_set_strip_alpha(r.png);
  if (!stored) png_set_expand(r.png);  // palettes to RGB, few grey bits to eight
  png_set_interlace_handling(r.png);
  png_read_update_info(r.png, r.info);
  const size_t row = png_get_rowbytes(r.png, r.info);
  const int height = static_cast<int>(png_get_image_height(r.png, r.info));  // as stored
  uint8_t* to = nullptr;
  if (image.bits == 16) {
    image.words.resize(row / 2 * height);
    to = reinterpret_cast<uint8_t*>(image.words.data());
  } else {
    image.bytes.resize(row * height);
    to = image.bytes.data();
  }
  for (int y = 0; y < height; ++y) r.rows.push_back(to + y * row);
  png_read_image(r.png, r.rows.data());
  png_read_end(r.png, r.info);
  turn_pixels(image, image.bytes);
  turn_pixels(image, image.words);
  return std::move(r.image);
}

struct JpegReading {
  ImageValues image;
  std::vector<uint8_t> row;
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  std::jmp_buf jump;
  char text[JMSG_LENGTH_MAX] = "";
  ~JpegReading() { jpeg_destroy_decompress(&jpeg); }
};

// Whether what libjpeg warns of leaves all pixels as they were written: bytes between the parts of a file, marks of
// programs, and an end that is missing after the last pixel. (Pixels that are missing warn again, as HIT_MARKER.)
bool harmless(const jpeg_decompress_struct& jpeg, const jpeg_error_mgr& errors) {
  const int marker = errors.msg_parm.i[1];
  switch (errors.msg_code) {
    case JWRN_EXTRANEOUS_DATA:
      return marker < 0xd0 || marker > 0xd7;  // those are inside of a scan
    case JWRN_JPEG_EOF:
      return !jpeg.progressive_mode && jpeg.comps_in_scan == jpeg.num_components;
    case JWRN_ADOBE_XFORM:
    case JWRN_JFIF_MAJOR:
      return true;
    default:
      return false;
  }
}

// Ink to light, as (255 - ink) * (255 - black) / 255. Adobe's files hold 255 - ink.
void turn_cmyk_row(const std::vector<uint8_t>& row, bool inverted, uint8_t* to) {
  const auto light = [&](uint8_t ink) { return inverted ? ink : 255 - ink; };
  for (size_t i = 0; i < row.size(); i += 4)
    for (int c = 0; c < 3; ++c) *to++ = static_cast<uint8_t>((light(row[i + c]) * light(row[i + 3]) + 127) / 255);
}

ImageValues read_jpeg(std::FILE* file, const std::string& path, bool header_only) {
  JpegReading r;
  ImageValues& image = r.image;
  r.jpeg.err = jpeg_std_error(&r.errors);
  r.jpeg.client_data = &r;
  r.errors.error_exit = [](j_common_ptr jpeg) {
    auto* reading = static_cast<JpegReading*>(jpeg->client_data);
    jpeg->err->format_message(jpeg, reading->text);
    std::longjmp(reading->jump, 1);
  };
  r.errors.emit_message = [](j_common_ptr jpeg, int level) {
    if (level >= 0) return;
    auto* reading = static_cast<JpegReading*>(jpeg->client_data);
    if (!harmless(reading->jpeg, *jpeg->err)) jpeg->err->error_exit(jpeg);
    if (!reading->image.warning.empty()) return;
    jpeg->err->format_message(jpeg, reading->text);
    reading->image.warning = reading->text;
  };
  if (setjmp(r.jump) != 0) throw DataError(path + ": this JPEG cannot be decoded: " + r.text);
  jpeg_create_decompress(&r.jpeg);
  jpeg_stdio_src(&r.jpeg, file);
  jpeg_save_markers(&r.jpeg, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(&r.jpeg, TRUE);
  image.width = static_cast<int>(r.jpeg.image_width);
  image.height = static_cast<int>(r.jpeg.image_height);
  const bool cmyk = r.jpeg.num_components == 4;
  image.channels = r.jpeg.num_components == 1 ? 1 : 3;
  for (auto* m = r.jpeg.marker_list; m != nullptr; m = m->next)
    if (image.orientation == 1 && m->data_length > 6 && std::memcmp(m->data, "Exif\0", 6) == 0)
      image.orientation = exif_orientation({m->data, m->data_length});
  turn_size(image);
  // A block of 8x8 takes a bit or more, but for arithmetic coding. Else a few bytes could ask for all memory.
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(path, error), most = bytes * (r.jpeg.arith_code ? 65536 : 1024);
  if (!error && static_cast<uintmax_t>(image.width) * image.height > most)
    throw DataError(path + ": says that it is " + size_text({image.width, image.height}) +
                    " (width x height), more pixels than its " + std::to_string(bytes) +
                    " bytes can hold: damaged or truncated");
  if (header_only) return std::move(r.image);
  check_sides(image, path);
  r.jpeg.out_color_space = cmyk ? JCS_CMYK : image.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_start_decompress(&r.jpeg);
  if (cmyk) r.row.resize(static_cast<size_t>(r.jpeg.output_width) * 4);
  const size_t row_bytes = static_cast<size_t>(r.jpeg.output_width) * image.channels;
  image.bytes.resize(row_bytes * r.jpeg.output_height);
  while (r.jpeg.output_scanline < r.jpeg.output_height) {
    uint8_t* to = image.bytes.data() + r.jpeg.output_scanline * row_bytes;
    JSAMPROW row = cmyk ? r.row.data() : to;
    jpeg_read_scanlines(&r.jpeg, &row, 1);
    if (cmyk) turn_cmyk_row(r.row, r.jpeg.saw_Adobe_marker != 0, to);
  }
  jpeg_finish_decompress(&r.jpeg);
  turn_pixels(image, image.bytes);
  return std::move(r.image);
}

ImageValues read_file(const std::string& path, bool stored, bool header_only) {
  const File file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) throw DataError(path + ": cannot be opened: " + std::strerror(errno));
  unsigned char head[8] = {};
  const size_t got = std::fread(head, 1, sizeof head, file.get());
  std::rewind(file.get());
  if (png_sig_cmp(head, 0, 8) == 0) return read_png(file.get(), path, stored, header_only);
  if (got >= 3 && head[0] == 0xff && head[1] == 0xd8 && head[2] == 0xff) {
    if (stored) throw DataError(path + ": a mask must be a PNG: JPEG does not keep class ids");
    return read_jpeg(file.get(), path, header_only);
  }
  throw DataError(path + ": expected a PNG or JPEG image");
}

}  // namespace

void check_sides(const ImageHeader& image, const std::string& path) {
  if (image.width <= kLargestSide && image.height <= kLargestSide) return;
  throw DataError(path + ": is " + size_text({image.width, image.height}) + " (width x height); images of up to " +
                  std::to_string(kLargestSide) + " pixels to a side can be read");
}

PngText classes_text(std::span<const std::string> names) {
  return {"regolith:classes", nlohmann::json(names).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)};
}

namespace {

// `take` gets the bytes of the file, and leaves the text empty.
void encode_png(const std::string& path, const PngHeader& header, const std::function<const uint8_t*(int y)>& row,
                const std::function<void(std::string&)>& take) {
  PngWriting w;
  w.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &w.error, stop_png, [](png_structp, png_const_charp) {});
  if (w.png != nullptr) w.info = png_create_info_struct(w.png);
  if (w.info == nullptr) throw IoError(path + ": no memory to write it");
  if (setjmp(png_jmpbuf(w.png)) != 0) throw IoError(path + ": cannot be encoded as PNG: " + w.error);
  png_set_write_fn(
      w.png, &w.pending,
      [](png_structp png, png_bytep bytes, size_t n) {
        static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<const char*>(bytes), n);
      },
      nullptr);
  const bool indexed = !header.palette.empty();
  png_set_check_for_invalid_index(w.png, -1);  // below, with a place
  png_set_compression_level(w.png, 1);
  png_set_filter(w.png, PNG_FILTER_TYPE_BASE, indexed ? PNG_FILTER_NONE : PNG_FILTER_UP);
  png_set_IHDR(w.png, w.info, static_cast<png_uint_32>(header.width), static_cast<png_uint_32>(header.height), 8,
               indexed ? PNG_COLOR_TYPE_PALETTE : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  for (const Rgb& c : header.palette) w.palette.push_back({c.r, c.g, c.b});
  if (indexed) png_set_PLTE(w.png, w.info, w.palette.data(), static_cast<int>(w.palette.size()));
  for (const PngText& t : header.texts) {
    png_text& to = w.texts.emplace_back();
    const bool ascii = std::all_of(t.text.begin(), t.text.end(), [](char c) { return (c & 0x80) == 0; });
    to.compression = ascii ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
    to.key = const_cast<char*>(t.key.c_str());
    to.text = const_cast<char*>(t.text.c_str());
    to.text_length = to.itxt_length = t.text.size();
  }
  png_set_text(w.png, w.info, w.texts.data(), static_cast<int>(w.texts.size()));
  png_write_info(w.png, w.info);
  for (int y = 0; y < header.height; ++y) {
    const uint8_t* bytes = row(y);
    const uint8_t* most = indexed ? std::max_element(bytes, bytes + header.width) : bytes;
    if (indexed && *most >= header.palette.size())
      throw IoError(path + ": row " + std::to_string(y) + ", column " + std::to_string(most - bytes) + ": index " +
                    std::to_string(*most) + " is not in the palette of " + std::to_string(header.palette.size()));
    png_write_row(w.png, bytes);
    if (w.pending.size() >= 1 << 16) take(w.pending);
  }
  png_write_end(w.png, w.info);
  take(w.pending);
}

const uint8_t* row_of(const Picture& picture, int y) {
  static_assert(sizeof(Rgb) == 3);
  return reinterpret_cast<const uint8_t*>(picture.pixels.data() + static_cast<size_t>(y) * picture.width);
}

}  // namespace

void write_png(const std::string& path, const PngHeader& header, const std::function<const uint8_t*(int y)>& row) {
  AtomicFile file(path);
  encode_png(path, header, row, [&](std::string& bytes) {
    file.write(bytes);
    bytes.clear();
  });
  file.commit(AtomicFile::Flush::no);
}

void write_png(const std::string& path, const Picture& picture) {
  write_png(path, {picture.height, picture.width}, [&](int y) { return row_of(picture, y); });
}

std::string png_bytes(const Picture& picture) {
  std::string file;
  encode_png(
      "a picture", {picture.height, picture.width}, [&](int y) { return row_of(picture, y); },
      [&](std::string& bytes) { file += std::exchange(bytes, ""); });
  return file;
}

ImageHeader read_image_header(const std::string& path, bool stored) { return read_file(path, stored, true); }
ImageValues read_image(const std::string& path, bool stored) { return read_file(path, stored, false); }

}  // namespace regolith
