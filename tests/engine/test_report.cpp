// What a run shows and leaves behind: progress, tables, history, curves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/base/error.h"
#include "engine/report/history.h"
#include "engine/report/page.h"
#include "engine/report/progress.h"
#include "engine/report/table.h"

namespace regolith {
namespace {
namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

ProgressState state(int epoch, int64_t step) { return {epoch, 12, step, 24, 0.12345, 1e-3, 51.26, 0, {}}; }

TEST(Progress, PipedGivesOnePlainLinePerEpoch) {
  std::ostringstream out;
  double now = 0;
  {
    Progress progress(out, 0, [&] { return now; });
    for (int step = 1; step <= 24; ++step, now += 0.5) progress.step(state(1, step));
    ProgressState done = state(1, 24);
    done.validation = {{"loss", 0.5, false}, {"miou", 0.61}};
    progress.epoch(done);
  }
  // The clock started after the first step: 23 steps took 12 s, 264 are left.
  EXPECT_EQ(
      out.str(),
      "epoch  1/12  step 24/24  loss 0.1235  lr 1.00e-03  51.3 images/s  ETA 2:18  val loss 0.5  val miou 0.6100\n");
}

TEST(Progress, PipedGivesALineAMinute) {
  std::ostringstream out;
  double now = 7;
  Progress progress(out, 0, [&] { return now; });
  for (int step = 1; step <= 24; ++step, now += 10) progress.step(state(1, step));
  std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3) << text;  // at 60, 120 and 180 s
  EXPECT_THAT(text, testing::StartsWith("epoch  1/12  step  7/24  loss"));
  progress.epoch(state(1, 24));
  progress.step(state(2, 1));
  text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4) << "the minute begins with the line of the epoch";
}

TEST(Progress, NamesNoNumberAndSkippedStepsWithoutASign) {
  std::ostringstream out;
  Progress progress(out, 0, [] { return 0; });
  ProgressState bad = state(12, 24);
  bad.loss = -std::numeric_limits<double>::quiet_NaN();
  bad.skipped = 3;
  bad.validation = {{"loss", bad.loss, false}, {"miou_foreground", bad.loss}};
  progress.epoch(bad);
  EXPECT_THAT(out.str(),
              testing::EndsWith("loss nan  lr 1.00e-03  51.3 images/s  skipped 3: gradients not finite  in 0.0s  "
                                "val loss nan  val miou_foreground nan\n"));
}

TEST(Progress, ATerminalIsRedrawnSeldomAndNeverWraps) {
  std::ostringstream out;
  double now = 0;
  Progress progress(out, 40, [&] { return now; });
  for (int step = 1; step <= 24; ++step, now += 0.03) progress.step(state(3, step));
  const std::string drawn = out.str();
  EXPECT_EQ(drawn.substr(0, 39), "epoch  3/12  step  1/24  loss 0.1235  l");
  EXPECT_THAT(drawn, Not(HasSubstr("\n")));
  const auto redraws = std::count(drawn.begin(), drawn.end(), '\r');
  EXPECT_GE(redraws, 4);
  EXPECT_LE(redraws, 7);  // in 0.69 seconds
  progress.message("a note");
  EXPECT_THAT(out.str(), HasSubstr("\r\x1b[Ka note\nepoch  3/12"));
  progress.epoch(state(12, 24));
  EXPECT_THAT(out.str(), HasSubstr("images/s  in 0.7s\n"));
}

TEST(Progress, AResumedRunCountsItsOwnSteps) {
  std::ostringstream out;
  double now = 100;
  Progress progress(out, 0, [&] { return now; });
  progress.step(state(7, 1));
  now += 46;
  progress.epoch(state(7, 24));
  EXPECT_THAT(out.str(), HasSubstr("ETA 4:00"));  // 2 s per step, 120 steps
}

TEST(Phases, AddUpByName) {
  double now = 0;
  Phases phases([&] { return now; });
  phases.start("data");
  now = 0.44;
  phases.start("train");
  now = 100;
  phases.start("data");
  now = 101;
  phases.stop();
  now = 500;
  EXPECT_EQ(phases.text(), "data 1.4s, train 1:40; 1:41 in all");
  EXPECT_EQ(phases.seconds().size(), 2u);
  EXPECT_EQ(duration_text(3725), "1:02:05");
  EXPECT_EQ(duration_text(59.7), "1:00");
  EXPECT_EQ(duration_text(9.96), "10s");
  EXPECT_EQ(duration_text(NAN), "?");
}

TEST(Table, AlignsTextLeftAndNumbersRight) {
  Table table({"name", "value"});
  table.add({"søil", "1.5"});
  table.add({"b"});
  table.add({"long name", "12.25"});
  EXPECT_EQ(table.text(), "name       value\n---------  -----\nsøil         1.5\nb\nlong name  12.25\n");
  EXPECT_THROW(table.add({"1", "2", "3"}), std::invalid_argument);
}

TEST(Table, AlignsColumnsAsAsked) {
  Table table({"map", "n"}, "lr", false);
  table.add({"4x8"});
  table.add({"16x32", "none"});
  EXPECT_EQ(table.text(), "map       n\n4x8\n16x32  none\n");
}

TEST(Table, ScoresOfARun) {
  const std::vector<double> iou{0.5, 0.61234, NAN}, precision{1, 0.25, NAN}, recall{0, 0.125, 0};
  const std::vector<std::string> names{"background", "soil"};
  const std::vector<Metric> metrics{
      {"loss", 0.7, false}, {"miou", 0.55}, {"miou_foreground", 0.6}, {"miou_keras_ignore0", 0.3}};
  EXPECT_EQ(score_table("test", names, {.iou = iou, .precision = precision, .recall = recall}, metrics),
            "test                   IoU  precision  recall\n"
            "------------------  ------  ---------  ------\n"
            "background          0.5000     1.0000  0.0000\n"
            "soil                0.6123     0.2500  0.1250\n"
            "class 2                  -          -  0.0000\n"
            "------------------  ------  ---------  ------\n"
            "miou                0.5500\n"
            "miou_foreground     0.6000\n"
            "miou_keras_ignore0  0.3000\n");
}

class HistoryTest : public testing::Test {
 protected:
  HistoryTest() : folder_(fs::temp_directory_path() / ("regolith_history_" + std::to_string(::getpid()))) {
    fs::create_directories(folder_);
    path_ = (folder_ / "history.jsonl").string();
  }
  ~HistoryTest() override { fs::remove_all(folder_); }
  std::string text() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static EpochRecord record(int64_t epoch) {
    EpochRecord r;
    r.epoch = epoch;
    r.step = 10 * epoch;
    r.loss = 1.0 / static_cast<double>(epoch);
    const bool validated = epoch % 2 == 0;
    if (validated) r.val_iou = {0.1, EpochRecord::kNone};
    r.validation = {{"loss", validated ? 0.3 : EpochRecord::kNone, false},
                    {"miou", validated ? 0.25 : EpochRecord::kNone},
                    {"miou_foreground", EpochRecord::kNone}};
    return r;
  }
  fs::path folder_;
  std::string path_;
};

TEST_F(HistoryTest, KeepsTheAveragedWeightsApart) {
  EpochRecord r = record(2);
  r.ema_validation = {{"loss", 0.2, false}, {"miou", 0.5}};
  r.val_ema_iou = {0.4, 0.6};
  History(path_).append(r);
  EXPECT_THAT(text(), HasSubstr(R"("val_ema_loss":0.2,"val_ema_miou":0.5,"val_ema_iou":[0.4,0.6])"));
  const EpochRecord back = History::read(path_)[0];
  EXPECT_EQ(back.validation.size(), 3u);
  ASSERT_EQ(back.ema_validation.size(), 2u);
  EXPECT_EQ(back.ema_validation[1].name, "miou");
  EXPECT_EQ(back.ema_validation[1].value, 0.5);
  EXPECT_FALSE(back.ema_validation[0].higher_is_better);
  EXPECT_EQ(back.val_iou[0], 0.1);
  EXPECT_EQ(back.val_ema_iou, r.val_ema_iou);
  const std::string svg = history_svg("run", {r});
  EXPECT_THAT(svg, HasSubstr("ema validation"));
  EXPECT_THAT(svg, HasSubstr("ema miou"));
}

TEST_F(HistoryTest, ComesBackAndGoesOnAfterTheResumedEpoch) {
  {
    History history(path_);
    for (int epoch = 1; epoch <= 4; ++epoch) history.append(record(epoch));
  }
  const auto records = History::read(path_);
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(records[2].loss, 1.0 / 3);
  EXPECT_EQ(records[1].val_iou[0], 0.1);
  EXPECT_TRUE(std::isnan(records[1].val_iou[1]));
  ASSERT_EQ(records[1].validation.size(), 3u);
  EXPECT_EQ(records[1].validation[0].name, "loss");
  EXPECT_EQ(records[1].validation[0].value, 0.3);
  EXPECT_FALSE(records[1].validation[0].higher_is_better);
  EXPECT_TRUE(records[1].validation[1].higher_is_better);
  EXPECT_TRUE(std::isnan(records[0].validation[0].value));
  const std::string before = text();
  EXPECT_THAT(before, testing::StartsWith(R"({"epoch":1,"step":10,"lr":null,"loss":1.0,)"));
  EXPECT_THAT(before, HasSubstr(R"(,"skipped_steps":0,"val_loss":0.3,"val_miou":0.25,"val_miou_foreground":null,)"));

  std::ofstream(path_, std::ios::app) << R"({"epoch":5,"st)";  // killed while it wrote
  History resumed(path_, 3);
  EXPECT_EQ(resumed.records().size(), 3u);
  resumed.append(record(4));
  EXPECT_EQ(text(), before);

  History fresh(path_);
  EXPECT_EQ(text(), "");
}

TEST_F(HistoryTest, DamageIsTold) {
  std::ofstream(path_) << "{\"epoch\":1}\nnonsense\n";
  EXPECT_THROW(History(path_, 1), IoError);
  EXPECT_THROW(History::read((folder_ / "none").string()), IoError);
  EXPECT_THROW(History((folder_ / "none" / "h").string()), IoError);
}

TEST_F(HistoryTest, CurvesAreDrawnInsideOfTheirAxes) {
  std::vector<EpochRecord> records;
  for (int epoch = 1; epoch <= 30; ++epoch) records.push_back(record(epoch));
  const std::string svg = history_svg("a < b & c", records);
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  for (const char* text : {">training<", ">validation<", ">miou<", ">loss<", ">validation mIoU<", ">epoch<", ">0.2<"})
    EXPECT_THAT(svg, HasSubstr(text));
  EXPECT_THAT(svg, Not(HasSubstr("miou_foreground")));  // never measured here
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  // 30 points of the training loss from the top left to the bottom right of the left panel, 15 each of the other two.
  size_t points = 0;
  double x = 0, y = 0;
  for (size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1)) {
    ASSERT_EQ(std::sscanf(svg.c_str() + at, "<circle cx=\"%lf\" cy=\"%lf\"", &x, &y), 2);
    EXPECT_TRUE(x >= 70 && x <= 920 && y >= 70 && y <= 340) << x << " " << y;
    ++points;
  }
  EXPECT_EQ(points, 60u);
  EXPECT_THAT(history_svg("empty", {}), HasSubstr("nothing measured"));
}

TEST(Page, EscapesTextAndSpansMessages) {
  EXPECT_EQ(escape_markup("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
  const std::vector<HtmlRow> rows{{{"a", "1", "fine"}}, {{"b", "a long message"}, "failed"}};
  const std::string table = html_table({"name", "n<1", "note"}, rows);
  for (const char* part :
       {"<th class=\"left\">name</th><th>n&lt;1</th><th class=\"left\">note</th>",
        "<tr class=\"failed\"><td class=\"left\">b</td><td class=\"left note\" colspan=\"2\">a long"})
    EXPECT_THAT(table, HasSubstr(part));
  EXPECT_THAT(html_page("<t>", "<p>body</p>"), HasSubstr("<title>&lt;t&gt;</title>"));
}

// The bytes of a picture come back from the page as they were.
TEST(Page, HoldsPicturesAsPng) {
  for (const int width : {1, 2, 3}) {  // of base64's last group
    const std::string html = html_picture(Picture(width, 2, {9, 200, 30}), "a \"b\"");
    EXPECT_THAT(html, HasSubstr("alt=\"a &quot;b&quot;\" width=\"" + std::to_string(width)));
    const size_t begin = html.find("base64,") + 7;
    const std::string text = html.substr(begin, html.find('"', begin) - begin),
                      png = png_bytes(Picture(width, 2, {9, 200, 30}));
    std::string bytes;
    uint32_t word = 0;
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < text.size(); ++i) {
      word = word << 6 | (text[i] == '=' ? 0 : static_cast<uint32_t>(digits.find(text[i])));
      if (i % 4 == 3)
        for (const int shift : {16, 8, 0}) bytes += static_cast<char>(word >> shift);
    }
    EXPECT_EQ(text.size(), (png.size() + 2) / 3 * 4);
    EXPECT_EQ(bytes.substr(0, png.size()), png);
  }
}

TEST(Page, AConfusionIsSharesOfTheTruth) {
  const std::vector<std::string> names{"soil", "<rock>"};
  const std::vector<int64_t> confusion{3, 1, 0, 0};
  const std::string html = html_confusion(names, confusion);
  EXPECT_THAT(html, HasSubstr("0.45)\">75.0<br><small>3</small>"));
  EXPECT_THAT(html, HasSubstr(">25.0<br><small>1</small>"));
  EXPECT_THAT(html, HasSubstr(">-<br><small>0</small>"));
  EXPECT_THAT(html, HasSubstr("&lt;rock&gt;"));
}

}  // namespace
}  // namespace regolith
