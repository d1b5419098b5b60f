// engine_data: its sheet, and what it refuses.
#include "tests/tools/tiny.h"

namespace regolith::testing {
namespace {

using ::testing::HasSubstr;

TEST_F(Cli, PreviewWritesASheetOnce) {
  const Outcome o = run({"engine_data", "preview", "tiny.yaml", "data.augment.preset=massive", "--count", "3"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("preview.png: the first 3 of the 20 images of an epoch\n"));
  const std::string before = folder_.read("preview.png");
  EXPECT_THAT(before, ::testing::StartsWith("\x89PNG"));
  refuses({"engine_data", "preview", "tiny.yaml"}, {"preview.png", "--force"});
  EXPECT_EQ(folder_.read("preview.png"), before);
  EXPECT_EQ(run({"engine_data", "preview", "tiny.yaml", "--force"}).code, 0);
  EXPECT_NE(folder_.read("preview.png"), before);
}

TEST_F(Cli, DataRefusesWhatItDoesNotUnderstand) {
  refuses({"engine_data"}, {"subcommand", "--help"});
  refuses({"engine_data", "preview"}, {"config", "--help"});
  refuses({"engine_data", "preview", "tiny.yaml", "--output", "none/x.png"}, {"none"});
  refuses({"engine_data", "preview", "tiny.yaml", "data.augment.mask_fill=blue"}, {"mask_fill", "ignore"});
  const Outcome help = run({"engine_data", "preview", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, HasSubstr("engine_data preview CONFIG"));
}

}  // namespace
}  // namespace regolith::testing
