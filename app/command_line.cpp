#include "app/command_line.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "engine/io/atomic_file.h"

namespace regolith {
namespace {

// A thread of libgomp waits for the others by spinning, which costs a program beside other busy ones its processors:
// by default 300,000 turns, after which a step has taken eight times as long. 1000, some tens of microseconds, bridge
// the time between two kernels. The library reads the variable when it is loaded, so that the program starts anew.
void wait_briefly(char** argv) {
  if (::getenv("OMP_WAIT_POLICY") != nullptr || ::getenv("GOMP_SPINCOUNT") != nullptr) return;
  ::setenv("GOMP_SPINCOUNT", "1000", 0);
  ::execv("/proc/self/exe", argv);  // where that fails, it runs as it is
}

}  // namespace

struct CommandLine::Parser {
  Parser(int c, char** v, const char* program, const char* what) : argc(c), argv(v), name(program), app(what, name) {}
  int argc;
  char** argv;
  std::string name;
  CLI::App app;
  CLI::App* at = &app;  // whose options are being named
  std::string config;
  std::vector<std::string> overrides;
};

CommandLine::CommandLine(int argc, char** argv, const char* name, const char* what, const char* example)
    : parser_(std::make_unique<Parser>(argc, argv, name, what)) {
  wait_briefly(argv);
  parser_->app.footer(example);
}
CommandLine::~CommandLine() = default;

void CommandLine::subcommand(const char* name, const char* what, const char* example) {
  parser_->app.require_subcommand(1);
  parser_->at = parser_->app.add_subcommand(name, what)->footer(example);
}
bool CommandLine::chosen(const char* name) const { return parser_->app.got_subcommand(name); }

template <class T>
void CommandLine::option(const char* name, T& value, const char* doc, const Limits& limits) {
  CLI::Option* option = parser_->at->add_option(name, value, doc);
  if (limits.required) option->required();
  if constexpr (std::is_arithmetic_v<T>) {
    option->capture_default_str();
    if (limits.min > -1e300 || limits.max < 1e300)
      option->check(CLI::Range(static_cast<T>(std::max<double>(limits.min, std::numeric_limits<T>::lowest())),
                               static_cast<T>(std::min<double>(limits.max, std::numeric_limits<T>::max()))));
  }
  if constexpr (std::is_same_v<T, std::string>)  // as of a shell's variable that is not set
    option->check([](const std::string& word) { return word.empty() ? "expected text, found none" : ""; });
  if (!limits.names.empty()) option->check(CLI::IsMember(limits.names));
}
template void CommandLine::option(const char*, int&, const char*, const Limits&);
template void CommandLine::option(const char*, double&, const char*, const Limits&);
template void CommandLine::option(const char*, std::array<int, 2>&, const char*, const Limits&);
template void CommandLine::option(const char*, std::string&, const char*, const Limits&);
template void CommandLine::option(const char*, std::vector<std::string>&, const char*, const Limits&);

void CommandLine::flag(const char* name, bool& value, const char* doc) { parser_->at->add_flag(name, value, doc); }

void CommandLine::config_arguments(bool required) {
  option("config", parser_->config, "the run's YAML file", {.required = required});
  option("overrides", parser_->overrides, "key.path=value, over what the file says");
}

bool CommandLine::has_config() const { return !parser_->config.empty(); }

RunConfig CommandLine::load_config(ConfigUse use, const std::vector<std::string>& overrides, const std::string& other) {
  if (!other.empty() && parser_->config.find('=') != std::string::npos && !std::filesystem::exists(parser_->config))
    parser_->overrides.insert(parser_->overrides.begin(), std::exchange(parser_->config, ""));
  std::vector<std::string> all = parser_->overrides;
  all.insert(all.end(), overrides.begin(), overrides.end());
  return load_run_config(parser_->config.empty() ? other : parser_->config, all, use);
}

std::string CommandLine::command() const {
  std::string text = shell_word(parser_->argv[0]);
  if (has_config()) text += " " + shell_word(parser_->config);
  for (const std::string& o : parser_->overrides) text += " " + shell_word(o);
  return text;
}

int CommandLine::run(const std::function<int()>& body) {
  for (int file = 0; file < 3; ++file)  // a file of the run's must not take the place of a closed stdout
    if (::fcntl(file, F_GETFD) < 0) ::open("/dev/null", O_RDWR);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  const auto fail = [&](const std::string& message, int code) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s\n", parser_->name.c_str(), message.c_str());
    return code;
  };
  const auto written = [&](int code) {
    pollfd out{1, POLLOUT, 0};
    if ((std::fflush(stdout) == 0 && !std::ferror(stdout)) || (::poll(&out, 1, 0) == 1 && (out.revents & POLLERR)))
      return code;  // a reader that has left, like head, has read what it wanted
    return fail("standard output: cannot be written, as on a full disk: what was printed is lost, all else is done", 1);
  };
  try {
    parser_->app.parse(parser_->argc, parser_->argv);
    return written(body());
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return written(parser_->app.exit(e));  // --help
    return fail(std::string(e.what()) + "; --help tells more", 2);
  } catch (const UsageError& e) {
    return fail(std::string(e.what()) + "; --help tells more", 2);
  } catch (const std::exception& e) {
    return fail(e.what(), 1);
  }
}

void refuse_existing(const std::string& path, bool force, const std::vector<std::string>& read) {
  std::error_code none;  // of a file that is not there
  for (const std::string& file : read)
    if (std::filesystem::equivalent(path, file, none))
      throw UsageError(path + ": is what is read; name another output");
  if (!force && std::filesystem::exists(path))
    throw IoError(path + ": is there already; --force writes over it, or choose another --output");
}

void check_json_output(const std::string& path) {
  if (path.empty()) return;
  if (!path.ends_with(".json")) throw UsageError("--json " + path + ": expected a name that ends in .json");
  AtomicFile{path};
}

std::string shell_word(const std::string& word) {
  const std::string plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:.,/@%";
  if (!word.empty() && word.find_first_not_of(plain) == word.npos) return word;
  std::string text = "'";
  for (const char c : word) c == '\'' ? text += "'\\''" : text += c;
  return text + "'";
}

Interrupts& catch_interrupts(bool speaks) {
  static Interrupts interrupts;
  interrupts.silent = !speaks;
  static const bool terminal = ::isatty(2);
  const auto handler = [](int number) {
    const int error = errno;
    const auto say = [](const char* line) {  // on a terminal below the line that is being drawn
      if (interrupts.silent) return true;
      if (terminal) --line;
      return ::write(2, line, std::strlen(line)) >= 0;
    };
    int none = 0;
    const bool first = interrupts.signal.compare_exchange_strong(none, number);
    if (!interrupts.begun) say("\ninterrupted before the first step; nothing is lost\n" + 1);
    if (!first || !interrupts.begun) std::_Exit(128 + number);
    say("\nfinishing the step; again to stop at once\n" + 1);
    errno = error;
  };
  for (const int number : {SIGINT, SIGTERM, SIGHUP})
    if (std::signal(number, handler) == SIG_IGN && number == SIGHUP) std::signal(number, SIG_IGN);
  return interrupts;
}

}  // namespace regolith
