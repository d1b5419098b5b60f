// YAML in which every value knows where it came from: file, line, column and key path, so that each error can say so.
//
// A file may inherit: `extends: other.yaml` (or a list, later ones on top; paths relative to the file that says it).
// Maps merge key by key, in the order of the base; lists and scalars are replaced. Overrides `key.path=value` come
// last: they replace, build the maps that are missing, and take a list index as a key (`model.nodes.d1.in.0=e1`). Every
// error is a ConfigError that reads "file:line:column: key.path: message". Text that is not UTF-8 is one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace YAML {
class Emitter;
}

namespace regolith {

// A shared, immutable view of one value. A default-constructed view, or the view of a key that find() did not find, is
// empty: false, with the place and the path where the value would have been.
class Yaml {
 public:
  struct Node;
  struct Position {
    std::string file;          // as the user named it; "command line" for an override
    int line = 0, column = 0;  // from 1; 0 where there is no line
    std::string text() const;
  };
  struct Item;

  Yaml() = default;
  static Yaml load(const std::filesystem::path& file);                      // a map; `extends` is followed
  static Yaml load_string(std::string_view text, const std::string& name);  // the same, paths from the working folder
  Yaml with_overrides(const std::vector<std::string>& assignments) const;   // "train.batch=32", ...

  explicit operator bool() const { return !is_null(); }  // there, and not null
  bool exists() const { return node_ != nullptr; }       // there, if only as `key: null`
  bool is_null() const;
  bool is_map() const;
  bool is_list() const;
  bool is_scalar() const;
  bool is_off() const;  // what switches a section off: null, off, none, false or no
  size_t size() const;  // entries of a map or list, else 0

  const std::string& path() const { return path_; }       // "model.nodes.e1.filters"; "" at the top
  const Position& position() const { return position_; }  // of the value, or of the map that lacks it
  std::filesystem::path folder() const;                   // of the value's file; empty for the command line

  Yaml find(std::string_view key) const;  // empty where there is no such key (or this is empty); error if not a map
  Yaml at(std::string_view key) const;    // error if missing or null
  std::vector<Item> items() const;        // of a map, in the order of the file; error if not a map
  std::vector<Yaml> elements() const;     // of a list; error if not a list

  // Numbers and booleans are plain scalars: `"3"` is a string. Any scalar can be read as a string. `word`: what the
  // caller takes instead of a number, for the message.
  int64_t as_int(int64_t min = std::numeric_limits<int64_t>::min(), int64_t max = std::numeric_limits<int64_t>::max(),
                 const char* word = nullptr) const;
  double as_double(double min = -std::numeric_limits<double>::infinity(),
                   double max = std::numeric_limits<double>::infinity(), const char* word = nullptr) const;
  template <class T>
  T as() const;  // bool, uint64_t, std::string, or std::vector<std::string> (a scalar is a list of one)
  std::string as_enum(const std::vector<std::string>& names) const;  // one of the names

  void expect_keys(const std::vector<std::string>& names) const;  // error at the first other key of this map
  // The one key that is set of keys that exclude each other, or "". The key of the later layer wins: a file lies above
  // the files it extends, the command line above all. Two keys in one layer are an error.
  std::string one_of(const std::vector<std::string>& names) const;

  [[noreturn]] void fail(const std::string& message) const;                            // at the value
  [[noreturn]] void fail_key(std::string_view key, const std::string& message) const;  // at that key of this map
  void emit(YAML::Emitter& out) const;                                                 // without anchors
  std::string flow_text() const;  // on one line, as an override takes it; "off" for what is null

 private:
  Yaml(std::shared_ptr<const Node> node, std::string path);
  template <class T>
  T number(std::string expected, T min, T max, const char* word = nullptr) const;
  const std::string& plain(const std::string& expected) const;
  std::string what() const;  // "a list", "'text'", for messages

  std::shared_ptr<const Node> node_;
  std::string path_;
  Position position_;
};

struct Yaml::Item {
  std::string key;
  Yaml value;
  Position position;  // of the key
};

template <>
bool Yaml::as<bool>() const;
template <>
uint64_t Yaml::as<uint64_t>() const;
template <>
std::string Yaml::as<std::string>() const;
template <>
std::vector<std::string> Yaml::as<std::vector<std::string>>() const;

}  // namespace regolith
