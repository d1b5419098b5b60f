// How a part of the engine declares its options. Beside its struct stands a function template
//
//   template <class V>
//   void fields(V& v, Sgd& s) {
//     v("lr", s.lr, {.doc = "learning rate", .min = 1e-12, .max = 100});
//   }
//
// which names every key once, with its range and meaning; the default is the struct's. Readers, writers and the printed
// reference are visitors (table.h), instantiated once, in app/run_config.cpp. An enum's words are given by a function
// names_of(E), in the order of the enumerators.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "engine/base/error.h"

namespace regolith {

struct FieldInfo {
  const char* doc = "";
  double min = -std::numeric_limits<double>::infinity(), max = std::numeric_limits<double>::infinity();
  const char* word = nullptr;  // text that stands for word_value: "auto"
  double word_value = 0;
  bool required = false;
  bool path = false;                    // a text that is the path of something to be made
  std::vector<std::string> names = {};  // what a text may be, if not anything
};

// The alternatives of a std::variant in the order of its types, std::monostate left out.
struct Alternative {
  const char* key;
  FieldInfo info;
};
using Alternatives = std::vector<Alternative>;

struct FilePath {
  std::string path;  // as it can be opened from the working folder
};
struct FolderPath {
  std::string path;
};
using Colour = std::array<uint8_t, 3>;  // red, green, blue

// A list with a number per class (empty: 1 each), or the field's word, which asks for inverse frequencies.
struct ClassWeights {
  bool inverse_frequency = false;
  std::vector<double> values;
};

// Ids in files to class ids.
struct IdMap {
  static constexpr int kIgnore = -1;  // "ignore": its pixels have no truth
  std::map<int64_t, int> ids;
};

// A value that only its part can judge. `path` leads from the part's section to the key: "focal.exclude".
struct OptionError : ConfigError {
  OptionError(const std::string& section, std::string key, std::string message)
      : ConfigError(section + (key.empty() ? "" : "." + key) + ": " + message),
        path(std::move(key)),
        text(std::move(message)) {}
  std::string path, text;
};

}  // namespace regolith
