#include "engine/train/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/base/error.h"

namespace regolith {
namespace {

TEST(Metrics, OfThreeClasses) {
  const std::vector<int64_t> confusion = {
      50, 3,  2,  // truth 0
      4,  20, 1,  // truth 1
      6,  5,  9,  // truth 2
  };
  const Scores s = score(confusion, 3);
  EXPECT_DOUBLE_EQ(s.iou[0], 50. / 65);
  EXPECT_DOUBLE_EQ(s.iou[1], 20. / 33);
  EXPECT_DOUBLE_EQ(s.iou[2], 9. / 23);
  EXPECT_DOUBLE_EQ(s.precision[1], 20. / 28);
  EXPECT_DOUBLE_EQ(s.recall[2], 9. / 20);
  EXPECT_DOUBLE_EQ(s.accuracy, 79. / 100);
  EXPECT_DOUBLE_EQ(s.miou, (50. / 65 + 20. / 33 + 9. / 23) / 3);
  // Without the pixels whose truth is 0: unions 4 + 20 + 1 + 5 and 6 + 5 + 9 + 1.
  EXPECT_DOUBLE_EQ(s.miou_foreground, (20. / 30 + 9. / 21) / 2);
  EXPECT_DOUBLE_EQ(s.miou_keras_ignore0, (20. / 30 + 9. / 21) / 3);
}

TEST(Metrics, Class0LeavesTheMeanOfKerasWhereItIsNeverPredicted) {
  const Scores s = score(std::vector<int64_t>{7, 3, 0, 5}, 2);
  EXPECT_DOUBLE_EQ(s.miou_keras_ignore0, 1);
  EXPECT_DOUBLE_EQ(s.miou_foreground, 1);
  EXPECT_DOUBLE_EQ(s.miou, (7. / 10 + 5. / 8) / 2);
}

TEST(Metrics, AbsentClassesAreNotInTheMeans) {
  const Scores s = score(std::vector<int64_t>{4, 0, 1, 0, 0, 0, 2, 0, 3}, 3);
  EXPECT_TRUE(std::isnan(s.iou[1]));
  EXPECT_TRUE(std::isnan(s.precision[1]));
  EXPECT_TRUE(std::isnan(s.recall[1]));
  EXPECT_DOUBLE_EQ(s.miou, (4. / 7 + 3. / 6) / 2);
  EXPECT_DOUBLE_EQ(s.miou_foreground, 3. / 5);
  EXPECT_DOUBLE_EQ(s.miou_keras_ignore0, 3. / 10);
}

TEST(Metrics, NothingSeenIsNotANumber) {
  const Scores s = score(std::vector<int64_t>(4), 2);
  EXPECT_TRUE(std::isnan(s.miou));
  EXPECT_TRUE(std::isnan(s.accuracy));
  EXPECT_THROW(score(std::vector<int64_t>(3), 2), TrainError);
}

}  // namespace
}  // namespace regolith
