// The attributes of one node of a model: its own keys, then the model's defaults; `$name` stands for a parameter of the
// sub-network that the node belongs to.
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config/yaml.h"

namespace regolith {

class Attributes {
 public:
  using Params = std::map<std::string, Yaml>;
  Attributes(Yaml node, std::vector<Yaml> defaults, const Params* params)
      : node_(std::move(node)), defaults_(std::move(defaults)), params_(params) {}

  const Yaml& node() const { return node_; }
  // The value of a key, parameters put in; empty where neither the node nor the defaults have it.
  Yaml find(std::string_view key) const;
  // `value` itself, or the parameter that it names. Throws ConfigError for a parameter that does not exist.
  Yaml resolve(const Yaml& value) const;
  bool has(std::string_view key) const { return static_cast<bool>(find(key)); }

  // Throw ConfigError with the position: a required key that is missing, a wrong type, a value out of range.
  int integer(std::string_view key, int min, int max) const;
  int integer(std::string_view key, int min, int max, int fallback) const;
  double number(std::string_view key, double min, double max, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string choice(std::string_view key, std::initializer_list<std::string> names, const std::string& fallback) const;
  // One number for both axes, or [vertical, horizontal].
  std::array<int, 2> pair(std::string_view key, int min, int max, int fallback) const;
  std::vector<int> integers(std::string_view key, int min, int max, std::vector<int> fallback) const;

 private:
  Yaml required(std::string_view key) const;
  Yaml node_;
  std::vector<Yaml> defaults_;  // the nearest first
  const Params* params_;
};

}  // namespace regolith
