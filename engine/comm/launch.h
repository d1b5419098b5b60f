// How a rank learns that it is one: from the environment that launchers set.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/comm/communicator.h"

namespace regolith {

struct Launch {
  enum class By { torchrun, mpi, slurm };  // torchrun: whoever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
  By by = By::torchrun;
  int rank = 0, size = 1, local_rank = 0;  // local: among those of this machine
  std::string address;                     // of rank 0; not with mpi
  int port = 0, ports = 1;                 // the first of so many that rank 0 may listen at
  std::string job;                         // keeps the ranks of two jobs apart
  std::vector<pid_t> children;             // the ranks that this process has started, in their order
  std::function<void()> while_meeting;     // throws CommError where a rank cannot come any more; or none
};

// Nothing: this process is alone. Throws CommError for an environment that contradicts itself.
std::optional<Launch> launched();
// The first name of Slurm's list of nodes: "node[03-07,9],other" is "node03".
std::string first_node(const std::string& list);

// Starts this program, with the same arguments, once for each of the ranks 1 to size - 1, and makes this process rank 0
// of them. They end with it, and with a signal that reaches it.
Launch start_ranks(int size, char** argv);
// Waits for them to end, and kills those that do not.
void end_ranks(const std::vector<pid_t>& children);

// Meets the other ranks. Throws CommError, naming those that did not come.
std::unique_ptr<Communicator> connect(const Launch& launch);
std::unique_ptr<Communicator> connect_tcp(const Launch& launch);

// Processors that this process may run on, and how many ranks of its machine, itself among them, may run on some of
// them.
struct Binding {
  std::vector<int> processors;
  int sharing = 1;
};
Binding binding(Communicator& ranks);

}  // namespace regolith
