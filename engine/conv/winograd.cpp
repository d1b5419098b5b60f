#include "engine/conv/winograd.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "engine/conv/builtin.h"
#include "kernels/core/error.h"
#include "kernels/core/vec.h"

namespace regolith {
namespace {

using namespace kernels::fast;
constexpr int kL = kLanes<float>, kPanel = 2 * kL, kRows = 6;  // a register tile: 6 rows of two vectors
using V = Vec<kL>;

V operator-(const V& a, const V& b) { return fma(b, V(-1.0f), a); }

// out = B^T d along one axis, d four values apart by `step`
void input_axis(V* d, int step) {
  const V a = d[0] - d[2 * step], b = d[step] + d[2 * step], c = d[2 * step] - d[step], e = d[step] - d[3 * step];
  d[0] = a, d[step] = b, d[2 * step] = c, d[3 * step] = e;
}

// m (rows, ldm) = v (rows, C) * u (C, kPanel)
template <int Rows>
void multiply(const float* v, int C, const float* u, float* m, int ldm) {
  V a[Rows][2];
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) a[i][0] = a[i][1] = V(0.0f);
  for (int c = 0; c < C; ++c, u += kPanel) {
    const V u0 = load<V>(u), u1 = load<V>(u + kL);
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      const V f(v[static_cast<ptrdiff_t>(i) * C + c]);
      a[i][0] = fma(f, u0, a[i][0]);
      a[i][1] = fma(f, u1, a[i][1]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
    store(m + static_cast<ptrdiff_t>(i) * ldm, a[i][0]);
    store(m + static_cast<ptrdiff_t>(i) * ldm + kL, a[i][1]);
  }
}

// sums (Rows, ld) += v^T d over the tiles: v and d (tiles, kPanel)
template <int Rows>
void outer(const float* v, const float* d, int tiles, float* sums, int ld) {
  V a[Rows][2];
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
    a[i][0] = load<V>(sums + static_cast<ptrdiff_t>(i) * ld);
    a[i][1] = load<V>(sums + static_cast<ptrdiff_t>(i) * ld + kL);
  }
  for (int t = 0; t < tiles; ++t, v += kPanel, d += kPanel) {
    const V d0 = load<V>(d), d1 = load<V>(d + kL);
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      const V f(v[i]);
      a[i][0] = fma(f, d0, a[i][0]);
      a[i][1] = fma(f, d1, a[i][1]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
    store(sums + static_cast<ptrdiff_t>(i) * ld, a[i][0]);
    store(sums + static_cast<ptrdiff_t>(i) * ld + kL, a[i][1]);
  }
}

// Where a tile of 2x2 outputs lies.
struct Tile {
  int n, p, q;
  Tile(int index, int rows, int columns)
      : n(index / (rows * columns)), p(index / columns % rows * 2), q(index % columns * 2) {}
};

}  // namespace

int Winograd::Product::panels() const { return (K + kPanel - 1) / kPanel; }
int Winograd::Product::k_padded() const { return panels() * kPanel; }

Winograd::Product Winograd::product(int N, int H, int W, int C, int P, int Q, int K, int top, int left) {
  Product p{N, H, W, C, P, Q, K, top, left, 0};
  constexpr int cache = 256 * 1024;  // transformed tiles and their products stay in the second level
  p.block = std::clamp(cache / (16 * 4 * (C + p.k_padded())) / kRows, 4, 16) * kRows;
  return p;
}

Winograd::Winograd(const ConvShape& s, DType type, int threads)
    : shape_(s),
      type_(type),
      threads_(threads),
      forward_(product(s.N, s.H, s.W, s.C, s.P(), s.Q(), s.K, s.pad_before[0], s.pad_before[1])),
      dgrad_(product(s.N, s.P(), s.Q(), s.K, s.H, s.W, s.C, 2 - s.pad_before[0], 2 - s.pad_before[1])),
      zeros_(std::max(s.C, s.K), 0.0f) {
  // Larger blocks here: each one reads and writes all the sums.
  constexpr int cache = 512 * 1024;
  wgrad_block_ = std::clamp(cache / (16 * 4 * (dgrad_.k_padded() + forward_.k_padded())), 48, 96);
  if (wgrad_sums() > 512 * 1024) direct_wgrad_.emplace(s, type, threads);
}

size_t Winograd::packed_weights() const {
  return sizeof(float) * 16 *
         (static_cast<size_t>(shape_.C) * forward_.k_padded() + static_cast<size_t>(shape_.K) * dgrad_.k_padded());
}

size_t Winograd::wgrad_workspace() const {
  return direct_wgrad_ ? direct_wgrad_->workspace() : threads_ * wgrad_floats() * sizeof(float);
}

size_t Winograd::wgrad_floats() const {
  const size_t kp = forward_.k_padded();
  return 16 * (static_cast<size_t>(wgrad_block_) * (dgrad_.k_padded() + kp) + 2 * kSkew) + wgrad_sums() + kp;
}

// packed: u (16, panels of K, C, kPanel) of forward, then u (16, panels of C, K, kPanel) of dgrad, whose weights are
// turned by half a turn: that exchanges the first and last of the four transformed rows and columns.
void Winograd::pack(const void* w, float* packed) const {
  const int C = shape_.C, K = shape_.K, k_padded = forward_.k_padded(), c_padded = dgrad_.k_padded();
  const size_t f_plane = static_cast<size_t>(C) * k_padded, d_plane = static_cast<size_t>(K) * c_padded;
  float *f = packed, *d = packed + 16 * f_plane;
  const auto pack_as = [&]<class T>(const T* weights) {
#pragma omp parallel for num_threads(threads_) schedule(static)
    for (int k = 0; k < k_padded; ++k) {
      for (int c = 0; c < c_padded; c += kL) {
        V g[4][4];
        for (int i = 0; i < 9; ++i)
          g[i / 3][i % 3] = k < K && c < C ? load<V>(weights + (static_cast<size_t>(k) * 9 + i) * C + c) : V(0.0f);
        const auto axis = [](V& a, V& b, V& e, V& h) {
          const V half = (a + e) * V(0.5f), mid = b * V(0.5f);
          h = e, b = half + mid, e = half - mid;
        };
        for (int j = 0; j < 3; ++j) axis(g[0][j], g[1][j], g[2][j], g[3][j]);
        for (int i = 0; i < 4; ++i) axis(g[i][0], g[i][1], g[i][2], g[i][3]);
        for (int i = 0; i < 4; ++i) {
          for (int j = 0; j < 4; ++j) {
            const int turned = (i % 3 == 0 ? 3 - i : i) * 4 + (j % 3 == 0 ? 3 - j : j);
            if (k < K)
              store(d + turned * d_plane + (static_cast<size_t>(c / kPanel) * K + k) * kPanel + c % kPanel, g[i][j]);
            if (c >= C) continue;
            float* to = f + (i * 4 + j) * f_plane + (static_cast<size_t>(k / kPanel) * C + c) * kPanel + k % kPanel;
            for (int lane = 0; lane < kL; ++lane) to[lane * kPanel] = g[i][j][lane];
          }
        }
      }
    }
  };
  if (type_ == DType::f32)
    pack_as(static_cast<const float*>(w));
  else if (type_ == DType::bf16)
    pack_as(static_cast<const bf16*>(w));
  else
    pack_as(static_cast<const fp16*>(w));
}

// v = B^T d B of the 4x4 inputs of each tile: 16 planes of tiles, a tile's channels in panels
template <class T>
void Winograd::read_tiles(const Product& p, const T* in, const T* zeros, int first, int count, const Layout& to,
                          float* v) {
  for (int t = 0; t < count; ++t, v += to.tile) {
    const Tile tile(first + t, (p.P + 1) / 2, p.columns());
    const T* pixel[16];
    for (int i = 0; i < 16; ++i) {
      const int h = tile.p - p.top + i / 4, w = tile.q - p.left + i % 4;
      const bool inside = h >= 0 && h < p.H && w >= 0 && w < p.W;
      pixel[i] = inside ? in + ((static_cast<int64_t>(tile.n) * p.H + h) * p.W + w) * p.C : zeros;
    }
    for (int c = 0; c < p.C; c += kL) {
      V d[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) d[i] = load<V>(pixel[i] + c);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) input_axis(d + j, 4);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) input_axis(d + 4 * i, 1);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) store(v + i * to.plane + c / kPanel * to.panel + c % kPanel, d[i]);
    }
  }
}

template <class T>
void Winograd::run(const Product& p, const T* in, const float* u, const float* bias, bool relu, T* out,
                   float* workspace) const {
  const int tiles = p.tiles(), blocks = (tiles + p.block - 1) / p.block, k_padded = p.k_padded();
  const size_t v_plane = static_cast<size_t>(p.block) * p.C + kSkew;
  const size_t m_plane = static_cast<size_t>(p.block) * k_padded + kSkew;
  const size_t u_plane = static_cast<size_t>(p.C) * k_padded;
  const T* zeros = reinterpret_cast<const T*>(zeros_.data());
#pragma omp parallel num_threads(threads_)
  {
    float* const v = workspace + omp_get_thread_num() * p.floats();  // (16, block, C)
    float* const m = v + 16 * v_plane;                               // (16, block, k_padded)
    std::memset(v, 0, 16 * v_plane * sizeof(float));                 // the last block multiplies whole register tiles
#pragma omp for schedule(static)
    for (int b = 0; b < blocks; ++b) {
      const int first = b * p.block, count = std::min(p.block, tiles - first);
      read_tiles(p, in, zeros, first, count, {v_plane, kPanel, static_cast<size_t>(p.C)}, v);
      for (int i = 0; i < 16; ++i)
        for (int panel = 0; panel < p.panels(); ++panel)
          for (int t = 0; t < count; t += kRows)
            multiply<kRows>(v + i * v_plane + static_cast<size_t>(t) * p.C, p.C,
                            u + i * u_plane + static_cast<size_t>(panel) * p.C * kPanel,
                            m + i * m_plane + static_cast<size_t>(t) * k_padded + panel * kPanel, k_padded);
      for (int t = 0; t < count; ++t) {  // A^T m A, 2x2 pixels
        const Tile tile(first + t, (p.P + 1) / 2, p.columns());
        T* pixel = out + ((static_cast<int64_t>(tile.n) * p.P + tile.p) * p.Q + tile.q) * p.K;
        const bool right = tile.q + 1 < p.Q, below = tile.p + 1 < p.P;
        const int64_t line = static_cast<int64_t>(p.Q) * p.K;
        for (int k = 0; k < p.K; k += kL) {
          const float* from = m + static_cast<size_t>(t) * k_padded + k;
          V a[2][4];
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            const V m1 = load<V>(from + (4 + j) * m_plane), m2 = load<V>(from + (8 + j) * m_plane);
            a[0][j] = load<V>(from + j * m_plane) + m1 + m2;
            a[1][j] = m1 - m2 - load<V>(from + (12 + j) * m_plane);
          }
          const V shift = bias != nullptr ? load<V>(bias + k) : V(0.0f);
          const auto finish = [&](V y) { return relu ? max(y + shift, V(0.0f)) : y + shift; };
          T* o = pixel + k;
          store(o, finish(a[0][0] + a[0][1] + a[0][2]));
          if (right) store(o + p.K, finish(a[0][1] - a[0][2] - a[0][3]));
          if (below) store(o + line, finish(a[1][0] + a[1][1] + a[1][2]));
          if (right && below) store(o + line + p.K, finish(a[1][1] - a[1][2] - a[1][3]));
        }
      }
    }
  }
}

// dw = G^T (sum over tiles of (B^T x B) (A dy A^T)) G
template <class T>
void Winograd::run_wgrad(const T* x, const T* dy, float* dw, float* db, bool accumulate, float* workspace) const {
  const Product& p = forward_;
  const int C = p.C, K = p.K, tiles = p.tiles(), block = wgrad_block_, blocks = (tiles + block - 1) / block;
  const int k_padded = p.k_padded();
  const size_t panel = static_cast<size_t>(block) * kPanel, v_plane = dgrad_.panels() * panel + kSkew;
  const size_t d_plane = p.panels() * panel + kSkew;
  const size_t plane = static_cast<size_t>(C) * k_padded, each = wgrad_floats();
  const T* zeros = reinterpret_cast<const T*>(zeros_.data());
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int part = 0; part < threads_; ++part) {
    float* const sums = workspace + part * each;  // (16, C, k_padded)
    float* const total = sums + 16 * plane;       // (k_padded)
    float* const v = total + k_padded;            // (16, panels of C, block, kPanel)
    float* const d = v + 16 * v_plane;            // (16, panels of K, block, kPanel)
    std::memset(sums, 0, each * sizeof(float));
    const int begin = static_cast<int>(static_cast<int64_t>(blocks) * part / threads_);
    const int end = static_cast<int>(static_cast<int64_t>(blocks) * (part + 1) / threads_);
    for (int b = begin; b < end; ++b) {
      const int first = b * block, count = std::min(block, tiles - first);
      read_tiles(p, x, zeros, first, count, {v_plane, panel, kPanel}, v);
      for (int t = 0; t < count; ++t) {
        const Tile tile(first + t, (p.P + 1) / 2, p.columns());
        const T* pixel = dy + ((static_cast<int64_t>(tile.n) * p.P + tile.p) * p.Q + tile.q) * K;
        const bool right = tile.q + 1 < p.Q, below = tile.p + 1 < p.P;
        const int64_t line = static_cast<int64_t>(p.Q) * K;
        const T *p01 = right ? pixel + K : zeros, *p10 = below ? pixel + line : zeros;
        const T* p11 = right && below ? pixel + line + K : zeros;
        for (int k = 0; k < K; k += kL) {
          const V y00 = load<V>(pixel + k), y01 = load<V>(p01 + k), y10 = load<V>(p10 + k), y11 = load<V>(p11 + k);
          store(total + k, load<V>(total + k) + ((y00 + y01) + (y10 + y11)));
          float* to = d + k / kPanel * panel + t * kPanel + k % kPanel;
          const auto row = [&](int i, const V& a, const V& e) {  // (a, e) A^T
            store(to + (4 * i) * d_plane, a);
            store(to + (4 * i + 1) * d_plane, a + e);
            store(to + (4 * i + 2) * d_plane, a - e);
            store(to + (4 * i + 3) * d_plane, V(0.0f) - e);
          };
          row(0, y00, y01);
          row(1, y00 + y10, y01 + y11);
          row(2, y00 - y10, y01 - y11);
          row(3, V(0.0f) - y10, V(0.0f) - y11);
        }
      }
      for (int i = 0; i < 16; ++i) {
        for (int kp = 0; kp < p.panels(); ++kp) {
          const float* e = d + i * d_plane + kp * panel;
          for (int c = 0; c < C;) {
            const float* a = v + i * v_plane + c / kPanel * panel + c % kPanel;
            float* to = sums + i * plane + static_cast<size_t>(c) * k_padded + kp * kPanel;
            const int left = std::min(C, (c / kPanel + 1) * kPanel) - c;  // of the panel
            const auto product = left >= 6 ? outer<6> : left >= 4 ? outer<4> : outer<2>;
            product(a, e, count, to, k_padded);
            c += left >= 6 ? 6 : left >= 4 ? 4 : 2;
          }
        }
      }
    }
  }
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int c = 0; c < C; ++c) {
    for (int k = 0; k < K; k += kL) {
      V m[4][4];
      for (int i = 0; i < 16; ++i) {
        const float* from = workspace + i * plane + static_cast<size_t>(c) * k_padded + k;
        m[i / 4][i % 4] = load<V>(from);
        for (int part = 1; part < threads_; ++part) m[i / 4][i % 4] += load<V>(from + part * each);
      }
      const auto axis = [](V& a, V& b, V& e, const V& h) {  // G^T
        const V sum = (b + e) * V(0.5f), difference = (b - e) * V(0.5f);
        a = a + sum, b = difference, e = sum + h;
      };
      for (int j = 0; j < 4; ++j) axis(m[0][j], m[1][j], m[2][j], m[3][j]);
      for (int i = 0; i < 3; ++i) axis(m[i][0], m[i][1], m[i][2], m[i][3]);
      for (int i = 0; i < 9; ++i) {
        for (int lane = 0; lane < kL; ++lane) {
          float& to = dw[(static_cast<size_t>(k + lane) * 9 + i) * C + c];
          to = accumulate ? to + m[i / 3][i % 3][lane] : m[i / 3][i % 3][lane];
        }
      }
    }
  }
  if (db == nullptr) return;
  for (int k = 0; k < K; ++k) {
    float sum = 0;
    for (int part = 0; part < threads_; ++part) sum += workspace[part * each + 16 * plane + k];
    db[k] = accumulate ? db[k] + sum : sum;
  }
}

void Winograd::forward(const void* x, const float* packed, const float* bias, bool relu, void* y,
                       float* workspace) const {
  const auto as = [&]<class T>(T) {
    run(forward_, static_cast<const T*>(x), packed, bias, relu, static_cast<T*>(y), workspace);
  };
  type_ == DType::f32 ? as(float{}) : type_ == DType::bf16 ? as(bf16{}) : as(fp16{});
}

void Winograd::dgrad(const void* dy, const float* packed, void* dx, float* workspace) const {
  const float* u = packed + static_cast<size_t>(16) * shape_.C * forward_.k_padded();
  const auto as = [&]<class T>(T) {
    run(dgrad_, static_cast<const T*>(dy), u, nullptr, false, static_cast<T*>(dx), workspace);
  };
  type_ == DType::f32 ? as(float{}) : type_ == DType::bf16 ? as(bf16{}) : as(fp16{});
}

void Winograd::wgrad(const void* x, const void* dy, float* dw, float* db, bool accumulate, float* workspace) const {
  if (direct_wgrad_) return direct_wgrad_->run(x, dy, dw, db, accumulate, workspace);
  const auto as = [&]<class T>(T) {
    run_wgrad(static_cast<const T*>(x), static_cast<const T*>(dy), dw, db, accumulate, workspace);
  };
  type_ == DType::f32 ? as(float{}) : type_ == DType::bf16 ? as(bf16{}) : as(fp16{});
}

namespace {

class WinogradConvolution : public Convolution {
 public:
  explicit WinogradConvolution(const ConvRequest& request)
      : request_(request),
        winograd_(std::make_shared<const Winograd>(request.shape, request.type, omp_get_max_threads())) {}
  std::string_view provider() const override { return "winograd"; }
  std::string implementation() const override {
    return winograd_->wgrad_is_direct() ? "F(2x2, 3x3), wgrad direct" : "F(2x2, 3x3)";
  }
  size_t forward_workspace() const override { return winograd_->forward_workspace(); }
  size_t dgrad_workspace() const override { return winograd_->dgrad_workspace(); }
  size_t wgrad_workspace() const override { return winograd_->wgrad_workspace(); }
  size_t packed_weights() const override { return winograd_->packed_weights(); }

  void pack_weights(DeviceStream& stream, const void* w, void* packed) override {
    stream.enqueue("winograd_pack", [c = winograd_, w, to = static_cast<float*>(packed)] { c->pack(w, to); });
  }
  void forward(DeviceStream& stream, const Map& x, const void*, const void* packed, const float* bias, const Map& y,
               void* workspace) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, y);
    stream.enqueue("winograd_forward", [c = winograd_, x = x.data, u = static_cast<const float*>(packed),
                                        relu = request_.relu, bias = request_.bias ? bias : nullptr, y = y.data,
                                        ws = static_cast<float*>(workspace)] { c->forward(x, u, bias, relu, y, ws); });
  }
  void dgrad(DeviceStream& stream, const Map& dy, const void*, const void* packed, const Map& dx, void* workspace,
             const DgradEpilogue&) override {
    check_x(provider(), request_, dx);
    check_y(provider(), request_, dy);
    stream.enqueue("winograd_dgrad", [c = winograd_, dy = dy.data, u = static_cast<const float*>(packed), dx = dx.data,
                                      ws = static_cast<float*>(workspace)] { c->dgrad(dy, u, dx, ws); });
  }
  void wgrad(DeviceStream& stream, const Map& x, const Map& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, dy);
    stream.enqueue("winograd_wgrad",
                   [c = winograd_, x = x.data, dy = dy.data, dw, db, accumulate, ws = static_cast<float*>(workspace)] {
                     c->wgrad(x, dy, dw, db, accumulate, ws);
                   });
  }

 private:
  ConvRequest request_;
  std::shared_ptr<const Winograd> winograd_;
};

struct WinogradProvider : ConvProvider {
  std::string_view name() const override { return "winograd"; }
  std::variant<std::unique_ptr<Convolution>, Refusal> create(Device& device, const ConvRequest& request) override {
    const ConvShape& s = request.shape;
    if (device.kind() != DeviceKind::cpu) return Refusal{"runs on the CPU only"};
    if (request.type != DType::f32 && request.type != DType::bf16 && request.type != DType::f16)
      return Refusal{"takes fp32, bf16 and fp16, not " + std::string(name_of(request.type))};
    constexpr std::array one{1, 1};
    if (s.R != 3 || s.S != 3 || s.stride != one || s.dilation != one) return Refusal{"takes 3x3 of stride 1 undilated"};
    if (s.C % kL != 0 || s.K % kL != 0) return Refusal{"takes channels in multiples of " + std::to_string(kL)};
    if (std::max(s.pad_before[0], s.pad_before[1]) > 2) return Refusal{"takes paddings of at most 2"};
    if (s.P() < 1 || s.Q() < 1) return Refusal{"the output would be empty"};
    return std::make_unique<WinogradConvolution>(request);
  }
};

}  // namespace

ConvProvider& winograd_provider() {
  static WinogradProvider provider;
  return provider;
}

}  // namespace regolith
