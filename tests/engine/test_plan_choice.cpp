// Which plan is taken, by times that a test says; and the file that remembers it, whole, damaged and shared.
#include "engine/conv/plan_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include "engine/io/atomic_file.h"
#include "engine/io/file_lock.h"

namespace regolith {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr float kDoesNotRun = INFINITY;

// Plans of constant times.
PlanTime constant(std::vector<float> milliseconds) {
  return [=](int plan, int) { return milliseconds[plan]; };
}

TEST(PlanChoice, WithoutTimingTheFirstThatRunsIsTaken) {
  EXPECT_EQ(first_that_runs(3, constant({5, 1, 1})), 0);
  EXPECT_EQ(first_that_runs(3, constant({kDoesNotRun, 9, 1})), 1);
  EXPECT_EQ(first_that_runs(1, constant({kDoesNotRun})), -1);
  EXPECT_EQ(first_that_runs(0, constant({})), -1);
}

TEST(PlanChoice, AnotherThanTheFirstMustBeFasterByMoreThanNoise) {
  EXPECT_EQ(fastest_that_runs(3, constant({1, 0.98f, 0.99f})), 0);
  EXPECT_EQ(fastest_that_runs(3, constant({1, 0.96f, 0.95f})), 2);
  EXPECT_EQ(fastest_that_runs(3, constant({kDoesNotRun, 1, 0.98f})), 1);
  EXPECT_EQ(fastest_that_runs(2, constant({kDoesNotRun, 1})), 1);
  EXPECT_EQ(fastest_that_runs(2, constant({kDoesNotRun, kDoesNotRun})), -1);
}

// Clocks that rise from call to call: the plans read alike only where they take turns, after the rise.
TEST(PlanChoice, PlansTakeTurnsAfterAWarmUp) {
  float clock = 0.2f;
  std::vector<int> turns;
  const auto time = [&](int plan, int runs) {
    clock = std::min(1.0f, clock + 0.01f * static_cast<float>(runs));
    turns.push_back(plan);
    return (plan == 1 ? 1.01f : 1.0f) / clock;
  };
  EXPECT_EQ(fastest_that_runs(2, time), 0);
  ASSERT_GT(turns.size(), 12U);
  for (size_t i = turns.size() - 10; i + 1 < turns.size(); ++i) EXPECT_NE(turns[i], turns[i + 1]);
}

class PlanFile : public testing::Test {
 protected:
  ~PlanFile() override { fs::remove_all(folder_); }
  std::string folder_ = testing::TempDir() + "regolith_plans." + std::to_string(::getpid());
  std::string file_ = folder_ + "/cudnn_plans.json";
};

TEST_F(PlanFile, RemembersByDeviceAndRequest) {
  PlanCache one(folder_, "H200, cuDNN 9.19.0");
  EXPECT_EQ(one.find("conv"), "");
  one.add("conv", "eng7");
  one.add("other", "eng8");
  EXPECT_EQ(one.find("conv"), "eng7");
  EXPECT_EQ(PlanCache(folder_, "H200, cuDNN 9.19.0").find("conv"), "eng7");
  EXPECT_EQ(PlanCache(folder_, "H200, cuDNN 9.19.0").find("other"), "eng8");
  EXPECT_EQ(PlanCache(folder_, "H200, cuDNN 9.26.0").find("conv"), "");
  EXPECT_EQ(PlanCache(folder_, "A100, cuDNN 9.19.0").find("conv"), "");
}

TEST_F(PlanFile, WhatIsNoneIsMadeAnewWithALine) {
  for (const char* text : {"", "}", "[]", "null", R"({"format": 1})", R"({"format": 1, "devices": {"d": {"conv": 3}}})",
                           R"({"format": 2, "devices": {"d": {"conv": "eng7"}}})"}) {
    SCOPED_TRACE(text);
    write_file_atomically((fs::create_directories(folder_), file_), text);
    testing::internal::CaptureStderr();
    PlanCache cache(folder_, "d");
    EXPECT_EQ(cache.find("conv"), "");
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), *text == 0 ? 0 : 1) << said;
    EXPECT_THAT(said, HasSubstr(*text == 0 ? "" : file_ + ": is no file of plans"));
    testing::internal::CaptureStderr();
    cache.add("conv", "eng1");
    testing::internal::GetCapturedStderr();
    EXPECT_EQ(PlanCache(folder_, "d").find("conv"), "eng1");
  }
}

TEST_F(PlanFile, WritersLoseNothingOfEachOther) {
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([&, w] {
      PlanCache cache(folder_, "d");
      for (int i = 0; i < 10; ++i) cache.add(std::to_string(w) + "." + std::to_string(i), "eng" + std::to_string(i));
    });
  }
  for (std::thread& t : writers) t.join();
  const PlanCache cache(folder_, "d");
  for (int w = 0; w < 4; ++w)
    for (int i = 0; i < 10; ++i)
      EXPECT_EQ(cache.find(std::to_string(w) + "." + std::to_string(i)), "eng" + std::to_string(i));
}

TEST_F(PlanFile, WhereItCannotBeWrittenALineSaysSo) {
  fs::create_directories(folder_);
  const FileLock held(folder_);
  PlanCache cache(folder_, "d");
  testing::internal::CaptureStderr();
  cache.add("conv", "eng1");
  cache.add("other", "eng2");
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("is in use by process " + std::to_string(::getpid())));
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << "once: " << said;
  EXPECT_EQ(cache.find("other"), "eng2") << "in this process";
  EXPECT_FALSE(fs::exists(file_));
}

TEST_F(PlanFile, NoFolderIsNeeded) {
  PlanCache cache("", "d");
  cache.add("conv", "eng1");
  EXPECT_EQ(cache.find("conv"), "eng1");
}

}  // namespace
}  // namespace regolith
