#include "data/clean.h"

// Hash, sort and runs on the host: this is done once, before there is a device.
#define THRUST_HOST_SYSTEM THRUST_HOST_SYSTEM_CPP
#define THRUST_DEVICE_SYSTEM THRUST_DEVICE_SYSTEM_OMP
#include <thrust/execution_policy.h>
#include <thrust/for_each.h>
#include <thrust/sort.h>

#include <algorithm>
#include <cstring>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "kernels/sample.h"

namespace regolith {
namespace {

uint64_t hash_bytes(const uint8_t* p, int64_t n) {
  uint64_t h = 0x9E3779B97F4A7C15ull ^ static_cast<uint64_t>(n);
  const auto mix = [&](uint64_t word) {
    h = (h ^ word) * 0xD6E8FEB86659FD93ull;
    h ^= h >> 32;
  };
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    mix(word);
  }
  for (; n > 0; --n, ++p) mix(*p);
  return h;
}

// Groups of at least two samples whose blocks of `bytes` are equal, each group ascending, in the order of their first
// members. Sorted by hash, then by content, so that equal hashes of different blocks do no harm.
std::vector<std::vector<int64_t>> equal_groups(std::vector<int64_t> order, const std::vector<uint8_t>& data,
                                               int64_t bytes) {
  const auto block = [&](int64_t i) { return data.data() + i * bytes; };
  std::vector<uint64_t> hash(data.size() / bytes);
  thrust::for_each(thrust::device, order.begin(), order.end(),
                   [&](int64_t i) { hash[i] = hash_bytes(block(i), bytes); });
  const auto equal = [&](int64_t a, int64_t b) {
    return hash[a] == hash[b] && std::memcmp(block(a), block(b), bytes) == 0;
  };
  thrust::sort(thrust::host, order.begin(), order.end(), [&](int64_t a, int64_t b) {
    if (hash[a] != hash[b]) return hash[a] < hash[b];
    const int c = std::memcmp(block(a), block(b), bytes);
    return c != 0 ? c < 0 : a < b;
  });
  std::vector<std::vector<int64_t>> groups;
  for (auto member = order.begin(), next = member; member != order.end(); member = next) {
    while (next != order.end() && equal(*member, *next)) ++next;
    if (next - member > 1) groups.emplace_back(member, next);
  }
  std::sort(groups.begin(), groups.end());
  return groups;
}

SharedMask describe(const Dataset& d, const std::vector<int64_t>& group, const CleanRule& rule) {
  SharedMask s;
  for (const int64_t i : group) s.rows.push_back(d.source[i]);
  const uint8_t* mask = d.mask(group[0]);
  int top = d.height, bottom = -1, left = d.width, right = -1;
  int64_t labelled = 0;
  s.pixels.resize(1);
  for (int y = 0; y < d.height; ++y) {
    for (int x = 0; x < d.width; ++x) {
      const uint8_t id = mask[y * d.width + x];
      if (id == kernels::kAbsentClass) continue;
      if (id >= s.pixels.size()) s.pixels.resize(id + 1, 0);
      ++s.pixels[id];
      if (id == 0) continue;
      ++labelled;
      top = std::min(top, y), bottom = std::max(bottom, y), left = std::min(left, x), right = std::max(right, x);
    }
  }
  s.fill = labelled == 0 ? 1 : static_cast<double>(labelled) / ((bottom - top + 1.0) * (right - left + 1.0));
  s.plain = std::count_if(s.pixels.begin() + 1, s.pixels.end(), [](int64_t n) { return n > 0; }) <= 1 &&
            s.fill >= rule.plain_fill;
  return s;
}

std::string percent(double share) { return std::to_string(static_cast<int>(100 * share + 0.5)) + "%"; }

}  // namespace

std::string CleanReport::summary() const {
  int64_t in_odd = 0, in_kept = 0, copies = 0;
  for (const SharedMask& s : odd) in_odd += static_cast<int64_t>(s.rows.size());
  for (const SharedMask& s : kept) in_kept += static_cast<int64_t>(s.rows.size());
  for (const auto& group : duplicate_images) copies += static_cast<int64_t>(group.size()) - 1;
  std::string text = "Cleaning: " + std::to_string(before) + " samples, " + std::to_string(dropped.size()) +
                     " dropped, " + std::to_string(samples.size()) + " kept.\n  Rule: a mask shared by " +
                     std::to_string(rule.min_shared) +
                     " or more different images is odd, unless it is plain: one class that fills " +
                     percent(rule.plain_fill) + " of its bounding box, or nothing labelled.\n";
  text += "  Odd masks: " + std::to_string(odd.size()) + ", in " + std::to_string(in_odd) + " samples" +
          (rule.drop_shared_masks || odd.empty() ? "" : " (kept: drop_shared_masks is off)") + ".\n";
  for (const SharedMask& s : odd) {
    text += "    one mask in " + std::to_string(s.rows.size()) + " images, " + percent(s.fill) +
            " of its bounding box, pixels by class " + join(s.pixels) + "\n";
  }
  text += "  Plain masks that repeat, kept: " + std::to_string(kept.size()) + ", in " + std::to_string(in_kept) +
          " samples.\n";
  text +=
      "  Copies of images: " + std::to_string(copies) + (copies > 0 && !rule.drop_duplicates ? " (kept)" : "") + ".\n";
  if (!labelled_anew.empty()) text += "  Of these, kept for another mask: rows " + join(labelled_anew) + "\n";
  if (!dropped.empty()) text += "  Dropped rows: " + join(dropped) + "\n";
  return text;
}

CleanReport clean(const Dataset& data, const std::vector<int64_t>& samples, const CleanRule& rule) {
  CleanReport report;
  report.rule = rule;
  report.before = static_cast<int64_t>(samples.size());
  std::vector<bool> drop(static_cast<size_t>(data.count), false);
  std::vector<bool> copy(static_cast<size_t>(data.count), false);  // of an image that came earlier
  for (const auto& group : equal_groups(samples, data.images, data.image_bytes())) {
    auto& rows = report.duplicate_images.emplace_back();
    for (auto i = group.begin(); i != group.end(); ++i) {
      rows.push_back(data.source[*i]);
      copy[*i] = i != group.begin();
      const auto same_mask = [&](int64_t other) {
        return data.masks.empty() || std::equal(data.mask(*i), data.mask(*i) + data.mask_bytes(), data.mask(other));
      };
      if (std::any_of(group.begin(), i, same_mask))
        drop[*i] = rule.drop_duplicates;
      else if (copy[*i])
        report.labelled_anew.push_back(data.source[*i]);
    }
  }
  if (!data.masks.empty()) {
    for (const auto& group : equal_groups(samples, data.masks, data.mask_bytes())) {
      const auto different = std::count_if(group.begin(), group.end(), [&](int64_t i) { return !copy[i]; });
      if (different < rule.min_shared) continue;
      SharedMask s = describe(data, group, rule);
      if (!s.plain && rule.drop_shared_masks) {
        for (const int64_t i : group) drop[i] = true;
      }
      (s.plain ? report.kept : report.odd).push_back(std::move(s));
    }
  }
  for (auto* groups : {&report.odd, &report.kept}) {
    std::stable_sort(groups->begin(), groups->end(),
                     [](const SharedMask& a, const SharedMask& b) { return a.rows.size() > b.rows.size(); });
  }
  for (const int64_t i : samples) {
    if (drop[i]) report.dropped.push_back(data.source[i]);
    if (!drop[i]) report.samples.push_back(i);
  }
  std::sort(report.dropped.begin(), report.dropped.end());
  std::sort(report.labelled_anew.begin(), report.labelled_anew.end());
  if (report.samples.empty()) throw DataError(data.origin + ": cleaning would drop every sample\n" + report.summary());
  return report;
}

}  // namespace regolith
