// Programs as child processes, so many at once.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace regolith {

class Children {
 public:
  // Ends what is left, gently.
  ~Children();

  // Starts words[0], a path, in a process group of its own, so that a terminal's Ctrl-C reaches it only by signal().
  // stdout and stderr are appended to `log`; `environment`: NAME=value on top of ours. It hears SIGTERM should this
  // process die. `slot`: the number of a place that is free. Throws IoError.
  void start(int slot, const std::vector<std::string>& words, const std::string& log,
             const std::vector<std::string>& environment);
  void signal(int number);
  size_t count() const { return running_.size(); }

  struct Ended {
    int slot, code;  // code: the exit status, or minus the signal that ended it
  };
  std::vector<Ended> ended();  // since the last call; does not wait

 private:
  struct Child {
    pid_t pid;
    int slot;
  };
  std::vector<Child> running_;
};

}  // namespace regolith
