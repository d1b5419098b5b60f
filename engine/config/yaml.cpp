#include "engine/config/yaml.h"

#include <yaml-cpp/yaml.h>

#include <charconv>
#include <cmath>
#include <sstream>

#include "engine/config/yaml_node.h"

namespace regolith {
namespace fs = std::filesystem;

namespace {
using Kind = Yaml::Node::Kind;

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

template <class T>
std::string bounds(T min, T max, T no_min, T no_max) {
  std::ostringstream text;
  if (min != no_min && max != no_max) {
    text << " from " << min << " to " << max;
  } else if (min != no_min) {
    text << " of at least " << min;
  } else if (max != no_max) {
    text << " of at most " << max;
  }
  return text.str();
}

template <class T>
bool read_number(std::string_view text, T& value) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
  const std::string* best = nullptr;
  size_t best_distance = 0;
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);  // Levenshtein, one row at a time
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 0; i < name.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i + 1;
      for (size_t j = 0; j < candidate.size(); ++j) {
        const size_t replaced = diagonal + (name[i] != candidate[j]);
        diagonal = row[j + 1];
        row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
      }
    }
    if (!best || row.back() < best_distance) best = &candidate, best_distance = row.back();
  }
  const bool near = best && (best_distance <= std::max<size_t>(1, (std::max(name.size(), best->size()) + 1) / 3) ||
                             (name.size() > 2 && best->starts_with(name)));
  return near ? "; did you mean '" + *best + "'?" : "";
}

std::string Yaml::Position::text() const {
  return line ? file + ":" + std::to_string(line) + ":" + std::to_string(column) : file;
}

Yaml::Yaml(std::shared_ptr<const Node> node, std::string path) : node_(std::move(node)), path_(std::move(path)) {
  if (node_) position_ = node_->position;
}

bool Yaml::is_null() const { return !node_ || node_->kind == Kind::null; }
bool Yaml::is_map() const { return node_ && node_->kind == Kind::map; }
bool Yaml::is_list() const { return node_ && node_->kind == Kind::list; }
bool Yaml::is_scalar() const { return node_ && node_->kind == Kind::scalar; }
size_t Yaml::size() const { return node_ ? node_->entries.size() : 0; }

fs::path Yaml::folder() const { return position_.line ? fs::path(position_.file).parent_path() : fs::path(); }

std::string Yaml::child_path(std::string_view key) const { return join_path(path_, key); }

std::string Yaml::what() const {
  if (!node_) return "nothing";
  if (node_->kind == Kind::null) return "no value";
  if (node_->kind == Kind::list) return "a list";
  if (node_->kind == Kind::map) return "a map";
  return (node_->quoted ? "the text \"" + node_->scalar + "\"" : "'" + node_->scalar + "'");
}

void Yaml::fail(const std::string& message) const { fail_at(position_, path_, message); }

void Yaml::fail_key(std::string_view key, const std::string& message) const {
  const Node::Entry* entry = node_ ? node_->find(key) : nullptr;
  fail_at(entry ? entry->position : position_, child_path(key), message);
}

Yaml Yaml::find(std::string_view key) const {
  if (node_ && node_->kind != Kind::map && node_->kind != Kind::null) fail("expected a map, found " + what());
  const Node::Entry* entry = node_ ? node_->find(key) : nullptr;
  Yaml child(entry ? entry->value : nullptr, child_path(key));
  if (!entry) child.position_ = position_;
  return child;
}

Yaml Yaml::at(std::string_view key) const {
  Yaml child = find(key);
  if (!child.exists()) child.fail("this key is missing and has no default");
  if (child.is_null()) fail_key(key, "this key has no value");
  return child;
}

std::vector<Yaml::Item> Yaml::items() const {
  if (!is_map()) fail("expected a map, found " + what());
  std::vector<Item> items;
  for (const Node::Entry& entry : node_->entries)
    items.push_back({entry.key, Yaml(entry.value, child_path(entry.key)), entry.position});
  return items;
}

std::vector<Yaml> Yaml::elements() const {
  if (!is_list()) fail("expected a list, found " + what());
  std::vector<Yaml> elements;
  for (const Node::Entry& entry : node_->entries)
    elements.push_back(Yaml(entry.value, child_path(std::to_string(elements.size()))));
  return elements;
}

const std::string& Yaml::plain(const char* expected) const {
  if (!is_scalar() || node_->quoted) fail(std::string("expected ") + expected + ", found " + what());
  return node_->scalar;
}

template <>
std::string Yaml::as<std::string>() const {
  if (!is_scalar()) fail("expected text, found " + what());
  return node_->scalar;
}

template <>
bool Yaml::as<bool>() const {
  const std::string text = lower(plain("true or false"));
  if (text == "true" || text == "yes" || text == "on") return true;
  if (text != "false" && text != "no" && text != "off") fail("expected true or false, found " + what());
  return false;
}

template <>
uint64_t Yaml::as<uint64_t>() const {
  uint64_t value = 0;
  if (!read_number(plain("a whole number of at least 0"), value))
    fail("expected a whole number of at least 0, found " + what());
  return value;
}

int64_t Yaml::as_int(int64_t min, int64_t max) const {
  using Limits = std::numeric_limits<int64_t>;
  const std::string expected = "a whole number" + bounds(min, max, Limits::min(), Limits::max());
  int64_t value = 0;
  if (!read_number(plain(expected.c_str()), value) || value < min || value > max)
    fail("expected " + expected + ", found " + what());
  return value;
}

double Yaml::as_double(double min, double max) const {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::string expected = "a number" + bounds(min, max, -kInfinity, kInfinity);
  double value = 0;
  if (!read_number(plain(expected.c_str()), value) || !std::isfinite(value) || value < min || value > max)
    fail("expected " + expected + ", found " + what());
  return value;
}

template <>
int64_t Yaml::as<int64_t>() const {
  return as_int(std::numeric_limits<int64_t>::min());
}
template <>
int Yaml::as<int>() const {
  return static_cast<int>(as_int(std::numeric_limits<int>::min(), std::numeric_limits<int>::max()));
}
template <>
double Yaml::as<double>() const {
  return as_double(-std::numeric_limits<double>::infinity());
}

std::string Yaml::as_enum(std::span<const std::string> names) const {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  if (!is_scalar()) fail("expected one of " + list + "; found " + what());
  if (std::find(names.begin(), names.end(), node_->scalar) == names.end())
    fail("expected one of " + list + "; found " + what() + did_you_mean(node_->scalar, names));
  return node_->scalar;
}

void Yaml::expect_keys(std::span<const std::string> names) const {
  for (const Item& item : items()) {
    if (std::find(names.begin(), names.end(), item.key) != names.end()) continue;
    std::string known;
    for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
    const std::string hint = did_you_mean(item.key, names);
    fail_key(item.key, "unknown key" + (hint.empty() ? "; known here: " + known : hint));
  }
}

std::string Yaml::one_of(std::span<const std::string> names) const {
  const Node::Entry* best = nullptr;
  for (const std::string& name : names) {
    const Node::Entry* entry = find(name) ? node_->find(name) : nullptr;
    if (!entry) continue;
    if (best && *best->value->layer == *entry->value->layer)
      fail_key(name, "excludes '" + best->key + "', which is set at " + best->position.text() + "; keep one of them");
    if (!best || *best->value->layer < *entry->value->layer) best = entry;
  }
  return best ? best->key : "";
}

void Yaml::emit(YAML::Emitter& out) const {
  if (is_null()) {
    out << YAML::Null;
  } else if (is_scalar()) {
    if (node_->quoted) out << YAML::DoubleQuoted;
    out << node_->scalar;
  } else {
    if (node_->flow) out << YAML::Flow;
    is_map() ? out << YAML::BeginMap : out << YAML::BeginSeq;
    if (is_map()) {
      for (const Item& item : items()) {
        out << YAML::Key << item.key << YAML::Value;
        item.value.emit(out);
      }
    } else {
      for (const Yaml& element : elements()) element.emit(out);
    }
    is_map() ? out << YAML::EndMap : out << YAML::EndSeq;
  }
}

std::string Yaml::dump() const {
  YAML::Emitter out;
  emit(out);
  return std::string(out.c_str()) + "\n";
}

}  // namespace regolith
