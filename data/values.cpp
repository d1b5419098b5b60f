#include "data/values.h"

#include <algorithm>
#include <cmath>

#include "engine/base/text.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

constexpr double kOvershoot = 0.100001;  // of the range, after a resize
constexpr double kNarrow = 25.5;         // fractions that stay below a tenth of a byte's range are not meant as bytes
constexpr double kRounding = 0.5 / 255;  // what rounds to a byte

std::string text(double x) { return format("%.8g", x); }

}  // namespace

std::string place(int64_t pixel, int width) {
  return "row " + std::to_string(pixel / width) + ", column " + std::to_string(pixel % width);
}

ByteScale::ByteScale(const Normalise& stated, char kind, int item, const std::string& where)
    : stated_(stated.states_range()), floats_(kind == 'f') {
  const bool bytes = kind == 'b' || (kind == 'u' && item == 1);
  if (bytes && stated.bits != 0 && stated.bits != 8 && !(kind == 'b' && stated.bits == 1))
    throw DataError(where + ": holds 8 bits, but data.normalise.bits is " + std::to_string(stated.bits) +
                    "; leave it out, state low and high, or bring all files to one depth");
  keeps_bytes_ = kind == 'u' && item == 1 && (!stated_ || stated.bits == 8);
  if (stated.bits != 0) {
    high_ = kind == 'b' ? 1 : std::ldexp(1.0, stated.bits) - 1;
  } else if (stated_) {
    low_ = stated.low, high_ = stated.high;
  } else if (floats_ || kind == 'b') {
    high_ = 1;
  }
  slack_ = floats_ ? kOvershoot : 0;
}

uint8_t ByteScale::byte(double x, int64_t image, int64_t at) {
  if (image != image_) end_image(), image_ = image;
  if (!std::isfinite(x)) {
    not_finite_.first(image, at, x);
    return 0;
  }
  least_ = std::min(least_, x), most_ = std::max(most_, x);
  const double part = (x - low_) / (high_ - low_);
  if (floats_ && x != std::floor(x)) image_fraction_.first(image, at, x), has_fractions_ = true;
  if (x > 1 + kOvershoot) image_large_.first(image, at, x);
  if (part < -slack_ || part > 1 + slack_) outside_.first(image, at, x);
  clipped_ += part < 0 || part > 1;
  return static_cast<uint8_t>(std::floor(std::clamp(part, 0.0, 1.0) * 255 + 0.5));
}

void ByteScale::end_image() {
  if (image_large_.image >= 0) {
    large_.first(image_, image_large_.at, image_large_.value);
  } else if (image_fraction_.image >= 0) {
    fractions_.first(image_, image_fraction_.at, image_fraction_.value);
  }
  image_large_ = image_fraction_ = {};
}

std::string ByteScale::range() const { return "the values go from " + text(least_) + " to " + text(most_); }

std::string ByteScale::statement() const {
  const std::string ends = "{low: " + text(least_) + ", high: " + text(most_) + "}";
  if (floats_ && most_ > kNarrow && least_ >= -kOvershoot * 255 && most_ <= (1 + kOvershoot) * 255)
    return "clip them as a resize's overshoot: data.normalise: {low: 0, high: 255}";
  if (floats_ || least_ < 0 || most_ > 65535) return "state what becomes black and white: data.normalise: " + ends;
  int bits = 8;
  while (std::ldexp(1.0, bits) <= most_) bits += 2;
  return "state the range: data.normalise: {bits: " + std::to_string(bits) + "} or " + ends;
}

bool ByteScale::settle(const Where& where) {
  end_image();
  const auto at = [&](const Place& p) { return where(p.image, p.at); };
  if (not_finite_.image >= 0)
    throw DataError(at(not_finite_) + ": image value " + text(not_finite_.value) +
                    ": expected a finite number; correct the array");
  const bool guess = !stated_ && floats_ && high_ == 1;
  if (outside_.image < 0) return true;
  if (stated_)
    throw DataError(at(outside_) + ": image value " + text(outside_.value) + ": data.normalise states " + text(low_) +
                    " to " + text(high_) + ", but " + range());
  if (guess && large_.image >= 0) {
    if (fractions_.image >= 0)
      throw DataError(at(large_) + ": image value " + text(large_.value) + ", but " + at(fractions_) +
                      " is of an image of 0 to 1: images of two kinds (" + range() +
                      "); bring them to one, or state the range: data.normalise: {low: 0, high: 255}");
    if (has_fractions_ && most_ <= kNarrow)
      throw DataError(at(large_) + ": image value " + text(large_.value) +
                      ": expected floats of 0 to 1 or of 0 to 255, but " + range() + "; " + statement());
    *this = ByteScale(Normalise{.low = 0, .high = 255}, 'f', 4, "");
    stated_ = false;
    slack_ = kRounding;
    return false;
  }
  throw DataError(at(outside_) + ": image value " + text(outside_.value) +
                  ": expected 0 to 255, or floats of 0 to 1; " + range() + "; " + statement());
}

std::string ByteScale::note() const {
  if (clipped_ == 0 || slack_ != kOvershoot) return "";
  return std::to_string(clipped_) + " image values beyond " + text(low_) + " to " + text(high_) + " (" + range() +
         ") were clipped";
}

MaskIds::MaskIds(int classes, int ignore, const IdMap& map) : classes_(classes), ignore_(ignore), map_(map) {
  for (const auto& [id, to] : map.ids) {
    if (to != IdMap::kIgnore && to != ignore && to >= classes)
      throw OptionError(
          "data", "classes.map." + std::to_string(id),
          "expected a class, 0 to " + std::to_string(classes - 1) + ", or ignore; found " + std::to_string(to));
  }
  for (int id = 0; id < 256; ++id) bytes_[id] = static_cast<int16_t>(find_now(id));
}

int MaskIds::find_now(int64_t id) const {
  const auto named = map_.ids.find(id);
  const int64_t to = named != map_.ids.end() ? named->second : id;
  if ((named != map_.ids.end() && to == IdMap::kIgnore) || (ignore_ >= 0 && to == ignore_))
    return kernels::kAbsentClass;
  return to >= 0 && to < classes_ ? static_cast<int>(to) : -1;
}

int MaskIds::find(double id) const {
  if (id != std::floor(id) || std::abs(id) > 1e15) return -1;
  return find_now(static_cast<int64_t>(id));
}

void MaskIds::fail(const std::string& where, double id) const {
  if (id != std::floor(id)) throw DataError(where + ": class id " + number(id) + " is no whole number");
  throw DataError(where + ": class id " + number(id) + ": expected 0 to " + std::to_string(classes_ - 1) +
                  "; loss.ignore names an id without truth, data.classes.map gives an id its class");
}

void MaskIds::apply(uint8_t* mask, int64_t pixels, const std::function<std::string(int64_t)>& where) const {
  for (int64_t i = 0; i < pixels; ++i) {
    const int id = bytes_[mask[i]];
    if (id < 0) fail(where(i), mask[i]);
    mask[i] = static_cast<uint8_t>(id);
  }
}

}  // namespace regolith
