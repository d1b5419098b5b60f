// report.html of a run's folder: all that there is to see of a run, in one file.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "app/listeners.h"
#include "app/training.h"
#include "engine/base/text.h"
#include "engine/io/atomic_file.h"
#include "engine/report/page.h"
#include "engine/report/progress.h"
#include "engine/report/table.h"

namespace regolith {
namespace {

constexpr int kShownImages = 4;  // the worst, and the best
constexpr int kShownSide = 384;  // pixels
constexpr double kMuch = 0.2;    // of an epoch: a part that deserves a word
constexpr const char* kFile = "report.html";

std::string percent(double share) { return std::isfinite(share) ? format("%.1f", 100 * share) : "-"; }

std::string scores_table(const std::string& title, const SplitScores& split, const std::vector<std::string>& names) {
  std::vector<HtmlRow> rows;
  for (size_t k = 0; k < names.size(); ++k)
    rows.push_back({{escape_markup(names[k]), percent(split.scores.iou[k]), percent(split.scores.precision[k]),
                     percent(split.scores.recall[k])}});
  for (const Metric& m : split.metrics)
    rows.push_back({{m.name, m.higher_is_better ? percent(m.value) : format("%.4g", m.value), "", ""}});
  return html_table({title, "IoU", "precision", "recall"}, rows);
}

// ema: the classes' curves are of the weights' average, as the run watches it.
std::string curves(const std::vector<EpochRecord>& history, const std::vector<std::string>& names, bool ema) {
  const auto curve = [&](const std::string& name, size_t colour, const auto& value) {
    Curve c{name, curve_colour(colour), {}};
    for (const EpochRecord& r : history) c.points.push_back({static_cast<double>(r.epoch), value(r)});
    return c;
  };
  std::vector<Curve> losses{curve("training", 0, [](const EpochRecord&r) { return r.loss; })}, scores, ious;
  const auto add = [&](const std::string& prefix, std::vector<Metric> EpochRecord::*of) {
    const size_t metrics = history.empty() ? 0 : (history.back().*of).size();
    for (size_t m = 0; m < metrics; ++m) {
      const Metric& metric = (history.back().*of)[m];
      std::vector<Curve>& group = metric.higher_is_better ? scores : losses;
      group.push_back(
          curve(prefix + (metric.higher_is_better ? metric.name : "validation"), group.size(),
                [&](const EpochRecord& r) { return m < (r.*of).size() ? (r.*of)[m].value : EpochRecord::kNone; }));
    }
  };
  add("", &EpochRecord::validation);
  add("ema ", &EpochRecord::ema_validation);
  std::string legend;
  for (size_t k = 0; k < names.size(); ++k) {
    ious.push_back(curve("", k, [&](const EpochRecord& r) {
      const std::vector<double>& iou = r.watched_iou(ema);
      return k < iou.size() ? iou[k] : EpochRecord::kNone;
    }));
    legend += colour_chip(curve_colour(k), escape_markup(names[k])) + "\n";
  }
  std::vector<std::string> plots{html_plot("loss", losses), html_plot("validation mIoU", scores),
                                 html_plot(std::string("validation IoU by class") + (ema ? ", ema" : ""), ious),
                                 html_plot("learning rate", {curve("", 0, [](const EpochRecord& r) { return r.lr; })})};
  return html_plots(plots) + "<div class=\"legend\">IoU by class: " + legend + "</div>\n";
}

// The pictures whose pixels are right the least and the most.
class Gallery {
 public:
  Gallery(Training& t, const FinalReport& report) : experiment_(t.experiment()), report_(report) {
    const Dataset& data = experiment_.data().images;
    metric_ = metric_of_images(experiment_.config.loss.unlearnt(experiment_.classes()));
    const auto K = static_cast<size_t>(experiment_.classes());
    for (size_t i = 0; i < report.samples.size(); ++i) {
      std::vector<int64_t> confusion(K * K);
      const auto pixels = static_cast<size_t>(data.mask_bytes());
      add_pixels(confusion, experiment_.classes(), {data.mask(report.samples[i]), pixels},
                 {report.predictions.data() + i * pixels, pixels});
      const double value = value_of(metrics(confusion, experiment_.classes(), 0), metric_);
      if (std::isfinite(value)) ranked_.emplace_back(value, i);
    }
    std::stable_sort(ranked_.begin(), ranked_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  }

  std::string html() const {
    if (ranked_.empty()) return "";
    std::string legend;
    const std::vector<std::string> names = experiment_.class_names();
    const std::vector<Colour> colours = experiment_.class_colours();
    for (size_t k = 0; k < names.size(); ++k) {
      const Colour& c = colours[k];
      legend += colour_chip(format("rgb(%d, %d, %d)", c[0], c[1], c[2]), escape_markup(names[k])) + "\n";
    }
    const size_t n = std::min<size_t>(kShownImages, ranked_.size());
    std::string worst, best;
    for (size_t i = 0; i < n; ++i) worst += figure(ranked_[i]), best += figure(ranked_[ranked_.size() - 1 - i]);
    return "<h2>Worst and best images</h2>\n<p class=\"muted\">By " + metric_ +
           " of the image, in percent: image, truth, prediction.</p>\n<div class=\"legend\">" + legend +
           "</div>\n<div class=\"plots\">\n<div><h3>worst</h3>\n" + worst + "</div>\n<div><h3>best</h3>\n" + best +
           "</div>\n</div>\n";
  }

 private:
  std::string figure(const std::pair<double, size_t>& ranked) const {
    const Dataset& data = experiment_.data().images;
    const int64_t sample = report_.samples[ranked.second];
    const int every = (std::max(data.height, data.width) + kShownSide - 1) / kShownSide;
    const int H = (data.height + every - 1) / every, W = (data.width + every - 1) / every, gap = std::max(1, W / 32);
    constexpr Rgb kGrey{128, 128, 128};  // gaps, and pixels without truth
    Picture picture(3 * W + 2 * gap, H, kGrey);
    const std::vector<Colour> colours = experiment_.class_colours();
    const uint8_t* ids[] = {data.mask(sample), report_.predictions.data() + ranked.second * data.mask_bytes()};
    for (int y = 0; y < H; ++y)
      for (int x = 0; x < W; ++x) {
        const int64_t at = static_cast<int64_t>(y) * every * data.width + static_cast<int64_t>(x) * every;
        const uint8_t* pixel = data.image(sample) + at * data.channels;
        picture.at(x, y) = data.channels >= 3 ? Rgb{pixel[0], pixel[1], pixel[2]} : Rgb{*pixel, *pixel, *pixel};
        for (int i = 0; i < 2; ++i) {
          const uint8_t id = ids[i][at];
          picture.at((i + 1) * (W + gap) + x, y) =
              id < colours.size() ? Rgb{colours[id][0], colours[id][1], colours[id][2]} : kGrey;
        }
      }
    const std::string caption = data.name(sample) + ": " + percent(ranked.first);
    return "<figure>" + html_picture(picture, caption) + "<figcaption>" + escape_markup(caption) +
           "</figcaption></figure>\n";
  }

  Experiment& experiment_;
  const FinalReport& report_;
  std::string metric_;
  std::vector<std::pair<double, size_t>> ranked_;  // (score, place in the samples), the worst first
};

class ReportListener : public Listener {
 public:
  void interrupted(Training& t) override { write(t, nullptr); }
  void end(Training& t, FinalReport& report) override {
    write(t, &report);
    report.written.push_back(kFile);
  }

 private:
  static void write(Training& t, const FinalReport* report) {
    Experiment& e = t.experiment();
    const std::vector<std::string> names = e.class_names();
    const std::vector<EpochRecord> history = History::read(t.path("history.jsonl"));
    const std::string name = e.config.run.name;
    std::string body =
        "<h1>" + escape_markup(name) + "</h1>\n<p class=\"lead\">" + std::to_string(t.epochs_done()) + " of " +
        std::to_string(e.config.train.epochs) + " epochs" + (report == nullptr ? ", interrupted" : "") + " on " +
        escape_markup(e.device().name()) + ", " + std::string(name_of(e.network().options().precision)) + ", " +
        thousands(e.network().graph().parameter_count()) + " parameters, Regolith " + kVersion + "</p>\n";
    if (report != nullptr) {
      body += "<h2>Scores</h2>\n<p class=\"muted\">Of the best weights by " + escape_markup(e.config.monitor()) +
              ", in percent.</p>\n<div class=\"plots\">" +
              scores_table(report->split + ", " + std::to_string(report->samples.size()) + " images", *report, names);
      if (report->validation && report->split != "validation")
        body += scores_table("validation, " + std::to_string(e.data().validation.size()) + " images",
                             *report->validation, names);
      body += "</div>\n";
    }
    body += "<h2>Curves</h2>\n" + curves(history, names, e.config.watches_ema());
    if (report != nullptr)
      body += "<h2>Confusion</h2>\n<p class=\"muted\">Percent of the pixels of a class, and pixels.</p>\n" +
              html_confusion(names, report->confusion) + Gallery(t, *report).html();
    body += "<h2>Where an epoch's time went</h2>\n" + epoch_time_html(t.times(), e.device().kind() == DeviceKind::cpu);
    body += "<h2>Configuration</h2>\n<p>" + escape_markup(t.memory_text()) + "</p>\n<pre>" +
            escape_markup(read_text(t.path("config.yaml"))) + "</pre>\n";
    write_file_atomically(t.path(kFile), html_page(name, body));
  }
};

}  // namespace

std::string epoch_time_html(const EpochTimes& times, bool divided) {
  struct Part {
    const char* name;
    double seconds;
    const char* remedy;
  };
  const double wait = std::max(0.0, times.training - times.read - times.augment - times.compute);
  const std::vector<Part> parts{
      {"read", times.read,
       "The images come from the host or the disk: keep them where they are read (data.streaming: off), or put their "
       "files on a faster disk."},
      {"augment", times.augment,
       "Fewer transformations in data.augment take less, and so does a smaller data.oversample.factor."},
      {"compute", times.compute, nullptr},
      {"wait", wait,
       "Between steps the host does other work: a larger train.batch makes fewer of them, and a longer "
       "train.checkpoint_minutes writes less often within an epoch."},
      {"validation", times.validation, "train.validate_every: 2 halves it, and a smaller data.split.validation helps."},
      {"checkpoints", times.checkpoints,
       "Weights are written after every epoch: put run.output on a faster disk, or let an epoch have more steps "
       "(train.steps_per_epoch)."}};
  double all = 0;
  for (const Part& p : parts) all += p.seconds;
  if (times.epochs == 0 || all <= 0) return "<p>No epoch was trained.</p>\n";
  std::string bar = "<div class=\"bar\">", remedies;
  std::vector<HtmlRow> rows;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& p = parts[i];
    const double share = p.seconds / all;
    if (!divided && p.name == std::string("augment")) continue;
    bar += format("<span style=\"width:%.2f%%;background:", 100 * share) + curve_colour(i) + "\"></span>";
    rows.push_back({{colour_chip(curve_colour(i), p.name),
                     format("%.3g", p.seconds / static_cast<double>(times.epochs)), percent(share)}});
    if (p.remedy != nullptr && share >= kMuch)
      remedies += "<p><strong>" + std::string(p.name) + "</strong> takes " + percent(share) + "% of an epoch. " +
                  p.remedy + "</p>\n";
  }
  if (remedies.empty()) remedies = "<p>No part beside compute takes a fifth of an epoch.</p>\n";
  return bar + "</div>\n" + html_table({"part", "seconds an epoch", "%"}, rows) + remedies +
         (divided ? "" : "<p class=\"muted\">A step is one piece of work for the device, augmentation included.</p>\n");
}

std::unique_ptr<Listener> report_page() { return std::make_unique<ReportListener>(); }

}  // namespace regolith
