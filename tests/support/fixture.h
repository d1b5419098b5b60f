// The bench on which a kernel is tried: buffers of any element type on any device, filled from a seed, poisoned where
// the kernel is to write, watched where it is not. Knows no test framework: what is wrong is thrown as a Mismatch.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/tensor/device.h"
#include "kernels/core/tensor_view.h"

namespace regolith::testing {

struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Values = std::vector<double>;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine_); }
  double normal() { return std::normal_distribution<double>()(engine_); }
  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }  // both inclusive
 private:
  std::mt19937_64 engine_;
};
using Fill = std::function<double(Random&)>;
Fill normal(double sigma = 1, double mean = 0);
Fill uniform(double low, double high);
Fill integers(int low, int high);  // both inclusive: sums of small integers are exact in every type
Fill constant(double value);

double round_to(DType t, double x);  // the value that an element of type t keeps of x

// |actual - expected| <= atol + rtol * |expected|; infinities must be equal, and NaN fails unless it is expected.
struct Tolerance {
  double atol = 0, rtol = 0;
};
inline constexpr Tolerance kExact{};
// Of a value stored as `t` that fp32 arithmetic summed from `terms` terms of about `magnitude`.
Tolerance tolerance(DType t, int64_t terms = 1, double magnitude = 1);
void expect_close(const std::string& what, const Values& actual, const Values& expected, Tolerance tolerance);

// Compares `gradient` with central differences of `loss` about `point`, at up to `most` coordinates spread evenly.
void expect_gradient(const std::string& what, const std::function<double(const Values&)>& loss, const Values& point,
                     const Values& gradient, double step = 1e-5, double rtol = 1e-5, int most = 24);

// A batch of maps of C channels in a parent that has `before` and `after` more of them.
struct Layout {
  int N = 1, H = 1, W = 1, C = 1;
  int before = 0, after = 0;
  size_t size() const { return static_cast<size_t>(N) * H * W * C; }
};

// Device memory between two guards. All that is not part of the map is NaN, and must stay as it is.
class Buffer {
 public:
  // `values` empty: starts poisoned (every byte 0xff, a NaN in each floating type).
  Buffer(Device& device, DeviceStream& stream, std::string name, Layout layout, DType dtype, Values values,
         bool writable);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const std::string& name() const { return name_; }
  bool writable() const { return writable_; }
  DType dtype() const { return dtype_; }
  const Values& values() const { return values_; }  // as first stored: rounded to the element type
  TensorView map() const;
  template <class T>
  T* as() const {
    return static_cast<T*>(map().data);
  }
  Values read() const;                                   // what the map holds now
  std::vector<unsigned char> read_bytes() const;         // the same with the parent and the guards
  void expect(const Values& expected, Tolerance) const;  // throws Mismatch
  void expect_untouched() const;                         // outside the map, and inside where it is an input
  void mark() { bytes_ = read_bytes(); }                 // what it holds now counts as what it held first
  void rewind();                                         // holds again what it held first

 private:
  size_t offset(size_t element) const;  // in bytes, of an element of the map
  void fence(bool closed) const;        // closed: AddressSanitizer reports accesses to the guards
  Device& device_;
  DeviceStream& stream_;
  std::string name_;
  Layout layout_;
  DType dtype_;
  Values values_;
  bool writable_;
  std::vector<unsigned char> bytes_;  // as first stored
  DeviceBuffer memory_;
};

// One device, one stream, one element type, one seed, and the buffers of one case.
class Fixture {
 public:
  // `shared`: a stream that several labs enqueue on, in place of one of its own.
  Fixture(Device& device, DType dtype, uint64_t seed, DeviceStream* shared = nullptr);
  ~Fixture();
  Device& device() { return device_; }
  DeviceStream& stream() { return stream_; }
  DType dtype() const { return dtype_; }
  Random& random() { return random_; }
  Values draw(size_t count, const Fill& fill, DType rounded_to);

  // References stay valid as long as the fixture. Element type: the fixture's, unless given.
  Buffer& input(std::string name, Layout, const Fill&, std::optional<DType> = {});
  Buffer& input(std::string name, Layout, Values, std::optional<DType> = {});
  Buffer& inout(std::string name, Layout, const Fill&, std::optional<DType> = {});  // holds values, may be written
  Buffer& inout(std::string name, Layout, Values, std::optional<DType> = {});
  Buffer& output(std::string name, Layout, std::optional<DType> = {});  // starts poisoned
  void* workspace(size_t bytes);                                        // starts poisoned; null for 0 bytes

  void expect_untouched() const;                      // all buffers
  void mark_workspaces();                             // after the case put into them what its kernel reads
  void rewind();                                      // all buffers and workspaces
  std::vector<std::vector<unsigned char>> written();  // the bytes of all that may be written, workspaces aside

 private:
  Device& device_;
  std::unique_ptr<DeviceStream> own_;
  DeviceStream& stream_;
  DType dtype_;
  Random random_;
  std::deque<Buffer> buffers_, workspaces_;
};

// A step counter in device memory.
inline const int64_t* step_in(Fixture& fixture, int64_t step) {
  return fixture.input("step", {1, 1, 1, 1}, Values{static_cast<double>(step)}, DType::i64).as<int64_t>();
}

}  // namespace regolith::testing
