#include "study/table.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/base/text.h"
#include "engine/report/table.h"

namespace regolith {
namespace {

constexpr double kNone = EpochRecord::kNone;

using RunValue = std::function<double(const RunResults&)>;

MeanSpread over_runs(const StudyRow& row, const RunValue& value) {
  std::vector<double> values;
  for (const StudyRun& run : row.runs) values.push_back(value(run.results));
  return mean_spread(values);
}

std::string score_cell(const StudyRow& row, const std::string& split, const std::string& metric) {
  return spread_text(over_runs(row, [&](const RunResults& r) { return r.score(split, metric); }), 100, "%.2f");
}

std::string runs_text(const StudyRow& row) {
  const auto finished = std::ranges::count(row.runs, RunState::finished, &StudyRun::state);
  const std::string all = std::to_string(row.runs.size());
  return finished == std::ssize(row.runs) ? all : std::to_string(finished) + " of " + all;
}

std::string note_of(const StudyRow& row) {
  if (!row.error.empty()) return "cannot be run: " + row.error;
  if (row.stopped_after > 0) return "stopped by halving after " + std::to_string(row.stopped_after) + " epochs";
  std::vector<std::string> notes;
  for (const RunState state : {RunState::running, RunState::waiting, RunState::paused, RunState::interrupted})
    if (const auto n = std::ranges::count(row.runs, state, &StudyRun::state); n > 0)
      notes.push_back(std::to_string(n) + " " + name_of(state));
  return join(notes);
}

bool any_split(const std::vector<StudyRow>& rows, const std::string& split) {
  return std::ranges::any_of(rows, [&](const StudyRow& row) {
    return std::ranges::any_of(row.runs, [&](const StudyRun& run) { return run.results.splits.contains(split); });
  });
}

bool has_notes(const std::vector<TableLine>& lines) {
  return std::ranges::any_of(lines, [](const TableLine& l) { return !l.cells.back().empty(); });
}

std::string title_of(const StudyOptions& options) {
  return options.score + " in percent" + (options.seeds > 1 ? ", mean and spread over seeds" : "");
}

}  // namespace

const char* name_of(RunState state) {
  constexpr const char* kNames[] = {"waiting", "running", "paused", "finished", "failed", "interrupted"};
  return kNames[static_cast<int>(state)];
}

std::string spread_text(const MeanSpread& m, double factor, const char* pattern, const char* spread) {
  if (m.count == 0) return "-";
  std::string text = format(pattern, factor * m.mean);
  if (m.count > 1) text += " ± " + format(spread != nullptr ? spread : pattern, factor * m.spread);
  return text;
}

std::vector<std::string> splits_of(const std::vector<StudyRow>& rows, const StudyOptions& options) {
  std::vector<std::string> splits{"validation", "test"};
  if (!options.hidden.empty() || any_split(rows, "hidden")) splits.push_back("hidden");
  return splits;
}

std::vector<std::string> classes_of(const std::vector<StudyRow>& rows, const std::string& split) {
  std::vector<std::string> classes;
  for (const StudyRow& row : rows)
    for (const StudyRun& run : row.runs)
      for (const auto& [name, result] : run.results.splits)
        for (const std::string& cls : result.classes)
          if ((split.empty() || name == split) && std::ranges::find(classes, cls) == classes.end())
            classes.push_back(cls);
  return classes;
}

std::vector<std::string> table_header(const std::vector<StudyRow>& rows, const StudyOptions& options) {
  std::vector<std::string> header{"configuration"};
  for (const std::string& split : splits_of(rows, options)) header.push_back(split);
  header.insert(header.end(), {"parameters", "s/epoch", "runs", "note"});
  return header;
}

std::vector<TableLine> table_lines(const std::vector<StudyRow>& rows, const StudyOptions& options) {
  const std::vector<std::string> splits = splits_of(rows, options);
  std::vector<TableLine> lines;
  for (size_t r = 0; r < rows.size(); ++r) {
    const StudyRow& row = rows[r];
    TableLine& line = lines.emplace_back(TableLine{row.error.empty() ? "" : "failed", r, {row.name}});
    int64_t parameters = 0;
    for (const StudyRun& run : row.runs) parameters = std::max(parameters, run.results.parameters);
    for (const std::string& split : splits) line.cells.push_back(score_cell(row, split, options.score));
    line.cells.push_back(parameters > 0 ? thousands(parameters) : "-");
    line.cells.push_back(
        spread_text(over_runs(row, [](const RunResults& x) { return x.epoch_seconds(); }), 1, "%.3g", "%.2g"));
    line.cells.push_back(row.error.empty() ? runs_text(row) : "-");
    line.cells.push_back(note_of(row));
    const auto other = [&](const std::string& kind, const std::string& name) -> TableLine& {
      TableLine& l = lines.emplace_back(TableLine{kind, r, {name}});
      l.cells.resize(line.cells.size() - 1, "");
      return l;
    };
    for (const StudyRun& run : row.runs)
      if (run.state == RunState::failed) {
        TableLine& l = other("failed", run.name);
        l.cells.push_back("failed: " + run.message);
      }
    const bool last = r + 1 == rows.size() || rows[r + 1].group != row.group;
    if (!last || !row.config || !row.config->reference) continue;
    const Reference& ref = *row.config->reference;
    TableLine& l = other("reference", ref.name);
    const auto percent = [](double x) { return x < Reference::kNone ? format("%.2f", x) : "-"; };
    size_t at = 1;
    for (const double x : {ref.validation, ref.test, ref.hidden})
      if (at <= splits.size()) l.cells[at++] = percent(x);
    l.cells[at++] = ref.parameters > 0 ? thousands(ref.parameters) : "-";
    l.cells[at++] = ref.epoch_seconds < Reference::kNone ? format("%.3g", ref.epoch_seconds) : "-";
    l.cells.push_back("as published");
  }
  return lines;
}

MeanSpread mean_spread(const std::vector<double>& values) {
  MeanSpread m{kNone, kNone, 0};
  double sum = 0, squares = 0;
  for (const double x : values)
    if (std::isfinite(x)) sum += x, ++m.count;
  if (m.count > 0) m.mean = sum / m.count;
  for (const double x : values)
    if (std::isfinite(x)) squares += (x - m.mean) * (x - m.mean);
  if (m.count > 1) m.spread = std::sqrt(squares / (m.count - 1));
  return m;
}

std::string percent_text(double fraction) { return std::isfinite(fraction) ? format("%.2f", 100 * fraction) : "-"; }

std::string table_text(const std::vector<StudyRow>& rows, const StudyOptions& options) {
  std::vector<std::string> header = table_header(rows, options);
  const std::vector<TableLine> lines = table_lines(rows, options);
  const bool notes = has_notes(lines);
  if (!notes) header.pop_back();
  Table table(header, "l" + std::string(header.size() - 1 - notes, 'r') + (notes ? "l" : ""));
  for (const TableLine& line : lines) {
    std::vector<std::string> cells = line.cells;
    if (line.kind == "reference" || (line.kind == "failed" && rows[line.row].error.empty())) cells[0] = "  " + cells[0];
    if (!notes) cells.pop_back();
    table.add(cells);
  }
  return title_of(options) + "\n" + table.text();
}

std::string table_markdown(const std::vector<StudyRow>& rows, const StudyOptions& options) {
  std::vector<std::string> header = table_header(rows, options);
  const std::vector<TableLine> lines = table_lines(rows, options);
  const size_t columns = header.size() - !has_notes(lines);
  const auto line_of = [&](const std::vector<std::string>& cells) {
    std::string text = "|";
    for (size_t i = 0; i < columns; ++i) {
      std::string cell;
      for (const char c : cells[i]) cell += c == '|' ? "\\|" : c == '\n' ? " " : c == '<' ? "&lt;" : std::string(1, c);
      text += " " + cell + " |";
    }
    return text + "\n";
  };
  std::string text = title_of(options) + "\n\n" + line_of(header) + "|---|";
  for (size_t i = 1; i < columns; ++i) text += header[i] == "note" ? "---|" : "---:|";
  text += "\n";
  for (const TableLine& line : lines) {
    std::vector<std::string> cells = line.cells;
    if (line.kind == "reference") cells[0] = "*" + cells[0] + "*";
    text += line_of(cells);
  }
  return text;
}

std::string table_csv(const std::vector<StudyRow>& rows, const StudyOptions& options) {
  // The columns of scores: every metric of every split, and the IoU of every class.
  struct Column {
    std::string name;
    RunValue value;
  };
  std::vector<Column> columns{
      {"parameters", [](const RunResults& r) { return r.parameters > 0 ? static_cast<double>(r.parameters) : kNone; }},
      {"epochs", [](const RunResults& r) { return static_cast<double>(r.epochs); }},
      {"epoch_seconds", [](const RunResults& r) { return r.epoch_seconds(); }}};
  const std::vector<std::string> classes = classes_of(rows);
  for (const char* split : {"validation", "test", "hidden"}) {
    for (const Metric& m : metrics({}, 0, kNone))
      columns.push_back({std::string(split) + " " + m.name,
                         [split, name = m.name](const RunResults& r) { return r.score(split, name); }});
    for (const std::string& cls : classes)
      columns.push_back({std::string(split) + " iou " + cls, [split, cls](const RunResults& r) {
                           const auto s = r.splits.find(split);
                           return s == r.splits.end() ? kNone : s->second.iou_of(cls);
                         }});
  }
  std::string text = "configuration,kind,seed,state";
  for (const Column& c : columns) text += "," + csv_field(c.name);
  text += ",message\n";
  const auto add = [&](const std::string& name, const std::string& kind, const std::string& seed,
                       const std::string& state, const std::function<double(const Column&)>& value,
                       const std::string& message) {
    text += csv_field(name) + "," + kind + "," + seed + "," + state;
    for (const Column& c : columns) {
      const double x = value(c);
      text += std::isfinite(x) ? "," + (x == std::floor(x) ? number(x) : format("%.6f", x)) : ",";
    }
    text += "," + csv_field(message) + "\n";
  };
  const auto nothing = [](const Column&) { return kNone; };
  for (const StudyRow& row : rows) {
    if (!row.error.empty()) add(row.name, "run", "", "failed", nothing, row.error);
    for (const StudyRun& run : row.runs)
      add(
          row.name, "run", std::to_string(run.seed), name_of(run.state),
          [&](const Column& c) { return c.value(run.results); }, run.message);
    const auto spread = [&](const Column& c) { return over_runs(row, c.value); };
    if (!row.runs.empty()) {
      const std::string note = note_of(row);
      add(
          row.name, "mean", "", "", [&](const Column& c) { return spread(c).mean; }, note);
      add(
          row.name, "spread", "", "", [&](const Column& c) { return spread(c).spread; }, note);
    }
    if (!row.config || !row.config->reference) continue;
    const Reference& ref = *row.config->reference;
    add(
        row.name, "reference", "", "",
        [&](const Column& c) {
          const auto share = [](double percent) { return percent < Reference::kNone ? percent / 100 : kNone; };
          if (c.name == "parameters") return ref.parameters > 0 ? static_cast<double>(ref.parameters) : kNone;
          if (c.name == "epoch_seconds") return ref.epoch_seconds < Reference::kNone ? ref.epoch_seconds : kNone;
          if (c.name == "validation " + options.score) return share(ref.validation);
          if (c.name == "test " + options.score) return share(ref.test);
          return c.name == "hidden " + options.score ? share(ref.hidden) : kNone;
        },
        ref.name);
  }
  return text;
}

}  // namespace regolith
