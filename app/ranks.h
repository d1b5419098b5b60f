// A program that is run as several ranks (engine/comm), by a launcher or of its own.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/comm/communicator.h"

namespace regolith {

class Ranks {
 public:
  ~Ranks();
  Communicator* communicator() const { return communicator_.get(); }  // null: this process is alone
  int local_rank() const { return local_rank_; }                      // among those of this machine
  // Where no launcher has: starts this program again for the ranks 1 to size - 1, and is rank 0 of them.
  void start(int size, char** argv);

 private:
  friend int as_ranks(const std::function<int(Ranks&)>& body);
  void join(std::unique_ptr<Communicator> communicator, int local_rank);

  std::unique_ptr<Communicator> communicator_;
  std::vector<pid_t> started_;
  int local_rank_ = 0;
};

// The exit code of `body`. Rank 0 speaks for all: what the others print goes nowhere, and an error of any of them is
// thrown at rank 0, with the rank's name.
int as_ranks(const std::function<int(Ranks&)>& body);

}  // namespace regolith
