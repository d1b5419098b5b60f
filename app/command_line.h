// What every program shares: options, one message on an error, an exit code, signals.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "app/run_config.h"

namespace regolith {

struct UsageError : Error {  // a command line that cannot be understood: exit code 2
  using Error::Error;
};

//   int main(int argc, char** argv) {
//     CommandLine p(argc, argv, "engine_x", "What it does in one sentence.");
//     int steps = 10;
//     p.option("--steps", steps, "steps to time", {.min = 1});
//     return p.run([&] { ...; return 0; });
//   }
class CommandLine {
 public:
  // `example`: command lines, shown below the help.
  CommandLine(int argc, char** argv, const char* name, const char* what, const char* example = "");
  ~CommandLine();

  // A program of several commands: options from here on belong to `engine_x NAME`, and one NAME must be given.
  void subcommand(const char* name, const char* what, const char* example = "");
  bool chosen(const char* name) const;  // of the subcommands

  // T: int, double, std::string, std::vector<std::string>, std::array<int, 2>. `name` begins with -- or is a positional
  // argument.
  struct Limits {
    bool required = false;
    double min = -1e300, max = 1e300;     // of a number
    std::vector<std::string> names = {};  // what a text may be, if not anything
  };
  template <class T>
  void option(const char* name, T& value, const char* doc, const Limits& limits = {});
  void flag(const char* name, bool& value, const char* doc);
  // CONFIG [key.path=value ...], which nearly every program takes. `overrides` of the program's own come last.
  void config_arguments(bool required = true);
  // `other`: the file to read where none is named. A word that could be either, with a '=', is then an override.
  RunConfig load_config(ConfigUse use, const std::vector<std::string>& overrides = {}, const std::string& other = "");
  bool has_config() const;
  std::string command() const;  // the program with CONFIG and overrides, quoted for a shell

  // Parses, runs the body, and returns the exit code of the process: the body's, 1 with "NAME: message" on stderr where
  // it throws, 2 for a command line that is not understood. stdout is written line by line; a write that fails is
  // an error of that write, not a signal: 1 at the end for a full disk, nothing for a reader that is gone.
  int run(const std::function<int()>& body);

 private:
  struct Parser;
  std::unique_ptr<Parser> parser_;
};

// Throws IoError where something stands at `path` and --force was not given, UsageError where that is one of those
// `read`.
void refuse_existing(const std::string& path, bool force, const std::vector<std::string>& read = {});
// Of --json: throws UsageError for a name of another kind, IoError where it cannot be written; before the work.
void check_json_output(const std::string& path);

// A word of a command line so that a shell reads it back as it was.
std::string shell_word(const std::string& word);

// SIGINT, SIGTERM and SIGHUP (where it is not ignored, as under nohup) from now on. The first one is for the run to
// see, which finishes its step; the second, and any before `begun`, end the process at once. The exit code is 128 +
// signal.
struct Interrupts {
  std::atomic<int> signal{0};      // the first that came
  std::atomic<bool> begun{false};  // set by the run once there is something to finish
  std::atomic<bool> silent{false};
};
// speaks: says on a signal what will happen, which of several ranks one does.
Interrupts& catch_interrupts(bool speaks = true);

}  // namespace regolith
