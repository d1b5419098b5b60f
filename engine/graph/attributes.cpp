#include "engine/graph/attributes.h"

#include <algorithm>

#include "engine/base/text.h"

namespace regolith {
namespace {

// What a required number is while keys are recorded: blocks are built with it.
constexpr int kRecordedValue = 64;

std::string range(double min, double max) { return " " + number(min) + ".." + number(max); }

}  // namespace

Yaml Attributes::resolve(const Yaml& value) const {
  if (!value.is_scalar()) return value;
  const std::string text = value.as<std::string>();
  if (text.size() < 2 || text[0] != '$') return value;
  if (params_ != nullptr) {
    if (const auto it = params_->find(text.substr(1)); it != params_->end()) return it->second;
  }
  std::vector<std::string> names;
  if (params_ != nullptr)
    for (const auto& [name, v] : *params_) names.push_back(name);
  value.fail("there is no parameter '" + text.substr(1) + "' here" + did_you_mean(text.substr(1), names));
}

Yaml Attributes::find(std::string_view key) const {
  if (const Yaml own = node_.find(key)) return resolve(own);
  for (const Yaml& d : defaults_) {
    if (!d.exists()) continue;
    if (const Yaml value = d.find(key)) return resolve(value);
  }
  return {};
}

Yaml Attributes::ask(std::string_view key, const std::string& type, const char* doc) const {
  if (record_ == nullptr) return find(key);
  const auto same = [&](const AttributeKey& k) { return k.name == key; };
  if (std::none_of(record_->begin(), record_->end(), same)) record_->push_back({std::string(key), type, doc});
  return {};
}

void Attributes::fail(std::string_view key, const std::string& message) const { find(key).fail(message); }

int Attributes::integer(std::string_view key, const char* doc, int min, int max) const {
  const Yaml value = ask(key, "integer" + range(min, max) + " (required)", doc);
  if (record_ != nullptr) return std::clamp(kRecordedValue, min, max);
  return static_cast<int>((value ? value : node_.at(key)).as_int(min, max));  // at() says what is missing
}

int Attributes::integer(std::string_view key, const char* doc, int min, int max, int fallback) const {
  const Yaml value = ask(key, "integer" + range(min, max) + " = " + std::to_string(fallback), doc);
  return value ? static_cast<int>(value.as_int(min, max)) : fallback;
}

double Attributes::number(std::string_view key, const char* doc, double min, double max) const {
  const Yaml value = ask(key, "number" + range(min, max) + " (required)", doc);
  if (record_ != nullptr) return min;
  return (value ? value : node_.at(key)).as_double(min, max);
}

double Attributes::number(std::string_view key, const char* doc, double min, double max, double fallback) const {
  const Yaml value = ask(key, "number" + range(min, max) + " = " + regolith::number(fallback), doc);
  return value ? value.as_double(min, max) : fallback;
}

bool Attributes::boolean(std::string_view key, const char* doc, bool fallback) const {
  const Yaml value = ask(key, std::string("true|false = ") + (fallback ? "true" : "false"), doc);
  return value ? value.as<bool>() : fallback;
}

int Attributes::choice(std::string_view key, const char* doc, std::initializer_list<std::string> names) const {
  const Yaml value = ask(key, join(names, "|") + " = " + *names.begin(), doc);
  if (!value) return 0;
  return static_cast<int>(std::find(names.begin(), names.end(), value.as_enum(names)) - names.begin());
}

std::array<int, 2> Attributes::pair(std::string_view key, const char* doc, int min, int max, int fallback) const {
  const Yaml value = ask(key, "integer" + range(min, max) + ", or two = " + std::to_string(fallback), doc);
  if (!value) return {fallback, fallback};
  const auto list = value.is_list() ? value.elements() : std::vector<Yaml>{value, value};
  if (list.size() != 2) value.fail("expected one number, or two: [vertical, horizontal]");
  return {static_cast<int>(resolve(list[0]).as_int(min, max)), static_cast<int>(resolve(list[1]).as_int(min, max))};
}

std::vector<int> Attributes::integers(std::string_view key, const char* doc, int min, int max,
                                      std::vector<int> fallback) const {
  const Yaml value = ask(key, "list of integers" + range(min, max) + " = [" + join(fallback) + "]", doc);
  if (!value) return fallback;
  std::vector<int> list;
  for (const Yaml& e : value.is_list() ? value.elements() : std::vector<Yaml>{value})
    list.push_back(static_cast<int>(resolve(e).as_int(min, max)));
  return list;
}

}  // namespace regolith
