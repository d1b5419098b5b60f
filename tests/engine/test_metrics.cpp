#include "engine/train/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/base/error.h"

namespace regolith {
namespace {

double value_of(const std::string& name, const std::vector<int64_t>& confusion, int classes) {
  for (const Metric& m : metrics(confusion, classes, 0.5))
    if (m.name == name) return m.value;
  throw std::logic_error(name);
}

TEST(Metrics, AreAListOfNames) {
  std::vector<std::string> names;
  for (const Metric& m : metrics({}, 0, 0.25)) {
    names.push_back(m.name);
    EXPECT_EQ(m.higher_is_better, m.name != "loss");
    EXPECT_EQ(std::isnan(m.value), m.name != "loss");
  }
  EXPECT_EQ(names, (std::vector<std::string>{"loss", "miou", "miou_foreground", "miou_keras_ignore0"}));
}

TEST(Metrics, OfThreeClasses) {
  const std::vector<int64_t> confusion = {
      50, 3,  2,  // truth 0
      4,  20, 1,  // truth 1
      6,  5,  9,  // truth 2
  };
  constexpr int classes = 3;
  const Scores s = score(confusion, classes);
  EXPECT_DOUBLE_EQ(s.iou[0], 50. / 65);
  EXPECT_DOUBLE_EQ(s.iou[1], 20. / 33);
  EXPECT_DOUBLE_EQ(s.iou[2], 9. / 23);
  EXPECT_DOUBLE_EQ(s.precision[1], 20. / 28);
  EXPECT_DOUBLE_EQ(s.recall[2], 9. / 20);
  EXPECT_DOUBLE_EQ(value_of("miou", confusion, classes), (50. / 65 + 20. / 33 + 9. / 23) / 3);
  // Without the pixels whose truth is 0: unions 4 + 20 + 1 + 5 and 6 + 5 + 9 + 1.
  EXPECT_DOUBLE_EQ(value_of("miou_foreground", confusion, classes), (20. / 30 + 9. / 21) / 2);
  EXPECT_DOUBLE_EQ(value_of("miou_keras_ignore0", confusion, classes), (20. / 30 + 9. / 21) / 3);
}

TEST(Metrics, Class0LeavesTheMeanOfKerasWhereItIsNeverPredicted) {
  const std::vector<int64_t> confusion{7, 3, 0, 5};
  constexpr int classes = 2;
  EXPECT_DOUBLE_EQ(value_of("miou_keras_ignore0", confusion, classes), 1);
  EXPECT_DOUBLE_EQ(value_of("miou_foreground", confusion, classes), 1);
  EXPECT_DOUBLE_EQ(value_of("miou", confusion, classes), (7. / 10 + 5. / 8) / 2);
}

TEST(Metrics, AbsentClassesAreNotInTheMeans) {
  const std::vector<int64_t> confusion{4, 0, 1, 0, 0, 0, 2, 0, 3};
  constexpr int classes = 3;
  const Scores s = score(confusion, classes);
  EXPECT_TRUE(std::isnan(s.iou[1]));
  EXPECT_TRUE(std::isnan(s.precision[1]));
  EXPECT_TRUE(std::isnan(s.recall[1]));
  EXPECT_DOUBLE_EQ(value_of("miou", confusion, classes), (4. / 7 + 3. / 6) / 2);
  EXPECT_DOUBLE_EQ(value_of("miou_foreground", confusion, classes), 3. / 5);
  EXPECT_DOUBLE_EQ(value_of("miou_keras_ignore0", confusion, classes), 3. / 10);
}

TEST(Metrics, NothingSeenIsNotANumber) {
  const std::vector<int64_t> confusion(4);
  constexpr int classes = 2;
  EXPECT_TRUE(std::isnan(value_of("miou", confusion, classes)));
  EXPECT_THROW(score(std::vector<int64_t>(3), 2), TrainError);
}

}  // namespace
}  // namespace regolith
