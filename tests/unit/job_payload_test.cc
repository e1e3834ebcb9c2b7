// A job's payload as people see it, and what they may change of it.
#include "client/cli/job_payload.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "common/base/limits.h"
#include "common/model/stage_task.h"

namespace millrace::cli {
namespace {

using ::testing::HasSubstr;

template <class T>
T IdOf(std::uint8_t n) {
  Uuid id;
  id.bytes[6] = 0x70;
  id.bytes[15] = n;
  return T{id};
}

TEST(PayloadPreviewTest, IsOneLineOfPrintableText) {
  EXPECT_EQ(PayloadPreview(""), "");
  EXPECT_EQ(PayloadPreview("{\"a\": \"Zürich 日本 𝄞\"}"), "{\"a\": \"Zürich 日本 𝄞\"}");
  EXPECT_EQ(PayloadPreview("a\n\tb\r\x1b[2J\x7f"), "a\\n\\tb\\x0d\\x1b[2J\\x7f");
  EXPECT_EQ(PayloadPreview(std::string_view("\0\xff\xc3(", 4)), "\\x00\\xff\\xc3(");
  EXPECT_EQ(PayloadPreview("\xc2\x9b"
                           "2J"),
            "\\xc2\\x9b2J")
      << "a terminal may take it for an escape sequence";
  EXPECT_EQ(PayloadPreview("\xe2\x82"), "\\xe2\\x82") << "cut off";
}

TEST(PayloadPreviewTest, IsBoundedAndCutBetweenCharacters) {
  EXPECT_EQ(PayloadPreview(std::string(kPayloadPreviewBytes, 'x')), std::string(kPayloadPreviewBytes, 'x'));
  EXPECT_EQ(PayloadPreview(std::string(kPayloadPreviewBytes + 1, 'x')), std::string(kPayloadPreviewBytes, 'x') + "...");
  const std::string before(kPayloadPreviewBytes - 1, 'x');
  EXPECT_EQ(PayloadPreview(before + "ü" + "more"), before + "ü...");
}

TEST(PayloadBase64Test, IsPadded) {
  EXPECT_EQ(Base64(""), "");
  EXPECT_EQ(Base64("f"), "Zg==");
  EXPECT_EQ(Base64("fo"), "Zm8=");
  EXPECT_EQ(Base64("foo"), "Zm9v");
  EXPECT_EQ(Base64(std::string_view("\xfb\xff\0", 3)), "+/8A");
}

TEST(ReadPayloadTest, HasALimit) {
  const std::string path = (std::filesystem::temp_directory_path() / "millrace_payload_test").string();
  const auto read = [&](const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
    return ReadPayload(path);
  };
  const std::string most(kPayloadBytesMax, '\0');
  EXPECT_EQ(*read(most), most);
  EXPECT_EQ(*read(""), "");
  EXPECT_THAT(read(most + "x").error().message, HasSubstr("more than 1048576 bytes"));
  std::filesystem::remove(path);
  EXPECT_EQ(ReadPayload(path).error().code, ErrorCode::kNotFound);
}

class EditedPayloadTest : public ::testing::Test {
 protected:
  static CommandTask Task(JobId job) {
    return *CommandTaskFromJson(*CommandPayload(R"({"argv": ["sh", "-c", "old"], "base_dir": "/srv"})", job, kDefaultOrg));
  }
  EditedPayloadTest() {
    again_.id = IdOf<JobId>(2);
    again_.kind = kJobKindCommand;
    CommandTask task = Task(dead_);  // what it leaves behind is filed under the dead job's id
    task.job = again_.id;
    again_.payload = ToJson(task);
  }
  Result<std::string> Edited(const CommandTask& task) { return EditedPayload(ToJson(task), again_, dead_); }

  const JobId dead_ = IdOf<JobId>(1);
  JobSpec again_;
};

TEST_F(EditedPayloadTest, ACommandKeepsAllButWhatItDoes) {
  CommandTask task = Task(dead_);
  task.command.argv = {"sh", "-c", "new"};
  task.base_dir = "/tmp";
  const auto edited = Edited(task);
  ASSERT_TRUE(edited) << edited.error().message;
  task.job = again_.id;
  EXPECT_EQ(*CommandTaskFromJson(*edited), task);
  const auto brief = EditedPayload(R"({"argv": ["true"]})", again_, dead_);
  ASSERT_TRUE(brief) << brief.error().message;
  EXPECT_EQ(CommandTaskFromJson(*brief)->command.argv, std::vector<std::string>{"true"});
  EXPECT_EQ(CommandTaskFromJson(*brief)->job, again_.id);
}

TEST_F(EditedPayloadTest, WhatElseDiffersIsNamed) {
  const auto complaint = [&](const std::function<void(CommandTask&)>& change) {
    CommandTask task = Task(dead_);
    change(task);
    const auto edited = Edited(task);
    return edited ? "" : edited.error().message;
  };
  EXPECT_THAT(complaint([](CommandTask& t) { t.run = IdOf<RunId>(9); }), HasSubstr("run differs"));
  EXPECT_THAT(complaint([](CommandTask& t) { t.pipeline = "shop"; }), HasSubstr("pipeline"));
  EXPECT_THAT(complaint([](CommandTask& t) { t.job = IdOf<JobId>(9); }), HasSubstr("is the command of job"));
  EXPECT_THAT(complaint([](CommandTask& t) { t.base_dir = "here"; }), HasSubstr("base_dir: 'here' is not absolute"));
  EXPECT_THAT(complaint([](CommandTask& t) { t.command.argv = {""}; }), HasSubstr("argv: names no program"));
}

TEST_F(EditedPayloadTest, OfOtherKindsAnyBytesAreTaken) {
  again_.kind = "mail";
  const std::string bytes("\0\xff", 2);
  EXPECT_EQ(*EditedPayload(bytes, again_, dead_), bytes);
}

}  // namespace
}  // namespace millrace::cli
