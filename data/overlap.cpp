#include "data/overlap.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <unordered_set>

namespace regolith {
namespace {

constexpr int kLine = 24, kWindow = 16;  // pixels of a line; places of which winnowing keeps one
constexpr int64_t kTextured = 32;        // pixels in common
constexpr int64_t kAllLines = int64_t{1} << 25;

class UnionFind {
 public:
  explicit UnionFind(int64_t n) : parent_(static_cast<size_t>(n)) { std::iota(parent_.begin(), parent_.end(), 0); }
  int64_t find(int64_t i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }
  bool join(int64_t a, int64_t b) {
    a = find(a), b = find(b);
    parent_[std::max(a, b)] = std::min(a, b);
    return a != b;
  }

 private:
  std::vector<int64_t> parent_;
};

struct Line {  // of pixels, somewhere in an image
  uint64_t hash;
  uint32_t image;
  uint16_t y, x;
  auto operator<=>(const Line&) const = default;
};

// The lines of `n` pixels that are not flat, the least hash of every kWindow places; `keep(place, hash)`.
template <class F>
void winnow(const uint8_t* p, int n, int length, uint64_t seed, F&& keep) {
  constexpr uint64_t kBase = 0x9E3779B97F4A7C15, kFlat = std::numeric_limits<uint64_t>::max();
  static thread_local std::vector<uint64_t> hashes;
  hashes.clear();
  uint64_t rolling = 0, top = 1;
  for (int i = 0; i < length; ++i) top *= kBase;
  int content = 0;
  for (int i = 0; i < n; ++i) {
    rolling = rolling * kBase + p[i] + 1;
    if (i > 0) content += std::abs(p[i] - p[i - 1]);
    if (i >= length) {
      rolling -= top * (p[i - length] + uint64_t{1});
      content -= std::abs(p[i - length + 1] - p[i - length]);
    }
    if (i < length - 1) continue;
    uint64_t h = (rolling ^ rolling >> 29 ^ seed) * 0xD6E8FEB86659FD93;
    h ^= h >> 32;
    hashes.push_back(content >= length ? h : kFlat);
  }
  const int places = static_cast<int>(hashes.size()), window = std::min(kWindow, places);
  for (int first = 0, least = -1, kept = -1; first + window <= places; ++first) {
    const int last = first + window - 1;
    if (least < first)
      least = static_cast<int>(std::min_element(hashes.begin() + first, hashes.begin() + last + 1) - hashes.begin());
    else if (hashes[last] < hashes[least])
      least = last;
    if (least != kept && hashes[least] != kFlat) keep(least, hashes[least]);
    kept = least;
  }
}

// Sorted, those along rows and those along columns.
std::vector<Line> lines_of(const Dataset& d) {
  const int H = d.height, W = d.width, C = d.channels;
  uint64_t part = 1;  // of the hashes
  while (d.count * H * W / static_cast<int64_t>(part) > kAllLines) part *= 2;
  std::vector<Line> lines;
  std::vector<uint8_t> straight(static_cast<size_t>(std::max(H, W)));
  for (int64_t i = 0; i < d.count; ++i) {
    const auto along = [&](bool rows) {
      const int n = rows ? W : H;
      for (int line = 0; line < (rows ? H : W); ++line) {
        for (int j = 0; j < n; ++j)  // of colours the middle channel
          straight[j] = d.image(i)[(int64_t{rows ? line : j} * W + (rows ? j : line)) * C + C / 2];
        winnow(straight.data(), n, std::min(kLine, n / 2), rows ? 1 : 2, [&](int place, uint64_t hash) {
          if (hash % part == 0)
            lines.push_back({hash, static_cast<uint32_t>(i), static_cast<uint16_t>(rows ? line : place),
                             static_cast<uint16_t>(rows ? place : line)});
        });
      }
    };
    along(true);
    along(false);
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

// Whether the images are equal where they lie over each other, pixel (y, x) of `a` over (y + dy, x + dx) of `b`.
bool share_pixels(const Dataset& d, int64_t a, int64_t b, int dy, int dx) {
  const int H = d.height, W = d.width, C = d.channels;
  const int y0 = std::max(0, -dy), y1 = std::min(H, H - dy), x0 = std::max(0, -dx), x1 = std::min(W, W - dx);
  const uint8_t *A = d.image(a), *B = d.image(b) + (int64_t{dy} * W + dx) * C;
  int64_t textured = 0, equal = 0;
  for (int y = y0; y < y1; ++y) {
    for (int x = x0; x < x1; ++x) {
      const int64_t at = (int64_t{y} * W + x) * C;
      bool texture = false, same = true;
      for (int64_t c = at; c < at + C; ++c) {
        same &= A[c] == B[c];
        if (x + 1 < x1) texture |= A[c] != A[c + C] || B[c] != B[c + C];
        if (y + 1 < y1) texture |= A[c] != A[c + W * C] || B[c] != B[c + W * C];
      }
      textured += texture;
      equal += texture && same;
    }
  }
  return equal >= kTextured && 2 * equal >= textured;
}

int64_t join_sharing(const Dataset& d, UnionFind& groups) {
  struct Offset {
    uint32_t a, b;
    int dy, dx;
    bool operator==(const Offset&) const = default;
  };
  const auto hash = [](const Offset& o) {
    return static_cast<size_t>(((uint64_t{o.a} << 32 | o.b) * 0x9E3779B97F4A7C15) ^
                               static_cast<uint64_t>(o.dy * 65537 + o.dx) * 0xD6E8FEB86659FD93);
  };
  std::unordered_set<Offset, decltype(hash)> refused(0, hash);
  const std::vector<Line> lines = lines_of(d);
  int64_t joins = 0;
  const auto look = [&](const Line& p, const Line& q) {
    const Offset o{p.image, q.image, q.y - p.y, q.x - p.x};
    if (groups.find(o.a) == groups.find(o.b) || refused.contains(o)) return;
    if (share_pixels(d, o.a, o.b, o.dy, o.dx))
      joins += groups.join(o.a, o.b);
    else
      refused.insert(o);
  };
  constexpr std::ptrdiff_t kMany = 8;  // a line in more places than this: each with the next kMany
  for (auto first = lines.begin(), last = first; first != lines.end(); first = last) {
    while (last != lines.end() && last->hash == first->hash) ++last;
    for (auto p = first; p != last; ++p)
      for (auto q = p + 1; q != last && q - p <= kMany; ++q) look(*p, *q);
  }
  return joins;
}

constexpr int kLeastEdge = 32;
constexpr float kOfVariance = 0.5f, kOfSteps = 2, kSecond = 5.f / 3;
constexpr float kLeastVariance = 16, kLeastStep = 1;  // grey values squared

// One side of every image, continued by a quarter of its slope.
struct Edges {
  int length;                          // values
  std::vector<float> values;           // (count, length)
  std::vector<float> variance, steps;  // (count); steps: mean square of the difference to the line behind it
  const float* of(int64_t i) const { return values.data() + i * length; }
};

Edges edges_of(const Dataset& d, bool column, bool far_end) {
  const int pixels = column ? d.height : d.width, C = d.channels;
  const int64_t along = int64_t{column ? d.width : 1} * C, inward = int64_t{column ? 1 : d.width} * C;
  Edges e{pixels * C, {}, {}, {}};
  for (int64_t i = 0; i < d.count; ++i) {
    const uint8_t* p = d.image(i) + (far_end ? ((column ? d.width : d.height) - 1) * inward : 0);
    double sum = 0, squares = 0, steps = 0;
    for (int j = 0; j < pixels; ++j) {
      for (int c = 0; c < C; ++c) {
        const float x = p[j * along + c],
                    step = x - static_cast<float>(p[j * along + c + (far_end ? -inward : inward)]);
        const float v = x + step / 4;
        e.values.push_back(v);
        sum += v, squares += v * v, steps += step * step;
      }
    }
    const double mean = sum / e.length;
    e.variance.push_back(static_cast<float>(squares / e.length - mean * mean));
    e.steps.push_back(static_cast<float>(steps / e.length));
  }
  return e;
}

// The nearest of the edges on the other side, and the nearest that is of another group of images.
struct Nearest {
  float distance = kOfVariance * kSecond, second = kOfVariance * kSecond;  // farther ones decide nothing
  int64_t image = -1, group = -1;
  void offer(float far, int64_t i, int64_t its_group) {
    if (its_group == group) {
      if (far < distance) distance = far, image = i;
    } else if (far < distance) {
      if (image >= 0) second = distance;
      distance = far, image = i, group = its_group;
    } else {
      second = std::min(second, far);
    }
  }
  bool clear() const { return image >= 0 && distance < kOfVariance && distance * kSecond < second; }
};

int64_t join_abutting(const Dataset& d, UnionFind& groups, bool columns) {
  if ((columns ? d.height : d.width) < kLeastEdge || (columns ? d.width : d.height) < 2) return 0;
  const Edges ends = edges_of(d, columns, true), begins = edges_of(d, columns, false);
  std::vector<int64_t> group(static_cast<size_t>(d.count));
  for (int64_t i = 0; i < d.count; ++i) group[i] = groups.find(i);
  std::vector<Nearest> after(group.size()), before(group.size());
  std::vector<float> apart(group.size());         // of the nearest after: in steps
  constexpr int kLanes = 8, kPiece = 4 * kLanes;  // added up side by side, in an order that the compiler may not change
  for (int64_t i = 0; i < d.count; ++i) {
    const float* p = ends.of(i);
    for (int64_t j = 0; j < d.count; ++j) {
      if (group[i] == group[j]) continue;
      const float* q = begins.of(j);
      const float variance = std::min(ends.variance[i], begins.variance[j]);
      if (variance < kLeastVariance) continue;
      const float unit = variance * static_cast<float>(ends.length);
      const float most = unit * kOfVariance * kSecond;
      float sum = 0;
      int k = 0;
      for (; k + kPiece <= ends.length && sum < most; k += kPiece) {
        std::array<float, kLanes> lanes{};
        for (int l = 0; l < kPiece; l += kLanes)
          for (int m = 0; m < kLanes; ++m) lanes[m] += (p[k + l + m] - q[k + l + m]) * (p[k + l + m] - q[k + l + m]);
        sum += ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
      }
      for (; k < ends.length && sum < most; ++k) sum += (p[k] - q[k]) * (p[k] - q[k]);
      if (!(sum < most)) continue;
      before[j].offer(sum / unit, i, group[i]);
      after[i].offer(sum / unit, j, group[j]);
      if (after[i].image == j)
        apart[i] = sum / static_cast<float>(ends.length) / (std::min(ends.steps[i], begins.steps[j]) + kLeastStep);
    }
  }
  int64_t joins = 0;
  for (int64_t i = 0; i < d.count; ++i) {
    if (!after[i].clear() || apart[i] >= kOfSteps) continue;
    const Nearest& back = before[after[i].image];
    if (back.clear() && back.group == group[i]) joins += groups.join(i, after[i].image);
  }
  return joins;
}

}  // namespace

Overlaps find_overlaps(const Dataset& d) {
  UnionFind groups(d.count);
  Overlaps o;
  o.sharing = join_sharing(d, groups);
  for (const bool columns : {true, false}) o.abutting += join_abutting(d, groups, columns);
  std::vector<int64_t> number(static_cast<size_t>(d.count), -1), sizes;
  for (int64_t i = 0; i < d.count; ++i) {
    int64_t& n = number[groups.find(i)];
    if (n < 0) n = std::ssize(sizes), sizes.push_back(0);
    ++sizes[n];
    o.group.push_back(n);
  }
  const auto several = std::count_if(sizes.begin(), sizes.end(), [](int64_t n) { return n > 1; });
  o.summary = "Overlap: " + std::to_string(o.sharing) + " joins of images that share pixels, " +
              std::to_string(o.abutting) + " of images that lie edge to edge: " + std::to_string(several) +
              " groups, the largest of " + std::to_string(sizes.empty() ? 0 : *std::ranges::max_element(sizes)) +
              ", and " + std::to_string(std::ssize(sizes) - several) + " images by themselves.\n";
  return o;
}

}  // namespace regolith
