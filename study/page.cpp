#include <algorithm>
#include <functional>

#include "app/resume.h"
#include "engine/base/text.h"
#include "engine/report/page.h"
#include "study/table.h"

namespace regolith {
namespace {

using EpochValue = std::function<double(const EpochRecord&)>;

std::string curves_of(const std::vector<StudyRow>& rows, const std::string& title, const EpochValue& value) {
  std::vector<Curve> curves;
  for (size_t r = 0; r < rows.size(); ++r)
    for (const StudyRun& run : rows[r].runs) {
      Curve& curve = curves.emplace_back(Curve{"", curve_colour(r), {}, 1.3});
      for (const EpochRecord& e : run.results.history) curve.points.push_back({static_cast<double>(e.epoch), value(e)});
    }
  return html_plot(title, curves);
}

double validation_of(const EpochRecord& e, const std::string& metric) {
  const auto m = std::ranges::find(e.validation, metric, &Metric::name);
  return m == e.validation.end() ? EpochRecord::kNone : m->value;
}

// Every score of one split, mean and spread.
std::string detail(const std::vector<StudyRow>& rows, const std::string& split) {
  std::vector<std::string> header{"configuration"};
  const std::vector<Metric> all = metrics({}, 0, EpochRecord::kNone);
  for (const Metric& m : all)
    if (m.higher_is_better) header.push_back(m.name);
  const std::vector<std::string> classes = classes_of(rows, split);
  for (const std::string& cls : classes) header.push_back(cls);
  std::vector<HtmlRow> lines;
  for (const StudyRow& row : rows) {
    HtmlRow& line = lines.emplace_back(HtmlRow{{escape_markup(row.name)}});
    const auto add = [&](const std::function<double(const SplitResult&)>& value) {
      std::vector<double> values;
      for (const StudyRun& run : row.runs)
        if (const auto s = run.results.splits.find(split); s != run.results.splits.end())
          values.push_back(value(s->second));
      line.cells.push_back(spread_text(mean_spread(values), 100, "%.2f"));
    };
    for (const Metric& m : all)
      if (m.higher_is_better) add([&](const SplitResult& s) { return s.value(m.name); });
    for (const std::string& cls : classes) add([&](const SplitResult& s) { return s.iou_of(cls); });
  }
  return "<h3>" + escape_markup(split) + ": the three mIoUs, then IoU by class</h3>\n" + html_table(header, lines);
}

}  // namespace

std::string table_html(const std::vector<StudyRow>& rows, const StudyOptions& options) {
  const std::vector<std::string> splits = splits_of(rows, options);
  size_t runs = 0, finished = 0;
  for (const StudyRow& row : rows) {
    runs += row.runs.size();
    finished += static_cast<size_t>(std::ranges::count(row.runs, RunState::finished, &StudyRun::state));
  }
  const std::string title = "Table of runs: " + options.output;
  std::string body = "<h1>" + escape_markup(title) + "</h1>\n<p class=\"lead\">" + std::to_string(rows.size()) +
                     (rows.size() == 1 ? " configuration, " : " configurations, ") + std::to_string(finished) + " of " +
                     std::to_string(runs) + " runs finished. Scores are <code>" + escape_markup(options.score) +
                     "</code> in percent" +
                     (options.seeds > 1 ? ": the mean over the seeds ± their standard deviation." : ".") + "</p>\n";

  std::vector<HtmlRow> lines;
  for (const TableLine& line : table_lines(rows, options)) {
    HtmlRow& row = lines.emplace_back();
    const bool failed = line.kind == "failed";
    for (const std::string& cell : line.cells) row.cells.push_back(escape_markup(cell));
    if (failed) row.cells = {row.cells.front(), row.cells.back()};
    row.kind = failed ? "failed" : line.kind.empty() ? "" : "muted";
    if (line.kind.empty()) row.cells[0] = colour_chip(curve_colour(line.row), row.cells[0]);
  }
  body += html_table(table_header(rows, options), lines);

  body += "<h2>Curves</h2>\n<div class=\"legend\">";
  for (size_t r = 0; r < rows.size(); ++r)
    if (rows[r].config) body += colour_chip(curve_colour(r), escape_markup(rows[r].name)) + "\n";
  body += "</div>\n" +
          html_plots({curves_of(rows, "validation " + options.score + ", percent",
                                [&](const EpochRecord& e) { return 100 * validation_of(e, options.score); }),
                      curves_of(rows, "training loss", [](const EpochRecord& e) { return e.loss; }),
                      curves_of(rows, "validation loss", [](const EpochRecord& e) { return validation_of(e, "loss"); }),
                      curves_of(rows, "learning rate", [](const EpochRecord& e) { return e.lr; })});

  body += "<h2>Every score</h2>\n";
  for (const std::string& split : splits) body += detail(rows, split);

  body += "<h2>Runs</h2>\n";
  std::vector<std::string> header{"run", "state", "epochs"};
  header.insert(header.end(), splits.begin(), splits.end());
  std::vector<HtmlRow> each;
  for (const StudyRow& row : rows)
    for (const StudyRun& run : row.runs) {
      const std::string name = escape_markup(run.name);
      HtmlRow& line = each.emplace_back(
          HtmlRow{{run.state == RunState::finished ? "<a href=\"" + name + "/report.html\">" + name + "</a>" : name,
                   name_of(run.state), std::to_string(run.results.epochs)}});
      for (const std::string& split : splits)
        line.cells.push_back(percent_text(run.results.score(split, options.score)));
      if (run.state == RunState::failed) line.kind = "failed";
    }
  body += html_table(header, each);

  body +=
      "<h2>How it was made</h2>\n<p>All runs of a row see the same images in the same parts: where the configuration "
      "leaves <code>data.split.seed</code> to <code>run.seed</code>, it is the first seed for all of them. The seeds "
      "differ in the initial weights, the order of the images, augmentation and dropout. Scores are those of the "
      "weights that are the best on the validation images. Seconds an epoch are the median over a run's epochs, "
      "without validation.</p>\n";
  for (const StudyRow& row : rows)
    if (row.config)
      body += "<details><summary>" + escape_markup(row.name) + "</summary><pre>" +
              escape_markup(row.config->to_yaml()) + "</pre></details>\n";
  body += "<p class=\"muted\">Regolith " + std::string(kVersion) + "</p>\n";
  return html_page(title, body);
}

}  // namespace regolith
