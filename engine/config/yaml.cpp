#include "engine/config/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <map>
#include <span>
#include <sstream>

#include "engine/base/error.h"
#include "engine/base/text.h"

namespace regolith {
namespace fs = std::filesystem;

struct Yaml::Node {
  enum class Kind { null, scalar, list, map };
  struct Entry {
    std::string key;  // "" in a list
    Position position;
    std::shared_ptr<const Node> value;
  };
  Kind kind = Kind::null;
  Position position;
  std::shared_ptr<const int> layer;  // of the file: a file lies above the files it extends, the command line on top
  bool flow = false, quoted = false;
  std::string scalar;
  std::vector<Entry> entries;
  int64_t weight = 1;  // number of nodes with aliases written out, to refuse a file that explodes

  const Entry* find(std::string_view key) const {
    const auto it = std::ranges::find(entries, key, &Entry::key);
    return it == entries.end() ? nullptr : &*it;
  }
  Entry& find_or_add(const std::string& key) {
    const auto it = std::ranges::find(entries, key, &Entry::key);
    return it == entries.end() ? entries.emplace_back(Entry{key, {}, nullptr}) : *it;
  }
};

namespace {
using Node = Yaml::Node;
using NodePtr = std::shared_ptr<const Node>;
using Position = Yaml::Position;
using Kind = Node::Kind;

constexpr const char* kCommandLine = "command line";
constexpr int64_t kMaxNodes = 1'000'000;

[[noreturn]] void fail_at(const Position& position, const std::string& path, const std::string& message) {
  throw ConfigError(position.text() + ": " + (path.empty() ? "" : path + ": ") + message);
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

bool off(const Node& node) {
  const std::string word = lower(node.scalar);
  return node.kind == Kind::null || word == "off" || word == "none" || word == "false" || word == "no";
}

std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

template <class T>
bool read_number(std::string_view text, T& value) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// 1.0e-07 for 1e-07, which is text to readers of YAML 1.1.
std::string with_point(std::string scalar) {
  const size_t e = scalar.find_first_of("eE");
  double value;
  if (e != scalar.npos && scalar.find_first_of("+-", e) == e + 1 && scalar.find('.') == scalar.npos &&
      read_number(scalar, value))
    scalar.insert(e, ".0");
  return scalar;
}

// Builds nodes from the events of yaml-cpp's parser. Its own tree knows neither the path of a syntax error nor aliases
// that contain themselves.
class Builder : public YAML::EventHandler {
 public:
  Builder(std::string file, std::shared_ptr<const int> layer) : file_(std::move(file)), layer_(std::move(layer)) {}
  std::shared_ptr<Node> root;

  Position position(const YAML::Mark& mark) const {
    return file_ == kCommandLine ? Position{file_} : Position{file_, mark.line + 1, mark.column + 1};
  }
  std::shared_ptr<Node> make(Kind kind, const YAML::Mark& mark) const {
    const auto node = std::make_shared<Node>();
    node->kind = kind;
    node->position = position(mark);
    node->layer = layer_;
    return node;
  }
  std::string path() const {
    std::string path;
    for (const auto& [node, anchor] : open_) {
      if (node->kind == Kind::list) path = join_path(path, std::to_string(node->entries.size()));
      if (node->kind == Kind::map && !wants_key(*node)) path = join_path(path, node->entries.back().key);
    }
    return path;
  }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_as_key(mark, "a key cannot be empty");
    add(make(Kind::null, mark), anchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (!open_.empty() && wants_key(*open_.back().first)) {
      Node& map = *open_.back().first;
      if (const Node::Entry* first = map.find(value))
        fail_at(position(mark), join_path(path(), value), "duplicate key; it is first at " + first->position.text());
      map.entries.push_back({value, position(mark), nullptr});
      return;
    }
    const auto node = make(Kind::scalar, mark);
    node->scalar = value;
    node->quoted = tag == "!";
    add(node, anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_as_key(mark, "a key must be plain text");
    if (!anchors_.contains(anchor)) fail_at(position(mark), path(), "an alias cannot stand inside what it names");
    attach(anchors_[anchor], position(mark));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value style) override {
    begin(Kind::list, mark, anchor, style);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value style) override {
    begin(Kind::map, mark, anchor, style);
  }
  void OnSequenceEnd() override { end(); }
  void OnMapEnd() override { end(); }

 private:
  // A key waits as the last entry of its map, without a value.
  static bool wants_key(const Node& node) {
    return node.kind == Kind::map && (node.entries.empty() || node.entries.back().value != nullptr);
  }
  void refuse_as_key(const YAML::Mark& mark, const char* message) const {
    if (!open_.empty() && wants_key(*open_.back().first)) fail_at(position(mark), path(), message);
  }
  void begin(Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor, YAML::EmitterStyle::value style) {
    refuse_as_key(mark, "a key must be plain text");
    open_.emplace_back(make(kind, mark), anchor);
    open_.back().first->flow = style == YAML::EmitterStyle::Flow;
  }
  void end() {
    const auto [node, anchor] = open_.back();
    open_.pop_back();
    add(node, anchor);
  }
  void add(const std::shared_ptr<Node>& node, YAML::anchor_t anchor) {
    anchors_[anchor] = node;  // 0, of nodes without an anchor, is never asked for
    attach(node, node->position);
  }
  void attach(const std::shared_ptr<Node>& value, const Position& at) {
    if (open_.empty()) {
      root = value;
      return;
    }
    Node& parent = *open_.back().first;
    parent.weight += value->weight;
    if (parent.weight > kMaxNodes) fail_at(at, path(), "the aliases of this file expand to too many values");
    if (parent.kind == Kind::list) parent.entries.push_back({"", at, nullptr});
    parent.entries.back().value = value;
  }

  std::string file_;
  std::shared_ptr<const int> layer_;
  std::vector<std::pair<std::shared_ptr<Node>, YAML::anchor_t>> open_;  // from the root to the innermost collection
  std::map<YAML::anchor_t, std::shared_ptr<Node>> anchors_;
};

// The first byte that is not UTF-8 (RFC 3629); the size of the text where all is. YAML in UTF-16 and UTF-32 begins with
// a byte order mark or an ASCII character, hence a zero.
size_t first_foreign_byte(std::string_view text) {
  const std::string_view start = text.substr(0, 4);
  if (start.starts_with("\xFF\xFE") || start.starts_with("\xFE\xFF") || start.find('\0') != start.npos)
    return text.size();
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0; };
  for (size_t at = 0, length; at < text.size(); at += length) {
    const int first = byte(at);
    length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (length == 0) return at;
    // The second byte has no overlong form, surrogate or code point beyond the last.
    int low = first == 0xE0   ? 0xA0
              : first == 0xF0 ? 0x90
                              : 0x80,
        high = first == 0xED   ? 0x9F
               : first == 0xF4 ? 0x8F
                               : 0xBF;
    for (size_t i = 1; i < length; ++i, low = 0x80, high = 0xBF)
      if (byte(at + i) < low || byte(at + i) > high) return at;
  }
  return text.size();
}

std::shared_ptr<Node> parse(const std::string& text, const std::string& file, std::shared_ptr<const int> layer) {
  std::istringstream stream(text);
  Builder builder(file, std::move(layer));
  if (const size_t foreign = first_foreign_byte(text); foreign < text.size()) {
    YAML::Mark mark;
    for (const char c : text.substr(0, foreign)) {
      mark.column = c == '\n' ? 0 : mark.column + ((c & 0xC0) != 0x80);
      mark.line += c == '\n';
    }
    fail_at(builder.position(mark), "",
            format("the byte 0x%02X is not UTF-8; save this text as UTF-8",
                   static_cast<unsigned>(static_cast<uint8_t>(text[foreign]))));
  }
  try {
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    const auto root = builder.root;
    if (parser.HandleNextDocument(builder))
      fail_at(builder.root->position, "", "a second document starts here; one is expected");
    return root ? root : builder.make(Kind::null, {});
  } catch (const YAML::Exception& error) {
    fail_at(builder.position(error.mark), builder.path(), "YAML syntax: " + error.msg);
  }
}

NodePtr merge(const NodePtr& base, const NodePtr& over) {
  if (!base || base->kind != Kind::map || over->kind != Kind::map) return over;
  const auto result = std::make_shared<Node>(*over);
  result->entries = base->entries;
  for (const Node::Entry& entry : over->entries) {
    Node::Entry& merged = result->find_or_add(entry.key);
    merged = {entry.key, entry.position, merge(merged.value, entry.value)};
  }
  return result;
}

constexpr std::streamsize kMostText = 4 << 20;

std::string read_text(const fs::path& file) {
  std::error_code error;
  if (fs::is_directory(file, error)) throw ConfigError(file.string() + ": this is a folder; a YAML file is expected");
  std::ifstream stream(file, std::ios::binary);
  std::string text(kMostText, '\0');
  if (!stream.read(text.data(), kMostText) && (!stream.is_open() || stream.bad()))
    throw ConfigError(file.string() + ": cannot read this file; check the name and the permissions");
  if (stream) throw ConfigError(file.string() + ": is of 4 MiB and more; a YAML file of keys is expected");
  text.resize(stream.gcount());
  return text;
}

// Loads files with the files that they extend.
class Loader {
 public:
  NodePtr load(const std::string& text, const std::string& name, const fs::path& folder) {
    const auto layer = std::make_shared<int>(0);
    const auto node = parse(text, name, layer);
    if (node->kind == Kind::null) node->kind = Kind::map;
    if (node->kind != Kind::map) fail_at(node->position, "", "a map of keys is expected at the top of the file");
    std::vector<NodePtr> files;
    if (const Node::Entry* extends = node->find("extends")) {
      files.push_back(extends->value);
      if (extends->value->kind == Kind::list) {
        files.clear();
        for (const Node::Entry& entry : extends->value->entries) files.push_back(entry.value);
      }
    }
    NodePtr base;
    for (const NodePtr& file : files) {
      if (file->kind != Kind::scalar) fail_at(file->position, "extends", "expected the name of a YAML file");
      base = merge(base, load_file(folder / file->scalar, &file->position));
    }
    *layer = ++layers_;
    std::erase_if(node->entries, [](const Node::Entry& entry) { return entry.key == "extends"; });
    return merge(base, node);
  }

  NodePtr load_file(const fs::path& file, const Position* from) {
    const fs::path normal = file.lexically_normal();
    std::error_code error;
    if (from && !fs::exists(normal, error)) fail_at(*from, "extends", "no such file: " + normal.string());
    const fs::path identity = fs::weakly_canonical(normal, error);
    if (std::ranges::find(chain_, identity) != chain_.end()) {
      std::string cycle;
      for (const fs::path& link : chain_) cycle += link.filename().string() + " -> ";
      fail_at(*from, "extends", "files extend each other in a circle: " + cycle + identity.filename().string());
    }
    chain_.push_back(identity);
    const NodePtr node = load(read_text(normal), normal.string(), normal.parent_path());
    chain_.pop_back();
    return node;
  }

 private:
  std::vector<fs::path> chain_;  // files that are being loaded, each extended by the one before
  int layers_ = 0;
};

// The tree with the value at the path replaced. Missing maps are made.
NodePtr assign(const NodePtr& node, std::span<const std::string> keys, const NodePtr& value, const std::string& path) {
  if (keys.empty()) return value;
  const std::string& key = keys.front();
  const std::string here = join_path(path, key);
  const auto copy = node ? std::make_shared<Node>(*node) : std::make_shared<Node>();
  if (!node) copy->position = value->position;
  copy->layer = value->layer;
  const auto replace = [&](Node::Entry& entry) { entry.value = assign(entry.value, keys.subspan(1), value, here); };
  if (copy->kind == Kind::scalar && !off(*copy))
    fail_at(value->position, here, path + " is '" + copy->scalar + "', which has no keys");
  if (copy->kind == Kind::list) {
    size_t index = 0;
    if (!read_number(key, index) || index >= copy->entries.size())
      fail_at(value->position, here,
              path + " has no such index; it has " + std::to_string(copy->entries.size()) + " elements, from 0");
    replace(copy->entries[index]);
    return copy;
  }
  copy->kind = Kind::map;
  Node::Entry& entry = copy->find_or_add(key);
  if (!entry.value || keys.size() == 1) entry.position = value->position;
  replace(entry);
  return copy;
}

}  // namespace

Yaml Yaml::load(const fs::path& file) { return Yaml(Loader().load_file(file, nullptr), ""); }

Yaml Yaml::load_string(std::string_view text, const std::string& name) {
  return Yaml(Loader().load(std::string(text), name, ""), "");
}

Yaml Yaml::with_overrides(const std::vector<std::string>& assignments) const {
  NodePtr root = node_;
  const auto layer = std::make_shared<const int>(std::numeric_limits<int>::max());
  for (const std::string& assignment : assignments) {
    const size_t equals = assignment.find('=');
    std::vector<std::string> keys;
    std::istringstream names(assignment.substr(0, equals) + ".");
    for (std::string key; std::getline(names, key, '.');) keys.push_back(key);
    if (equals == std::string::npos || std::ranges::find(keys, "") != keys.end())
      fail_at({kCommandLine}, "", "'" + assignment + "' is not an override; expected key.path=value");
    if (keys[0] == "extends") fail_at({kCommandLine}, "extends", "a file extends others, an override cannot");
    NodePtr value;
    try {
      value = parse(assignment.substr(equals + 1), kCommandLine, layer);
    } catch (const ConfigError& error) {
      throw ConfigError(std::string(error.what()) + " (in '" + assignment + "')");
    }
    root = assign(root, keys, value, path_);
  }
  return Yaml(root, path_);
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
bool Yaml::is_off() const { return !node_ || off(*node_); }
size_t Yaml::size() const { return node_ ? node_->entries.size() : 0; }
fs::path Yaml::folder() const { return position_.line ? fs::path(position_.file).parent_path() : fs::path(); }

std::string Yaml::what() const {
  if (is_scalar()) return node_->quoted ? "the text \"" + node_->scalar + "\"" : "'" + node_->scalar + "'";
  return is_map() ? "a map" : is_list() ? "a list" : node_ ? "no value" : "nothing";
}

void Yaml::fail(const std::string& message) const { fail_at(position_, path_, message); }

void Yaml::fail_key(std::string_view key, const std::string& message) const {
  const Node::Entry* entry = node_ ? node_->find(key) : nullptr;
  fail_at(entry ? entry->position : position_, join_path(path_, key), message);
}

Yaml Yaml::find(std::string_view key) const {
  if (!is_null() && !is_map()) fail("expected a map, found " + what());
  const Node::Entry* entry = node_ ? node_->find(key) : nullptr;
  Yaml child(entry ? entry->value : nullptr, join_path(path_, key));
  if (!entry) child.position_ = position_;
  return child;
}

Yaml Yaml::at(std::string_view key) const {
  const Yaml child = find(key);
  if (!child.exists()) child.fail("this key is missing and has no default");
  if (child.is_null()) fail_key(key, "this key has no value");
  return child;
}

std::vector<Yaml::Item> Yaml::items() const {
  if (!is_map()) fail("expected a map, found " + what());
  std::vector<Item> items;
  for (const Node::Entry& entry : node_->entries)
    items.push_back({entry.key, Yaml(entry.value, join_path(path_, entry.key)), entry.position});
  return items;
}

std::vector<Yaml> Yaml::elements() const {
  if (!is_list()) fail("expected a list, found " + what());
  std::vector<Yaml> elements;
  for (const Node::Entry& entry : node_->entries)
    elements.push_back(Yaml(entry.value, join_path(path_, std::to_string(elements.size()))));
  return elements;
}

const std::string& Yaml::plain(const std::string& expected) const {
  if (!is_scalar() || node_->quoted) fail("expected " + expected + ", found " + what());
  return node_->scalar;
}

template <class T>
T Yaml::number(std::string expected, T min, T max, const char* word) const {
  using Limits = std::numeric_limits<T>;
  const bool bounded_below = min != (Limits::has_infinity ? -Limits::infinity() : Limits::min());
  const bool bounded_above = max != (Limits::has_infinity ? Limits::infinity() : Limits::max());
  const std::string low = regolith::number(static_cast<double>(min)), high = regolith::number(static_cast<double>(max));
  if (bounded_below && bounded_above) expected += " from " + low + " to " + high;
  if (bounded_below && !bounded_above) expected += " of at least " + low;
  if (!bounded_below && bounded_above) expected += " of at most " + high;
  if (word) expected += std::string(" or ") + word;
  T value = 0;
  if (!read_number(plain(expected), value) || !std::isfinite(value) || value < min || value > max)
    fail("expected " + expected + ", found " + what());
  return value;
}

int64_t Yaml::as_int(int64_t min, int64_t max, const char* word) const {
  return number("a whole number", min, max, word);
}
double Yaml::as_double(double min, double max, const char* word) const { return number("a number", min, max, word); }

template <>
uint64_t Yaml::as<uint64_t>() const {
  return number<uint64_t>("a whole number of at least 0", 0, std::numeric_limits<uint64_t>::max());
}
template <>
std::string Yaml::as<std::string>() const {
  if (!is_scalar()) fail("expected text, found " + what());
  return node_->scalar;
}
template <>
std::vector<std::string> Yaml::as<std::vector<std::string>>() const {
  if (is_scalar()) return {node_->scalar};
  std::vector<std::string> texts;
  for (const Yaml& element : elements()) texts.push_back(element.as<std::string>());
  return texts;
}
template <>
bool Yaml::as<bool>() const {
  const std::string text = lower(plain("true or false"));
  if (text == "true" || text == "yes" || text == "on") return true;
  if (text != "false" && text != "no" && text != "off") fail("expected true or false, found " + what());
  return false;
}

std::string Yaml::as_enum(const std::vector<std::string>& names) const {
  if (is_scalar() && std::ranges::find(names, node_->scalar) != names.end()) return node_->scalar;
  fail("expected one of " + join(names) + "; found " + what() +
       (is_scalar() ? did_you_mean(node_->scalar, names) : ""));
}

void Yaml::expect_keys(const std::vector<std::string>& names) const {
  for (const Item& item : items()) {
    if (std::ranges::find(names, item.key) != names.end()) continue;
    const std::string hint = did_you_mean(item.key, names);
    fail_key(item.key, "unknown key" + (hint.empty() ? "; known here: " + join(names) : hint));
  }
}

std::string Yaml::one_of(const std::vector<std::string>& names) const {
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
    out << (node_->quoted ? node_->scalar : with_point(node_->scalar));
  } else {
    if (node_->flow) out << YAML::Flow;
    out << (is_map() ? YAML::BeginMap : YAML::BeginSeq);
    for (const Node::Entry& entry : node_->entries) {
      if (is_map()) out << YAML::Key << entry.key << YAML::Value;
      Yaml(entry.value, "").emit(out);
    }
    out << (is_map() ? YAML::EndMap : YAML::EndSeq);
  }
}

std::string Yaml::flow_text() const {
  if (is_null()) return "off";
  YAML::Emitter out;
  out.SetMapFormat(YAML::Flow);
  out.SetSeqFormat(YAML::Flow);
  emit(out);
  return out.c_str();
}

}  // namespace regolith
