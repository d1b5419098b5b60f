#include "study/children.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "engine/base/error.h"

namespace regolith {
namespace {

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> list;
  for (const std::string& word : words) list.push_back(const_cast<char*>(word.c_str()));
  list.push_back(nullptr);
  return list;
}

}  // namespace

Children::~Children() {
  signal(SIGTERM);
  for (const Child& child : running_) ::waitpid(child.pid, nullptr, 0);
}

void Children::start(int slot, const std::vector<std::string>& words, const std::string& log,
                     const std::vector<std::string>& environment) {
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (out < 0) throw IoError(log + ": cannot write this file: " + std::strerror(errno));
  std::vector<std::string> variables = environment;
  for (char** v = environ; *v != nullptr; ++v) {
    const std::string name(*v, std::strcspn(*v, "=") + 1);
    bool replaced = false;
    for (const std::string& own : environment) replaced = replaced || own.starts_with(name);
    if (!replaced) variables.push_back(*v);
  }
  const std::vector<char*> argv = pointers(words), envp = pointers(variables);
  const pid_t parent = ::getpid(), pid = ::fork();
  if (pid == 0) {  // nothing but system calls from here
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(127);
    const int none = ::open("/dev/null", O_RDONLY);
    ::dup2(none, 0);
    ::dup2(out, 1);
    ::dup2(out, 2);
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  const int error = errno;
  ::close(out);
  if (pid < 0) throw IoError(words[0] + ": cannot start a process: " + std::strerror(error));
  running_.push_back({pid, slot});
}

void Children::signal(int number) {
  for (const Child& child : running_) ::kill(child.pid, number);
}

std::vector<Children::Ended> Children::ended() {
  std::vector<Ended> ended;
  std::erase_if(running_, [&](const Child& child) {
    int status = 0;
    if (::waitpid(child.pid, &status, WNOHANG) != child.pid) return false;
    ended.push_back({child.slot, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)});
    return true;
  });
  return ended;
}

}  // namespace regolith
