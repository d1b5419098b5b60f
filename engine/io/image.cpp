#include "engine/io/image.h"

#include <png.h>

#include <cerrno>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

// After <cstdio>, which it needs and does not include.
#include <jpeglib.h>

#include "engine/base/error.h"
#include "engine/io/atomic_file.h"

namespace regolith {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

// libpng and libjpeg report errors by longjmp. Variables that change between setjmp and the jump must not live in
// registers: they are members of an object whose address the library has.
struct PngReading {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::string error;
  ~PngReading() { png_destroy_read_struct(&png, &info, nullptr); }
};

ImageBytes read_png(std::FILE* file, const std::string& path, bool raw) {
  PngReading r;
  ImageBytes image;
  const auto on_error = [](png_structp png, png_const_charp text) {
    *static_cast<std::string*>(png_get_error_ptr(png)) = text;
    png_longjmp(png, 1);
  };
  r.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r.error, on_error, [](png_structp, png_const_charp) {});
  if (r.png != nullptr) r.info = png_create_info_struct(r.png);
  if (r.info == nullptr) throw DataError(path + ": no memory to read it");
  if (setjmp(png_jmpbuf(r.png)) != 0) throw DataError(path + ": damaged or truncated PNG: " + r.error);
  png_init_io(r.png, file);
  // PACKING: a byte per value; EXPAND: palettes to RGB, few grey bits to eight.
  png_read_png(r.png, r.info,
               PNG_TRANSFORM_STRIP_16 | PNG_TRANSFORM_PACKING | PNG_TRANSFORM_STRIP_ALPHA |
                   (raw ? PNG_TRANSFORM_IDENTITY : PNG_TRANSFORM_EXPAND),
               nullptr);
  image.width = static_cast<int>(png_get_image_width(r.png, r.info));
  image.height = static_cast<int>(png_get_image_height(r.png, r.info));
  image.channels = png_get_channels(r.png, r.info);
  const png_bytepp rows = png_get_rows(r.png, r.info);
  for (int y = 0; y < image.height; ++y)
    image.bytes.insert(image.bytes.end(), rows[y], rows[y] + static_cast<size_t>(image.width) * image.channels);
  return image;
}

struct JpegReading {
  ImageBytes image;
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  std::jmp_buf jump;
  char text[JMSG_LENGTH_MAX] = "";
  ~JpegReading() { jpeg_destroy_decompress(&jpeg); }
};

ImageBytes read_jpeg(std::FILE* file, const std::string& path) {
  JpegReading r;
  ImageBytes& image = r.image;
  r.jpeg.err = jpeg_std_error(&r.errors);
  r.jpeg.client_data = &r;
  r.errors.error_exit = [](j_common_ptr jpeg) {
    auto* reading = static_cast<JpegReading*>(jpeg->client_data);
    jpeg->err->format_message(jpeg, reading->text);
    std::longjmp(reading->jump, 1);
  };
  r.errors.emit_message = [](j_common_ptr jpeg, int level) {
    if (level < 0) jpeg->err->error_exit(jpeg);  // a truncated file is only a warning to libjpeg
  };
  if (setjmp(r.jump) != 0) throw DataError(path + ": damaged or truncated JPEG: " + r.text);
  jpeg_create_decompress(&r.jpeg);
  jpeg_stdio_src(&r.jpeg, file);
  jpeg_read_header(&r.jpeg, TRUE);
  r.jpeg.out_color_space = r.jpeg.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_start_decompress(&r.jpeg);
  image.width = static_cast<int>(r.jpeg.output_width);
  image.height = static_cast<int>(r.jpeg.output_height);
  image.channels = r.jpeg.output_components;
  image.bytes.resize(static_cast<size_t>(image.width) * image.height * image.channels);
  while (r.jpeg.output_scanline < r.jpeg.output_height) {
    JSAMPROW row = image.bytes.data() + static_cast<size_t>(r.jpeg.output_scanline) * image.width * image.channels;
    jpeg_read_scanlines(&r.jpeg, &row, 1);
  }
  jpeg_finish_decompress(&r.jpeg);
  return std::move(r.image);
}

}  // namespace

void write_png(const std::string& path, const Picture& picture) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(picture.width);
  image.height = static_cast<png_uint_32>(picture.height);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::string bytes(size, '\0');
  if (png_image_write_to_memory(&image, bytes.data(), &size, 0, picture.pixels.data(), 0, nullptr) == 0) {
    throw IoError(path + ": cannot be encoded: " + image.message);
  }
  bytes.resize(size);
  write_file_atomically(path, bytes);
}

ImageBytes read_image(const std::string& path, bool raw) {
  const File file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) throw DataError(path + ": cannot be opened: " + std::strerror(errno));
  unsigned char head[26] = {};  // of a PNG: its signature, and of its first chunk the size, bits and colour type
  const size_t got = std::fread(head, 1, sizeof head, file.get());
  std::rewind(file.get());
  if (png_sig_cmp(head, 0, 8) == 0) {
    const int depth = head[24], color = head[25];
    if (raw && ((color & PNG_COLOR_MASK_COLOR && color != PNG_COLOR_TYPE_PALETTE) || depth > 8))
      throw DataError(path + ": expected a mask of 8 bits with one channel of class ids (grey or palette)");
    return read_png(file.get(), path, raw);
  }
  if (got >= 3 && head[0] == 0xff && head[1] == 0xd8 && head[2] == 0xff) {
    if (raw) throw DataError(path + ": a mask must be a PNG: JPEG does not keep class ids");
    return read_jpeg(file.get(), path);
  }
  throw DataError(path + ": expected a PNG or JPEG image");
}

}  // namespace regolith
