// engine_eval: the scores of engine_run again, and what it writes.
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using ::testing::HasSubstr;

class Eval : public Cli {
 protected:
  Eval() { EXPECT_EQ(run({"engine_run", "tiny.yaml"}).code, 0); }
};

// The value behind a name that begins a line.
std::string value_of(const std::string& text, const std::string& name) {
  const size_t at = text.find("\n" + name);
  if (at == text.npos) return "";
  const size_t begin = text.find_first_not_of(' ', at + 1 + name.size());
  return text.substr(begin, text.find_first_of(" \n", begin) - begin);
}

TEST_F(Eval, GivesTheScoresOfTheRun) {
  const Outcome trained = run({"engine_run", "tiny.yaml", "run.name=again", "train.epochs=1"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  const Outcome o = run({"engine_eval", "runs/again", "--all-classes"});
  ASSERT_EQ(o.code, 0) << o.err;
  for (const char* name : {"miou ", "miou_foreground ", "miou_keras_ignore0 "}) {
    EXPECT_NE(value_of(o.out, name), "") << o.out;
    EXPECT_EQ(value_of(o.out, name), value_of(trained.out, name)) << name;
  }
  const Outcome learnt = run({"engine_eval", "runs/tiny"});
  EXPECT_THAT(learnt.out, HasSubstr("background"));
  EXPECT_THAT(learnt.out, HasSubstr("--all-classes"));
}

TEST_F(Eval, WritesIntoAFolderOnce) {
  ASSERT_EQ(run({"engine_eval", "runs/tiny", "--split", "validation", "--output", "out"}).code, 0);
  for (const char* file : {"scores.json", "confusion.png", "per_image.csv", "worst.png"})
    EXPECT_TRUE(folder_.has(std::string("out/") + file)) << file;
  const std::string before = folder_.read("out/scores.json");
  const Outcome again = run({"engine_eval", "runs/tiny", "--output", "out"});
  EXPECT_EQ(again.code, 1);
  EXPECT_THAT(again.err, HasSubstr("--force"));
  EXPECT_EQ(folder_.read("out/scores.json"), before);
  EXPECT_EQ(run({"engine_eval", "runs/tiny", "--output", "out", "--force"}).code, 0);
}

TEST_F(Eval, PutsRunsBesideEachOther) {
  ASSERT_EQ(run({"engine_run", "tiny.yaml", "run.name=other", "run.seed=8"}).code, 0);
  const Outcome o = run({"engine_eval", "runs/tiny", "runs/other", "--output", "out"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("tiny"));
  EXPECT_THAT(o.out, HasSubstr("other"));
  refuses({"engine_eval", "runs/none"}, {"runs/none", "run folder"});
}

}  // namespace
}  // namespace regolith::testing
