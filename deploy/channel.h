// What one thread hands to another, in order.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace regolith {

template <class T>
class Channel {
 public:
  // push() waits while more than `limit` bytes stand here.
  explicit Channel(size_t limit) : limit_(limit) {}

  // False where the channel is closed: nobody will take it.
  bool push(T value, size_t bytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || bytes_ <= limit_; });
    if (closed_) return false;
    bytes_ += bytes;
    values_.emplace_back(std::move(value), bytes);
    changed_.notify_all();
    return true;
  }
  // None: it is closed, and empty.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !values_.empty(); });
    if (values_.empty()) return std::nullopt;
    std::optional<T> value(std::move(values_.front().first));
    bytes_ -= values_.front().second;
    values_.pop_front();
    changed_.notify_all();
    return value;
  }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<T, size_t>> values_;
  size_t limit_, bytes_ = 0;
  bool closed_ = false;
};

}  // namespace regolith
