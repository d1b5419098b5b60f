// What stands behind Yaml: only for yaml.cpp (the view) and yaml_load.cpp (files, inheritance, overrides).
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/config/yaml.h"

namespace regolith {

struct Yaml::Node {
  enum class Kind { null, scalar, list, map };
  struct Entry {
    std::string key;  // "" in a list
    Position position;
    std::shared_ptr<const Node> value;
  };
  Kind kind = Kind::null;
  Position position;
  std::shared_ptr<const int> layer;  // of the file: a base is below what extends it, the command line is on top
  bool flow = false, quoted = false;
  std::string scalar;
  std::vector<Entry> entries;
  int64_t weight = 1;  // nodes below with aliases written out, to refuse a file that explodes

  const Entry* find(std::string_view key) const {
    const auto it = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.key == key; });
    return it == entries.end() ? nullptr : &*it;
  }
};

[[noreturn]] inline void fail_at(const Yaml::Position& position, const std::string& path, const std::string& message) {
  throw ConfigError(position.text() + ": " + (path.empty() ? "" : path + ": ") + message);
}

inline std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

}  // namespace regolith
