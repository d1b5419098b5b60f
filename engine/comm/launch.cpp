#include "engine/comm/launch.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/comm/mpi.h"
#include "engine/comm/socket.h"

namespace regolith {
namespace {

constexpr int kPorts = 16;
constexpr const char* kJobVariable = "REGOLITH_JOB";  // of start_ranks()

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != 0 ? std::optional<std::string>(value) : std::nullopt;
}

int number_in(const char* name, std::optional<int> otherwise = {}) {
  const std::optional<std::string> text = variable(name);
  if (!text && otherwise) return *otherwise;
  int value = 0;
  const char* end = text ? text->data() + text->size() : nullptr;
  if (!text || std::from_chars(text->data(), end, value).ptr != end || value < 0)
    throw CommError(std::string(name) + (text ? "=" + *text + ": expected a number" : ": is not set") +
                    "; a launcher of several ranks sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT");
  return value;
}

Launch checked(Launch l) {
  if (l.size < 1 || l.rank >= l.size)
    throw CommError("rank " + std::to_string(l.rank) + " of " + std::to_string(l.size) +
                    ", as the launcher's variables say: ranks are numbered from 0, below their number");
  if (l.by != Launch::By::mpi && (l.port < 1 || l.port > 65535))
    throw CommError("MASTER_PORT=" + std::to_string(l.port) + ": expected a port, 1 to 65535");
  return l;
}

}  // namespace

std::string first_node(const std::string& list) {
  const size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == list.npos || comma < bracket) return list.substr(0, comma);
  const size_t end = list.find_first_of("-,]", bracket), close = std::min(list.find(']', bracket), list.size() - 1);
  const size_t next = std::min(list.find(',', close), list.size());
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1) +
         list.substr(close + 1, next - close - 1);
}

std::optional<Launch> launched() {
  Launch l;
  if (variable("RANK") && variable("WORLD_SIZE")) {
    l.rank = number_in("RANK");
    l.size = number_in("WORLD_SIZE");
    l.local_rank = number_in("LOCAL_RANK", l.rank);
    l.port = number_in("MASTER_PORT");
    l.ports = kPorts;
    l.address = variable("MASTER_ADDR").value_or("");
    if (l.address.empty()) throw CommError("RANK and WORLD_SIZE are set, but MASTER_ADDR is not: the host of rank 0");
    l.job = variable(kJobVariable)
                .value_or(variable("TORCHELASTIC_RUN_ID").value_or("") + "." +
                          variable("TORCHELASTIC_RESTART_COUNT").value_or(""));
    if (variable("TORCHELASTIC_RUN_ID")) ++l.port;  // torchrun itself listens at MASTER_PORT
  } else if (variable("OMPI_COMM_WORLD_SIZE")) {
    l.by = Launch::By::mpi;
    l.rank = number_in("OMPI_COMM_WORLD_RANK");
    l.size = number_in("OMPI_COMM_WORLD_SIZE");
    l.local_rank = number_in("OMPI_COMM_WORLD_LOCAL_RANK", l.rank);
  } else if (variable("SLURM_PROCID") && variable("SLURM_STEP_NUM_TASKS")) {  // a batch script itself is in no step
    l.by = Launch::By::slurm;
    l.rank = number_in("SLURM_PROCID");
    l.size = number_in("SLURM_STEP_NUM_TASKS");
    l.local_rank = number_in("SLURM_LOCALID", 0);
    const std::string nodes = variable("SLURM_STEP_NODELIST").value_or(variable("SLURM_JOB_NODELIST").value_or(""));
    l.address = variable("MASTER_ADDR").value_or(first_node(nodes));
    if (l.address.empty()) throw CommError("SLURM_PROCID is set, but neither SLURM_STEP_NODELIST nor MASTER_ADDR is");
    const int job = number_in("SLURM_JOB_ID", 0), step = number_in("SLURM_STEP_ID", 0);
    l.job = std::to_string(job) + "." + std::to_string(step);
    // Below the ports that systems give away, apart for the steps of a node.
    l.port = number_in("MASTER_PORT", 10240 + (job * 31 + step) % 1024 * kPorts);
    l.ports = kPorts;
  } else if (const auto size = variable("WORLD_SIZE"); size && *size != "1") {
    throw CommError("WORLD_SIZE=" + *size + ": RANK is not set, which each process needs; unset both to train alone");
  } else {
    return {};
  }
  return checked(l);
}

Launch start_ranks(int size, char** argv) {
  Launch l;
  l.size = size;
  l.address = "127.0.0.1";
  l.port = Socket::listen(0, 1).port();
  l.ports = kPorts;
  l.job = "process " + std::to_string(::getpid());
  const pid_t parent = ::getpid();
  for (int rank = 1; rank < size; ++rank) {
    const std::string values[][2] = {{"RANK", std::to_string(rank)},          {"WORLD_SIZE", std::to_string(size)},
                                     {"LOCAL_RANK", std::to_string(rank)},    {"MASTER_ADDR", l.address},
                                     {"MASTER_PORT", std::to_string(l.port)}, {kJobVariable, l.job}};
    const pid_t pid = ::fork();
    if (pid < 0) throw CommError("cannot start rank " + std::to_string(rank) + ": " + std::strerror(errno));
    if (pid > 0) {
      l.children.push_back(pid);
      continue;
    }
    for (const auto& [name, value] : values) ::setenv(name.c_str(), value.c_str(), 1);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() == parent) ::execv("/proc/self/exe", argv);
    ::_exit(127);
  }
  l.while_meeting = [size, children = l.children] {
    for (size_t i = 0; i < children.size(); ++i)
      if (::waitpid(children[i], nullptr, WNOHANG) == children[i])
        throw CommError("rank " + std::to_string(i + 1) + " of " + std::to_string(size) +
                        ", a process that this one has started, ended before it met the others");
  };
  return l;
}

void end_ranks(const std::vector<pid_t>& children) {
  constexpr int kTries = 200;
  std::vector<pid_t> left = children;
  for (int i = 0; i <= kTries && !left.empty(); ++i) {
    if (i == kTries)  // stopped, perhaps
      for (const pid_t pid : left) ::kill(pid, SIGKILL);
    std::erase_if(left, [&](pid_t pid) { return ::waitpid(pid, nullptr, i == kTries ? 0 : WNOHANG) != 0; });
    if (!left.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

std::unique_ptr<Communicator> connect(const Launch& launch) {
  return launch.by == Launch::By::mpi ? connect_mpi(launch) : connect_tcp(launch);
}

Binding binding(Communicator& ranks) {
  cpu_set_t set;
  CPU_ZERO(&set);
  ::sched_getaffinity(0, sizeof set, &set);
  Binding own;
  std::string mask(CPU_SETSIZE, '0');
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) own.processors.push_back(i), mask[i] = '1';
  const std::string host = host_name();
  own.sharing = 0;
  for (const std::string& other : ranks.gather(mask + host))
    own.sharing += other.substr(CPU_SETSIZE) == host &&
                   std::ranges::any_of(own.processors, [&](int i) { return other[i] == '1'; });
  return own;
}

}  // namespace regolith
