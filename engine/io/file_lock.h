// One process at a time in a folder.
#pragma once

#include <string>
#include <utility>

namespace regolith {

// Holds a file of the folder for as long as it lives: the file names the process and is removed with the lock. The
// system drops the lock of a process that was killed, whose file is then taken over.
class FileLock {
 public:
  FileLock() = default;  // holds nothing
  // Throws IoError where another process holds it, or the folder cannot be written. A file system without locks (some
  // network ones) is taken as it is.
  explicit FileLock(const std::string& folder);
  FileLock(FileLock&& other) noexcept { swap(other); }
  FileLock& operator=(FileLock other) noexcept {
    swap(other);
    return *this;
  }
  ~FileLock();

 private:
  void swap(FileLock& other) noexcept {
    path_.swap(other.path_);
    std::swap(file_, other.file_);
  }
  std::string path_;
  int file_ = -1;
};

}  // namespace regolith
