// The communicator over MPI (mpi.h). MPI moves the data; the watch over the ranks has TCP connections of its own, for a
// library that waits inside a call would not notice that a rank is gone.
#include <mpi.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>

#include "engine/base/error.h"
#include "engine/comm/launch.h"
#include "engine/comm/socket.h"
#include "engine/comm/watch.h"

namespace regolith {
namespace {

constexpr size_t kPiece = size_t{1} << 30;  // of one call: MPI counts in int

class Mpi : public Communicator {
 public:
  explicit Mpi(const Launch& launch) {
    int given = 0;
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &given) != MPI_SUCCESS)
      throw CommError("rank " + std::to_string(launch.rank) + ": MPI does not start");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    std::vector<std::string> names;
    const std::vector<std::string> hosts = Communicator::gather(host_name());
    for (int r = 0; r < size_; ++r) names.push_back(rank_name(r, size_, hosts[r]));
    name_ = names[rank_];
    if (size_ > 1) watch(names, hosts);
  }
  ~Mpi() override {
    const bool failed = watch_ != nullptr && watch_->failed();
    watch_.reset();
    if (!failed) MPI_Finalize();  // it would wait for the rank that is gone
  }

  using Communicator::broadcast;
  using Communicator::gather;
  using Communicator::sum;
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return name_; }

  void gather(const void* mine, size_t bytes, void* all) override {
    const char* own = static_cast<const char*>(all) + rank_ * bytes;
    const void* from = mine == own ? MPI_IN_PLACE : mine;
    if (bytes <= kPiece) {
      const auto count = static_cast<int>(bytes);
      finish([&](MPI_Request& r) {
        return MPI_Iallgather(from, count, MPI_BYTE, all, count, MPI_BYTE, MPI_COMM_WORLD, &r);
      });
      return;
    }
    if (mine != own) std::memcpy(static_cast<char*>(all) + rank_ * bytes, mine, bytes);
    for (int r = 0; r < size_; ++r) broadcast(static_cast<char*>(all) + r * bytes, bytes, r);
  }
  void broadcast(void* data, size_t bytes, int from) override {
    for (size_t done = 0; done < bytes; done += kPiece) {
      const auto count = static_cast<int>(std::min(kPiece, bytes - done));
      char* at = static_cast<char*>(data) + done;
      finish([&](MPI_Request& r) { return MPI_Ibcast(at, count, MPI_BYTE, from, MPI_COMM_WORLD, &r); });
    }
  }
  void sum(float* values, int64_t count) override {
    for (int64_t done = 0; done < count; done += kPiece) {
      const auto n = static_cast<int>(std::min<int64_t>(kPiece, count - done));
      finish([&](MPI_Request& r) {
        return MPI_Iallreduce(MPI_IN_PLACE, values + done, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &r);
      });
    }
  }
  void fail(const std::string& message) noexcept override {
    if (watch_ != nullptr) watch_->fail(message);
  }
  void check() override {
    if (watch_ != nullptr) watch_->check();
  }
  bool lost_root() const override { return watch_ != nullptr && watch_->lost_root(); }
  void on_failure(std::function<void()> call) override {
    if (watch_ != nullptr) watch_->on_failure(std::move(call));
  }

 private:
  template <class F>
  void finish(F&& begin) {
    check();
    MPI_Request request = MPI_REQUEST_NULL;
    int done = 0, result = begin(request);
    for (int tries = 0; result == MPI_SUCCESS; ++tries) {
      result = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      if (done != 0) break;
      if (tries < 200) continue;
      check();
      std::this_thread::sleep_for(std::chrono::microseconds(tries < 2000 ? 5 : 50));
    }
    if (result == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(result, text, &length);
    throw CommError(name_ + ": MPI: " + text);
  }

  void watch(const std::vector<std::string>& names, const std::vector<std::string>& hosts) {
    const auto until = Socket::Clock::now() + kMeeting;
    const Socket::Check check = [&] {
      if (Socket::Clock::now() > until) throw CommError(name_ + ": another rank does not answer");
    };
    std::vector<Socket> connections(rank_ == 0 ? size_ - 1 : 1);
    Socket door;
    int32_t place[2] = {};  // port, and a number that only this job knows
    if (rank_ == 0) {
      door = Socket::listen(0, 1);
      place[0] = door.port();
      place[1] = static_cast<int32_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    }
    broadcast(place, sizeof place, 0);
    if (rank_ > 0) {
      connections[0] = Socket::connect(hosts[0] == hosts[rank_] ? "127.0.0.1" : hosts[0], place[0], until);
      const int32_t hello[2] = {rank_, place[1]};
      if (!connections[0].open() || !connections[0].send(hello, sizeof hello, check))
        throw CommError(name_ + ": cannot connect to " + names[0] + " at port " + std::to_string(place[0]));
    }
    for (int missing = rank_ == 0 ? size_ - 1 : 0; missing > 0;) {
      Socket s = door.accept(until);
      if (!s.open()) throw CommError(name_ + ": " + std::to_string(missing) + " ranks did not connect to it");
      int32_t hello[2] = {};
      if (!s.receive(hello, sizeof hello, check) || hello[1] != place[1] || hello[0] < 1 || hello[0] >= size_) continue;
      connections[hello[0] - 1] = std::move(s);
      --missing;
    }
    watch_ = std::make_unique<Watch>(rank_, names, std::move(connections));
  }

  int rank_ = 0, size_ = 1;
  std::string name_;
  std::unique_ptr<Watch> watch_;
};

}  // namespace
}  // namespace regolith

extern "C" regolith::Communicator* regolith_make_mpi(const regolith::Launch& launch) {
  return new regolith::Mpi(launch);
}
