#include "common/model/lake.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace millrace {
namespace {

TEST(Lake, Paths) {
  EXPECT_EQ(DatasetDir(kDefaultOrg, "flight_delays", "delays"), "1/flight_delays/delays");
  // printf abc | sha256sum
  EXPECT_EQ(ManifestPath(OrgId{2}, "p", "s", "abc"), "2/p/s/manifests/ba7816bf8f01cfea414140de5dae2223.json");
  EXPECT_EQ(DataFilePath(OrgId{2}, "p", "s", "abc", Token{77}, 3), "2/p/s/data/ba7816bf8f01cfea414140de5dae2223-77-3.parquet");
  EXPECT_EQ(PinnedSchemaPath(OrgId{2}, "p", "s"), "2/p/s/schema.json");
}

TEST(Lake, NoNameClimbsOutOrCollides) {
  for (std::string_view bad : {"..", "../../etc", "a/b", "", ".", "A", "a b", "\xff"}) {
    const std::string dir = DatasetDir(kDefaultOrg, bad, "s");
    EXPECT_EQ(std::count(dir.begin(), dir.end(), '/'), 2) << dir;
    EXPECT_EQ(dir.find(".."), std::string::npos) << dir;
  }
  EXPECT_NE(DatasetDir(kDefaultOrg, "a/b", "s"), DatasetDir(kDefaultOrg, "a.b", "s"));
  EXPECT_NE(DatasetDir(kDefaultOrg, std::string(65, 'a'), "s"), DatasetDir(kDefaultOrg, std::string(66, 'a'), "s"));
}

TEST(Lake, ManifestRoundTripsAndIsStrict) {
  Manifest m;
  m.effect = "1/p/s/lake/x/-#0";
  m.token = Token{5};
  m.stage = "s";
  m.layer = "bronze";
  m.columns = {{"a", "decimal(10,2)", true}};
  m.files = {{"/data/a.csv", true, FileFormat::kCsv, 10, -1, 99, "ab"}};
  m.read_options = {{"delimiter", ";"}};
  m.rows = {5, 5, 0, 0, 0};
  m.result.ok = true;
  const std::string json = ToJson(m);
  EXPECT_EQ(*ManifestFromJson(json), m);
  EXPECT_EQ(ManifestFromJson("{\"x\":1}").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(ManifestFromJson(json.substr(0, json.size() - 1) + ",\"more\":1}").error().message, "manifest: more: unknown key");
}

}  // namespace
}  // namespace millrace
