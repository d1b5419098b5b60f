#include "engine/conv/plan_choice.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/file_lock.h"

namespace regolith {
namespace {

constexpr int kRunsAtOnce = 10, kRounds = 5;
constexpr float kWarmUp = 20;     // milliseconds: a GPU that idled raises its clocks within them
constexpr float kMargin = 0.97f;  // of the first plan's time, below which another is faster

constexpr int kFormat = 1;  // of the file
constexpr const char* kFile = "cudnn_plans.json";
constexpr std::chrono::milliseconds kPatience{500}, kPause{10};  // with another process that writes

bool runs(float milliseconds) { return milliseconds < std::numeric_limits<float>::infinity(); }

void notice(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

}  // namespace

int first_that_runs(int plans, const PlanTime& time) {
  for (int p = 0; p < plans; ++p)
    if (runs(time(p, 1))) return p;
  return -1;
}

int fastest_that_runs(int plans, const PlanTime& time) {
  std::vector<int> usable;
  for (int p = 0; p < plans; ++p)
    if (runs(time(p, 1))) usable.push_back(p);
  if (usable.size() < 2) return usable.empty() ? -1 : usable[0];
  float warm = 0;
  for (size_t turn = 0; warm < kWarmUp && turn < 100 * usable.size(); ++turn)
    warm += kRunsAtOnce * time(usable[turn % usable.size()], kRunsAtOnce);
  std::vector<float> least(usable.size(), std::numeric_limits<float>::infinity());
  for (int round = 0; round < kRounds; ++round)
    for (size_t i = 0; i < usable.size(); ++i) least[i] = std::min(least[i], time(usable[i], kRunsAtOnce));
  const size_t best = std::min_element(least.begin(), least.end()) - least.begin();
  return usable[least[best] < kMargin * least[0] ? best : 0];
}

PlanCache::PlanCache(std::string folder, std::string device)
    : folder_(std::move(folder)), path_(folder_ + "/" + kFile), device_(std::move(device)) {
  if (!folder_.empty()) plans_ = read()[device_];
}

std::string PlanCache::user_folder() {
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (cache != nullptr && *cache != 0) return std::string(cache) + "/regolith";
  return home == nullptr || *home == 0 ? "" : std::string(home) + "/.cache/regolith";
}

PlanCache::Plans PlanCache::read() const {
  const std::string text = read_text(path_);
  if (text.empty()) return {};
  try {
    const nlohmann::json file = nlohmann::json::parse(text);
    if (file.at("format") == kFormat) return file.at("devices").get<Plans>();
  } catch (const nlohmann::json::exception&) {  // as one of another format
  }
  notice(path_ + ": is no file of plans that this version reads; it is made anew, and cuDNN's plans are timed again");
  return {};
}

std::string PlanCache::find(const std::string& request) const {
  const auto found = plans_.find(request);
  return found == plans_.end() ? "" : found->second;
}

void PlanCache::add(const std::string& request, const std::string& plan) {
  plans_[request] = plan;
  if (folder_.empty()) return;
  const auto began = std::chrono::steady_clock::now();
  for (;;) {
    try {
      std::filesystem::create_directories(folder_);
      const FileLock lock(folder_);
      Plans all = read();  // of other processes, too
      all[device_][request] = plan;
      AtomicFile file(path_);
      file.write(nlohmann::json{{"format", kFormat}, {"devices", all}}.dump(1));
      return file.commit(AtomicFile::Flush::no);
    } catch (const std::exception& e) {
      if (std::chrono::steady_clock::now() - began > kPatience) {
        notice(std::string(e.what()) + "; cuDNN's plans are timed again in the next process");
        return folder_.clear();
      }
      std::this_thread::sleep_for(kPause);
    }
  }
}

}  // namespace regolith
