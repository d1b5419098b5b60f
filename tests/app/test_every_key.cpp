// Every key of the reference with values of a wrong type, out of its range, not finite, huge, empty, and beside a key
// that does not exist: each is one ConfigError that says where. Reading alone writes nothing and opens no data.
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <regex>
#include <sstream>

#include "app/run_config.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "models/reader.h"

namespace regolith {
namespace {

using Texts = std::vector<std::string>;

struct Key {
  std::string path, type;  // "train.batch", "integer 1..65536"
  bool required;
};

// The lines "path: type = default" of a reference; the meanings stand between them.
std::vector<Key> keys_of(const std::string& reference) {
  std::vector<Key> keys;
  std::istringstream lines(reference);
  for (std::string line; std::getline(lines, line);) {
    std::smatch m;
    if (line.starts_with(" ") ||
        !std::regex_match(line, m, std::regex("((?:[^{ ]|\\{[^}]*\\})+): (.+?)( = .*| \\(required\\))?")))
      continue;
    keys.push_back({m[1], m[2], m[3] == " (required)"});
  }
  return keys;
}

Texts in_list(Texts values) {
  for (std::string& v : values) v = "[" + (v.empty() ? "~" : v) + "]";
  return values;
}

double below(double limit) { return limit - 1 - std::abs(limit); }

// What a key of this type does not take.
Texts bad_values(const std::string& type) {
  const Texts no_scalar{"", "[]", "[[1]]", "{a: 1}"};
  const auto and_also = [](Texts values, const Texts& more) {
    values.insert(values.end(), more.begin(), more.end());
    return values;
  };
  std::smatch m;
  if (type == "map" || type == "map or off") {
    Texts bad{"3", "text", "[1]", "{no_such_key: 1}"};
    return type == "map" ? and_also(bad, {""}) : bad;
  }
  if (type == "list of maps") return {"", "3", "[]", "[3]", "{a: 1}", "[{no_such_key: 1}]"};
  if (type == "text" || type == "file" || type == "folder") return no_scalar;
  if (type == "map of id: class id or ignore") return {"3", "[1]", "{a: 1}", "{1: 256}", "{1: many}", "{1: 1.5}"};
  if (type == "[red, green, blue]") return {"", "3", "[1, 2]", "[1, 2, 256]", "[1, 2, x]", "{a: 1}"};
  if (type.starts_with("list of "))  // one alone stands for a list of it
    return and_also(in_list(bad_values(type.substr(8))), {"", "{a: 1}"});
  if (std::regex_match(type, m, std::regex("(\\w+) or (list of .+)")))
    return and_also(bad_values(m[2]), {"no_such_word"});
  if (std::regex_match(type, m, std::regex("(.*)\\[(?:number, number|low, high|height, width)\\],(.*)"))) {
    Texts bad{"[0.1]", "[0.1, 0.1, 0.1]", "{a: 1}", ""};
    for (const std::string& v : bad_values("number" + m[2].str())) {
      if (!v.empty() && v != "[]") bad.push_back("[" + v + ", 0.1]");
      if (!v.empty()) bad.push_back(v);
    }
    return bad;
  }
  if (std::regex_match(type, m,
                       std::regex("(integer|integers|number)(?: (\\S+?)\\.\\.([^\\s,]+)| >= (\\S+))?(, or two)?"
                                  "(?: or (\\w+))?"))) {
    Texts bad = and_also(
        no_scalar, {"many", "\"3\"", ".nan", ".inf", "-.inf", "1e300", "-1e300", "true", "1 2", std::string(400, '9')});
    if (m[1] != "number") bad.push_back("1.5");
    if (m[2].matched || m[4].matched) bad.push_back(number(below(std::stod(m[2].matched ? m[2] : m[4]))));
    if (m[3].matched) bad.push_back(number(-below(-std::stod(m[3]))));
    return bad;
  }
  if (type.find('|') != type.npos) return and_also(no_scalar, {"no_such_word", "7", ".nan", "[no_such_word]"});
  ADD_FAILURE() << "a type that this test does not know: " << type;
  return {};
}

// The message of the one ConfigError, or what happened instead.
template <class F>
std::string outcome(F&& action) {
  try {
    action();
  } catch (const ConfigError& e) {
    return e.what();
  } catch (const std::exception& e) {
    return std::string("another error: ") + e.what();
  }
  return "no error";
}

void expect_message(const std::string& message, const std::string& start, const std::string& key) {
  EXPECT_TRUE(message.starts_with(start)) << message;
  EXPECT_TRUE(message.find(key + ":") != message.npos || message.find(key + ".") != message.npos) << message;
  EXPECT_EQ(message.find('\n'), message.npos) << message;
}

// What must stand in a section beside `key`.
std::string beside(const std::vector<Key>& keys, const std::string& section, const std::string& key) {
  std::string text;
  for (const Key& other : keys)
    if (other.required && other.path.starts_with(section) && other.path != section + key &&
        other.path.find('.', section.size()) == other.path.npos)
      text += other.path.substr(section.size()) + ": 16, ";
  return text;
}

// Maps of maps on one line, from `section` on; a step "N" is a list of one.
std::string nested(const std::vector<Key>& keys, const std::string& section, const Key& key, const std::string& value) {
  const std::string rest = key.path.substr(section.size()), step = rest.substr(0, rest.find('.'));
  const std::string inner = step == rest ? value : nested(keys, section + step + ".", key, value);
  return step == "N" ? "[" + inner + "]" : "{" + beside(keys, section, step) + step + ": " + inner + "}";
}

TEST(EveryKey, OfTheRunIsRefusedWithItsPlace) {
  std::vector<Key> keys = keys_of(help_config());
  std::erase_if(keys, [](const Key& k) {
    return k.path == "extends" || k.path == "KEY" || k.path == "model" || k.type == "one of these";
  });
  EXPECT_GT(keys.size(), 120u);
  for (const Key& key : keys) {
    SCOPED_TRACE(key.path);
    const std::string path = std::regex_replace(key.path, std::regex("\\.N\\."), ".0.");
    const std::string model = "model: {input: {}}\n";
    for (const std::string& value : bad_values(key.type)) {
      SCOPED_TRACE("value " + value.substr(0, 40));
      const std::string map = nested(keys, "", key, value);
      const std::string line = map.substr(1, map.size() - 2);
      expect_message(
          outcome([&] { read_run_config(Yaml::load_string(model + line + "\n", "t.yaml"), ConfigUse::network); }),
          "t.yaml:2:", path);
      if (map.find(": 16, ") != map.npos || path != key.path) continue;
      expect_message(outcome([&] {
                       read_run_config(Yaml::load_string(model, "t.yaml").with_overrides({key.path + "=" + value}),
                                       ConfigUse::network);
                     }),
                     "command line: ", path);
    }
  }
}

TEST(EveryKey, OfOpsAndBlocksIsRefusedWithItsPlace) {
  std::string node;
  int tried = 0;
  const std::vector<Key> keys = keys_of(help_models());
  for (const Key& key : keys) {
    std::smatch m;
    if (!std::regex_match(key.path, m, std::regex("model\\.nodes\\.NAME\\{(.*)\\}(?:\\.(\\w+))?"))) continue;
    SCOPED_TRACE(key.path);
    const std::string name = m[2];
    if (name.empty()) {
      node = m[1].str() + (key.type.starts_with("1 ") ? ", in: input" : ", in: [input, input]");
      continue;
    }
    const std::string required = beside(keys, key.path.substr(0, key.path.find('}') + 2), name);
    const auto message_of = [&](const std::string& rest) {
      return outcome([&] {
        read_model(Yaml::load_string(
            "input: {height: 16, width: 16, channels: 64}\nnodes:\n  x: {" + required + node + ", " + rest + "}\n",
            "m.yaml"));
      });
    };
    for (const std::string& value : bad_values(key.type)) {
      if (value.empty()) continue;  // null: the default
      SCOPED_TRACE("value " + value.substr(0, 40));
      expect_message(message_of(name + ": " + value), "m.yaml:3:", "nodes.x." + name);
      ++tried;
    }
    expect_message(message_of("no_such_key: 1"), "m.yaml:3:", "nodes.x");
  }
  EXPECT_GT(tried, 500);
}

TEST(EveryKey, OfTheInputIsRefusedWithItsPlace) {
  for (const Key& key : keys_of(help_models())) {
    if (!key.path.starts_with("model.input.")) continue;
    for (const std::string& value : bad_values(key.type)) {
      SCOPED_TRACE(key.path + " " + value.substr(0, 40));
      if (value.empty()) continue;
      const std::string name = key.path.substr(key.path.rfind('.') + 1);
      std::string text = "input: {height: 16, width: 16, channels: 1}\nnodes: {x: {op: relu, in: input}}\n";
      const size_t at = text.find(name + ": ") + name.size() + 2;
      text.replace(at, text.find_first_of(",}", at) - at, value);
      expect_message(outcome([&] { read_model(Yaml::load_string(text, "m.yaml")); }), "m.yaml:1:", "input." + name);
    }
  }
}

}  // namespace
}  // namespace regolith
