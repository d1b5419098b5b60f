// A program of the build's bin folder in a child process, with a folder of its own to work in.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace regolith::testing {

// A folder under the system's temporary ones that goes with this object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string read(const std::string& name) const;  // "" where there is no such file
  void write(const std::string& name, const std::string& bytes) const;
  bool has(const std::string& name) const;

 private:
  std::string path_;
};

struct Outcome {
  int code = -1;  // exit status; minus the signal that ended it
  std::string out, err;
};

class Child {
 public:
  // Starts bin/words[0] with the rest as arguments, stdout and stderr to pipes, in `folder`. file_limit: bytes that a
  // file may have (RLIMIT_FSIZE: a full disk), -1 for none.
  Child(const std::string& folder, const std::vector<std::string>& words, long file_limit = -1);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Until stdout holds `text`; false where it ended, or two minutes passed, without.
  bool wait_for(const std::string& text);
  void stop_reading();                 // of stdout
  bool wait_until_caught(int number);  // until a signal would be handled
  void signal(int number);
  Outcome wait();  // until it ends; killed after two minutes

 private:
  bool pump();  // reads what there is; false at the end of both pipes

  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;
  Outcome outcome_;
  double deadline_;
};

}  // namespace regolith::testing
