// Signs of life between the ranks of a job: each has a connection to rank 0, over which a thread of its own says every
// second that it is there, how it failed, and that it ends.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/comm/socket.h"

namespace regolith {

constexpr std::chrono::seconds kMeeting{120};  // for all ranks to come
std::string rank_name(int rank, int size, const std::string& host);

class Watch {
 public:
  // root: the connections of ranks 1 and up, in their order; elsewhere: the one to rank 0. names: of all ranks.
  Watch(int rank, std::vector<std::string> names, std::vector<Socket> connections);
  ~Watch();  // says goodbye: what follows is no failure

  void fail(const std::string& message) noexcept;
  // Throws CommError once a rank has failed, or is gone.
  void check();
  void on_failure(std::function<void()> call);  // by the watch's thread, once
  bool failed() const { return failed_; }
  bool lost_root() const { return lost_root_; }  // rank 0, which speaks for all, is gone or silent

 private:
  struct Peer {
    int rank;
    Socket socket;
    Socket::Clock::time_point heard;
    bool left = false;
  };
  void run();
  void hear(Peer& peer);
  void set_failure(const std::string& text);
  void lose(const Peer& peer, const std::string& how);
  [[noreturn]] void leave();

  int rank_;
  std::vector<std::string> names_;
  std::vector<Peer> peers_;
  std::atomic<bool> failed_ = false, ending_ = false;
  std::atomic<bool> told_ = false;  // the process knows of the failure
  std::atomic<bool> lost_root_ = false;
  std::mutex mutex_;  // of what follows
  std::string failure_;
  std::function<void()> on_failure_;
  std::thread thread_;
};

}  // namespace regolith
