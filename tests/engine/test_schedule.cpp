#include "engine/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/base/error.h"

namespace regolith {
namespace {

TEST(Schedule, WarmsUpThenStays) {
  const Schedule s({ConstantSchedule{}, 4}, .8, 100);
  EXPECT_DOUBLE_EQ(s.learning_rate(0), .2);
  EXPECT_DOUBLE_EQ(s.learning_rate(2), .6);
  EXPECT_DOUBLE_EQ(s.learning_rate(3), .8);
  EXPECT_DOUBLE_EQ(s.learning_rate(1000), .8);
}

TEST(Schedule, WarmRestarts) {
  // Steps 0 to 70 in parts of 1, 2 and 4 sevenths: from 0, 10 and 30 on.
  const Schedule s({CosineSchedule{.2, 2, 2}, 0}, 2, 71);
  for (const int begin : {0, 10, 30}) EXPECT_NEAR(s.learning_rate(begin), 2, 1e-12) << begin;
  for (const int middle : {5, 20, 50}) EXPECT_NEAR(s.learning_rate(middle), 1.1, 1e-12) << middle;
  EXPECT_NEAR(s.learning_rate(9), .2 + 1.8 * (1 + std::cos(.9 * std::numbers::pi)) / 2, 1e-12);
  EXPECT_DOUBLE_EQ(s.learning_rate(70), .2);
  EXPECT_DOUBLE_EQ(s.learning_rate(1000), .2);
  // Of a thousand parts, each ten times as long as the one before, the last is nine tenths of the run.
  EXPECT_NEAR(Schedule({CosineSchedule{0, 1000, 10}, 0}, 2, 1001).learning_rate(550), 1, 1e-9);
  const Schedule plain({CosineSchedule{.2}, 0}, 2, 71), none({CosineSchedule{.2, 0, 5}, 0}, 2, 71);
  for (int step = 0; step < 71; ++step) EXPECT_EQ(plain.learning_rate(step), none.learning_rate(step));
}

TEST(Schedule, Cosine) {
  const Schedule s({CosineSchedule{.2}, 10}, 2, 111);  // the last step is 110
  EXPECT_DOUBLE_EQ(s.learning_rate(4), 1);
  EXPECT_DOUBLE_EQ(s.learning_rate(10), 2);
  EXPECT_NEAR(s.learning_rate(60), 1.1, 1e-12);  // half way
  EXPECT_NEAR(s.learning_rate(35), 2 * (.1 + .9 * (1 + std::sqrt(.5)) / 2), 1e-12);
  EXPECT_NEAR(s.learning_rate(110), .2, 1e-12);
  EXPECT_NEAR(s.learning_rate(500), .2, 1e-12);
}

TEST(Schedule, Polynomial) {
  const Schedule s({PolynomialSchedule{.power = 2}, 0}, 1, 101);
  EXPECT_DOUBLE_EQ(s.learning_rate(0), 1);
  EXPECT_DOUBLE_EQ(s.learning_rate(50), .25);
  EXPECT_NEAR(s.learning_rate(90), .01, 1e-15);
  EXPECT_DOUBLE_EQ(s.learning_rate(100), 0);
}

// What the help says of min_lr and end_lr, for runs of any length: the whole rate at the first step after the warm-up.
TEST(Schedule, EndsAtItsLastStep) {
  for (const int64_t warmup : {0, 3}) {
    for (const int64_t steps : {2, 4, 1000}) {
      const int64_t last = warmup + steps - 1;
      for (const ScheduleSpec& spec : {ScheduleSpec{CosineSchedule{.01}, warmup},
                                       ScheduleSpec{PolynomialSchedule{.power = .9, .end_lr = .01}, warmup}}) {
        const Schedule s(spec, 1, last + 1);
        EXPECT_DOUBLE_EQ(s.learning_rate(warmup), 1);
        EXPECT_DOUBLE_EQ(s.learning_rate(last), .01);
        EXPECT_GT(s.learning_rate(last - 1), .01);
      }
    }
  }
  EXPECT_DOUBLE_EQ(Schedule({CosineSchedule{.01}, 0}, 1, 1).learning_rate(0), 1);  // first and last
}

// The rates after each epoch, as ReduceLROnPlateau of Keras gives them.
std::vector<double> rates(Schedule& s, const std::vector<double>& values) {
  std::vector<double> r;
  for (const double v : values) {
    s.end_epoch(v);
    r.push_back(s.learning_rate(0));
  }
  return r;
}

TEST(Schedule, ReducesOnAPlateau) {
  Schedule s({ReduceOnPlateau{.factor = .5, .patience = 2, .min_lr = .3, .min_delta = .01}}, 1, 100);
  // .995 is no improvement of 1 by more than .01; nor is NaN; the last reduction stops at min_lr.
  EXPECT_EQ(rates(s, {1, .995, NAN, .9, .9, .9, .9, .9, .8}), (std::vector<double>{1, 1, .5, .5, .5, .3, .3, .3, .3}));
}

TEST(Schedule, CoolsDownAfterAReduction) {
  Schedule s({ReduceOnPlateau{.monitor = "val_miou", .factor = .5, .patience = 2, .cooldown = 3}}, 1, 100);
  // Reduced at the third value; then two epochs do not count, the third of the cooldown does.
  EXPECT_EQ(rates(s, {.5, .5, .4, .5, .5, .5, .5, .6, .6, .6}),
            (std::vector<double>{1, 1, .5, .5, .5, .5, .25, .25, .25, .25}));
}

TEST(Schedule, GoesOnFromItsState) {
  const ScheduleSpec spec{ReduceOnPlateau{.factor = .5, .patience = 2}};
  Schedule a(spec, 1, 100), b(spec, 1, 100);
  rates(a, {3, 3, 3, 2, 2.5});
  b.restore(nlohmann::json::parse(a.state().dump()));
  EXPECT_EQ(rates(b, {2.5, 2.5, 2.5}), rates(a, {2.5, 2.5, 2.5}));
  EXPECT_EQ(b.learning_rate(0), .125);
  EXPECT_THROW(b.restore({{"reduction", "high"}}), CheckpointError);
}

TEST(Schedule, AnotherBaseKeepsTheReduction) {
  const ScheduleSpec spec{ReduceOnPlateau{.factor = .5, .patience = 2}};
  Schedule a(spec, 1, 100), b(spec, 8, 100);
  rates(a, {3, 3, 3});
  b.restore(a.state());
  EXPECT_EQ(b.learning_rate(0), 4);
}

TEST(EarlyStopping, StopsAfterItsPatience) {
  EarlyStopping e({.monitor = "val_loss", .patience = 2, .min_delta = .1});
  EXPECT_TRUE(std::isnan(e.best()));
  EXPECT_TRUE(e.end_epoch(0, 1).improved);
  EXPECT_FALSE(e.end_epoch(1, .95).improved);
  EXPECT_TRUE(e.end_epoch(2, .8).improved);
  EXPECT_FALSE(e.end_epoch(3, NAN).stop);
  const auto last = e.end_epoch(4, .75);
  EXPECT_TRUE(last.stop);
  EXPECT_FALSE(last.improved);
  EXPECT_EQ(e.best(), .8);
  EXPECT_EQ(e.best_epoch(), 2);
}

TEST(EarlyStopping, HigherIsBetterForScoresAndStateSurvives) {
  const EarlyStoppingSpec spec{.monitor = "val_miou_foreground", .patience = 2};
  EarlyStopping a(spec), b(spec);
  b.restore(nlohmann::json::parse(a.state().dump()));
  EXPECT_TRUE(std::isnan(b.best()));
  a.end_epoch(0, .4);
  EXPECT_TRUE(a.end_epoch(1, .5).improved);
  a.end_epoch(2, .5);
  b.restore(nlohmann::json::parse(a.state().dump()));
  EXPECT_TRUE(b.end_epoch(3, .45).stop);
  EXPECT_EQ(b.best(), .5);
  EXPECT_EQ(b.best_epoch(), 1);
  EXPECT_TRUE(b.out_of_patience());
}

TEST(EarlyStopping, WithoutPatienceNeverStops) {
  EarlyStopping e({.monitor = "val_loss", .patience = 0});
  for (int i = 0; i < 50; ++i) EXPECT_FALSE(e.end_epoch(i, 1).stop);
  EXPECT_THROW(EarlyStopping({.monitor = "val_mood"}), TrainError);
}

}  // namespace
}  // namespace regolith
