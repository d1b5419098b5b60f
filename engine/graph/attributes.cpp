#include "engine/graph/attributes.h"

#include "engine/base/text.h"

namespace regolith {

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

Yaml Attributes::required(std::string_view key) const {
  const Yaml value = find(key);
  if (!value) return node_.at(key);  // its error says what is missing
  return value;
}

int Attributes::integer(std::string_view key, int min, int max) const {
  return static_cast<int>(required(key).as_int(min, max));
}

int Attributes::integer(std::string_view key, int min, int max, int fallback) const {
  const Yaml value = find(key);
  return value ? static_cast<int>(value.as_int(min, max)) : fallback;
}

double Attributes::number(std::string_view key, double min, double max, double fallback) const {
  const Yaml value = find(key);
  return value ? value.as_double(min, max) : fallback;
}

bool Attributes::boolean(std::string_view key, bool fallback) const {
  const Yaml value = find(key);
  return value ? value.as<bool>() : fallback;
}

std::string Attributes::choice(std::string_view key, std::initializer_list<std::string> names,
                               const std::string& fallback) const {
  const Yaml value = find(key);
  return value ? value.as_enum(names) : fallback;
}

std::array<int, 2> Attributes::pair(std::string_view key, int min, int max, int fallback) const {
  const Yaml value = find(key);
  if (!value) return {fallback, fallback};
  if (!value.is_list()) {
    const int both = static_cast<int>(value.as_int(min, max));
    return {both, both};
  }
  const auto list = value.elements();
  if (list.size() != 2) value.fail("expected one number, or two: [vertical, horizontal]");
  return {static_cast<int>(resolve(list[0]).as_int(min, max)), static_cast<int>(resolve(list[1]).as_int(min, max))};
}

std::vector<int> Attributes::integers(std::string_view key, int min, int max, std::vector<int> fallback) const {
  const Yaml value = find(key);
  if (!value) return fallback;
  std::vector<int> list;
  if (value.is_scalar()) return {static_cast<int>(value.as_int(min, max))};
  for (const Yaml& e : value.elements()) list.push_back(static_cast<int>(resolve(e).as_int(min, max)));
  return list;
}

}  // namespace regolith
