// How the numbers in files become the bytes of images and the class ids of masks.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/config/fields.h"

namespace regolith {

std::string place(int64_t pixel, int width);  // "row 3, column 17"

struct Normalise {
  static constexpr double kAuto = std::numeric_limits<double>::infinity();
  double scale = 1.0 / 255, shift = 0;  // the network reads byte * scale + shift
  int bits = 0;                         // of the numbers in files; 0: not stated
  double low = kAuto, high = kAuto;     // of the numbers in files, which become bytes 0 and 255

  bool states_range() const { return bits != 0 || low < kAuto; }
};
template <class V>
void fields(V& v, Normalise& s) {
  v("scale", s.scale, {.doc = "the network reads byte * scale + shift", .min = 1e-9, .max = 1e9});
  v("shift", s.shift, {.doc = "see scale"});
  v("bits", s.bits,
    {.doc = "numbers in the files go from 0 to 2^bits - 1, which become bytes 0 to 255; auto: floats of 0 to 1, other "
            "numbers of 0 to 255",
     .min = 1,
     .max = 32,
     .word = "auto"});
  v("low", s.low,
    {.doc = "number in the files that becomes byte 0; with high, in place of bits",
     .word = "auto",
     .word_value = Normalise::kAuto});
  v("high", s.high,
    {.doc = "number in the files that becomes byte 255", .word = "auto", .word_value = Normalise::kAuto});
}

enum class MaskCoding { ids, colours };
constexpr std::array<const char*, 2> names_of(MaskCoding) { return {"ids", "colours"}; }

struct ClassOptions {
  std::vector<std::string> names;
  std::vector<Colour> colours;
  MaskCoding from = MaskCoding::ids;
  IdMap map;
};
template <class V>
void fields(V& v, ClassOptions& s) {
  v("names", s.names, {.doc = "one name per class, for tables and legends; []: class 0, class 1, ..."});
  v("colours", s.colours, {.doc = "one colour per class, for pictures; []: a built-in palette"});
  v("from", s.from,
    {.doc = "what the mask files of a folder hold: class ids (grey values, indices of a palette), or classes.colours, "
            "whose places in that list are the ids"});
  v("map", s.map,
    {.doc = "class ids for ids in the files, {255: 1, 3: ignore}: joins classes or leaves them out; others stay"});
}

// Turns the numbers of one array, or of the files of one folder, into bytes. Without a stated range floats are 0..1 or
// 0..255, and other numbers 0..255, which only all of them can tell: the first guess may be wrong.
class ByteScale {
 public:
  using Where = std::function<std::string(int64_t image, int64_t at)>;  // names the number `at` of an image

  // kind, item: of NpyHeader. Throws DataError for bytes in a range of more bits.
  ByteScale(const Normalise& stated, char kind, int item, const std::string& where);
  bool keeps_bytes() const { return keeps_bytes_; }  // the numbers are bytes, and stay as they are
  uint8_t byte(double x, int64_t image, int64_t at);
  // After the last number. False: the guess was wrong; read again, it now is another. Throws DataError for numbers
  // beyond the range, for floats of a range that is neither, and for images of two kinds.
  bool settle(const Where& where);
  std::string note() const;  // a line on what was clipped, or ""

 private:
  struct Place {
    int64_t image = -1, at = 0;
    double value = 0;
    void first(int64_t i, int64_t a, double x) { image < 0 ? * this = {i, a, x} : *this; }
  };
  void end_image();
  std::string range() const;
  std::string statement() const;

  double low_ = 0, high_ = 255, slack_ = 0;  // slack: what a resize may overshoot, of the range
  bool stated_, floats_, keeps_bytes_ = false, has_fractions_ = false;
  double least_ = Normalise::kAuto, most_ = -Normalise::kAuto;
  Place outside_, not_finite_, fractions_, large_;  // the first number or image of each kind
  Place image_fraction_, image_large_;              // of this image
  int64_t image_ = 0, clipped_ = 0;
};

// The class of every id that a mask may hold.
class MaskIds {
 public:
  // ignore: loss.ignore. Throws OptionError (of the section data) for a map to a class that there is not.
  MaskIds(int classes, int ignore, const IdMap& map);
  // The class, kernels::kAbsentClass for a pixel without truth, -1 for an id that is unknown.
  int find(double id) const;
  int operator[](uint8_t id) const { return bytes_[id]; }
  [[noreturn]] void fail(const std::string& where, double id) const;
  // From ids to classes, in place.
  void apply(uint8_t* mask, int64_t pixels, const std::function<std::string(int64_t pixel)>& where) const;

 private:
  int find_now(int64_t id) const;
  int classes_, ignore_;
  IdMap map_;
  std::array<int16_t, 256> bytes_;
};

}  // namespace regolith
