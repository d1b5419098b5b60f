// The attributes of one node of a model: its own keys, then the model's defaults; `$name` stands for a parameter of the
// sub-network that the node belongs to. Each call that reads an attribute also documents it: on an Attributes that
// records, the calls return defaults and leave a list of keys.
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config/yaml.h"

namespace regolith {

// "kernel", "integer 1..255 = 3", "rows and columns"
struct AttributeKey {
  std::string name, type, doc;
};

class Attributes {
 public:
  using Params = std::map<std::string, Yaml>;
  Attributes(Yaml node, std::vector<Yaml> defaults, const Params* params)
      : node_(std::move(node)), defaults_(std::move(defaults)), params_(params) {}
  explicit Attributes(std::vector<AttributeKey>& record) : record_(&record) {}

  const Yaml& node() const { return node_; }
  // `value` itself, or the parameter that it names. Throws ConfigError for a parameter that does not exist.
  Yaml resolve(const Yaml& value) const;

  // Without a fallback the key is required. Throw ConfigError with the position: a required key that is missing, a
  // wrong type, a value out of range.
  int integer(std::string_view key, const char* doc, int min, int max) const;
  int integer(std::string_view key, const char* doc, int min, int max, int fallback) const;
  double number(std::string_view key, const char* doc, double min, double max) const;
  double number(std::string_view key, const char* doc, double min, double max, double fallback) const;
  bool boolean(std::string_view key, const char* doc, bool fallback) const;
  // The number of the name; the first is the fallback.
  int choice(std::string_view key, const char* doc, std::initializer_list<std::string> names) const;
  // One number for both axes, or [vertical, horizontal].
  std::array<int, 2> pair(std::string_view key, const char* doc, int min, int max, int fallback) const;
  std::vector<int> integers(std::string_view key, const char* doc, int min, int max, std::vector<int> fallback) const;
  [[noreturn]] void fail(std::string_view key, const std::string& message) const;  // at the key's value

 private:
  // The value of a key, parameters put in; empty where neither the node nor the defaults have it.
  Yaml find(std::string_view key) const;
  // The same; while recording, notes the key, and there is no value.
  Yaml ask(std::string_view key, const std::string& type, const char* doc) const;

  Yaml node_;
  std::vector<Yaml> defaults_;  // the nearest first
  const Params* params_ = nullptr;
  std::vector<AttributeKey>* record_ = nullptr;
};

}  // namespace regolith
