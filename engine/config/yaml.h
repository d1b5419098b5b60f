// YAML in which every value knows where it came from: file, line, column and key path, so that each error can say so.
//
// A file may inherit: `extends: other.yaml` (or a list, later ones on top; paths relative to the file that says it).
// Maps merge key by key, in the order of the base; lists and scalars are replaced. Overrides `key.path=value` come
// last: they replace, build the maps that are missing, and take a list index as a key (`model.nodes.d1.in.0=e1`). Every
// error is a ConfigError that reads "file:line:column: key.path: message".
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace YAML {
class Emitter;
}

namespace regolith {

// "; did you mean 'filters'?" where a candidate is close to the name by edit distance, else "".
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

// A shared, immutable view of one value. A default-constructed one, or one that find() did not find, is empty: false,
// with the place and the path where the value would have been.
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
  size_t size() const;  // entries of a map or list, else 0

  const std::string& path() const { return path_; }  // "model.nodes.e1.filters"; "" at the top
  const Position& position() const {
    return position_;
  }                                      // of the value; of the map that lacks it where it is not there
  std::filesystem::path folder() const;  // of the file it stands in; empty for the command line

  Yaml find(std::string_view key) const;  // empty where there is no such key (or this is empty); error if not a map
  Yaml at(std::string_view key) const;    // error if missing or null
  std::vector<Item> items() const;        // of a map, in the order of the file; error if not a map
  std::vector<Yaml> elements() const;     // of a list; error if not a list

  // bool, int, int64_t, uint64_t, double, std::string, or a std::vector of them (a scalar is a list of one).
  // Numbers and booleans are plain scalars: `"3"` is a string. Any scalar can be read as a string.
  template <class T>
  T as() const;
  template <class T>
  T get(std::string_view key, T fallback) const {
    const Yaml value = find(key);
    return value.exists() ? value.as<T>() : fallback;
  }
  int64_t as_int(int64_t min, int64_t max = std::numeric_limits<int64_t>::max()) const;
  double as_double(double min, double max = std::numeric_limits<double>::infinity()) const;
  std::string as_enum(std::span<const std::string> names) const;  // one of the names
  std::string as_enum(std::initializer_list<std::string> names) const { return as_enum(std::span(names)); }

  // Error at the first key of this map that is not among the names.
  void expect_keys(std::span<const std::string> names) const;
  void expect_keys(std::initializer_list<std::string> names) const { expect_keys(std::span(names)); }
  // Of keys that exclude each other, the one that is set, or "". Where a file or the command line sets another one than
  // the file it extends, the later wins; two in one file are an error.
  std::string one_of(std::span<const std::string> names) const;

  [[noreturn]] void fail(const std::string& message) const;                            // at the value
  [[noreturn]] void fail_key(std::string_view key, const std::string& message) const;  // at that key of this map
  std::string dump() const;                                                            // as YAML text, without anchors
  void emit(YAML::Emitter& out) const;

 private:
  Yaml(std::shared_ptr<const Node> node, std::string path);
  std::string child_path(std::string_view key) const;
  const std::string& plain(const char* expected) const;
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
int64_t Yaml::as<int64_t>() const;
template <>
uint64_t Yaml::as<uint64_t>() const;
template <>
int Yaml::as<int>() const;
template <>
double Yaml::as<double>() const;
template <>
std::string Yaml::as<std::string>() const;

template <class T>
T Yaml::as() const {
  T list;  // a std::vector: every other type has its specialisation
  if (is_scalar() && !std::is_class_v<typename T::value_type>) return T{as<typename T::value_type>()};
  if constexpr (std::is_same_v<typename T::value_type, std::string>) {
    if (is_scalar()) return T{as<std::string>()};
  }
  for (const Yaml& element : elements()) list.push_back(element.as<typename T::value_type>());
  return list;
}

}  // namespace regolith
