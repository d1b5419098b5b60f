#include "tests/support/fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace regolith::testing {
namespace {

constexpr size_t kGuard = 256;  // bytes on either side: keeps the alignment of the device

template <class T>
void put(unsigned char* at, T x) {
  std::memcpy(at, &x, sizeof x);
}
template <class T>
T get(const unsigned char* at) {
  T x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

void encode(DType t, unsigned char* at, double x) {
  switch (t) {
    case DType::f32:
      return put(at, static_cast<float>(x));
    case DType::bf16:
      return put(at, bf16(static_cast<float>(x)));
    case DType::f16:
      return put(at, fp16(static_cast<float>(x)));
    case DType::u8:
      return put(at, static_cast<uint8_t>(x));
    case DType::i32:
      return put(at, static_cast<int32_t>(x));
    case DType::i64:
      return put(at, static_cast<int64_t>(x));
    case DType::f64:
      return put(at, x);
  }
}

double decode(DType t, const unsigned char* at) {
  switch (t) {
    case DType::f32:
      return get<float>(at);
    case DType::bf16:
      return static_cast<float>(get<bf16>(at));
    case DType::f16:
      return static_cast<float>(get<fp16>(at));
    case DType::u8:
      return get<uint8_t>(at);
    case DType::i32:
      return get<int32_t>(at);
    case DType::i64:
      return static_cast<double>(get<int64_t>(at));
    case DType::f64:
      return get<double>(at);
  }
  return 0;
}

bool close(double actual, double expected, Tolerance t) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return actual == expected;
  return std::abs(actual - expected) <= t.atol + t.rtol * std::abs(expected);  // false for NaN
}

}  // namespace

Fill normal(double sigma, double mean) {
  return [=](Random& r) { return mean + sigma * r.normal(); };
}
Fill uniform(double low, double high) {
  return [=](Random& r) { return r.uniform(low, high); };
}
Fill integers(int low, int high) {
  return [=](Random& r) { return static_cast<double>(r.integer(low, high)); };
}
Fill constant(double value) {
  return [=](Random&) { return value; };
}

double round_to(DType t, double x) {
  unsigned char bytes[8];
  encode(t, bytes, x);
  return decode(t, bytes);
}

Tolerance tolerance(DType t, int64_t terms, double magnitude) {
  const double single = 0x1p-24, stored = t == DType::bf16 ? 0x1p-8 : t == DType::f16 ? 0x1p-11 : single;
  const double smallest = t == DType::f16 ? 0x1p-24 : 0;  // of the subnormals
  return {4 * single * magnitude * (4 + std::sqrt(static_cast<double>(terms))) + smallest, 1.01 * stored + 8 * single};
}

void expect_close(const std::string& what, const Values& actual, const Values& expected, Tolerance t) {
  if (actual.size() != expected.size()) {
    throw Mismatch(what + ": " + std::to_string(actual.size()) + " values, expected " +
                   std::to_string(expected.size()));
  }
  size_t wrong = 0, worst = 0;
  double most = -1;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (close(actual[i], expected[i], t)) continue;
    ++wrong;
    const double error = std::abs(actual[i] - expected[i]) / (t.atol + t.rtol * std::abs(expected[i]));
    if (std::isnan(error) ? !std::isnan(most) : error > most) {
      most = error;
      worst = i;
    }
  }
  if (wrong == 0) return;
  std::ostringstream message;
  message.precision(9);
  message << what << ": " << wrong << " of " << actual.size() << " values are wrong, worst at [" << worst
          << "]: " << actual[worst] << ", expected " << expected[worst] << " within " << t.atol << " + " << t.rtol
          << " * |expected|";
  throw Mismatch(message.str());
}

void expect_gradient(const std::string& what, const std::function<double(const Values&)>& loss, const Values& point,
                     const Values& gradient, double step, double rtol, int most) {
  if (gradient.size() != point.size()) throw Mismatch(what + ": the gradient has another size than the point");
  const size_t stride = std::max<size_t>(1, point.size() / static_cast<size_t>(most));
  Values analytic, numeric, moved = point;
  double largest = 0;
  for (const double g : gradient) largest = std::max(largest, std::abs(g));
  for (size_t i = 0; i < point.size(); i += stride) {
    moved[i] = point[i] + step;
    const double above = loss(moved);
    moved[i] = point[i] - step;
    const double below = loss(moved);
    moved[i] = point[i];
    analytic.push_back(gradient[i]);
    numeric.push_back((above - below) / (2 * step));
  }
  expect_close(what + " (by finite differences, every " + std::to_string(stride) + "th)", analytic, numeric,
               {rtol * std::max(largest, 1e-3), rtol});
}

Buffer::Buffer(Device& device, DeviceStream& stream, std::string name, Layout layout, DType dtype, Values values,
               bool writable)
    : device_(device),
      stream_(stream),
      name_(std::move(name)),
      layout_(layout),
      dtype_(dtype),
      values_(std::move(values)),
      writable_(writable) {
  const size_t pixels = static_cast<size_t>(layout.N) * layout.H * layout.W;
  const size_t size = pixels * (layout.before + layout.C + layout.after) * size_of(dtype);
  bytes_.assign(kGuard + size + kGuard, 0xff);
  if (!values_.empty() && values_.size() != layout.size()) {
    throw std::invalid_argument(name_ + ": " + std::to_string(values_.size()) + " values for a map of " +
                                std::to_string(layout.size()));
  }
  for (size_t i = 0; i < values_.size(); ++i) {
    encode(dtype, &bytes_[offset(i)], values_[i]);
    values_[i] = decode(dtype, &bytes_[offset(i)]);
  }
  memory_ = DeviceBuffer(device, bytes_.size());
  rewind();
}

Buffer::~Buffer() { fence(false); }

size_t Buffer::offset(size_t element) const {
  const size_t C = layout_.C, pixel = element / C, channel = element % C;
  return kGuard + (pixel * (layout_.before + C + layout_.after) + layout_.before + channel) * size_of(dtype_);
}

void Buffer::fence([[maybe_unused]] bool closed) const {
#if defined(__SANITIZE_ADDRESS__)
  if (device_.kind() != DeviceKind::cpu) return;
  unsigned char* begin = memory_.as<unsigned char>();
  unsigned char* end = begin + bytes_.size();
  if (closed) {
    ASAN_POISON_MEMORY_REGION(begin, kGuard);
    ASAN_POISON_MEMORY_REGION(end - kGuard, kGuard);
  } else {
    ASAN_UNPOISON_MEMORY_REGION(begin, bytes_.size());
  }
#endif
}

TensorView Buffer::map() const {
  return {memory_.as<unsigned char>() + kGuard + layout_.before * size_of(dtype_),
          layout_.N,
          layout_.H,
          layout_.W,
          layout_.C,
          layout_.before + layout_.C + layout_.after,
          dtype_};
}

std::vector<unsigned char> Buffer::read_bytes() const {
  std::vector<unsigned char> now(bytes_.size());
  fence(false);
  device_.download(now.data(), memory_.as(), now.size(), stream_);
  stream_.synchronize();
  fence(true);
  return now;
}

Values Buffer::read() const {
  const std::vector<unsigned char> now = read_bytes();
  Values values(layout_.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = decode(dtype_, &now[offset(i)]);
  return values;
}

void Buffer::expect(const Values& expected, Tolerance t) const {
  const std::string shape = std::to_string(layout_.N) + "x" + std::to_string(layout_.H) + "x" +
                            std::to_string(layout_.W) + "x" + std::to_string(layout_.C);
  expect_close(name_ + " (" + shape + ", " + std::string(name_of(dtype_)) + ")", read(), expected, t);
}

void Buffer::rewind() {
  fence(false);
  device_.upload(memory_.as(), bytes_.data(), bytes_.size(), stream_);
  stream_.synchronize();
  fence(true);
}

void Buffer::expect_untouched() const {
  std::vector<unsigned char> now = read_bytes();
  if (writable_) {  // what may be written is taken as it was
    for (size_t i = 0; i < layout_.size(); ++i) std::memcpy(&now[offset(i)], &bytes_[offset(i)], size_of(dtype_));
  }
  const auto [stray, first] = std::mismatch(now.begin(), now.end(), bytes_.begin());
  if (stray == now.end()) return;
  const auto at = static_cast<ptrdiff_t>(stray - now.begin()) - static_cast<ptrdiff_t>(kGuard);
  throw Mismatch(name_ + ": byte " + std::to_string(at) + " of " + std::to_string(now.size() - 2 * kGuard) +
                 (writable_ ? " lies outside the map and was written" : " was written, but it is an input"));
}

Fixture::Fixture(Device& device, DType dtype, uint64_t seed, DeviceStream* shared)
    : device_(device),
      own_(shared == nullptr ? device.make_stream() : nullptr),
      stream_(shared == nullptr ? *own_ : *shared),
      dtype_(dtype),
      random_(seed) {}
Fixture::~Fixture() {
  try {
    stream_.synchronize();           // nothing may still use the buffers
  } catch (const std::exception&) {  // thrown where it was awaited
  }
}

Values Fixture::draw(size_t count, const Fill& fill, DType t) {
  Values values(count);
  for (double& v : values) v = round_to(t, fill(random_));
  return values;
}

Buffer& Fixture::input(std::string name, Layout l, const Fill& fill, std::optional<DType> t) {
  return input(std::move(name), l, draw(l.size(), fill, t.value_or(dtype_)), t);
}
Buffer& Fixture::input(std::string name, Layout l, Values values, std::optional<DType> t) {
  return buffers_.emplace_back(device_, stream_, std::move(name), l, t.value_or(dtype_), std::move(values), false);
}
Buffer& Fixture::inout(std::string name, Layout l, const Fill& fill, std::optional<DType> t) {
  return inout(std::move(name), l, draw(l.size(), fill, t.value_or(dtype_)), t);
}
Buffer& Fixture::inout(std::string name, Layout l, Values values, std::optional<DType> t) {
  return buffers_.emplace_back(device_, stream_, std::move(name), l, t.value_or(dtype_), std::move(values), true);
}
Buffer& Fixture::output(std::string name, Layout l, std::optional<DType> t) {
  return buffers_.emplace_back(device_, stream_, std::move(name), l, t.value_or(dtype_), Values{}, true);
}
void* Fixture::workspace(size_t bytes) {
  if (bytes == 0) return nullptr;
  const Layout l{1, 1, 1, static_cast<int>(bytes)};
  return workspaces_.emplace_back(device_, stream_, "workspace", l, DType::u8, Values{}, true).map().data;
}

void Fixture::expect_untouched() const {
  for (const auto* list : {&buffers_, &workspaces_}) {
    for (const Buffer& b : *list) b.expect_untouched();
  }
}

void Fixture::mark_workspaces() {
  stream_.synchronize();
  expect_untouched();
  for (Buffer& b : workspaces_) b.mark();
}

void Fixture::rewind() {
  for (auto* list : {&buffers_, &workspaces_}) {
    for (Buffer& b : *list) b.rewind();
  }
}

std::vector<std::vector<unsigned char>> Fixture::written() {
  std::vector<std::vector<unsigned char>> all;
  for (const Buffer& b : buffers_) {
    if (b.writable()) all.push_back(b.read_bytes());
  }
  return all;
}

}  // namespace regolith::testing
