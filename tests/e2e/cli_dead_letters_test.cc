// Dead letters with both ledgers: what a job was asked to do is read, edited and run again; what a filter previews is what is
// requeued; all of it is on record.
#include <gmock/gmock.h>

#include <algorithm>
#include <set>

#include "tests/support/cli_installation.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CliDeadLetters : public CliInstallation {
 protected:
  static std::string Shell(const std::string& script) { return nlohmann::json{{"argv", {"sh", "-c", script}}}.dump(); }
  std::string Submit(const std::string& queue, const std::string& script, std::vector<std::string> more = {}) {
    std::vector<std::string> args{"job", "submit",    "--kind",      "command",        "--queue",
                                  queue, "--payload", Shell(script), "--max-attempts", "1"};
    args.insert(args.end(), more.begin(), more.end());
    return Id(args);
  }
  std::string Dead(const std::string& queue, const std::string& script, std::vector<std::string> more = {}) {
    const std::string id = Submit(queue, script, std::move(more));
    EXPECT_TRUE(Eventually([&] { return StateOf(id) == "dead"; }, kPatience)) << id;
    return id;
  }
  bool Succeeds(const std::string& job) {
    return Eventually([&] { return StateOf(job) == "succeeded"; }, kPatience);
  }
  static std::string Replaced(std::string text, const std::string& what, const std::string& instead) {
    const auto at = text.find(what);
    EXPECT_NE(at, std::string::npos) << what << " is not in " << text;
    return at == std::string::npos ? text : text.replace(at, what.size(), instead);
  }
};

TEST_P(CliDeadLetters, APayloadIsReadEditedAndRunsAsEditedInTheQueueThatIsNamed) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const std::string said = Path("said");
  const std::string id = Dead("letters", "echo old Zürich >>" + said + "; exit 1");
  EXPECT_EQ(ReadAll(said), "old Zürich\n");

  const CliResult shown = Do({"job", "show", id, "--payload"});
  ASSERT_EQ(shown.code, 0) << shown.err;
  EXPECT_THAT(shown.out, AllOf(HasSubstr("echo old Zürich"), HasSubstr(id)));
  EXPECT_EQ(shown.err, "");
  const auto job = Json({"job", "show", id});
  EXPECT_EQ(job.at("payload"), shown.out);
  EXPECT_EQ(job.at("payload_bytes"), shown.out.size());
  EXPECT_THAT(Do({"job", "show", id}).out, HasSubstr("  payload " + std::to_string(shown.out.size()) + " bytes: {"));

  ASSERT_EQ(Do({"queue", "pause", "mended"}).code, 0);
  Write("edited.json", Replaced(Replaced(shown.out, "echo old", "echo new"), "exit 1", "exit 0"));
  const std::string again =
      Id({"job", "requeue", id, "--payload", "edited.json", "--to-queue", "mended", "--reason", "a typo"});
  EXPECT_TRUE(Eventually([&] { return Json({"queue", "show", "mended"}).at(0).at("ready") == 1; }, kPatience))
      << "it waits in the queue that was named";
  EXPECT_EQ(StateOf(again), "live");
  ASSERT_EQ(Do({"queue", "resume", "mended"}).code, 0);
  EXPECT_TRUE(Succeeds(again));
  EXPECT_EQ(ReadAll(said), "old Zürich\nnew Zürich\n") << "what ran is the edited payload, once";
  const auto repeated = Json({"job", "show", again});
  EXPECT_EQ(repeated.at("queue"), "mended");
  EXPECT_EQ(repeated.at("options").at("retry_of"), id);
  EXPECT_THAT(repeated.at("payload").get<std::string>(), HasSubstr("echo new Zürich"));

  const auto action = Json({"job", "show", id}).at("action");
  EXPECT_EQ(action.at("action"), "requeued");
  EXPECT_EQ(action.at("new_job"), again);
  EXPECT_EQ(action.at("reason"), "a typo");
  EXPECT_THAT(action.at("actor").get<std::string>(), HasSubstr("cli "));
  EXPECT_EQ(Do({"job", "show", id, "--payload"}).out, shown.out) << "the dead job stays as it was";
  Stop();
  ExpectTrailVerifies();
}

TEST_P(CliDeadLetters, AnEditThatCannotBeMeantIsRefusedAndNothingIsRequeued) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const std::string id = Dead("letters", "exit 1"), other = Dead("letters", "exit 2");
  const std::string payload = Do({"job", "show", id, "--payload"}).out;
  const auto refuse = [&](const std::string& text, const std::string& complaint) {
    Write("edited", text);
    const CliResult result = Do({"job", "requeue", id, "--payload", "edited"});
    EXPECT_EQ(result.code, 2) << text.substr(0, 200) << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr("--payload: "), HasSubstr(complaint)));
  };
  auto task = nlohmann::json::parse(payload);
  task["stage"] = "another";
  refuse(task.dump(), "edit command and base_dir, and leave the rest as 'job show --payload' wrote it");
  refuse(Replaced(payload, "\"argv\"", "\"args\""), "argv: is missing");
  refuse(Replaced(payload, "\"base_dir\":\"/\"", "\"base_dir\":\"here\""), "base_dir: 'here' is not absolute");
  refuse(Replaced(payload, "\"sh\"", "\"\""), "argv: names no program");
  refuse(Do({"job", "show", other, "--payload"}).out, "is the command of job " + other);
  refuse("", "payload");
  refuse(std::string((1U << 20) + 1, ' '), "more than 1048576 bytes");
  EXPECT_EQ(Do({"job", "requeue", id, "--payload", "nowhere"}).code, 3);
  EXPECT_THAT(Do({"job", "requeue", id, "--payload", "-"}).err, HasSubstr("--payload")) << "standard input is empty";
  EXPECT_EQ(Lines({"job", "list", "--open"}).size(), 2U);
  Stop();
}

TEST_P(CliDeadLetters, APayloadIsShownByteForByteAndToItsOrgAlone) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const std::string bytes("\x00\xff{\"a\"\n", 7);
  Exec(Postgres() ? R"(insert into enqueue (kind, queue, payload) values ('raw', 'raw', '\x00ff7b2261220a'))"
                  : "insert into enqueue (kind, queue, payload) values ('raw', 'raw', x'00ff7b2261220a')");
  EXPECT_TRUE(Eventually([&] { return Lines({"job", "list", "--queue", "raw"}).size() == 1; }, kPatience));
  const std::string id = Id({"job", "list", "--queue", "raw"});
  EXPECT_EQ(Do({"job", "show", id, "--payload"}).out, bytes);
  const auto job = Json({"job", "show", id});
  EXPECT_EQ(job.at("payload"), nullptr);
  EXPECT_EQ(job.at("payload_base64"), "AP97ImEiCg==");
  EXPECT_THAT(Do({"job", "show", id}).out, HasSubstr("  payload 7 bytes: \\x00\\xff{\"a\"\\n\n"));
  EXPECT_EQ(Do({"job", "cancel", id}).code, 0);

  const CliResult foreign = Do({"job", "show", id, "--payload", "--org", "2"});
  EXPECT_EQ(foreign.code, 3);
  EXPECT_EQ(foreign.out, "");
  EXPECT_THAT(foreign.err, AllOf(HasSubstr("no job " + id), HasSubstr("org 2"), HasSubstr("pruned")));
  const std::string fast = Submit("fast", "exit 0", {"--options", R"({"durability": "redis"})", "--wait"});
  const CliResult gone = Do({"job", "show", fast, "--payload"});
  EXPECT_EQ(gone.code, 3) << gone.out;
  EXPECT_EQ(gone.out, "");
  EXPECT_THAT(gone.err, HasSubstr("durability: redis"));
  const auto only_end = Json({"job", "show", fast});
  for (const char* field :
       {"queue", "priority", "kind", "stage", "effect", "max_attempts", "options", "payload_bytes", "payload"})
    EXPECT_EQ(only_end.at(field), nullptr) << field << ": nobody knows it";
  EXPECT_EQ(only_end.at("submitted_at"), ToRfc3339(TimeOf(Uuid::Parse(fast).value())));
  EXPECT_EQ(only_end.at("durability"), "redis");
  EXPECT_THAT(Do({"job", "show", fast}).out, AllOf(HasSubstr("has only its end"), HasSubstr("  submitted 20"),
                                                   Not(HasSubstr("1970-")), Not(HasSubstr("priority"))));
  Stop();
}

TEST_P(CliDeadLetters, WhatAFilterPreviewsIsWhatIsRequeued) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const std::string script = "test -e " + Path("open") + " && echo again >>" + Path("again");
  std::set<std::string> meant, others;
  for (int i = 0; i < 5; ++i) meant.insert(Dead("mail", script));
  for (int i = 0; i < 2; ++i) others.insert(Dead("news", script));
  others.insert(Dead("mail", "kill -SEGV $$", {"--options", R"({"no_retry": ["crashed"]})"}));
  const std::string foreign = Submit("mail", script, {"--org", "2"});
  EXPECT_TRUE(Eventually([&] { return !Lines({"job", "list", "--open", "--org", "2"}).empty(); }, kPatience));
  EXPECT_EQ(Lines({"job", "list", "--open"}).size(), 8U);

  const std::vector<std::string> filter{"job", "requeue", "--queue", "mail", "--error-class", "command_failed"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), filter.begin(), filter.end());
    return more;
  };
  const auto jobs_of = [](const nlohmann::json& rows) {
    std::set<std::string> ids;
    for (const auto& row : rows) ids.insert(row.at("job").get<std::string>());
    return ids;
  };
  const CliResult preview = Do(with({"--dry-run", "-o", "json"}));
  ASSERT_EQ(preview.code, 0) << preview.err;
  EXPECT_EQ(preview.err, "5 jobs would be requeued\n");
  EXPECT_EQ(jobs_of(nlohmann::json::parse(preview.out)), meant);
  EXPECT_EQ(Lines({"job", "list", "--open"}).size(), 8U) << "a preview changes nothing";

  Write("open", "");
  const CliResult done = Do(with({"--reason", "the disk was full", "-o", "json"}));
  ASSERT_EQ(done.code, 0) << done.err;
  EXPECT_THAT(done.err, HasSubstr("5 jobs requeued\n"));
  const auto rows = nlohmann::json::parse(done.out);
  EXPECT_EQ(jobs_of(rows), meant);
  for (const auto& row : rows) {
    EXPECT_EQ(row.at("result"), "requeued");
    EXPECT_TRUE(Succeeds(row.at("new_job")));
    const auto action = Json({"job", "show", row.at("job")}).at("action");
    EXPECT_EQ(action.at("new_job"), row.at("new_job"));
    EXPECT_EQ(action.at("reason"), "the disk was full");
  }
  const std::string ran = ReadAll(dir_ / "again");
  EXPECT_EQ(std::ranges::count(ran, '\n'), 5) << "each ran once";
  EXPECT_EQ(Do(with({"--dry-run"})).err, "0 jobs would be requeued\n") << "what was acted on is not meant again";
  const auto open = Lines({"job", "list", "--open"});
  EXPECT_EQ(std::set<std::string>(open.begin(), open.end()), others);
  EXPECT_EQ(Lines({"job", "list", "--open", "--org", "2"}), std::vector{foreign});
  EXPECT_EQ(Count("select count(*) from dead_action"), 5);
  Stop();
  ExpectTrailVerifies();
  Exec("update dead_action set reason = 'no reason' where reason = 'the disk was full'");
  const CliResult tampered = Do({"audit", "verify"});
  EXPECT_NE(tampered.code, 0) << "who changes the record is found out";
  EXPECT_THAT(tampered.out + tampered.err, HasSubstr("dead_action"));
  Exec("update dead_action set reason = 'the disk was full'");
  ExpectTrailVerifies();
}

INSTANTIATE_TEST_SUITE_P(Both, CliDeadLetters, ::testing::Values(Form::kEmbedded, Form::kPostgres), FormName);

}  // namespace
}  // namespace millrace::testing
