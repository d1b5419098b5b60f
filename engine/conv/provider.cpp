#include "engine/conv/provider.h"

#include <sstream>

#include "engine/base/error.h"
#include "engine/conv/builtin.h"

namespace regolith {
namespace {

void check(std::string_view provider, const char* name, const ConvRequest& r, const TensorView& m, int H, int W,
           int C) {
  if (m.data != nullptr && m.whole() && m.dtype == r.type && m.N == r.shape.N && m.H == H && m.W == W && m.C == C)
    return;
  std::ostringstream text;
  text << "convolution " << to_string(r.shape) << " (" << provider << "): " << name << " must be a whole map "
       << r.shape.N << 'x' << H << 'x' << W << 'x' << C << ' ' << name_of(r.type) << ", not "
       << (m.data == nullptr ? "a null "
           : m.whole()       ? "a whole "
                             : "a slice ")
       << m.N << 'x' << m.H << 'x' << m.W << 'x' << m.C << ' ' << name_of(m.dtype) << " of pitch " << m.pitch
       << "; pack a slice first";
  throw KernelError(text.str());
}

}  // namespace

std::string to_string(const ConvShape& s) {
  std::ostringstream text;
  const auto pair = [&](const char* name, std::array<int, 2> v) {
    text << ' ' << name << ' ' << v[0];
    if (v[1] != v[0]) text << ',' << v[1];
  };
  text << s.N << 'x' << s.H << 'x' << s.W << 'x' << s.C << " -> " << s.K << ", " << s.R << 'x' << s.S;
  pair("stride", s.stride);
  if (s.dilation != std::array{1, 1}) pair("dilation", s.dilation);
  text << " pad " << s.pad_before[0] << ',' << s.pad_before[1] << ',' << s.pad_after[0] << ',' << s.pad_after[1];
  return text.str();
}

void check_x(std::string_view provider, const ConvRequest& r, const TensorView& x) {
  check(provider, "x", r, x, r.shape.H, r.shape.W, r.shape.C);
}
void check_y(std::string_view provider, const ConvRequest& r, const TensorView& y) {
  check(provider, "y", r, y, r.shape.P(), r.shape.Q(), r.shape.K);
}

}  // namespace regolith
