#include "study/study.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "app/command_line.h"
#include "app/experiment.h"
#include "app/resume.h"
#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/io/file_lock.h"
#include "study/children.h"
#include "study/hidden.h"
#include "study/table.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;

// The GPUs that a process may be given, as CUDA_VISIBLE_DEVICES names them.
std::vector<std::string> visible_gpus() {
  std::vector<std::string> gpus;
  if (!cuda_available()) return gpus;
  if (const char* given = std::getenv("CUDA_VISIBLE_DEVICES"); given != nullptr) {
    std::istringstream names(given);
    for (std::string name; std::getline(names, name, ',');) gpus.push_back(name);
  } else {
    for (int i = 0; fs::exists("/dev/nvidia" + std::to_string(i)); ++i) gpus.push_back(std::to_string(i));
  }
  return gpus;
}

// The last line that engine_run wrote of itself, without its name.
std::string last_error(const std::string& log) {
  const std::string mark = "engine_run: ";
  std::string message;
  std::ifstream file(log);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(mark)) message = line.substr(mark.size());
  return message;
}

class Study {
 public:
  explicit Study(const StudyOptions& options) : options_(options), gpus_(visible_gpus()) {
    jobs_ = options.jobs > 0 ? options.jobs : std::max(1, static_cast<int>(gpus_.size()));
    program_ = (fs::read_symlink("/proc/self/exe").parent_path() / "engine_run").string();
    if (!fs::exists(program_)) throw IoError(program_ + ": is missing; engine_table starts it for each run");
  }

  int run() {
    rows_ = study_rows(options_);
    check_hidden();
    open_output();
    for (StudyRow& row : rows_) {
      if (!row.error.empty()) std::printf("%s: cannot be run: %s\n", row.name.c_str(), row.error.c_str());
      for (StudyRun& run : row.runs) look_at(row, run);
    }
    interrupts_.begun = true;
    do {
      train();
    } while (interrupts_.signal == 0 && go_on());
    if (!options_.hidden.empty() && interrupts_.signal == 0) score_all_hidden();
    write_tables();
    std::printf("\n%s\nwritten\n", table_text(rows_, options_).c_str());
    for (const char* file : {"table.md", "table.csv", "table.html"}) std::printf("  %s\n", path(file).c_str());
    if (interrupts_.signal != 0) {
      std::printf("interrupted; the same command goes on\n");
      return 128 + interrupts_.signal;
    }
    return failed() ? 1 : 0;
  }

 private:
  std::string path(const std::string& file) const { return (fs::path(options_.output) / file).string(); }

  bool failed() const {
    return std::ranges::any_of(rows_, [](const StudyRow& row) {
      return !row.error.empty() || std::ranges::count(row.runs, RunState::failed, &StudyRun::state) > 0;
    });
  }

  // Before hours of training: whether the labels are of these images.
  void check_hidden() {
    if (options_.hidden.empty()) return;
    int group = -1;
    for (const StudyRow& row : rows_) {
      if (!row.config || row.group == group) continue;
      group = row.group;
      Experiment experiment(*row.config, make_cpu_device(), true);
      hidden_images(*row.config, options_.hidden, experiment.source_context());
    }
  }

  void open_output() {
    std::error_code error;
    fs::create_directories(options_.output, error);
    if (error) throw IoError(options_.output + ": cannot make the table's folder: " + error.message());
    lock_ = FileLock(options_.output);
    for (const StudyRow& row : rows_)
      if (row.config) check_earlier(row);
    for (const StudyRow& row : rows_)
      if (row.config) write_file_atomically(path(row.name + ".yaml"), row.config->to_yaml());
  }

  // What is there of a row must be of the same configuration.
  void check_earlier(const StudyRow& row) const {
    const std::string file = path(row.name + ".yaml");
    if (!fs::exists(file)) {
      for (const StudyRun& run : row.runs)
        if (fs::exists(path(run.name)))
          throw IoError(path(run.name) + ": is there already, and not by engine_table; choose another --output");
      return;
    }
    RunConfig before = load_run_config(file, {}, ConfigUse::network);
    before.run.threads = row.config->run.threads;
    before.run.tensorboard = row.config->run.tensorboard;
    std::string changed;
    for (const Change& c : changes_between(before, *row.config)) changed += (changed.empty() ? "" : ", ") + c.text();
    if (before.train.init.from.path != row.config->train.init.from.path && changed.empty()) changed = "train.init.from";
    if (!changed.empty())
      throw ConfigError(options_.output + ": holds runs of another " + row.name + " (" + changed +
                        "); choose another --output, or remove " + file + " and its run folders");
  }

  // The state of a run that no process works at.
  void look_at(const StudyRow& row, StudyRun& run) const {
    try {
      run.results = read_results(path(run.name), *row.config);
      run.state = run.results.finished     ? RunState::finished
                  : run.results.epochs > 0 ? RunState::paused
                                           : RunState::waiting;
    } catch (const Error& e) {
      fail(run, e.what());
    }
  }

  static void fail(StudyRun& run, const std::string& message) {
    run.state = RunState::failed;
    run.message = message;
    std::printf("%s: failed: %s\n", run.name.c_str(), message.c_str());
  }

  // Every run as far as its row is to go for now, the first seeds of all rows first.
  void train() {
    struct Job {
      StudyRow* row;
      StudyRun* run;
    };
    std::deque<Job> queue;
    for (int i = 0; i < options_.seeds; ++i)
      for (StudyRow& row : rows_) {
        if (!row.config || row.stopped_after > 0) continue;
        StudyRun& run = row.runs[i];
        const bool whole = row.until >= row.config->train.epochs;
        if (run.state != RunState::finished && run.state != RunState::failed &&
            (whole || run.results.epochs < row.until))
          queue.push_back({&row, &run});
      }
    std::vector<Job> slots(jobs_, Job{});
    Children children;
    bool told = false;
    while (!queue.empty() || children.count() > 0) {
      for (int slot = 0; slot < jobs_ && !queue.empty() && interrupts_.signal == 0; ++slot) {
        if (slots[slot].run != nullptr) continue;
        slots[slot] = queue.front();
        queue.pop_front();
        if (!start(children, slot, *slots[slot].row, *slots[slot].run)) slots[slot] = {};
        write_tables();
      }
      if (interrupts_.signal != 0) {
        queue.clear();
        if (!std::exchange(told, true)) children.signal(interrupts_.signal);
      }
      for (const Children::Ended& ended : children.ended()) {
        const Job job = std::exchange(slots[ended.slot], {});
        end(*job.row, *job.run, ended.code);
        write_tables();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  bool start(Children& children, int slot, const StudyRow& row, StudyRun& run) {
    const std::string folder = path(run.name);
    std::vector<std::string> words{program_};
    try {
      if (fs::exists(folder + "/last.safetensors")) {
        words.insert(words.end(), {"--resume", folder});
      } else {
        if (fs::exists(folder)) {  // ended before its first checkpoint
          const FileLock unused(folder);
          fs::remove_all(folder);
        }
        words.insert(words.end(), {path(row.name + ".yaml"), "run.seed=" + std::to_string(run.seed),
                                   "run.name=" + run.name, "run.output=" + options_.output});
        if (row.config->run.threads == 0 && jobs_ > 1)
          words.push_back("run.threads=" + std::to_string(std::max(1, omp_get_max_threads() / jobs_)));
      }
      if (row.until < row.config->train.epochs) words.insert(words.end(), {"--until", std::to_string(row.until)});
      std::vector<std::string> environment;
      if (!gpus_.empty()) environment.push_back("CUDA_VISIBLE_DEVICES=" + gpus_[slot % gpus_.size()]);
      children.start(slot, words, path(run.name + ".log"), environment);
    } catch (const Error& e) {
      fail(run, e.what());
      return false;
    }
    std::printf("%s: %s\n", run.name.c_str(), words[1] == "--resume" ? "goes on" : "begins");
    run.state = RunState::running;
    return true;
  }

  void end(const StudyRow& row, StudyRun& run, int code) {
    const std::string log = path(run.name + ".log");
    look_at(row, run);
    if (run.state == RunState::failed) return;
    if (code != 0 && interrupts_.signal != 0) {
      run.state = RunState::interrupted;
    } else if (code != 0) {
      std::string message = last_error(log);
      if (code < 0 || message.empty())
        message = (code < 0 ? "ended by signal " + std::to_string(-code) : "ended with code " + std::to_string(code)) +
                  "; see " + log;
      fail(run, message);
    } else if (run.state == RunState::finished) {
      std::printf("%s: finished, %s %s\n", run.name.c_str(), options_.score.c_str(),
                  percent_text(run.results.score("test", options_.score)).c_str());
    } else {
      std::printf("%s: paused after %lld epochs\n", run.name.c_str(), static_cast<long long>(run.results.epochs));
    }
  }

  // What halving lets train further; false where all is done.
  bool go_on() {
    bool more = false;
    const int groups = rows_.empty() ? 0 : rows_.back().group + 1;
    for (int group = 0; group < groups; ++group) {
      std::vector<size_t> alive;
      int64_t until = 0;
      bool whole = true;
      for (size_t r = 0; r < rows_.size(); ++r) {
        const StudyRow& row = rows_[r];
        if (row.group != group || !row.config || !row.halving || row.stopped_after > 0) continue;
        alive.push_back(r);
        until = std::max(until, row.until);
        whole = whole && row.until >= row.config->train.epochs;
      }
      if (alive.empty() || whole) continue;
      const int factor = rows_[alive[0]].halving->factor;
      const std::vector<size_t> best = survivors(rows_, alive, until, options_.score, factor);
      for (const size_t r : alive) {
        StudyRow& row = rows_[r];
        if (std::ranges::find(best, r) == best.end())
          row.stopped_after = until;
        else
          row.until =
              best.size() == 1 ? row.config->train.epochs : std::min<int64_t>(until * factor, row.config->train.epochs);
      }
      std::printf("after %lld epochs %zu of %zu rows of %s go on\n", static_cast<long long>(until), best.size(),
                  alive.size(), rows_[alive[0]].file.c_str());
      more = more || !best.empty();
    }
    return more;
  }

  void score_all_hidden() {
    for (StudyRow& row : rows_)
      for (StudyRun& run : row.runs) {
        if (run.state != RunState::finished || interrupts_.signal != 0) continue;
        try {
          score_hidden(path(run.name), *row.config, options_.hidden);
          run.results = read_results(path(run.name), *row.config);
        } catch (const Error& e) {
          fail(run, e.what());
        }
      }
  }

  void write_tables() const {
    write_file_atomically(path("table.md"), table_markdown(rows_, options_));
    write_file_atomically(path("table.csv"), table_csv(rows_, options_));
    write_file_atomically(path("table.html"), table_html(rows_, options_));
  }

  StudyOptions options_;
  std::vector<std::string> gpus_;
  int jobs_ = 1;
  std::string program_;
  Interrupts& interrupts_ = catch_interrupts();
  FileLock lock_;
  std::vector<StudyRow> rows_;
};

}  // namespace

int run_study(const StudyOptions& options) { return Study(options).run(); }

}  // namespace regolith
