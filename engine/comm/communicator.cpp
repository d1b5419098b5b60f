#include "engine/comm/communicator.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "engine/base/error.h"

namespace regolith {

int64_t Communicator::sum(int64_t value) {
  std::vector<int64_t> one{value};
  sum(one);
  return one[0];
}

void Communicator::sum(std::vector<int64_t>& values) {
  std::vector<int64_t> all(values.size() * size());
  gather(values.data(), values.size() * sizeof(int64_t), all.data());
  std::fill(values.begin(), values.end(), 0);
  for (size_t i = 0; i < all.size(); ++i) values[i % values.size()] += all[i];
}

bool Communicator::any(bool value) { return sum(int64_t{value}) > 0; }

std::vector<std::string> Communicator::gather(const std::string& text) {
  std::vector<int64_t> sizes(size());
  const auto mine = static_cast<int64_t>(text.size());
  gather(&mine, sizeof mine, sizes.data());
  const int64_t most = *std::max_element(sizes.begin(), sizes.end());
  std::string padded = text, all(most * size(), '\0');
  padded.resize(most);
  gather(padded.data(), most, all.data());
  std::vector<std::string> texts;
  for (int r = 0; r < size(); ++r) texts.push_back(all.substr(r * most, sizes[r]));
  return texts;
}

std::string Communicator::broadcast(const std::string& text, int from) {
  auto bytes = static_cast<int64_t>(text.size());
  broadcast(&bytes, sizeof bytes, from);
  std::string all = text;
  all.resize(bytes);
  broadcast(all.data(), bytes, from);
  return all;
}

namespace {

// What the threads share. A call has two meetings: all have said where their data is, and all have read it.
struct Meeting {
  explicit Meeting(int n) : data(n), size(n) {}

  void meet() {
    std::unique_lock lock(mutex);
    if (!failure.empty()) throw CommError(failure);
    const int64_t mine = round;
    if (++arrived == size) {
      arrived = 0;
      ++round;
      changed.notify_all();
      return;
    }
    changed.wait(lock, [&] { return round != mine || !failure.empty(); });
    if (round == mine) throw CommError(failure);
  }

  std::vector<const void*> data;
  const int size;
  std::mutex mutex;
  std::condition_variable changed;
  int arrived = 0;
  int64_t round = 0;
  std::string failure;
};

class Local : public Communicator {
 public:
  Local(std::shared_ptr<Meeting> meeting, int rank) : meeting_(std::move(meeting)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return meeting_->size; }
  std::string name() const override { return "rank " + std::to_string(rank_) + " of " + std::to_string(size()); }

  void gather(const void* mine, size_t bytes, void* all) override {
    meeting_->data[rank_] = mine;
    meeting_->meet();
    for (int r = 0; r < size(); ++r) {
      auto* to = static_cast<char*>(all) + r * bytes;
      if (bytes > 0 && to != meeting_->data[r]) std::memcpy(to, meeting_->data[r], bytes);
    }
    meeting_->meet();
  }
  void broadcast(void* data, size_t bytes, int from) override {
    meeting_->data[rank_] = data;
    meeting_->meet();
    if (rank_ != from && bytes > 0) std::memcpy(data, meeting_->data[from], bytes);
    meeting_->meet();
  }
  void sum(float* values, int64_t count) override {
    std::vector<float> all(count * size());
    gather(values, count * sizeof(float), all.data());
    for (int64_t i = 0; i < count; ++i) {
      values[i] = all[i];
      for (int r = 1; r < size(); ++r) values[i] += all[r * count + i];
    }
  }
  void fail(const std::string& message) noexcept override {
    const std::lock_guard lock(meeting_->mutex);
    if (meeting_->failure.empty()) meeting_->failure = name() + ": " + message;
    meeting_->changed.notify_all();
  }

 private:
  std::shared_ptr<Meeting> meeting_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local(int size) {
  const auto meeting = std::make_shared<Meeting>(size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<Local>(meeting, r));
  return ranks;
}

}  // namespace regolith
