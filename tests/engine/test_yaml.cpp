// The YAML view: positions, inheritance, overrides, typed access, and every way a file can be wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <yaml-cpp/emitter.h>

#include <filesystem>
#include <functional>
#include <string>

#include "engine/base/error.h"
#include "engine/config/yaml.h"
#include "places.h"
#include "tests/support/message.h"

namespace regolith {
namespace {
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kFolder = std::string(REGOLITH_SOURCE_DIR) + "/tests/data/config/";

Yaml parse(const std::string& text) { return Yaml::load_string(text, "t.yaml"); }

std::string load_error(const std::string& name) {
  std::string text = testing::message<ConfigError>([&] { Yaml::load(kFolder + name); });
  for (size_t at = text.find(kFolder); at != std::string::npos; at = text.find(kFolder)) text.erase(at, kFolder.size());
  return text;
}

std::string dump(const Yaml& yaml) {
  YAML::Emitter out;
  yaml.emit(out);
  return out.c_str();
}

std::vector<std::string> keys(const Yaml& map) {
  std::vector<std::string> names;
  for (const Yaml::Item& item : map.items()) names.push_back(item.key);
  return names;
}

TEST(Yaml, ReadsTypedValuesWithTheirPlaces) {
  const Yaml root = parse("a:\n  b: [1, 2.5, x]\n  c: \"7\"\n  d: yes\ne: +3\n");
  EXPECT_EQ(root.at("e").as_int(), 3);
  EXPECT_TRUE(root.at("a").at("d").as<bool>());
  EXPECT_EQ(root.at("a").at("c").as<std::string>(), "7");
  EXPECT_THAT(root.at("a").at("b").as<std::vector<std::string>>(), ElementsAre("1", "2.5", "x"));
  EXPECT_THAT(root.at("e").as<std::vector<std::string>>(), ElementsAre("+3"));
  const Yaml element = root.at("a").at("b").elements()[1];
  EXPECT_EQ(element.path(), "a.b.1");
  EXPECT_EQ(element.position().text(), "t.yaml:2:10");
  EXPECT_EQ(element.as_double(), 2.5);
  EXPECT_FALSE(root.find("none").find("deeper").exists());
  EXPECT_EQ(parse("x: [[1, 2], [3]]").at("x").elements()[1].elements()[0].as_int(), 3);
}

TEST(Yaml, NamesPlaceKeyAndExpectation) {
  const Yaml root = parse("a: {n: 3.5, s: [], big: 99, q: \"4\", null_one: }\nm: fast\n");
  const Yaml a = root.at("a");
  EXPECT_EQ(testing::message<ConfigError>([&] { a.at("n").as_int(); }),
            "t.yaml:1:8: a.n: expected a whole number, found '3.5'");
  EXPECT_EQ(testing::message<ConfigError>([&] { a.at("s").as<std::string>(); }),
            "t.yaml:1:16: a.s: expected text, found a list");
  EXPECT_EQ(testing::message<ConfigError>([&] { a.at("big").as_int(1, 64); }),
            "t.yaml:1:25: a.big: expected a whole number from 1 to 64, found '99'");
  EXPECT_EQ(testing::message<ConfigError>([&] { a.at("big").as_double(-1, 1); }),
            "t.yaml:1:25: a.big: expected a number from -1 to 1, found '99'");
  EXPECT_EQ(testing::message<ConfigError>([&] { a.at("q").as_int(); }).substr(0, 22), "t.yaml:1:32: a.q: expe");
  EXPECT_EQ(testing::message<ConfigError>([&] { a.at("null_one"); }), "t.yaml:1:37: a.null_one: this key has no value");
  EXPECT_EQ(testing::message<ConfigError>([&] { a.at("gone"); }),
            "t.yaml:1:4: a.gone: this key is missing and has no default");
  EXPECT_EQ(testing::message<ConfigError>([&] {
              root.at("m").as_enum({"fused", "last"});
            }),
            "t.yaml:2:4: m: expected one of fused, last; found 'fast'; did you mean 'last'?");
  EXPECT_EQ(testing::message<ConfigError>([&] { root.at("m").find("x"); }),
            "t.yaml:2:4: m: expected a map, found 'fast'");
  EXPECT_EQ(testing::message<ConfigError>([&] { root.at("a").elements(); }),
            "t.yaml:1:4: a: expected a list, found a map");
  for (const char* text : {"x: nan", "x: .inf", "x: 1e999", "x: 0x10", "x: 1 2", "x: true"})
    EXPECT_THAT(testing::message<ConfigError>([&] { parse(text).at("x").as_double(); }),
                HasSubstr("t.yaml:1:4: x: expected a number"));
  EXPECT_THAT(testing::message<ConfigError>([&] { parse("x: 99999999999").at("x").as_int(0, 1 << 30); }),
              HasSubstr("expected a whole number from"));
  EXPECT_THAT(testing::message<ConfigError>([&] { parse("x: -1").at("x").as<uint64_t>(); }),
              HasSubstr("of at least 0, found '-1'"));
}

TEST(Yaml, UnknownKeysGetThePlaceOfTheKeyAndTheNearestName) {
  const Yaml root = parse("train:\n  batch: 3\n  epocs: 4\n");
  root.expect_keys({"train", "data"});
  EXPECT_EQ(testing::message<ConfigError>([&] {
              root.at("train").expect_keys({"batch", "epochs"});
            }),
            "t.yaml:3:3: train.epocs: unknown key; did you mean 'epochs'?");
  EXPECT_EQ(testing::message<ConfigError>([&] {
              root.expect_keys({"model", "loss"});
            }),
            "t.yaml:1:1: train: unknown key; known here: model, loss");
}

TEST(Yaml, SyntaxErrorsHaveAPlace) {
  EXPECT_THAT(testing::message<ConfigError>([] { parse("a:\n  b: [1, 2\n"); }),
              ::testing::MatchesRegex("t.yaml:[0-9]+:[0-9]+: .*YAML.*"));
  EXPECT_EQ(testing::message<ConfigError>([] { parse("a: 1\nb: 2\na: 3\n"); }),
            "t.yaml:3:1: a: duplicate key; it is first at t.yaml:1:1");
  EXPECT_EQ(testing::message<ConfigError>([] { parse("x: {k: 1, k: 2}"); }),
            "t.yaml:1:11: x.k: duplicate key; it is first at t.yaml:1:5");
  EXPECT_THAT(testing::message<ConfigError>([] { parse("a: 1\n---\nb: 2\n"); }),
              HasSubstr("t.yaml:3:1: a second document"));
  EXPECT_THAT(testing::message<ConfigError>([] { parse("- 1\n- 2\n"); }),
              HasSubstr("t.yaml:1:1: a map of keys is expected"));
  EXPECT_THAT(testing::message<ConfigError>([] { parse("? [1]\n: 2\n"); }), HasSubstr("a key must be plain text"));
  EXPECT_THAT(testing::message<ConfigError>([] { parse("a: &x [*x]"); }), HasSubstr("cannot stand inside"));
  EXPECT_THAT(testing::message<ConfigError>([] { parse("a: *nobody"); }), HasSubstr("t.yaml:1:4: a: YAML syntax"));
  std::string bomb = "a: &a [1, 1]\n";  // each list twice the one before
  for (char c = 'b'; c <= 'z'; ++c) {
    const char last = static_cast<char>(c - 1);
    bomb += {c, ':', ' ', '&', c, ' ', '[', '*', last, ',', '*', last, ']', '\n'};
  }
  EXPECT_THAT(testing::message<ConfigError>([&] { parse(bomb); }), HasSubstr("too many values"));
  EXPECT_NE(testing::message<ConfigError>([&] { parse(std::string(100000, '[')); }), "no error");
  EXPECT_EQ(parse("# only a comment\n").size(), 0u);
}

TEST(Yaml, TextIsUtf8) {
  EXPECT_EQ(testing::message<ConfigError>([] { parse("a: 1\nb: \"\xc3\xa9 d\xe9\"\n"); }),
            "t.yaml:2:8: the byte 0xE9 is not UTF-8; save this text as UTF-8");
  for (const char* bad : {"\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5", "\x80", "\xe2\x82"})
    EXPECT_THAT(testing::message<ConfigError>([&] { parse(std::string("# ") + bad); }),
                HasSubstr("t.yaml:1:3: the byte 0x"))
        << bad;
  EXPECT_EQ(parse("a: \xf0\x9f\x8c\x91\xe2\x82\xac").at("a").as<std::string>(), "\xf0\x9f\x8c\x91\xe2\x82\xac");
  EXPECT_EQ(parse(std::string("\xff\xfe"
                              "a\0:\0 \0\xe9\0",
                              10))
                .at("a")
                .as<std::string>(),
            "\xc3\xa9");
  EXPECT_THAT(testing::message<ConfigError>([] { parse("a: 1").with_overrides({"a=\xe9"}); }),
              HasSubstr("command line: the byte 0xE9"));
}

TEST(Yaml, OffIsNullOffNoneOrFalseAndCanBeSwitchedOn) {
  for (const char* word : {"null", "~", "", "off", "None", "false", "no"}) {
    const Yaml root = parse(std::string("a: ") + word);
    EXPECT_TRUE(root.find("a").is_off()) << word;
    EXPECT_EQ(root.with_overrides({"a.b=3"}).at("a").at("b").as_int(), 3);
  }
  EXPECT_FALSE(parse("a: {}").at("a").is_off());
}

TEST(Yaml, ExtendsMergesMapsReplacesListsAndKeepsPlaces) {
  const Yaml root = Yaml::load(kFolder + "child.yaml");
  EXPECT_THAT(keys(root), ElementsAre("run", "data", "loss", "train"));
  EXPECT_THAT(keys(root.at("train")), ElementsAre("batch", "epochs", "panels"));
  EXPECT_EQ(root.at("train").at("batch").as_int(), 16);
  EXPECT_THAT(root.at("data").at("sizes").as<std::vector<std::string>>(), ElementsAre("9"));
  EXPECT_EQ(root.at("train").at("batch").position().text(), kFolder + "child.yaml:5:10");
  EXPECT_EQ(root.at("train").at("epochs").position().text(), kFolder + "base.yaml:5:11");
  EXPECT_EQ(root.at("run").at("name").as<std::string>(), "grandparent");
  EXPECT_EQ(root.at("run").folder(), std::filesystem::path(kFolder) / "deeper");
  EXPECT_FALSE(root.find("extends").exists());
}

TEST(Yaml, ExtendsReportsCirclesAndMissingFiles) {
  EXPECT_EQ(load_error("circle_a.yaml"),
            "circle_b.yaml:1:10: extends: files extend each other in a circle: circle_a.yaml -> circle_b.yaml -> "
            "circle_a.yaml");
  EXPECT_EQ(load_error("orphan.yaml"), "orphan.yaml:2:10: extends: no such file: nowhere.yaml");
  EXPECT_THAT(load_error("absent.yaml"), HasSubstr("absent.yaml: cannot read this file"));
  EXPECT_THAT(testing::message<ConfigError>([] { Yaml::load("/dev/zero"); }), HasSubstr("is of 4 MiB and more"));
  EXPECT_THAT(testing::message<ConfigError>([] { Yaml::load(kFolder); }), HasSubstr("this is a folder"));
}

TEST(Yaml, OverridesReplaceCreateAndIndex) {
  const Yaml root = parse("a: {list: [1, {k: 2}], b: {x: 1, y: 2}}\n")
                        .with_overrides({"a.list.1.k=5", "a.list.0=[7]", "a.b={z: 3}", "new.deep.key=text", "e="});
  EXPECT_EQ(root.at("a").at("list").elements()[1].at("k").as_int(), 5);
  EXPECT_THAT(root.at("a").at("list").elements()[0].as<std::vector<std::string>>(), ElementsAre("7"));
  EXPECT_THAT(keys(root.at("a").at("b")), ElementsAre("z"));
  EXPECT_EQ(root.at("new").at("deep").at("key").as<std::string>(), "text");
  EXPECT_EQ(testing::message<ConfigError>([&] { root.at("new").at("deep").at("key").as_int(); }).substr(0, 27),
            "command line: new.deep.key:");
  EXPECT_EQ(testing::message<ConfigError>([&] {
              root.expect_keys({"a", "e"});
            }),
            "command line: new: unknown key; known here: a, e");
  EXPECT_TRUE(root.find("e").exists());
  EXPECT_FALSE(root.find("e"));
  const auto error = [](const std::string& text) {
    return testing::message<ConfigError>([&] { parse("a: {list: [1]}\nb: x\n").with_overrides({text}); });
  };
  EXPECT_EQ(error("a.list.1=0"), "command line: a.list.1: a.list has no such index; it has 1 elements, from 0");
  EXPECT_THAT(error("a.list.one=0"), HasSubstr("no such index"));
  EXPECT_THAT(error("b.c=0"), HasSubstr("command line: b.c: b is 'x', which has no keys"));
  for (const char* text : {"novalue", "=1", "a..b=1", "a.=1", ".a=1"})
    EXPECT_THAT(error(text), HasSubstr("is not an override; expected key.path=value")) << text;
  EXPECT_THAT(error("a=[1"), HasSubstr("(in 'a=[1')"));
}

TEST(Yaml, OfAlternativesTheLaterLayerWinsAndTwoInOneFileAreAnError) {
  const std::vector<std::string> names = {"npz", "npy", "synthetic"};
  const Yaml base = parse("data: {npz: f.npz}\n");
  EXPECT_EQ(base.at("data").one_of(names), "npz");
  EXPECT_EQ(base.with_overrides({"data.synthetic.count=3"}).at("data").one_of(names), "synthetic");
  EXPECT_EQ(base.with_overrides({"data.npz=null"}).at("data").one_of(names), "");
  EXPECT_EQ(testing::message<ConfigError>([&] { parse("data:\n  npz: a\n  npy: {}\n").at("data").one_of(names); }),
            "t.yaml:3:3: data.npy: excludes 'npz', which is set at t.yaml:2:3; keep one of them");
  EXPECT_EQ(Yaml::load(kFolder + "child.yaml").at("loss").one_of(std::vector<std::string>{"focal", "dice"}), "dice");
}

TEST(Yaml, NumbersAreWrittenForReadersOfYaml11) {
  EXPECT_EQ(dump(parse("x: [1e-07, 1E+3, 1.5e-3, 1e3, e-1, \"1e-7\"]").at("x")),
            "[1.0e-07, 1.0E+3, 1.5e-3, 1e3, e-1, \"1e-7\"]");
}

TEST(Yaml, DumpReadsBackTheSame) {
  const Yaml root =
      parse("a: {n: 1, s: \"1\", t: 'null', e: \"\"}\nb:\n  - x: ~\n  - [1, \"a: b\"]\nc: &k {z: 'it''s'}\nd: *k\n");
  const Yaml again = Yaml::load_string(dump(root) + "\n", "again.yaml");
  EXPECT_EQ(dump(again), dump(root));
  EXPECT_EQ(again.at("a").at("t").as<std::string>(), "null");
  EXPECT_EQ(again.at("d").at("z").as<std::string>(), "it's");
  EXPECT_EQ(again.at("b").elements()[1].elements()[1].as<std::string>(), "a: b");
  EXPECT_NE(testing::message<ConfigError>([&] { again.at("a").at("s").as_int(); }), "no error");
}

}  // namespace
}  // namespace regolith
