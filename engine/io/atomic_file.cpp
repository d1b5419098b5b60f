#include "engine/io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "engine/base/error.h"

namespace regolith {
namespace {

bool write_all(int file, const char* at, size_t bytes) {
  while (bytes > 0) {
    const ssize_t written = ::write(file, at, std::min<size_t>(bytes, 1 << 30));
    if (written < 0 && errno != EINTR) return false;
    at += std::max<ssize_t>(written, 0);
    bytes -= static_cast<size_t>(std::max<ssize_t>(written, 0));
  }
  return true;
}

bool flush_to_disk(int file) { return ::fsync(file) == 0 || errno == EINVAL; }  // EINVAL: a file system without fsync

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), temporary_(path_ + ".tmp") {
  file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file_ < 0) fail("cannot create");
}

AtomicFile::~AtomicFile() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  if (!write_all(file_, static_cast<const char*>(data), bytes)) fail("cannot write");
}

void AtomicFile::commit(Flush flush) {
  if (flush == Flush::yes && !flush_to_disk(file_)) fail("cannot write");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot rename to");
  ::close(std::exchange(file_, -1));
  if (flush == Flush::no) return;
  const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  const int entry = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (entry >= 0) {  // the rename itself must reach the disk
    ::fsync(entry);
    ::close(entry);
  }
}

void AtomicFile::fail(const char* what) const {
  const int error = errno;
  std::string message = std::string(what) + " " + path_ + ": " + std::strerror(error);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) message += "; free some space or write to another folder";
  throw IoError(message + " (what stood there before is unchanged)");
}

std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write_file_atomically(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void append_to_file(const std::string& path, std::string_view text) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  const bool whole = file >= 0 && write_all(file, text.data(), text.size()) && flush_to_disk(file);
  const int error = errno;
  if (file >= 0) ::close(file);
  if (!whole) throw IoError(path + ": cannot append to this file: " + std::strerror(error));
}

}  // namespace regolith
