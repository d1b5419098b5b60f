#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <sstream>

#include "engine/config/yaml_node.h"

namespace regolith {
namespace fs = std::filesystem;

namespace {
using Node = Yaml::Node;
using NodePtr = std::shared_ptr<const Node>;
using Position = Yaml::Position;
using Kind = Node::Kind;

constexpr const char* kCommandLine = "command line";
constexpr int64_t kMaxNodes = 1'000'000;

// Builds our nodes from the parser's events, which (unlike its own tree) show duplicate keys and quoting.
class Builder : public YAML::EventHandler {
 public:
  Builder(std::string file, std::shared_ptr<const int> layer) : file_(std::move(file)), layer_(std::move(layer)) {}
  NodePtr root;

  Position position(const YAML::Mark& mark) const {
    return file_ == kCommandLine ? Position{file_, 0, 0} : Position{file_, mark.line + 1, mark.column + 1};
  }
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (wants_key()) fail_at(position(mark), path(), "a key cannot be empty");
    add(open(mark, Kind::null, anchor));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (wants_key()) {
      Open& map = stack_.back();
      const Position at = position(mark);
      if (const Node::Entry* first = map.node->find(value))
        fail_at(at, join_path(path(), value), "duplicate key; it is first at " + first->position.text());
      map.key = value;
      map.key_position = at;
      return;
    }
    Open scalar = open(mark, Kind::scalar, anchor);
    scalar.node->scalar = value;
    scalar.node->quoted = tag == "!";
    add(std::move(scalar));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (wants_key()) fail_at(position(mark), path(), "a key must be plain text");
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end()) fail_at(position(mark), path(), "an alias cannot stand inside what it names");
    attach(it->second, position(mark));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value style) override {
    begin(mark, Kind::list, anchor, style);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value style) override {
    begin(mark, Kind::map, anchor, style);
  }
  void OnSequenceEnd() override { end(); }
  void OnMapEnd() override { end(); }

  std::string path() const {
    std::string path;
    for (const Open& open : stack_)
      if (open.node->kind == Kind::list) {
        path = join_path(path, std::to_string(open.node->entries.size()));
      } else if (open.key) {
        path = join_path(path, *open.key);
      }
    return path;
  }

 private:
  struct Open {
    std::shared_ptr<Node> node;
    YAML::anchor_t anchor = 0;
    std::optional<std::string> key;  // of a map: the key whose value comes next
    Position key_position;
  };

  bool wants_key() const { return !stack_.empty() && stack_.back().node->kind == Kind::map && !stack_.back().key; }

  Open open(const YAML::Mark& mark, Kind kind, YAML::anchor_t anchor) const {
    Open result{std::make_shared<Node>(), anchor, {}, {}};
    result.node->kind = kind;
    result.node->position = position(mark);
    result.node->layer = layer_;
    return result;
  }
  void begin(const YAML::Mark& mark, Kind kind, YAML::anchor_t anchor, YAML::EmitterStyle::value style) {
    if (wants_key()) fail_at(position(mark), path(), "a key must be plain text");
    stack_.push_back(open(mark, kind, anchor));
    stack_.back().node->flow = style == YAML::EmitterStyle::Flow;
  }
  void end() {
    Open done = std::move(stack_.back());
    stack_.pop_back();
    add(std::move(done));
  }
  void add(Open done) {
    if (done.anchor) anchors_[done.anchor] = done.node;
    attach(done.node, done.node->position);
  }
  void attach(const NodePtr& value, const Position& at) {
    if (stack_.empty()) {
      root = value;
      return;
    }
    Open& parent = stack_.back();
    parent.node->weight += value->weight;
    if (parent.node->weight > kMaxNodes) fail_at(at, path(), "the aliases of this file expand to too many values");
    parent.node->entries.push_back({parent.key.value_or(""), parent.key ? parent.key_position : at, value});
    parent.key.reset();
  }

  std::string file_;
  std::shared_ptr<const int> layer_;
  std::vector<Open> stack_;
  std::map<YAML::anchor_t, NodePtr> anchors_;
};

NodePtr parse(const std::string& text, const std::string& file, std::shared_ptr<const int> layer) {
  std::istringstream stream(text);
  Builder builder(file, layer);
  try {
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    const NodePtr root = builder.root;
    if (parser.HandleNextDocument(builder))
      fail_at(builder.root->position, "", "a second document starts here; one is expected");
    if (root) return root;
  } catch (const YAML::Exception& error) {
    fail_at(builder.position(error.mark), builder.path(), "YAML syntax: " + error.msg);
  }
  auto empty = std::make_shared<Node>();
  empty->position = {file, file == kCommandLine ? 0 : 1, file == kCommandLine ? 0 : 1};
  empty->layer = layer;
  return empty;
}

NodePtr merge(const NodePtr& base, const NodePtr& over) {
  if (base->kind != Kind::map || over->kind != Kind::map) return over;
  auto result = std::make_shared<Node>(*over);
  result->entries = base->entries;
  for (const Node::Entry& entry : over->entries) {
    const auto same = std::find_if(result->entries.begin(), result->entries.end(),
                                   [&](const Node::Entry& e) { return e.key == entry.key; });
    if (same == result->entries.end()) {
      result->entries.push_back(entry);
    } else {
      *same = {entry.key, entry.position, merge(same->value, entry.value)};
    }
  }
  return result;
}

std::string read_text(const fs::path& file) {
  std::error_code error;
  if (fs::is_directory(file, error)) throw ConfigError(file.string() + ": this is a folder; a YAML file is expected");
  std::ifstream stream(file, std::ios::binary);
  std::stringstream text;
  if (!stream || !(text << stream.rdbuf() || stream.peek() == EOF))
    throw ConfigError(file.string() + ": cannot read this file; check the name and the permissions");
  return text.str();
}

// Loads files with what they extend. `chain` holds the files being loaded, from the first to the present one.
class Loader {
 public:
  NodePtr load(const std::string& text, const std::string& name, const fs::path& folder) {
    const auto layer = std::make_shared<int>(0);
    NodePtr node = parse(text, name, layer);
    if (node->kind == Kind::null) {
      auto map = std::make_shared<Node>(*node);
      map->kind = Kind::map;
      node = map;
    }
    if (node->kind != Kind::map) fail_at(node->position, "", "a map of keys is expected at the top of the file");
    const Node::Entry* extends = node->find("extends");
    std::vector<NodePtr> names;
    if (extends && extends->value->kind == Kind::list) {
      for (const Node::Entry& entry : extends->value->entries) names.push_back(entry.value);
    } else if (extends) {
      names.push_back(extends->value);
    }
    NodePtr base;
    for (const NodePtr& item : names) {
      if (item->kind != Kind::scalar) fail_at(item->position, "extends", "expected the name of a YAML file");
      const NodePtr next = load_file(folder / item->scalar, &item->position);
      base = base ? merge(base, next) : next;
    }
    *layer = ++layers_;
    auto own = std::make_shared<Node>(*node);
    std::erase_if(own->entries, [](const Node::Entry& entry) { return entry.key == "extends"; });
    return base ? merge(base, own) : own;
  }

  NodePtr load_file(const fs::path& file, const Position* from) {
    const fs::path normal = file.lexically_normal();
    std::error_code error;
    if (from && !fs::exists(normal, error)) fail_at(*from, "extends", "no such file: " + normal.string());
    const fs::path identity = fs::weakly_canonical(normal, error);
    if (std::find(chain_.begin(), chain_.end(), identity) != chain_.end()) {
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
  std::vector<fs::path> chain_;
  int layers_ = 0;
};

// The tree with the value at the path replaced.
NodePtr assign(const NodePtr& node, const std::vector<std::string>& keys, size_t depth, const NodePtr& value,
               const std::string& path) {
  if (depth == keys.size()) return value;
  auto copy = std::make_shared<Node>(*node);
  copy->layer = value->layer;
  const std::string& key = keys[depth];
  const std::string here = join_path(path, key);
  auto missing = std::make_shared<Node>();
  missing->kind = Kind::map;
  missing->position = value->position;
  if (node->kind == Kind::list) {
    size_t index = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
    if (error != std::errc() || end != key.data() + key.size() || index >= copy->entries.size())
      fail_at(value->position, here,
              path + " has no such index; it has " + std::to_string(copy->entries.size()) + " elements, from 0");
    copy->entries[index].value = assign(copy->entries[index].value, keys, depth + 1, value, here);
    return copy;
  }
  if (node->kind == Kind::scalar)
    fail_at(value->position, here, path + " is '" + node->scalar + "', which has no keys");
  copy->kind = Kind::map;
  const auto same = std::find_if(copy->entries.begin(), copy->entries.end(),
                                 [&](const Node::Entry& entry) { return entry.key == key; });
  if (same == copy->entries.end()) {
    copy->entries.push_back({key, value->position, assign(missing, keys, depth + 1, value, here)});
  } else {
    same->value = assign(same->value, keys, depth + 1, value, here);
    if (depth + 1 == keys.size()) same->position = value->position;
  }
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
    std::istringstream stream(assignment.substr(0, equals));
    for (std::string key; std::getline(stream, key, '.');) keys.push_back(key);
    if (equals == std::string::npos || keys.empty() || assignment[equals - 1] == '.' ||
        std::find(keys.begin(), keys.end(), "") != keys.end())
      fail_at({kCommandLine, 0, 0}, "", "'" + assignment + "' is not an override; expected key.path=value");
    if (keys[0] == "extends") fail_at({kCommandLine, 0, 0}, "extends", "a file extends others, an override cannot");
    NodePtr value;
    try {
      value = parse(assignment.substr(equals + 1), kCommandLine, layer);
    } catch (const ConfigError& error) {
      throw ConfigError(std::string(error.what()) + " (in '" + assignment + "')");
    }
    root = assign(root, keys, 0, value, path_);
  }
  return Yaml(root, path_);
}

}  // namespace regolith
