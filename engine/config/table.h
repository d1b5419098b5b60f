// The visitors of fields(): they read a struct from YAML, write it, list its keys and print its reference. Included
// only where a whole configuration is put together.
#pragma once

#include <yaml-cpp/emitter.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "engine/base/text.h"
#include "engine/config/fields.h"
#include "engine/config/yaml.h"
#include "kernels/augment_options.h"

namespace regolith::config {

namespace fs = std::filesystem;

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

struct Names;  // a visitor, declared here to ask whether a type has a table
template <class T>
concept Section = requires(Names& names, T& value) {
  fields(names, value);
};
template <class T>
concept Number = std::integral<T> || std::floating_point<T>;

inline std::string range_text(const FieldInfo& info) {
  const bool low = info.min > -kNoLimit, high = info.max < kNoLimit;
  if (low && high) return " " + number(info.min) + ".." + number(info.max);
  return low ? " >= " + number(info.min) : high ? " <= " + number(info.max) : "";
}

// Leaves: read() from YAML, text() as flow YAML, type() for the reference.
template <Number T>
requires(!std::same_as<T, bool>) void read(const Yaml& yaml, T& value, const FieldInfo& info) {
  if (info.word && yaml.is_scalar() && yaml.as<std::string>() == info.word) {
    value = static_cast<T>(info.word_value);
  } else if constexpr (std::floating_point<T>) {
    const double given = yaml.as_double(info.min, info.max, info.word);
    if (std::abs(given) > std::numeric_limits<float>::max()) yaml.fail("expected a number that fp32 can hold");
    value = static_cast<T>(given);
  } else if constexpr (std::same_as<T, uint64_t>) {
    value = yaml.as<uint64_t>();
  } else {
    using Limits = std::numeric_limits<T>;
    const auto bound = [](double limit, T none) { return std::abs(limit) < kNoLimit ? static_cast<T>(limit) : none; };
    value = static_cast<T>(yaml.as_int(bound(info.min, Limits::min()), bound(info.max, Limits::max()), info.word));
  }
}
template <Number T>
requires(!std::same_as<T, bool>) std::string text(const T& value, const FieldInfo& info) {
  if (info.word && value == static_cast<T>(info.word_value)) return info.word;
  if constexpr (std::integral<T>)
    return std::to_string(value);
  else
    return number(value);
}
template <Number T>
requires(!std::same_as<T, bool>) std::string type(const T&, const FieldInfo& info) {
  return (std::integral<T> ? "integer" : "number") + range_text(info) +
         (info.word ? std::string(" or ") + info.word : "");
}

inline void read(const Yaml& yaml, bool& value, const FieldInfo&) { value = yaml.as<bool>(); }
inline std::string text(const bool& value, const FieldInfo&) { return value ? "true" : "false"; }
inline std::string type(const bool&, const FieldInfo&) { return "true|false"; }

// A path as it is given, but for "~/". What else only a shell knows would name a folder "$HOME".
inline std::string path_of(const Yaml& yaml) {
  std::string path = yaml.as<std::string>();
  const char* home = std::getenv("HOME");
  std::error_code error;
  if (path.starts_with("~/") && home && *home) return path.replace(0, 1, home);
  if ((path.starts_with('~') || path.find('$') != path.npos) && !fs::exists(path, error) &&
      !fs::exists(yaml.folder() / path, error))
    yaml.fail("'" + path + "' is not expanded as a shell would do it; write the path itself");
  return path;
}

inline void read(const Yaml& yaml, std::string& value, const FieldInfo& info) {
  value = info.path ? path_of(yaml) : info.names.empty() ? yaml.as<std::string>() : yaml.as_enum(info.names);
  if (value.empty()) yaml.fail("expected text, found none");
}
inline std::string text(const std::string& value, const FieldInfo&) {
  YAML::Emitter out;
  out << YAML::DoubleQuoted << value;
  return out.c_str();
}
inline std::string type(const std::string&, const FieldInfo& info) {
  return info.names.empty() ? "text" : join(info.names, "|");
}

template <class E>
std::vector<std::string> enum_names() {
  const auto names = names_of(E{});
  return {names.begin(), names.end()};
}
template <class E>
requires std::is_enum_v<E>
void read(const Yaml& yaml, E& value, const FieldInfo&) {
  const std::vector<std::string> names = enum_names<E>();
  const std::string name = yaml.as_enum(names);
  value = static_cast<E>(std::find(names.begin(), names.end(), name) - names.begin());
}
template <class E>
requires std::is_enum_v<E> std::string text(const E& value, const FieldInfo&) {
  return enum_names<E>()[static_cast<size_t>(value)];
}
template <class E>
requires std::is_enum_v<E> std::string type(const E&, const FieldInfo&) { return join(enum_names<E>(), "|"); }

// Paths. An empty one was not given.
inline std::string resolve(const Yaml& yaml) {
  const fs::path path = path_of(yaml), beside = yaml.folder() / path;
  std::error_code error;
  if (path.empty()) yaml.fail("expected the name of a file or folder, found an empty text");
  return fs::absolute(fs::exists(beside, error) ? beside : path).lexically_normal().string();
}
inline void read(const Yaml& yaml, FilePath& value, const FieldInfo& info) {
  value.path = info.word && yaml.is_scalar() && yaml.as<std::string>() == info.word ? "" : resolve(yaml);
}
inline void read(const Yaml& yaml, FolderPath& value, const FieldInfo&) { value.path = resolve(yaml); }
inline std::string text(const FilePath& value, const FieldInfo& info) {
  return value.path.empty() && info.word ? info.word : text(value.path, info);
}
inline std::string text(const FolderPath& value, const FieldInfo& info) { return text(value.path, info); }
inline std::string type(const FilePath&, const FieldInfo&) { return "file"; }
inline std::string type(const FolderPath&, const FieldInfo&) { return "folder"; }

// Two numbers; an interval or an extent may be given as one.
struct PairForm {
  bool single, mirror, sorted;
  const char *expected, *type;
};
constexpr PairForm form_of(const kernels::Interval&) {
  return {true, true, true, "one number (either way) or [low, high]", "number or [low, high],"};
}
constexpr PairForm form_of(const kernels::Bounds&) {
  return {true, false, true, "one number or [low, high]", "number or [low, high],"};
}
constexpr PairForm form_of(const kernels::Extent&) {
  return {true, false, false, "one number (for both) or [height, width]", "number or [height, width],"};
}
constexpr PairForm form_of(const std::array<double, 2>&) {
  return {false, false, false, "a list of two numbers", "[number, number],"};
}
template <class T>
concept Pair = requires(const T& value) {
  form_of(value);
};
template <Pair T>
void read(const Yaml& yaml, T& value, const FieldInfo& info) {
  const PairForm form = form_of(value);
  auto& [first, second] = value;
  if (form.single && yaml.is_scalar()) {
    read(yaml, second, info);
    first = form.mirror ? -second : second;
  } else {
    if (!yaml.is_list() || yaml.size() != 2) yaml.fail(std::string("expected ") + form.expected);
    read(yaml.elements()[0], first, info);
    read(yaml.elements()[1], second, info);
  }
  if (form.sorted && second < first) std::swap(first, second);
}
template <Pair T>
std::string text(const T& value, const FieldInfo&) {
  const auto& [first, second] = value;
  return "[" + number(first) + ", " + number(second) + "]";
}
template <Pair T>
std::string type(const T& value, const FieldInfo& info) {
  return form_of(value).type + range_text(info);
}

inline void read(const Yaml& yaml, Colour& value, const FieldInfo&) {
  if (yaml.size() != 3) yaml.fail("expected a colour [red, green, blue] of numbers from 0 to 255");
  for (size_t i = 0; i < 3; ++i) value[i] = static_cast<uint8_t>(yaml.elements()[i].as_int(0, 255));
}
inline std::string text(const Colour& value, const FieldInfo&) { return "[" + join(value) + "]"; }
inline std::string type(const Colour&, const FieldInfo&) { return "[red, green, blue]"; }

inline void read(const Yaml& yaml, IdMap& value, const FieldInfo&) {
  value.ids.clear();
  for (const Yaml::Item& item : yaml.items()) {
    int64_t id = 0;
    const char* end = item.key.data() + item.key.size();
    if (const auto [at, error] = std::from_chars(item.key.data(), end, id); error != std::errc() || at != end)
      yaml.fail_key(item.key, "expected an id, a whole number, as the key");
    const bool ignored = item.value.is_scalar() && item.value.as<std::string>() == "ignore";
    value.ids[id] = ignored ? IdMap::kIgnore : static_cast<int>(item.value.as_int(0, 255));
  }
}
inline std::string text(const IdMap& value, const FieldInfo&) {
  std::string map;
  for (const auto& [id, to] : value.ids)
    map += (map.empty() ? "" : ", ") + std::to_string(id) + ": " + (to < 0 ? "ignore" : std::to_string(to));
  return "{" + map + "}";
}
inline std::string type(const IdMap&, const FieldInfo&) { return "map"; }

template <class T>
requires(!Section<T>) void read(const Yaml& yaml, std::vector<T>& value, const FieldInfo& info) {
  value.clear();
  if (yaml.is_scalar()) read(yaml, value.emplace_back(), info);
  if (!yaml.is_scalar())
    for (const Yaml& element : yaml.elements()) read(element, value.emplace_back(), info);
}
template <class T>
requires(!Section<T>) std::string text(const std::vector<T>& value, const FieldInfo& info) {
  std::string list;
  for (const T& element : value) list += (list.empty() ? "" : ", ") + text(element, info);
  return "[" + list + "]";
}
template <class T>
requires(!Section<T>) std::string type(const std::vector<T>&, const FieldInfo& info) {
  return "list of " + type(T(), info);
}

// A list; the rule's word, where it has one, is what stands for inverse frequencies.
inline void read(const Yaml& yaml, ClassWeights& value, const FieldInfo& info) {
  value.inverse_frequency = info.word && yaml.is_scalar() && yaml.as<std::string>() == info.word;
  if (!value.inverse_frequency && !yaml.is_list())
    yaml.fail(std::string("expected ") + (info.word ? info.word + std::string(" or ") : "") +
              "a list, one number per class");
  if (!value.inverse_frequency) read(yaml, value.values, {.min = info.min, .max = info.max});
}
inline std::string text(const ClassWeights& value, const FieldInfo& info) {
  return value.inverse_frequency ? info.word : text(value.values, FieldInfo{});
}
inline std::string type(const ClassWeights&, const FieldInfo& info) {
  return (info.word ? info.word + std::string(" or ") : "") + type(std::vector<double>(), {.min = info.min});
}

// What `off` switches off and a map switches on: an optional, or a struct for kernels that has a switch of its own.
template <class T>
concept Switch = requires(T& value) {
  { value.on } -> std::same_as<bool&>;
};
template <class T>
struct IsOptional : std::bool_constant<Switch<T>> {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <class T>
T& inside(std::optional<T>& value) {
  return value ? *value : value.emplace();
}
template <Switch T>
T& inside(T& value) {
  value.on = true;
  return value;
}
template <class T>
bool is_on(const T& value) {
  if constexpr (Switch<T>)
    return value.on;
  else
    return value.has_value();
}
template <class T>
struct IsSectionList : std::false_type {};
template <class T>
struct IsSectionList<std::vector<T>> : std::bool_constant<Section<T>> {};
template <class T>
struct IsSectionMap : std::false_type {};
template <class T>
struct IsSectionMap<std::map<std::string, T>> : std::bool_constant<Section<T>> {};

// Visitors. Each has operator()(key, field, info) and one_of(variant, alternatives), where the alternatives are named
// in the order of the variant's types, std::monostate left out.

struct Names {
  std::vector<std::string> names;
  template <class T>
  void operator()(const char* key, T&, const FieldInfo&) {
    names.push_back(key);
  }
  template <class V>
  void one_of(V&, const Alternatives& alternatives, const FieldInfo&) {
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
  void operator()(const char* key, T& field, const FieldInfo& info) {
    const Yaml child = yaml.find(key);
    if constexpr (IsOptional<T>::value) {
      if (!child.is_off())
        read_section(child, inside(field));
      else if (child.exists())
        field = T{};
    } else if constexpr (Section<T>) {
      if (child.exists() && child.is_null()) child.fail("expected a map of keys, found no value");
      read_section(child, field);
    } else if constexpr (IsSectionList<T>::value) {
      for (const Yaml& element : child.elements()) read_section(element, field.emplace_back());
      if (field.empty()) child.fail("expected a list of at least one");
    } else if constexpr (IsSectionMap<T>::value) {
      if (child.exists() && child.is_null()) child.fail("expected a map of keys, found no value");
      if (child.exists())
        for (const Yaml::Item& item : child.items()) read_section(item.value, field[item.key]);
    } else {
      if (info.required) yaml.at(key);
      if (child.exists()) read(child, field, info);
    }
  }
  template <class V>
  void one_of(V& variant, const Alternatives& alternatives, const FieldInfo&) {
    std::vector<std::string> keys;
    for (const Alternative& alternative : alternatives) keys.push_back(alternative.key);
    if (!yaml.exists()) return;
    const std::string key = yaml.one_of(keys);
    for (const std::string& name : keys)
      if (key.empty() && yaml.find(name).exists()) yaml.fail_key(name, "no value; give it one, or {} for its defaults");
    with_alternative(variant, alternatives, [&]<class T>(const Alternative& alternative, std::type_identity<T>) {
      if (key == alternative.key) (*this)(alternative.key, variant.template emplace<T>(), alternative.info);
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
  bool whole_paths = true;  // else their last part: where a file stands does not matter

  template <Section T>
  void section(T& field) {
    out << YAML::BeginMap;
    fields(*this, field);
    out << YAML::EndMap;
  }
  template <class T>
  void value(T& field, const FieldInfo& info) {
    if constexpr (IsOptional<T>::value) {
      is_on(field) ? section(inside(field)) : void(out << YAML::Null);
    } else if constexpr (Section<T>) {
      section(field);
    } else if constexpr (IsSectionList<T>::value) {
      out << YAML::BeginSeq;
      for (auto& element : field) value(element, info);
      out << YAML::EndSeq;
    } else if constexpr (IsSectionMap<T>::value) {
      out << YAML::BeginMap;
      for (auto& [key, section] : field) (*this)(key.c_str(), section, info);
      out << YAML::EndMap;
    } else {
      T shown = field;
      const auto shorten = [&](auto& path) {
        if (!whole_paths) path.path = (fs::path(path.path) / "").parent_path().filename().string();
      };
      if constexpr (std::same_as<T, FilePath> || std::same_as<T, FolderPath>) shorten(shown);
      if constexpr (std::same_as<T, std::vector<FolderPath>>) std::for_each(shown.begin(), shown.end(), shorten);
      Yaml::load_string("x: " + text(shown, info), "").at("x").emit(out);
    }
  }
  template <class T>
  void operator()(const char* key, T& field, const FieldInfo& info) {
    out << YAML::Key << key << YAML::Value;
    value(field, info);
  }
  template <class V>
  void one_of(V& variant, const Alternatives& alternatives, const FieldInfo&) {
    with_alternative(variant, alternatives, [&]<class T>(const Alternative& alternative, std::type_identity<T>) {
      if (T* chosen = std::get_if<T>(&variant)) (*this)(alternative.key, *chosen, alternative.info);
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
  void operator()(const std::string& name, T& field, const FieldInfo& info) {
    if constexpr (IsOptional<T>::value) {
      line(name, "map or off = off", info.doc);
      T inner{};
      Help{out, path + name + "."}.all(inside(inner));
    } else if constexpr (Section<T>) {
      if (*info.doc) line(name, "map", info.doc);
      Help{out, path + name + "."}.all(field);
    } else if constexpr (IsSectionList<T>::value) {
      line(name, "list of maps", info.doc);
      typename T::value_type inner;
      Help{out, path + name + ".N."}.all(inner);
    } else if constexpr (IsSectionMap<T>::value) {
      line(name, "map", info.doc);
      typename T::mapped_type inner;
      Help{out, path + name + ".NAME."}.all(inner);
    } else {
      const std::string preset = text(field, info);
      line(name,
           type(field, info) + (info.required      ? " (required)"
                                : preset == "\"\"" ? ""
                                                   : " = " + preset),
           info.doc);
    }
  }
  template <class V>
  void one_of(V& variant, const Alternatives& alternatives, const FieldInfo& info) {
    std::vector<std::string> keys;
    for (const Alternative& alternative : alternatives) keys.push_back(alternative.key);
    out << path << "{" << join(keys, "|") << "}: one of these\n    " << info.doc << "\n";
    if (info.names.empty())  // else they are described elsewhere
      with_alternative(variant, alternatives, [&]<class T>(const Alternative& alternative, std::type_identity<T>) {
        T inner{};
        (*this)(alternative.key, inner, alternative.info);
      });
  }
  template <class F>
  void after_reading(F) {}
  template <Section T>
  void all(T& value) {
    fields(*this, value);
  }
};

}  // namespace regolith::config
