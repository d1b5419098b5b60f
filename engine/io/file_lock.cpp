#include "engine/io/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/error.h"

namespace regolith {

FileLock::FileLock(const std::string& folder) : path_(folder + "/lock") {
  for (;;) {
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) throw IoError(folder + ": cannot write in this folder: " + std::strerror(errno));
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      char process[32] = {};
      const bool known = ::pread(file_, process, sizeof process - 1, 0) > 0;
      ::close(std::exchange(file_, -1));
      throw IoError(folder + ": is in use by " + (known ? "process " + std::string(process) : "another process") +
                    "; wait for it, or end it");
    }
    struct stat held {
    }, there{};
    if (::fstat(file_, &held) == 0 && ::stat(path_.c_str(), &there) == 0 && held.st_ino == there.st_ino) break;
    ::close(std::exchange(file_, -1));  // another process ended, and removed the file, before we locked it
  }
  const std::string process = std::to_string(::getpid());
  // A full disk costs the number only.
  if (::ftruncate(file_, 0) != 0 || ::pwrite(file_, process.data(), process.size(), 0) < 0) return;
}

FileLock::~FileLock() {
  if (file_ < 0) return;
  ::unlink(path_.c_str());
  ::close(file_);
}

}  // namespace regolith
