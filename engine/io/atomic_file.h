// Files that are written whole or not at all: written beside their place, flushed to the disk, then renamed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace regolith {

class AtomicFile {
 public:
  // Throws IoError, as write() and commit() do, naming the file and the reason. An earlier file at `path` stays as it
  // was until commit(); without a commit the destructor removes the temporary file.
  explicit AtomicFile(std::string path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  enum class Flush { yes, no };  // no: for what can be made again, many files a second; a power cut may take it
  void commit(Flush flush = Flush::yes);

 private:
  [[noreturn]] void fail(const char* what) const;

  std::string path_, temporary_;
  int file_ = -1;
};

std::string read_text(const std::string& path);  // a whole file; "" where it cannot be read
void write_file_atomically(const std::string& path, std::string_view text);
// The text is on the disk when the function returns. Throws IoError.
void append_to_file(const std::string& path, std::string_view text);

}  // namespace regolith
