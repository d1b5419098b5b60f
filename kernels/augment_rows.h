// The rows of an augmented picture, for sample.cu: each operation is a pass over a row in shared memory. A block makes
// a tile of neighbouring rows and columns of one sample; a blur keeps the last rows, blurred sideways, in a ring.
//
// A thread treats kPixels neighbours at once: 16 or 8 on the fast host, one elsewhere. Rows in shared memory have room
// for that many more, so that no pass has a tail but the last, which writes the map.
#pragma once

#include "kernels/augment.h"
#include "kernels/core/collectives.h"
#include "kernels/core/math.h"
#include "kernels/core/philox_lanes.h"
#include "kernels/sample.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kPixels = REGOLITH_VECTOR_EXTENSION ? kLanes<float> : 1;
using Pixels = Vec<kPixels>;

// What a block keeps in shared memory, for options and maps of these sizes.
struct AugmentSizes {
  int columns;  // of a tile
  int radius;   // the largest of the blur
  int channels;
  int nodes;    // of a row of the elastic field, in a tile with the blur's halo; 0: no field
  int spacing;  // of the field
  bool noise;

  REGOLITH_HOST_DEVICE AugmentSizes(const Augment& a, int W, int C) : channels(C) {
    const int most = 256 / C / 16 * 16 > 16 ? 256 / C / 16 * 16 : 16;
    columns = W < most ? W : most;
    const float reach = 3 * a.blur.sigma;
    radius = a.blur.on ? static_cast<int>(reach) + (reach > static_cast<float>(static_cast<int>(reach))) : 0;
    spacing = elastic_spacing(a.elastic);
    nodes = a.elastic.on ? (columns + 2 * radius) / spacing + 6 : 0;
    noise = a.noise.on;
  }
};
inline constexpr int kGrain = 64;  // values of a row whose noise is drawn together

// What was drawn for a sample, and what follows from it.
struct AugmentPlan {
  AugmentDraw draw;
  SampleKey key;
  Affine maps[3];  // of the picture itself, and of the partners of cutmix and copy_paste
  const uint8_t* image[3];
  const uint8_t* mask[3];                              // null: no sample has one
  int radius;                                          // of the blur
  float weights[static_cast<int>(3 * kMostBlur) + 1];  // of the blur, from the middle outwards
};

struct AugmentMemory {
  AugmentPlan* plan;
  float* raw;             // (columns + 2 radius, C): a row of the picture, with the blur's halo
  float* ring;            // (2 radius + 1, columns * C)
  float* row;             // (columns, C): a blurred row
  float* grain;           // a row's noise, from the kGrain values on that its first is one of
  uint8_t* classes;       // (columns + 2 radius)
  float* means;           // (C) of the stored picture
  float* field[2];        // (columns + 2 radius) displacements in x and y
  float* nodes[2];        // (4, nodes) of the field: row i in i % 4
  float* joined[2];       // (nodes) a row of nodes between theirs
  float* spline;          // (4, spacing) weights of four nodes, by the place between the inner two
  uint32_t* scratch;      // for a sum
  int width, ring_width;  // floats of a row
  template <class A>
  REGOLITH_HOST_DEVICE AugmentMemory(A& a, const AugmentSizes& s) {
    const int wide = s.columns + 2 * s.radius;
    width = wide * s.channels + kPixels * s.channels;
    ring_width = s.columns * s.channels + kPixels;
    a.take(plan, 1);
    a.take(raw, width);
    a.take(ring, s.radius > 0 ? (2 * s.radius + 1) * ring_width : 1);
    a.take(row, s.radius > 0 ? ring_width : 1);
    a.take(grain, s.noise ? wide * s.channels + 2 * kGrain + kPixels : 1);
    a.take(classes, wide + kPixels);
    a.take(means, s.channels);
    a.take_each(s.nodes > 0 ? wide + kPixels : 1, field[0], field[1]);
    a.take_each(s.nodes > 0 ? 4 * s.nodes : 1, nodes[0], nodes[1]);
    a.take_each(s.nodes > 0 ? s.nodes : 1, joined[0], joined[1]);
    a.take(spline, s.nodes > 0 ? 4 * s.spacing : 1);
    a.take(scratch, kReduceScratch);
  }
};

// Of the vectors of `n` values, those that this thread treats.
template <class F>
__device__ __forceinline__ void for_each_vector(int n, F&& f) {
  for (int i = static_cast<int>(threadIdx.x) * kPixels; i < n; i += static_cast<int>(blockDim.x) * kPixels) f(i);
}
__device__ __forceinline__ Pixels first_numbers(float from) {  // from, from + 1, ...
  Pixels r;
  for (int l = 0; l < kPixels; ++l) r.set(l, static_cast<float>(l));
  return r + Pixels(from);
}
__device__ __forceinline__ Pixels clip(const Pixels& grey) { return min(max(grey, Pixels(0)), Pixels(255)); }

// The pixel of 0..n-1 that stands at place i of the extended line, whole numbers of less than 2^22; of `constant`, the
// nearest one.
__device__ __forceinline__ Pixels extend(const Pixels& i, int n, Fill fill) {
  const Pixels last(static_cast<float>(n - 1));
  if (fill == Fill::nearest || fill == Fill::constant) return min(max(i, Pixels(0)), last);
  const float length = static_cast<float>(fill == Fill::wrap ? n : 2 * n);
  const Pixels period(length);
  Pixels p = i - floor(i * Pixels(1 / length)) * period;  // off by a period where the product was rounded
  p = select(p < Pixels(0), p + period, p);
  p = select(p >= period, p - period, p);
  return fill == Fill::wrap ? p : min(p, period - Pixels(1) - p);
}
__device__ __forceinline__ int extend(int i, int n) {  // by reflection
  const int period = 2 * n, r = i % period, p = r < 0 ? r + period : r;
  return p < n ? p : period - 1 - p;
}

// The values of one or two bytes at base + place, whole numbers of at most 2^24.
template <class T>
__device__ __forceinline__ void fetch(const uint8_t* base, const Pixels& place, T (&values)[kPixels]) {
  int32_t at[kPixels];
#if REGOLITH_VECTOR_EXTENSION
  const auto whole = __builtin_convertvector(place.v, detail::Lanes<int32_t, kPixels>);
  std::memcpy(at, &whole, sizeof whole);
  asm volatile("" : "+m"(at));  // g++ would take the lanes out of the register, one after the other
#else
  at[0] = static_cast<int32_t>(place[0]);
#endif
  for (int l = 0; l < kPixels; ++l) memcpy(&values[l], base + at[l], sizeof(T));
}
#if REGOLITH_VECTOR_EXTENSION
using WholePixels = detail::Lanes<int32_t, kPixels>;
template <class T>
__device__ __forceinline__ WholePixels whole_pixels(const T (&values)[kPixels]) {
  detail::Lanes<T, kPixels> v;
  std::memcpy(&v, values, sizeof v);
  return __builtin_convertvector(v, WholePixels);
}
__device__ __forceinline__ Pixels to_pixels(const WholePixels& whole) {
  Pixels r;
  r.v = __builtin_convertvector(whole, detail::Lanes<float, kPixels>);
  return r;
}
#endif
__device__ __forceinline__ Pixels fetch_bytes(const uint8_t* base, const Pixels& place) {
  uint8_t bytes[kPixels];
  fetch(base, place, bytes);
#if REGOLITH_VECTOR_EXTENSION
  return to_pixels(whole_pixels(bytes));
#else
  return Pixels(static_cast<float>(bytes[0]));
#endif
}

// The weights of four nodes of a cubic B-spline at `spacing` places between the inner two.
__device__ __forceinline__ void fill_spline(int spacing, float* weights) {
  for (int i = static_cast<int>(threadIdx.x); i < spacing; i += static_cast<int>(blockDim.x)) {
    const float t = static_cast<float>(i) / static_cast<float>(spacing), s = 1 - t;
    weights[i] = s * s * s / 6;
    weights[i + spacing] = (3 * t * t * (t - 2) + 4) / 6;
    weights[i + 2 * spacing] = (3 * s * s * (s - 2) + 4) / 6;
    weights[i + 3 * spacing] = t * t * t / 6;
  }
}

// One pixel in each lane: its place in the input.
struct Places {
  Pixels x, y;
};
__device__ __forceinline__ Places places_of(const Affine& a, const Pixels& x, const Pixels& y) {
  return {fma(Pixels(a.xx), x, fma(Pixels(a.xy), y, Pixels(a.x0))),
          fma(Pixels(a.yx), x, fma(Pixels(a.yy), y, Pixels(a.y0)))};
}

// Which of 0..n-1 stand there, and in `inside` 1 or, where the fill's constant does, 0.
struct Line {
  Pixels at, inside;
  __device__ __forceinline__ Line(const Pixels& i, int n, Fill fill) : at(extend(i, n, fill)) {
    inside = fill == Fill::constant ? select(at == i, Pixels(1), Pixels(0)) : Pixels(1);
  }
};

// Between the four pixels about each place, channel by channel: store(c, grey levels).
template <class Store>
__device__ __forceinline__ void bilinear(const uint8_t* image, int H, int W, int C, const Augment& a,
                                         const Places& place, Store&& store) {
  const Pixels left = floor(place.x), top = floor(place.y), wx = place.x - left, wy = place.y - top;
  const Line x0(left, W, a.fill), x1(left + Pixels(1), W, a.fill), y0(top, H, a.fill), y1(top + Pixels(1), H, a.fill);
  const Pixels fill(a.fill_value);
  const auto between = [&](Pixels a0, Pixels b0, Pixels a1, Pixels b1) {
    if (a.fill == Fill::constant) {
      const auto filled = [&](const Pixels& grey, const Line& x, const Line& y) {
        return fma(x.inside * y.inside, grey - fill, fill);
      };
      a0 = filled(a0, x0, y0), b0 = filled(b0, x1, y0), a1 = filled(a1, x0, y1), b1 = filled(b1, x1, y1);
    }
    const Pixels upper = fma(wx, b0 - a0, a0), lower = fma(wx, b1 - a1, a1);
    return fma(wy, lower - upper, upper);
  };
  const Pixels row(static_cast<float>(W * C)), column(static_cast<float>(C));
  const Pixels upper = y0.at * row, lower = y1.at * row;
#if REGOLITH_VECTOR_EXTENSION
  if (C == 1 && W > 1 && a.fill != Fill::wrap) {  // two neighbours at once: x0 and x1 differ by one, or not at all
    const Pixels pair = min(min(x0.at, x1.at), Pixels(static_cast<float>(W - 2)));
    const auto read = [&](const Pixels& line, Pixels& a, Pixels& b) {
      uint16_t pairs[kPixels];
      fetch(image, line + pair, pairs);
      const WholePixels words = whole_pixels(pairs);
      const Pixels first = to_pixels(words & 255), second = to_pixels(words >> 8);
      a = select(x0.at > pair, second, first);
      b = select(x1.at > pair, second, first);
    };
    Pixels a0, b0, a1, b1;
    read(upper, a0, b0);
    read(lower, a1, b1);
    return store(0, between(a0, b0, a1, b1));
  }
#endif
  const Pixels left_at = x0.at * column, right_at = x1.at * column;
  for (int c = 0; c < C; ++c) {
    const auto corner = [&](const Pixels& line, const Pixels& at) { return fetch_bytes(image + c, line + at); };
    store(c, between(corner(upper, left_at), corner(upper, right_at), corner(lower, left_at), corner(lower, right_at)));
  }
}

// The class of the pixel nearest to each place, halves away from zero.
__device__ __forceinline__ void nearest_classes(const uint8_t* mask, int H, int W, const Augment& a,
                                                const Places& place, uint8_t (&classes)[kPixels]) {
  const auto nearest = [](const Pixels& v) {
    const Pixels t = trunc(v), rest = v - t, one(1), zero(0);
    return t + select(rest >= Pixels(0.5f), one, zero) - select(Pixels(-0.5f) >= rest, one, zero);
  };
  const Fill fill = static_cast<Fill>(a.mask_fill);
  const Line x(nearest(place.x), W, fill), y(nearest(place.y), H, fill);
  fetch(mask, fma(y.at, Pixels(static_cast<float>(W)), x.at), classes);
  if (fill != Fill::constant) return;
  const Pixels inside = x.inside * y.inside;
  for (int l = 0; l < kPixels; ++l)
    if (inside[l] == 0) classes[l] = static_cast<uint8_t>(a.mask_fill_value);
}

// A tile of a sample. All threads of the block call its functions, with the same arguments.
struct AugmentTile {
  const SampleBatch& k;
  const AugmentSizes& sizes;
  const AugmentMemory& memory;
  const AugmentPlan& plan;
  int left, right;    // columns of the tile
  int base;           // the column of memory.raw[0]: left without the blur's halo
  int lo, hi;         // columns that are made: those of the halo that the picture has
  int nodes_at = -8;  // the row of nodes that the last row of the field began with

  __device__ __forceinline__ AugmentTile(const SampleBatch& batch, const AugmentSizes& s, const AugmentMemory& m,
                                         int first)
      : k(batch), sizes(s), memory(m), plan(*m.plan), left(first) {
    right = left + s.columns < k.x.W ? left + s.columns : k.x.W;
    base = left - plan.radius;
    lo = base > 0 ? base : 0;
    hi = right + plan.radius < k.x.W ? right + plan.radius : k.x.W;
  }
  __device__ __forceinline__ float* raw_at(int column) const { return memory.raw + (column - base) * k.x.C; }
  __device__ __forceinline__ uint8_t* class_at(int column) const { return memory.classes + (column - base); }

  // The field over row y.
  __device__ __forceinline__ void displace(int y) {
    const int spacing = sizes.spacing, row = y / spacing, first = lo / spacing, count = (hi - 1) / spacing - first + 4;
    const int all = (k.x.W - 1) / spacing + 4;  // nodes of a row of the whole picture
    const float deviation = elastic_node_deviation(k.augment.elastic);
    const int from = nodes_at == row ? row + 4 : nodes_at == row - 1 ? row + 3 : row;
    for (int i = from; i < row + 4; ++i) {
      for (int j = static_cast<int>(threadIdx.x); j < count; j += static_cast<int>(blockDim.x)) {
        const Philox p = philox(plan.key.seed, plan.key.epoch, plan.key.position,
                                static_cast<uint32_t>(i * all + first + j), kElasticStream);
        Vec<1> sine, cosine;
        sincos_turns(Vec<1>(uniform(p.v[1])), sine, cosine);
        const float length = deviation * sqrtf(-2 * logf(1 - uniform(p.v[0])));
        memory.nodes[0][i % 4 * sizes.nodes + j] = length * cosine[0];
        memory.nodes[1][i % 4 * sizes.nodes + j] = length * sine[0];
      }
    }
    nodes_at = row;
    sync_block();
    const float* w = memory.spline + y % spacing;
    for (int d = 0; d < 2; ++d) {
      for (int j = static_cast<int>(threadIdx.x); j < count; j += static_cast<int>(blockDim.x)) {
        float sum = 0;
        for (int i = 0; i < 4; ++i) sum += w[i * spacing] * memory.nodes[d][(row + i) % 4 * sizes.nodes + j];
        memory.joined[d][j] = sum;
      }
    }
    sync_block();
    for (int d = 0; d < 2; ++d) {
      const auto between = [&](const float* nodes, int place) {
        const float* v = memory.spline + place;
        return v[0] * nodes[0] + v[spacing] * nodes[1] + v[2 * spacing] * nodes[2] + v[3 * spacing] * nodes[3];
      };
      float* out = memory.field[d] - base;
      if constexpr (kWarp == 1) {  // whole stretches between nodes, as vectors
        for (int j = 0; j < count - 3; ++j) {
          const int begin = (first + j) * spacing, start = begin > lo ? begin : lo;
          const int end = begin + spacing < hi ? begin + spacing : hi;
          for (int x = start; x < end; ++x) out[x] = between(memory.joined[d] + j, x - begin);
        }
        for (int x = hi; x < hi + kPixels; ++x) out[x] = 0;  // vectors read on
      } else {
        for (int x = lo + static_cast<int>(threadIdx.x); x < hi; x += static_cast<int>(blockDim.x))
          out[x] = between(memory.joined[d] + x / spacing - first, x % spacing);
      }
    }
    sync_block();
  }

  __device__ __forceinline__ Places source(int picture, int column, int y) const {
    Pixels x = first_numbers(static_cast<float>(column)), v(static_cast<float>(y));
    if (plan.draw.elastic) {
      x += load<Pixels>(memory.field[0] + (column - base));
      v += load<Pixels>(memory.field[1] + (column - base));
    }
    return places_of(plan.maps[picture], x, v);
  }
  __device__ __forceinline__ void put(int column, int c, const Pixels& grey) const {
    float* const at = raw_at(column) + c;
    if (k.x.C == 1) return store(at, grey);
    for (int l = 0; l < kPixels; ++l) at[l * k.x.C] = grey[l];
  }

  // Columns begin..end of row y of one of the pictures. What stands behind them is written over.
  __device__ __forceinline__ void sample(int picture, int begin, int end, int y) const {
    for_each_vector(end - begin, [&](int i) {
      const int column = begin + i;
      const Places place = source(picture, column, y);
      bilinear(plan.image[picture], k.x.H, k.x.W, k.x.C, k.augment, place,
               [&](int c, const Pixels& grey) { put(column, c, grey); });
      if (plan.mask[picture] == nullptr) return;
      uint8_t classes[kPixels];
      nearest_classes(plan.mask[picture], k.x.H, k.x.W, k.augment, place, classes);
      memcpy(class_at(column), classes, kPixels);
    });
  }

  // Where row y of the third picture shows the class that is pasted, it takes the place of what is there.
  __device__ __forceinline__ void paste(int y) const {
    for_each_vector(hi - lo, [&](int i) {
      const int column = lo + i;
      const Places place = source(2, column, y);
      uint8_t classes[kPixels];
      nearest_classes(plan.mask[2], k.x.H, k.x.W, k.augment, place, classes);
      bool any = false;
      for (int l = 0; l < kPixels; ++l) any |= classes[l] == k.augment.copy_paste.class_id && column + l < hi;
      if (!any) return;
      bilinear(plan.image[2], k.x.H, k.x.W, k.x.C, k.augment, place, [&](int c, const Pixels& grey) {
        for (int l = 0; l < kPixels; ++l)
          if (classes[l] == k.augment.copy_paste.class_id) raw_at(column)[l * k.x.C + c] = grey[l];
      });
      for (int l = 0; l < kPixels; ++l)
        if (classes[l] == k.augment.copy_paste.class_id) class_at(column)[l] = classes[l];
    });
  }

  __device__ __forceinline__ void tones() const {
    const AugmentDraw& d = plan.draw;
    const int C = k.x.C;
    for_each_vector((hi - lo) * C, [&](int i) {
      float* const at = raw_at(lo) + i;
      Pixels grey = load<Pixels>(at);
      if (d.brightness != 0) grey = clip(grey + Pixels(d.brightness));
      if (d.contrast != 1) {
        Pixels mean(memory.means[0]);
        if (C > 1)
          for (int l = 0; l < kPixels; ++l) mean.set(l, memory.means[(i + l) % C]);
        mean = clip(mean + Pixels(d.brightness));
        grey = clip(fma(grey - mean, Pixels(d.contrast), mean));
      }
      if (d.gamma != 1) grey = Pixels(255) * exp(Pixels(d.gamma) * log(grey * Pixels(1.0f / 255)));
      store(at, grey);
    });
    sync_block();
  }

  // Normal numbers for the values of row y. kGrain of them take the words of 16 counters: value g + 16 w of the grain
  // the w-th of counter g, as Box and Muller make two of two ("A note on the generation of random normal deviates",
  // 1958).
  __device__ __forceinline__ void draw_grain(int y) const {
    constexpr int kCounters = kGrain / 4;
    const int first = lo * k.x.C / kGrain, last = (hi * k.x.C - 1) / kGrain;
    const int row = (k.x.W * k.x.C + kGrain - 1) / kGrain * kCounters * y;  // counters of the rows above
    const auto place = [&](int grain, int counter) { return memory.grain + (grain - first) * kGrain + counter; };
#if REGOLITH_VECTOR_EXTENSION
    constexpr int kSets = kCounters / kPhiloxLanes;
    using V = Vec<kPhiloxLanes>;
    PhiloxLanes lane;
    for (int l = 0; l < kPhiloxLanes; ++l) lane[l] = static_cast<uint64_t>(l);
    for (int g = first; g <= last; ++g) {
      PhiloxLanes c[4][kSets];
      for (int s = 0; s < kSets; ++s) {
        c[0][s] = PhiloxLanes{} + plan.key.epoch;
        c[1][s] = PhiloxLanes{} + plan.key.position;
        c[2][s] = lane + static_cast<uint64_t>(row + g * kCounters + s * kPhiloxLanes);
        c[3][s] = PhiloxLanes{} + kNoiseStream;
      }
      philox_lanes(plan.key.seed, c[0], c[1], c[2], c[3], kDropoutRounds);
      const auto fraction = [](const PhiloxLanes& words) {
        V r;
        r.v = __builtin_convertvector(
                  __builtin_convertvector((words & 0xffffffff) >> 8, detail::Lanes<int32_t, kPhiloxLanes>),
                  detail::Lanes<float, kPhiloxLanes>) *
              0x1p-24f;
        return r;
      };
      for (int s = 0; s < kSets; ++s) {
        for (int w = 0; w < 4; w += 2) {
          V sine, cosine;
          sincos_turns(fraction(c[w + 1][s]), sine, cosine);
          const V length = sqrt(V(-2) * log(V(1) - fraction(c[w][s])));
          store(place(g, s * kPhiloxLanes) + 16 * w, length * cosine);
          store(place(g, s * kPhiloxLanes) + 16 * (w + 1), length * sine);
        }
      }
    }
#else
    for (int i = static_cast<int>(threadIdx.x); i < (last - first + 1) * kCounters; i += static_cast<int>(blockDim.x)) {
      const int g = first + i / kCounters, counter = i % kCounters;
      const Philox p = philox(plan.key.seed, plan.key.epoch, plan.key.position,
                              static_cast<uint32_t>(row + g * kCounters + counter), kNoiseStream, kDropoutRounds);
      REGOLITH_UNROLL
      for (int w = 0; w < 4; w += 2) {
        Vec<1> sine, cosine;
        sincos_turns(Vec<1>(uniform(p.v[w + 1])), sine, cosine);
        const float length = sqrtf(-2 * logf(1 - uniform(p.v[w])));
        place(g, counter)[16 * w] = length * cosine[0];
        place(g, counter)[16 * (w + 1)] = length * sine[0];
      }
    }
#endif
    sync_block();
  }
  __device__ __forceinline__ void add_noise(int y) const {
    draw_grain(y);
    const float* const grain = memory.grain + lo * k.x.C % kGrain;
    for_each_vector((hi - lo) * k.x.C, [&](int i) {
      float* const at = raw_at(lo) + i;
      store(at, clip(fma(Pixels(plan.draw.noise), load<Pixels>(grain + i), load<Pixels>(at))));
    });
    sync_block();
  }

  // Row y up to the blur: grey levels in raw, classes.
  __device__ __forceinline__ void make(int y) {
    const AugmentDraw& d = plan.draw;
    sync_block();  // the row before may still be read
    if (d.elastic) displace(y);
    const Box& box = d.cutmix_box;
    const float fy = static_cast<float>(y);
    int from = hi, to = hi;  // columns of the partner
    if (d.partners.cutmix && fy >= box.y0 && fy < box.y1) {
      const int b = static_cast<int>(ceilf(box.x0)), e = static_cast<int>(ceilf(box.x1));
      from = b < lo ? lo : b > hi ? hi : b;
      to = e < lo ? lo : e > hi ? hi : e;
    }
    sample(0, lo, from, y);
    sample(1, from, to, y);
    sample(0, to, hi, y);
    sync_block();
    if (d.partners.paste) {
      paste(y);
      sync_block();
    }
    if (d.tones()) tones();
    if (d.noise > 0) add_noise(y);
  }

  // Puts row y, blurred sideways, into the ring.
  __device__ __forceinline__ void blur_sideways(int y) const {
    const int C = k.x.C, r = plan.radius;
    for (int side = 0; side < 2; ++side) {  // beyond the picture: reflected
      const int begin = side == 0 ? base : hi, end = side == 0 ? lo : right + r;
      for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * C; i += static_cast<int>(blockDim.x))
        raw_at(begin)[i] = raw_at(extend(begin + i / C, k.x.W))[i % C];
    }
    sync_block();
    float* const out = memory.ring + y % (2 * sizes.radius + 1) * memory.ring_width;
    for_each_vector((right - left) * C, [&](int i) {
      const float* const middle = raw_at(left) + i;
      Pixels sum = Pixels(plan.weights[0]) * load<Pixels>(middle);
      for (int d = 1; d <= r; ++d)
        sum = fma(Pixels(plan.weights[d]), load<Pixels>(middle - d * C) + load<Pixels>(middle + d * C), sum);
      store(out + i, sum);
    });
  }
  // Row y of the blurred picture, out of the ring.
  __device__ __forceinline__ void blur_down(int y) const {
    const auto ring = [&](int row) {
      return memory.ring + extend(row, k.x.H) % (2 * sizes.radius + 1) * memory.ring_width;
    };
    sync_block();
    for (int d = 0; d <= plan.radius; ++d) {
      const float *const above = ring(y - d), *const below = ring(y + d);
      const Pixels weight(d == 0 ? 0.5f * plan.weights[0] : plan.weights[d]);
      for_each_vector((right - left) * k.x.C, [&](int i) {
        const Pixels two = load<Pixels>(above + i) + load<Pixels>(below + i);
        store(memory.row + i, d == 0 ? weight * two : fma(weight, two, load<Pixels>(memory.row + i)));
      });
    }
    sync_block();
  }

  // The columns of the hole in row y: begin < end, or none.
  struct Columns {
    int begin, end;
  };
  __device__ __forceinline__ Columns hole(int y) const {
    const Box& box = plan.draw.hole;
    const float fy = static_cast<float>(y);
    if (!plan.draw.cutout || fy < box.y0 || fy >= box.y1) return {right, right};
    const int b = static_cast<int>(ceilf(box.x0)), e = static_cast<int>(ceilf(box.x1));
    return {b > left ? b : left, e < right ? e : right};
  }
  // grey: the tile's columns of row y.
  __device__ __forceinline__ void cut_out(int y, float* grey) const {
    const auto [begin, end] = hole(y);
    if (begin >= end) return;
    const int C = k.x.C;
    const float value = k.augment.cutout.value;
    for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * C; i += static_cast<int>(blockDim.x))
      grey[(begin - left) * C + i] = value < 0 ? memory.means[i % C] : value;
    sync_block();
  }

  // Row y, finished, in `grey` (the tile's columns and C).
  template <class T, class Normalise>
  __device__ __forceinline__ void write(Normalise normalise, const float* grey, T* out) const {
    const int n = (right - left) * k.x.C;
    out += left * k.x.C;
    for_each_vector(n, [&](int i) {
      const Pixels v = normalise(load<Pixels>(grey + i));
      if (i + kPixels <= n) return store(out + i, v);
      for (int l = 0; l < n - i; ++l) out[i + l] = static_cast<T>(v[l]);
    });
  }
  // Those of row y, once it is made.
  __device__ __forceinline__ void write_classes(int y, uint8_t* label) const {
    const Columns cut = hole(y);
    const bool ignored = k.augment.cutout.mask == Cutout::MaskRule::ignore;
    for (int x = left + static_cast<int>(threadIdx.x); x < right; x += static_cast<int>(blockDim.x)) {
      const bool none = plan.mask[0] == nullptr || (ignored && x >= cut.begin && x < cut.end);
      label[x] = none ? kAbsentClass : *class_at(x);
    }
  }
};

}  // namespace regolith::kernels::REGOLITH_EXECUTION
