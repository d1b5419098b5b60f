// The machinery behind the table of keys: a table is a function `fields(visitor, struct)` that names each key once;
// visitors read it, write it, list its names and print its reference. Only for run_config.cpp.
#pragma once

#include <yaml-cpp/emitter.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "engine/config/run_config.h"

namespace regolith::config::table {
namespace fs = std::filesystem;

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

struct Rule {
  const char* doc = "";
  double min = -kNoLimit, max = kNoLimit;  // of a number, or of each number of a list
  const char* word = nullptr;              // text that stands for word_value: "auto"
  double word_value = 0;
  bool required = false;
  std::vector<std::string> names = {};  // what a text may be, if not anything
};

template <class E>
struct EnumNames;  // `static const std::vector<std::string> names`, in the order of the enumerators

struct Names;  // a visitor, declared here to ask whether a type has a table
template <class T>
concept Section = requires(Names& names, T& value) {
  fields(names, value);
};
template <class T>
concept Number = std::integral<T> || std::floating_point<T>;

inline std::string number_text(double value) {
  if (value == std::trunc(value) && std::abs(value) < 1e15) return std::to_string(static_cast<int64_t>(value));
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}
inline std::string range_text(const Rule& rule) {
  const bool low = rule.min > -kNoLimit, high = rule.max < kNoLimit;
  if (low && high) return " " + number_text(rule.min) + ".." + number_text(rule.max);
  return low ? " >= " + number_text(rule.min) : high ? " <= " + number_text(rule.max) : "";
}

// Leaves: read() from YAML, text() as flow YAML, type() for the reference.
template <Number T>
requires(!std::same_as<T, bool>) void read(const Yaml& yaml, T& value, const Rule& rule) {
  if (rule.word && yaml.is_scalar() && yaml.as<std::string>() == rule.word) {
    value = static_cast<T>(rule.word_value);
  } else if constexpr (std::floating_point<T>) {
    value = yaml.as_double(rule.min, rule.max);
  } else if constexpr (std::same_as<T, uint64_t>) {
    value = yaml.as<uint64_t>();
  } else {
    using Limits = std::numeric_limits<T>;
    const auto bound = [](double limit, T none) { return std::abs(limit) < kNoLimit ? static_cast<T>(limit) : none; };
    value = static_cast<T>(yaml.as_int(bound(rule.min, Limits::min()), bound(rule.max, Limits::max())));
  }
}
template <Number T>
requires(!std::same_as<T, bool>) std::string text(const T& value, const Rule& rule) {
  if (rule.word && value == static_cast<T>(rule.word_value)) return rule.word;
  if constexpr (std::integral<T>) return std::to_string(value);
  return number_text(static_cast<double>(value));
}
template <Number T>
requires(!std::same_as<T, bool>) std::string type(const T&, const Rule& rule) {
  return (std::integral<T> ? "integer" : "number") + range_text(rule) +
         (rule.word ? std::string(" or ") + rule.word : "");
}

inline void read(const Yaml& yaml, bool& value, const Rule&) { value = yaml.as<bool>(); }
inline std::string text(const bool& value, const Rule&) { return value ? "true" : "false"; }
inline std::string type(const bool&, const Rule&) { return "true|false"; }

inline std::string join_names(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : "|") + name;
  return all;
}
inline void read(const Yaml& yaml, std::string& value, const Rule& rule) {
  value = rule.names.empty() ? yaml.as<std::string>() : yaml.as_enum(rule.names);
  if (value.empty()) yaml.fail("expected text, found none");
}
inline std::string text(const std::string& value, const Rule&) {
  YAML::Emitter out;
  out << YAML::DoubleQuoted << value;
  return out.c_str();
}
inline std::string type(const std::string&, const Rule& rule) {
  return rule.names.empty() ? "text" : join_names(rule.names);
}

template <class E>
requires std::is_enum_v<E>
void read(const Yaml& yaml, E& value, const Rule&) {
  const auto& names = EnumNames<E>::names;
  const std::string name = yaml.as_enum(names);
  value = static_cast<E>(std::find(names.begin(), names.end(), name) - names.begin());
}
template <class E>
requires std::is_enum_v<E> std::string text(const E& value, const Rule&) {
  return EnumNames<E>::names[static_cast<size_t>(value)];
}
template <class E>
requires std::is_enum_v<E> std::string type(const E&, const Rule&) { return join_names(EnumNames<E>::names); }

// Paths. An empty one was not given.
inline std::string resolve(const Yaml& yaml) {
  const fs::path path = yaml.as<std::string>(), beside = yaml.folder() / path;
  std::error_code error;
  if (path.empty()) yaml.fail("expected the name of a file or folder, found an empty text");
  return fs::absolute(fs::exists(beside, error) ? beside : path).lexically_normal().string();
}
inline void read(const Yaml& yaml, FilePath& value, const Rule&) { value.path = resolve(yaml); }
inline void read(const Yaml& yaml, FolderPath& value, const Rule&) { value.path = resolve(yaml); }
inline std::string text(const FilePath& value, const Rule& rule) { return text(value.path, rule); }
inline std::string text(const FolderPath& value, const Rule& rule) { return text(value.path, rule); }
inline std::string type(const FilePath&, const Rule&) { return "file"; }
inline std::string type(const FolderPath&, const Rule&) { return "folder"; }

// One number or two.
inline std::array<double, 2> read_pair(const Yaml& yaml, const Rule& rule, bool mirror, const char* expected) {
  double first = 0, second = 0;
  if (yaml.is_scalar()) {
    read(yaml, second, rule);
    return {mirror ? -second : second, second};
  }
  if (!yaml.is_list() || yaml.size() != 2) yaml.fail(std::string("expected ") + expected);
  read(yaml.elements()[0], first, rule);
  read(yaml.elements()[1], second, rule);
  return {first, second};
}
inline std::string pair_text(double first, double second) {
  return "[" + number_text(first) + ", " + number_text(second) + "]";
}
inline void read(const Yaml& yaml, Interval& value, const Rule& rule) {
  const auto pair = read_pair(yaml, rule, true, "one number (either way) or [low, high]");
  value = {std::min(pair[0], pair[1]), std::max(pair[0], pair[1])};
}
inline void read(const Yaml& yaml, Extent& value, const Rule& rule) {
  const auto pair = read_pair(yaml, rule, false, "one number (for both) or [height, width]");
  value = {pair[0], pair[1]};
}
inline void read(const Yaml& yaml, std::array<double, 2>& value, const Rule& rule) {
  if (!yaml.is_list()) yaml.fail("expected a list of two numbers");
  value = read_pair(yaml, rule, false, "a list of two numbers");
}
inline std::string text(const Interval& value, const Rule&) { return pair_text(value.low, value.high); }
inline std::string text(const Extent& value, const Rule&) { return pair_text(value.height, value.width); }
inline std::string text(const std::array<double, 2>& value, const Rule&) { return pair_text(value[0], value[1]); }
inline std::string type(const Interval&, const Rule& rule) { return "number or [low, high]," + range_text(rule); }
inline std::string type(const Extent&, const Rule& rule) { return "number or [height, width]," + range_text(rule); }
inline std::string type(const std::array<double, 2>&, const Rule& rule) {
  return "[number, number]," + range_text(rule);
}

inline void read(const Yaml& yaml, Colour& value, const Rule&) {
  if (yaml.size() != 3) yaml.fail("expected a colour [red, green, blue] of numbers from 0 to 255");
  for (size_t i = 0; i < 3; ++i) value[i] = static_cast<uint8_t>(yaml.elements()[i].as_int(0, 255));
}
inline std::string text(const Colour& value, const Rule&) {
  return "[" + std::to_string(value[0]) + ", " + std::to_string(value[1]) + ", " + std::to_string(value[2]) + "]";
}
inline std::string type(const Colour&, const Rule&) { return "[red, green, blue]"; }

template <class T>
requires(!Section<T>) void read(const Yaml& yaml, std::vector<T>& value, const Rule& rule) {
  value.clear();
  if (yaml.is_scalar()) read(yaml, value.emplace_back(), rule);
  if (!yaml.is_scalar())
    for (const Yaml& element : yaml.elements()) read(element, value.emplace_back(), rule);
}
template <class T>
requires(!Section<T>) std::string text(const std::vector<T>& value, const Rule& rule) {
  std::string list;
  for (const T& element : value) list += (list.empty() ? "" : ", ") + text(element, rule);
  return "[" + list + "]";
}
template <class T>
requires(!Section<T>) std::string type(const std::vector<T>&, const Rule& rule) { return "list of " + type(T(), rule); }

// A list; the rule's word, where it has one, is what stands for inverse frequencies.
inline void read(const Yaml& yaml, ClassWeights& value, const Rule& rule) {
  value.inverse_frequency = rule.word && yaml.is_scalar() && yaml.as<std::string>() == rule.word;
  if (!value.inverse_frequency && !yaml.is_list())
    yaml.fail(std::string("expected ") + (rule.word ? rule.word + std::string(" or ") : "") +
              "a list, one number per class");
  if (!value.inverse_frequency) read(yaml, value.values, {.min = rule.min, .max = rule.max});
}
inline std::string text(const ClassWeights& value, const Rule& rule) {
  return value.inverse_frequency ? rule.word : text(value.values, Rule{});
}
inline std::string type(const ClassWeights&, const Rule& rule) {
  return (rule.word ? rule.word + std::string(" or ") : "") + type(std::vector<double>(), {.min = rule.min});
}

template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <class T>
struct IsSectionList : std::false_type {};
template <class T>
struct IsSectionList<std::vector<T>> : std::bool_constant<Section<T>> {};

// Visitors. Each has operator()(key, field, rule) and one_of(variant, alternatives), where the alternatives are named
// in the order of the variant's types, std::monostate left out.
struct Alternative {
  const char* key;
  Rule rule;
};
using Alternatives = std::vector<Alternative>;

struct Names {
  std::vector<std::string> names;
  template <class T>
  void operator()(const char* key, T&, const Rule&) {
    names.push_back(key);
  }
  template <class V>
  void one_of(V&, const Alternatives& alternatives, const Rule&) {
    for (const Alternative& alternative : alternatives) names.push_back(alternative.key);
  }
  template <class F>
  void after_reading(F) {}
};

template <class V, class F, size_t I = 0>
void with_alternative(V& variant, const Alternatives& alternatives, F action) {  // action(alternative, value of type I)
  if constexpr (I < std::variant_size_v<V>) {
    using T = std::variant_alternative_t<I, V>;
    constexpr size_t kShift = std::is_same_v<std::variant_alternative_t<0, V>, std::monostate>;
    if constexpr (!std::is_same_v<T, std::monostate>) action(alternatives[I - kShift], std::type_identity<T>{});
    with_alternative<V, F, I + 1>(variant, alternatives, action);
  }
}

template <Section T>
void read_section(const Yaml& yaml, T& value);

struct Reader {
  Yaml yaml;

  template <class T>
  void operator()(const char* key, T& field, const Rule& rule) {
    const Yaml child = yaml.find(key);
    if constexpr (IsOptional<T>::value) {
      field.reset();
      if (child) read_section(child, field.emplace());
    } else if constexpr (Section<T>) {
      if (child.exists() && child.is_null()) child.fail("expected a map of keys, found no value");
      read_section(child, field);
    } else if constexpr (IsSectionList<T>::value) {
      for (const Yaml& element : child.elements()) read_section(element, field.emplace_back());
      if (field.empty()) child.fail("expected a list of at least one");
    } else {
      if (rule.required) yaml.at(key);
      if (child.exists()) read(child, field, rule);
    }
  }
  template <class V>
  void one_of(V& variant, const Alternatives& alternatives, const Rule&) {
    std::vector<std::string> keys;
    for (const Alternative& alternative : alternatives) keys.push_back(alternative.key);
    if (!yaml.exists()) return;
    const std::string key = yaml.one_of(keys);
    for (const std::string& name : keys)
      if (key.empty() && yaml.find(name).exists()) yaml.fail_key(name, "no value; give it one, or {} for its defaults");
    with_alternative(variant, alternatives, [&]<class T>(const Alternative& alternative, std::type_identity<T>) {
      if (key == alternative.key) (*this)(alternative.key, variant.template emplace<T>(), alternative.rule);
    });
  }
  template <class F>
  void after_reading(F change) {
    change();
  }
};

template <Section T>
void read_section(const Yaml& yaml, T& value) {
  Names names;
  fields(names, value);
  if (yaml.exists()) yaml.expect_keys(names.names);
  Reader reader{yaml};
  fields(reader, value);
}

// Every key with its value, as YAML.
struct Writer {
  YAML::Emitter& out;

  template <class T>
  void value(T& field, const Rule& rule) {
    if constexpr (IsOptional<T>::value) {
      field ? value(*field, rule) : void(out << YAML::Null);
    } else if constexpr (Section<T>) {
      out << YAML::BeginMap;
      fields(*this, field);
      out << YAML::EndMap;
    } else if constexpr (IsSectionList<T>::value) {
      out << YAML::BeginSeq;
      for (auto& element : field) value(element, rule);
      out << YAML::EndSeq;
    } else {
      Yaml::load_string("x: " + text(field, rule), "").at("x").emit(out);
    }
  }
  template <class T>
  void operator()(const char* key, T& field, const Rule& rule) {
    out << YAML::Key << key << YAML::Value;
    value(field, rule);
  }
  template <class V>
  void one_of(V& variant, const Alternatives& alternatives, const Rule&) {
    with_alternative(variant, alternatives, [&]<class T>(const Alternative& alternative, std::type_identity<T>) {
      if (T* chosen = std::get_if<T>(&variant)) (*this)(alternative.key, *chosen, alternative.rule);
    });
  }
  template <class F>
  void after_reading(F) {}
};

// The reference for people.
struct Help {
  std::ostream& out;
  std::string path;

  void line(const std::string& key, const std::string& type, const std::string& doc) {
    out << path << key << ": " << type << "\n    " << doc << "\n";
  }
  template <class T>
  void operator()(const std::string& name, T& field, const Rule& rule) {
    if constexpr (IsOptional<T>::value) {
      line(name, "map = off", rule.doc);
      typename T::value_type inner;
      Help{out, path + name + "."}.all(inner);
    } else if constexpr (Section<T>) {
      if (*rule.doc) line(name, "map", rule.doc);
      Help{out, path + name + "."}.all(field);
    } else if constexpr (IsSectionList<T>::value) {
      line(name, "list of maps", rule.doc);
      typename T::value_type inner;
      Help{out, path + name + ".N."}.all(inner);
    } else {
      const std::string preset = text(field, rule);
      line(name,
           type(field, rule) + (rule.required      ? " (required)"
                                : preset == "\"\"" ? ""
                                                   : " = " + preset),
           rule.doc);
    }
  }
  template <class V>
  void one_of(V& variant, const Alternatives& alternatives, const Rule& rule) {
    std::vector<std::string> keys;
    for (const Alternative& alternative : alternatives) keys.push_back(alternative.key);
    out << path << "{" << join_names(keys) << "}: one of these\n    " << rule.doc << "\n";
    if (rule.names.empty())  // else they are described elsewhere
      with_alternative(variant, alternatives, [&]<class T>(const Alternative& alternative, std::type_identity<T>) {
        T inner{};
        (*this)(alternative.key, inner, alternative.rule);
      });
  }
  template <class F>
  void after_reading(F) {}
  template <Section T>
  void all(T& value) {
    fields(*this, value);
  }
};

}  // namespace regolith::config::table
