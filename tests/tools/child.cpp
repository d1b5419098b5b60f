#include "tests/tools/child.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include "places.h"

namespace regolith::testing {
namespace {
namespace fs = std::filesystem;

constexpr double kPatience = 120;  // seconds

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// What there is, appended; closes and clears `file` at its end.
void drain(int& file, std::string& text) {
  std::array<char, 4096> buffer;
  const ssize_t got = ::read(file, buffer.data(), buffer.size());
  if (got > 0) return void(text.append(buffer.data(), static_cast<size_t>(got)));
  ::close(file);
  file = -1;
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  path_ = (fs::temp_directory_path() / "regolith_cli_XXXXXX").string();
  if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot make " + path_);
}
TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}
std::string TemporaryFolder::read(const std::string& name) const {
  std::ifstream file(*this / name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void TemporaryFolder::write(const std::string& name, const std::string& bytes) const {
  std::ofstream(*this / name, std::ios::binary) << bytes;
}
bool TemporaryFolder::has(const std::string& name) const { return fs::exists(*this / name); }

Child::Child(const std::string& folder, const std::vector<std::string>& words, long file_limit)
    : deadline_(now() + kPatience) {
  const std::string program = std::string(REGOLITH_BINARY_DIR "/bin/") + words.at(0);
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) throw std::runtime_error("no pipes are left");
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error("cannot fork");
  if (pid_ == 0) {  // threads may have been running: nothing but system calls from here
    if (file_limit >= 0) {
      const rlimit limit{static_cast<rlim_t>(file_limit), static_cast<rlim_t>(file_limit)};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    if (::chdir(folder.c_str()) == 0) ::execv(program.c_str(), arguments.data());
    ::_exit(127);
  }
  ::close(out[1]);
  ::close(err[1]);
  out_ = out[0];
  err_ = err[0];
}

Child::~Child() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  wait();
}

bool Child::pump() {
  std::array<pollfd, 2> files{{{out_, POLLIN, 0}, {err_, POLLIN, 0}}};  // a negative one is left out
  if (out_ < 0 && err_ < 0) return false;
  ::poll(files.data(), files.size(), 100);
  if (files[0].revents != 0) drain(out_, outcome_.out);
  if (files[1].revents != 0) drain(err_, outcome_.err);
  if (now() > deadline_) ::kill(pid_, SIGKILL);
  return true;
}

bool Child::wait_for(const std::string& text) {
  while (outcome_.out.find(text) == std::string::npos)
    if (!pump()) return false;
  return true;
}

void Child::stop_reading() {
  ::close(out_);
  out_ = -1;
}

bool Child::wait_until_caught(int number) {
  while (now() < deadline_) {
    std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
    for (std::string word; status >> word;)
      if (word == "SigCgt:" && status >> word && (std::stoull(word, nullptr, 16) >> (number - 1) & 1) != 0) return true;
    ::usleep(1000);
  }
  return false;
}

void Child::signal(int number) { ::kill(pid_, number); }

Outcome Child::wait() {
  while (pump()) {
  }
  int status = 0;
  if (pid_ > 0 && ::waitpid(pid_, &status, 0) == pid_)
    outcome_.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  pid_ = -1;
  return outcome_;
}

}  // namespace regolith::testing
