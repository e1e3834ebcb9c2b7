// The command line against wrong files, wrong SQL and wrong words: what a user sees, which exit code, and that nothing happens.
#include <gmock/gmock.h>

#include <random>

#include "tests/support/cli_runner.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class CliFiles : public CliTest {
 protected:
  CliFiles() { Write("a.csv", "id,amount\n1,10\n2,20\n"); }

  // `check` and `run` refuse FILE with `code` and the text; not even the home is made.
  void ExpectRefused(const std::string& file, int code, const ::testing::Matcher<const std::string&>& text) {
    for (const char* command : {"check", "run"}) {
      const CliResult result = Run({command, file});
      EXPECT_EQ(result.code, code) << command << " " << file;
      EXPECT_THAT(result.err, text) << command << " " << file;
      EXPECT_THAT(result.out, IsEmpty());
      EXPECT_LT(result.wall.count(), 5000);
    }
    EXPECT_FALSE(std::filesystem::exists(home_)) << "a refused file left something behind";
  }
  void ExpectSqlRefused(const std::string& sql, const ::testing::Matcher<const std::string&>& text) {
    WritePipeline("p", "  raw: { extract: { from: file, path: a.csv } }\n  t:\n    transform: |\n      " + sql +
                           "\n  l: { load: { from: t, to: warehouse, table: x } }\n");
    SCOPED_TRACE(sql);
    ExpectRefused("p.yaml", 1, text);
  }
};

TEST_F(CliFiles, MistakesInTheFileAreNamedWithTheirPlaceAndTheFix) {
  WritePipeline("cycle", "  a: { transform: select * from b }\n  b: { transform: select * from a }\n");
  ExpectRefused("cycle.yaml", 1,
                AllOf(StartsWith("cycle.yaml:4:3: error: stages wait for each other: a -> b -> a"), HasSubstr("help: ")));

  WritePipeline("unknown",
                "  raw: { extract: { from: file, path: a.csv } }\n  t: { transform: select * from raww }\n"
                "  l: { load: { from: tt, to: warehouse, table: x } }\n");
  ExpectRefused("unknown.yaml", 1,
                AllOf(HasSubstr("unknown.yaml:5:33: error: the SQL reads 'raww'"), HasSubstr("^~~~"),
                      HasSubstr("did you mean 'raw'?"), HasSubstr("unknown.yaml:6:22: error: load.from names the stage 'tt'")));

  WritePipeline("source", "  raw: { extract: { from: file, path: nosuch.csv } }\n");
  ExpectRefused("source.yaml", 1,
                AllOf(StartsWith("source.yaml:4:39: error: stage 'raw': no file matches 'nosuch.csv' in "), HasSubstr("^")));

  WritePipeline("types",
                "  raw:\n    extract: { from: file, path: a.csv }\n    retry: { max_attempts: many }\n    timeout: 5\n");
  ExpectRefused("types.yaml", 1,
                AllOf(HasSubstr("types.yaml:6:28: error: retry.max_attempts must be an integer, not 'many'"),
                      HasSubstr("types.yaml:7:14: error: timeout: '5' is not a time"), HasSubstr("for example 90s")));

  Write("twice.yaml", "version: 1\npipeline: p\npipeline: q\nstages:\n  raw: { extract: { from: file, path: a.csv } }\n");
  ExpectRefused("twice.yaml", 1,
                AllOf(StartsWith("twice.yaml:3:1: error: duplicate key 'pipeline'"), HasSubstr("already given in line 2")));

  WritePipeline("conn",
                "  raw: { extract: { from: file, path: a.csv } }\n  l: { load: { from: raw, to: warehous, table: x } }\n");
  ExpectRefused("conn.yaml", 1,
                AllOf(StartsWith("conn.yaml:5:31: error: stage 'l': there is no connection 'warehous'"),
                      HasSubstr("did you mean 'warehouse'?")));

  Write("latin.csv", "id,name\n1,caf\xe9\n");
  WritePipeline("latin", "  raw: { extract: { from: file, path: latin.csv } }\n");
  ExpectRefused(
      "latin.yaml", 1,
      StartsWith("latin.yaml:4:39: error: stage 'raw': latin.csv:2: is not UTF-8: byte 0xe9 at byte 6 of the line; set "
                 "options: { encoding: latin-1 } if that is what it is, or save the file as UTF-8\n"));

  Write("tabs.yaml", "version: 1\npipeline: p\nstages:\n\traw: { extract: { from: file, path: a.csv } }\n");
  ExpectRefused("tabs.yaml", 1,
                AllOf(StartsWith("tabs.yaml:4:1: error: a tab in the indentation"), HasSubstr("replace the tab by spaces")));
}

TEST_F(CliFiles, WrongColumnsAreMarkedWhereTheyAreWritten) {
  WritePipeline("cols",
                "  raw:\n    extract: { from: file, path: a.csv, columns: { id: bigint, amuont: double } }\n"
                "  t:\n    transform: select id, amount from ok\n"
                "    contract:\n      idd: bigint\n      amount: bigit not null\n"
                "  ok:\n    extract: { from: file, path: a.csv }\n    checks:\n"
                "      - unique: [id, amout]\n      - not_null: idd\n"
                "      - accepted_values: { column: amnt, values: [a] }\n"
                "      - expression: \"amount > 0 and amuont < 3\"\n"
                "      - expression: |\n          id > 0\n          and idd > 0\n      - unique: [zzz]\n"
                "  l: { load: { from: ok, to: warehouse, table: x, mode: merge, key: [id, amoun] } }\n");
  ExpectRefused(
      "cols.yaml", 1,
      AllOf(HasSubstr("cols.yaml:5:64: error: stage 'raw': the source has no column 'amuont'"),
            HasSubstr("^~~~~~\n  help: did you mean 'amount'?"),
            HasSubstr("cols.yaml:14:22: error: stage 'ok': check unique: stage 'ok' has no column 'amout'"),
            HasSubstr("|                      ^~~~~\n  help: did you mean 'amount'?"),
            HasSubstr("cols.yaml:15:19: error: stage 'ok': check not_null: stage 'ok' has no column 'idd'"),
            HasSubstr("cols.yaml:16:36: error: stage 'ok': check accepted_values: stage 'ok' has no column 'amnt'"),
            HasSubstr("cols.yaml:17:37: error: stage 'ok': check expression: Binder: Referenced column \"amuont\" not found "
                      "in FROM clause\n"),
            HasSubstr("|                                     ^~~~~~\n  help: did you mean 'amount'?")));
  ExpectRefused("cols.yaml", 1,
                AllOf(HasSubstr("cols.yaml:20:15: error: stage 'ok': check expression: "),
                      HasSubstr("cols.yaml:21:18: error: stage 'ok': check unique: stage 'ok' has no column 'zzz'\n"),
                      HasSubstr("help: its columns are: id, amount"),
                      HasSubstr("cols.yaml:22:74: error: stage 'l': key: stage 'ok' has no column 'amoun'"),
                      HasSubstr("cols.yaml:9:7: error: stage 't': contract: stage 't' has no column 'idd'"),
                      HasSubstr("cols.yaml:10:15: error: stage 't': contract: column 'amount': there is no type 'bigit'")));
}

TEST_F(CliFiles, ProgramsReadWhatIsWrongFromStdout) {
  WritePipeline("bad",
                "  raw: { extract: { from: file, path: a.csv }, checks: [{ unique: idd }] }\n"
                "  l: { load: { from: raw, to: warehouse, table: x } }\n");
  Write("syntax.yaml", "version: 1\npipeline: p\nstages: {}\nstags: {}\n");
  for (const char* command : {"check", "plan"}) {
    SCOPED_TRACE(command);
    const CliResult bad = Run({command, "bad.yaml", "-o", "json"});
    EXPECT_EQ(bad.code, 1);
    EXPECT_THAT(bad.err, HasSubstr("bad.yaml:4:67: error: "));
    const auto document = nlohmann::json::parse(bad.out);
    EXPECT_EQ(document.at("ok"), false);
    ASSERT_EQ(document.at("errors").size(), 1u);
    const auto& error = document.at("errors")[0];
    EXPECT_EQ(error.at("file"), "bad.yaml");
    EXPECT_EQ(error.at("line"), 4);
    EXPECT_EQ(error.at("column"), 67);
    EXPECT_EQ(error.at("length"), 3);
    EXPECT_EQ(error.at("code"), "unknown_column");
    EXPECT_EQ(error.at("message"), "stage 'raw': check unique: stage 'raw' has no column 'idd'");
    EXPECT_EQ(error.at("suggestion"), "did you mean 'id'?");

    const CliResult syntax = Run({command, "syntax.yaml", "-o", "ndjson"});
    EXPECT_EQ(syntax.code, 1);
    EXPECT_EQ(std::count(syntax.out.begin(), syntax.out.end(), '\n'), 1);
    EXPECT_EQ(nlohmann::json::parse(syntax.out).at("errors")[1].at("suggestion"), "did you mean 'stages'?");

    const CliResult missing = Run({command, "nosuch.yaml", "-o", "json"});
    EXPECT_EQ(missing.code, 3);
    const auto none = nlohmann::json::parse(missing.out);
    EXPECT_EQ(none.at("ok"), false);
    EXPECT_EQ(none.at("errors")[0].at("line"), nullptr);
    EXPECT_EQ(none.at("errors")[0].at("message"), "nosuch.yaml: no such file");

    EXPECT_THAT(Run({command, "bad.yaml", "-o", "csv"}).out, IsEmpty());
  }
  WritePipeline("good", "  raw: { extract: { from: file, path: a.csv } }\n");
  const auto checked = RunJson({"check", "good.yaml"});
  EXPECT_EQ(checked.at("ok"), true);
  EXPECT_TRUE(checked.at("errors").empty());
  EXPECT_EQ(checked.at("columns")[1].at("column"), "amount");
  const auto planned = RunJson({"plan", "good.yaml"});
  EXPECT_EQ(planned.at("ok"), true);
  EXPECT_EQ(planned.at("stages")[0].at("stage"), "raw");
}

TEST_F(CliFiles, WhatYamlTakesForSomethingElseIsToldToBeQuoted) {
  Write("cron.yaml", "version: 1\npipeline: p\nschedule: { cron: */5 * * * *, timezone: UTC }\nstages: {}\n");
  ExpectRefused("cron.yaml", 1,
                AllOf(StartsWith("cron.yaml:3:19: error: a value that begins with * must be quoted"),
                      HasSubstr("^~~~~~~~~~~\n  help: quote it: \"*/5 * * * *\"")));
  WritePipeline("comma", "  raw: { extract: { from: file, path: a.csv, columns: { id: bigint, amount: decimal(12,2) } } }\n");
  ExpectRefused("comma.yaml", 1,
                AllOf(StartsWith("comma.yaml:4:77: error: the type of column 'amount' has a comma"),
                      HasSubstr("help: quote it: { amount: \"decimal(12,2)\" }")));
}

TEST_F(CliFiles, ACsvThatDoesNotFitNamesItsLineAndTheOptionOfThePipelineFile) {
  const auto refused = [&](const std::string& csv, const std::string& more, const std::string& text) {
    Write("in.csv", csv);
    WritePipeline("c", "  raw: { extract: { from: file, path: in.csv" + more + " } }\n");
    SCOPED_TRACE(text);
    ExpectRefused("c.yaml", 1,
                  AllOf(HasSubstr("c.yaml:4:39: error: stage 'raw': in.csv" + text), Not(HasSubstr("Possible")),
                        Not(HasSubstr("ignore_errors")), Not(HasSubstr("strict_mode"))));
  };
  refused("id;name\n1;a\n", "",
          ": has one column, 'id;name': its fields seem to be separated by ';'; set options: { delimiter: \";\" }");
  refused("id\tname\n1\ta\n", "",
          ": has one column, 'id name': its fields seem to be separated by '\\t'; set options: { delimiter: \"\\t\" }");
  refused("id|name\n1|a\n", "", ": has one column, 'id|name': its fields seem to be separated by '|'");
  refused("a,b\n1,2\n", ", format: tsv", ": has one column, 'a,b': its fields seem to be separated by ','");
  refused("id,name\n1,a\n\n2,b,c\n", "",
          ":4: 3 fields where line 1 has 2; mend the line, or declare columns: and a contract with");
  refused("id,name\n1,\"two\nlines\"\n2\n", "", ":4: 1 field where line 1 has 2");
  refused("id,name\n1,a\n2,\"b\n3,c\n", "", ":3: a quote is never closed; mend the line, or set options: { quote: \"\" }");
  refused(std::string("\xff\xfei\0d\0\n\0", 8), "", ": is UTF-16; set options: { encoding: utf-16 }");

  // What the messages advise works.
  const auto accepted = [&](const std::string& csv, const std::string& more, const std::string& rows) {
    Write("in.csv", csv);
    WritePipeline("ok", "  raw: { extract: { from: file, path: in.csv" + more +
                            " }\n"
                            "  out: { load: { from: raw, to: file, path: out.csv } }\n");
    const CliResult run = Run({"run", "ok.yaml", "--home", Path("home-ok")});
    EXPECT_EQ(run.code, 0) << run.err << run.out;
    EXPECT_EQ(ReadAll(dir_ / "out.csv"), rows);
    std::filesystem::remove_all(dir_ / "home-ok");
  };
  accepted("id;name\n1;a\n", ", options: { delimiter: \";\" } }", "id,name\n1,a\n");
  accepted("id\tname\n1\ta\n", ", options: { delimiter: \"\\t\" } }", "id,name\n1,a\n");
  accepted("id;name\n1;a\n", ", options: { delimiter: \",\" } }", "id;name\n1;a\n");
  accepted("id,name\n1,caf\xe9\n", ", options: { encoding: latin-1 } }", "id,name\n1,caf\xc3\xa9\n");
  accepted(std::string("\xff\xfei\0d\0\n\0"
                       "7\0\n\0",
                       12),
           ", options: { encoding: utf-16 } }", "id\n7\n");
  accepted("id,name\n1,a\n2,b,c\n3\n",
           ", columns: { id: bigint, name: text } }, contract: { id: bigint, on_violation: quarantine }", "id,name\n1,a\n");
  WritePipeline("enc", "  raw: { extract: { from: file, path: in.csv, options: { encoding: latin1 } } }\n");
  ExpectRefused("enc.yaml", 1, HasSubstr("help: did you mean 'latin-1'?"));
}

TEST_F(CliFiles, WhatIsNoPipelineFileIsRefusedAtOnce) {
  std::string many = "version: 1\npipeline: p\nstages:\n";
  for (int i = 0; i < 10'001; ++i) many += "  s" + std::to_string(i) + ": { command: [\"true\"] }\n";
  Write("many.yaml", many);
  ExpectRefused("many.yaml", 1, HasSubstr("many.yaml:10004:3: error: 10001 stages; the limit is 10000"));
  Write("empty.yaml", "");
  ExpectRefused("empty.yaml", 1, HasSubstr("empty.yaml: error: the file is empty"));
  std::filesystem::create_directories(dir_ / "folder.yaml");
  ExpectRefused("folder.yaml", 2, HasSubstr("folder.yaml: not a regular file"));
  ExpectRefused("nosuch.yaml", 3, HasSubstr("nosuch.yaml: no such file"));
  std::mt19937 random(7);
  std::string garbage;
  for (int i = 0; i < 4000; ++i) garbage += static_cast<char>(random() & 0xff);
  Write("garbage.yaml", garbage);
  ExpectRefused("garbage.yaml", 1, AllOf(StartsWith("garbage.yaml:1:"), HasSubstr("error: ")));
  Write("latin.yaml", "version: 1\npipeline: p\ndescription: caf\xe9\nstages: {}\n");
  ExpectRefused("latin.yaml", 1,
                AllOf(StartsWith("latin.yaml:3:17: error: byte 0xe9 is not UTF-8"), HasSubstr("save the file as UTF-8")));
  Write("huge.yaml", std::string((4u << 20) + 1, '#'));
  ExpectRefused("huge.yaml", 1, HasSubstr("over the limit of 4194304 bytes"));
  EXPECT_THAT(Run({"check", "huge.yaml", "-o", "json"}).out, HasSubstr("\"code\": \"too_large\""));
}

TEST_F(CliFiles, WrongSqlIsFoundBeforeAnythingRunsWithTheCaretInsideTheFile) {
  ExpectSqlRefused("select id,\n        amout from raw",
                   AllOf(HasSubstr("p.yaml:8:9: error: stage 't': "), HasSubstr("\"amout\" not found"),
                         HasSubstr("    8 |         amout from raw\n      |         ^"), HasSubstr("did you mean 'amount'?")));
  ExpectSqlRefused("select id frm raw x y",
                   AllOf(HasSubstr("p.yaml:7:21: error: stage 't': "), HasSubstr("syntax error"), HasSubstr("^")));
  ExpectSqlRefused("select id from raw; select 2", AllOf(HasSubstr("p.yaml:7:7: error: "), HasSubstr("2 statements")));
  for (const char* sql :
       {"copy raw to '/tmp/x.csv'", "attach 'x.db'", "install httpfs", "pragma version", "set threads = 1", "drop table raw"})
    ExpectSqlRefused(sql, AllOf(HasSubstr("p.yaml:7:7: error: "), HasSubstr("a transform starts with SELECT")));
  ExpectSqlRefused("with a as (select 1, 2) insert into raw select * from a", HasSubstr("only a SELECT is allowed"));
}

TEST_F(CliFiles, TwoColumnsOfOneNameAreRefusedWhateverTheirCase) {
  for (const auto& [names, message] :
       {std::pair{"a|a", "two columns are named 'a'"}, {"a|A", "two columns are named 'a' and 'A'; case does not matter"}}) {
    const std::string text(names);
    WritePipeline("p", "  t: { transform: \"select 1 as " + text.substr(0, 1) + ", 2 as " + text.substr(2) + "\" }\n");
    const CliResult check = Run({"check", "p.yaml", "-o", "json"});
    ASSERT_EQ(check.code, 1) << check.err;
    const auto error = nlohmann::json::parse(check.out).at("errors").at(0);
    EXPECT_EQ(error.at("code"), "duplicate_column");
    EXPECT_EQ(error.at("message"), std::string("stage 't': ") + message);
    EXPECT_EQ(error.at("suggestion"), "give one of them another name with AS");
    EXPECT_EQ(error.at("column"), 20) << "at the SQL";
  }
}

TEST_F(CliFiles, SqlCannotReadAFileNotEvenWhileItIsChecked) {
  Write("secret.csv", "topsecret\n1\n");
  for (const char* sql :
       {"select * from read_csv('/etc/passwd')", "select * from raw where (select count(*) from read_text('/etc/passwd')) > 0",
        "from query('select * from read_text(''/etc/passwd'')')", "from glob('/etc/*')", "select * from read_csv('secret.csv')",
        "select nosuch from read_csv('secret.csv')"})
    ExpectSqlRefused(
        sql, AllOf(HasSubstr("p.yaml:7:"), HasSubstr("Permission: "), HasSubstr("files are read by stages with extract"),
                   Not(HasSubstr("root:")), Not(HasSubstr("topsecret"))));
  ExpectSqlRefused("select * from 'secret.csv'",
                   AllOf(HasSubstr("p.yaml:7:21: error: "), HasSubstr("a transform reads stages, not files")));
  ExpectSqlRefused("select * from \"secret.csv\"", HasSubstr("which is no stage"));
  WritePipeline("q",
                "  raw:\n    extract: { from: file, path: a.csv }\n    checks:\n"
                "      - expression: (select count(*) from read_text('/etc/passwd')) > 0\n");
  ExpectRefused("q.yaml", 1, AllOf(HasSubstr("q.yaml:7:43: error: stage 'raw': check "), HasSubstr("Permission: ")));
}

TEST_F(CliFiles, ParametersAreCheckedBeforeTheFile) {
  WritePipeline("p",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  t: { transform: \"select id, amount + $n as amount, $since as since from raw\" }\n"
                "  f: { load: { from: t, to: file, path: out.csv } }\n",
                "params:\n  since: { type: date, required: true }\n  n: 3\n");
  const auto refused = [&](std::vector<std::string> params, const std::string& text) {
    std::vector<std::string> args{"run", "p.yaml"};
    for (auto& p : params) args.insert(args.end(), {"-p", p});
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 2) << text;
    EXPECT_THAT(result.err, HasSubstr(text));
    EXPECT_FALSE(std::filesystem::exists(home_));
  };
  refused({}, "parameter 'since' (date) is required");
  refused({"since=2026-01-01", "m=1"}, "no parameter 'm'; it has: since, n");
  refused({"sinse=2026-01-01"}, "did you mean 'since'?");
  refused({"since=yesterday"}, "parameter 'since': 'yesterday' is not a date");
  refused({"since=2026-01-01", "n=1.5"}, "parameter 'n': '1.5' is not a bigint");
  refused({"since=2026-01-01", "since=2026-01-02"}, "-p since: given twice");
  refused({"since"}, "-p 'since' is not of the form name=value");
  EXPECT_EQ(Run({"check", "p.yaml"}).code, 0) << "a check needs no values";
  EXPECT_EQ(Run({"check", "p.yaml", "-p", "n=x"}).code, 2);
  EXPECT_EQ(Run({"plan", "p.yaml"}).code, 2);
  EXPECT_EQ(Run({"run", "p.yaml", "-p", "since=2026-01-01", "-p", "n=100"}).code, 0);
  EXPECT_EQ(ReadAll(dir_ / "out.csv"), "id,amount,since\n1,110,2026-01-01\n2,120,2026-01-01\n");
}

TEST_F(CliFiles, UnknownWordsAreNamedWithTheNearestOne) {
  const auto usage = [&](const std::vector<std::string>& args, const std::string& text) {
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 2) << text;
    EXPECT_THAT(result.err, HasSubstr(text));
    EXPECT_THAT(result.out, IsEmpty());
  };
  usage({}, "--help");
  usage({"chek", "x"}, "unknown command 'chek'; did you mean 'check'?");
  usage({"--home", "x", "chek"}, "unknown command 'chek'; did you mean 'check'?");
  usage({"frobnicate"}, "unknown command 'frobnicate'");
  usage({"pipeline", "aply", "x"}, "did you mean 'apply'?");
  usage({"check", "--homee", "x"}, "unknown option '--homee'; did you mean '--home'?");
  usage({"run", "list", "--stat", "failed"}, "unknown option '--stat'; did you mean '--state'?");
  usage({"run"}, "give a pipeline file");
  usage({"query"}, "CONNECTION is required");
  usage({"check", "a", "b"}, "b");
  usage({"version", "-o", "xml"}, "'xml' is not one of table, json, ndjson, csv");
  usage({"config", "show", "--set", "worker.concurency=2"}, "did you mean 'worker.concurrency'?");
  usage({"config", "show", "--set", "worker.concurrency=x"}, "worker.concurrency: 'x' is not an integer");
  usage({"config", "show", "--set", "worker"}, "not of the form key=value");
  usage({"run", "show", "nonsense"}, "'nonsense' is not an id");
  const CliResult verb = Run({"run", "lst"});
  EXPECT_EQ(verb.code, 3);
  EXPECT_THAT(verb.err, HasSubstr("did you mean 'millrace run list'?"));
}

TEST_F(CliFiles, EveryCommandExplainsItselfWithAnExample) {
  for (const char* command : {"",
                              "run",
                              "run start",
                              "run list",
                              "run show",
                              "run logs",
                              "check",
                              "plan",
                              "up",
                              "broker",
                              "worker",
                              "scheduler",
                              "status",
                              "pipeline",
                              "pipeline apply",
                              "pipeline list",
                              "pipeline show",
                              "schedule",
                              "schedule list",
                              "schedule pause",
                              "schedule resume",
                              "schedule slots",
                              "schedule next",
                              "job submit",
                              "job result",
                              "job refused",
                              "ledger",
                              "ledger list",
                              "ledger prune",
                              "query",
                              "audit",
                              "audit verify",
                              "config",
                              "config show",
                              "doctor",
                              "version"}) {
    std::vector<std::string> args;
    std::string word;
    for (std::istringstream words{command}; words >> word;) args.push_back(word);
    args.emplace_back("--help");
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 0) << command;
    EXPECT_THAT(result.out, HasSubstr("Usage: ")) << command;
    if (*command != '\0') {
      EXPECT_THAT(result.out, AllOf(HasSubstr("Example"), HasSubstr(std::string("\n  millrace ") + command))) << command;
    }
    EXPECT_THAT(result.err, IsEmpty()) << command;
  }
}

TEST_F(CliFiles, SchedulesAreShownInBothTimes) {
  const CliResult next = Run({"schedule", "next", "--cron", "30 2 * * *", "--timezone", "America/New_York", "--from",
                              "2026-03-07T00:00:00Z", "-n", "3", "-o", "csv"});
  EXPECT_EQ(next.code, 0);
  EXPECT_EQ(next.out,
            "utc,local,timezone\r\n2026-03-07T07:30:00Z,2026-03-07 02:30:00 EST (-05:00),America/New_York\r\n"
            "2026-03-08T07:00:00Z,2026-03-08 03:00:00 EDT (-04:00),America/New_York\r\n"
            "2026-03-09T06:30:00Z,2026-03-09 02:30:00 EDT (-04:00),America/New_York\r\n");
  WritePipeline("p", "  a: { command: [\"true\"] }\n", "schedule: { cron: \"15 6 * * *\", timezone: Europe/Berlin }\n");
  const CliResult file = Run({"schedule", "next", "p.yaml", "--from", "2026-07-01T00:00:00Z", "-n", "1"});
  EXPECT_EQ(file.code, 0);
  EXPECT_THAT(file.out, HasSubstr("2026-07-01T04:15:00Z  2026-07-01 06:15:00 CEST (+02:00)  Europe/Berlin"));
  const auto refused = [&](const std::vector<std::string>& more, int code, const std::string& text) {
    std::vector<std::string> args{"schedule", "next"};
    args.insert(args.end(), more.begin(), more.end());
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, code) << text;
    EXPECT_THAT(result.err, HasSubstr(text));
  };
  refused({}, 2, "give a pipeline, or --cron EXPR");
  refused({"--cron", "* * *"}, 2, "has 3 fields");
  refused({"--cron", "0 0 30 2 *"}, 2, "never fires");
  refused({"--cron", "0 0 * * *", "--timezone", "Mars/X"}, 2, "not an IANA time zone");
  refused({"--cron", "* * * * *", "--dst", "sometimes"}, 2, "not one of once, skip, both");
  refused({"--cron", "* * * * *", "--from", "yesterday"}, 2, "--from: 'yesterday' is not a time");
  refused({"--cron", "* * * * *", "-n", "10001"}, 2, "-n: 10001 is not in [1, 10000]");
  refused({"nosuch"}, 3, "there is no ledger");
}

TEST_F(CliFiles, ListingsAreWellFormedInEveryFormatAndStdoutHasOnlyData) {
  Write("b.csv", "id,note\n1,\"comma, \"\"quote\"\"\nand a line\"\n");
  WritePipeline("p",
                "  raw: { extract: { from: file, path: b.csv } }\n  l: { load: { from: raw, to: warehouse, table: x } }\n"
                "  c: { command: [sh, -c, \"echo hello >&2\"] }\n",
                "schedule: { cron: \"15 6 * * *\" }\n");
  ASSERT_EQ(Run({"pipeline", "apply", "p.yaml"}).code, 0);
  const auto run = RunJson({"run", "p.yaml"});
  const std::string id = run.at("run");
  EXPECT_EQ(run.at("state"), "succeeded");
  EXPECT_TRUE(run.at("balanced"));
  const std::vector<std::vector<std::string>> listings{{"run", "list"},
                                                       {"run", "show", id},
                                                       {"run", "logs", id},
                                                       {"pipeline", "list"},
                                                       {"pipeline", "show", "p"},
                                                       {"schedule", "list"},
                                                       {"schedule", "next", "p", "-n", "2"},
                                                       {"query", "warehouse", "select * from x"},
                                                       {"config", "show", "--origin"},
                                                       {"doctor"},
                                                       {"version"},
                                                       {"audit", "verify"},
                                                       {"check", "p.yaml"},
                                                       {"plan", "p.yaml"}};
  for (const auto& listing : listings) {
    SCOPED_TRACE(listing[0] + " " + (listing.size() > 1 ? listing[1] : ""));
    const auto run_as = [&](const std::string& format) {
      auto args = listing;
      args.insert(args.end(), {"-o", format});
      CliResult result = Run(args);
      EXPECT_EQ(result.code, 0) << result.err;
      EXPECT_FALSE(result.out.empty());
      return result.out;
    };
    const std::string json = run_as("json"), ndjson = run_as("ndjson"), csv = run_as("csv"), table = run_as("table");
    EXPECT_TRUE(nlohmann::json::accept(json)) << json;
    std::istringstream lines(ndjson);
    std::size_t objects = 0;
    for (std::string line; std::getline(lines, line); ++objects) {
      const auto object = nlohmann::json::parse(line, nullptr, false);
      EXPECT_TRUE(object.is_object()) << line;
    }
    const auto rows = ParseCsv(csv);
    EXPECT_EQ(rows.size(), objects + 1);
    for (const std::string& text : {csv, table, json}) EXPECT_EQ(text.find('\x1b'), std::string::npos);
  }
  const CliResult text = Run({"query", "warehouse", "select * from x", "-o", "csv"});
  EXPECT_EQ(ParseCsv(text.out)[1][1], "comma, \"quote\"\nand a line");
  EXPECT_EQ(RunJson({"run", "logs", id, "--stage", "c"})[0].at("log"), "hello\n");
  EXPECT_EQ(Run({"run", "list", "-q"}).out, id + "\n");
  EXPECT_EQ(Run({"run", "show", "-q", id}).out, id + "\n");
  EXPECT_EQ(Run({"run", "list", "--state", "failed", "-o", "json"}).out, "[]\n");
  EXPECT_EQ(Run({"run", "list", "--state", "nope"}).code, 2);
  EXPECT_EQ(Run({"run", "list", "-n", "501"}).code, 2);
  EXPECT_EQ(Run({"run", "logs", id, "--stage", "zz"}).code, 3);
  EXPECT_EQ(Run({"run", "show", "0193e0c5-0000-7000-8000-000000000000"}).code, 3);
  EXPECT_EQ(Run({"pipeline", "show", "zz"}).code, 3);
}

TEST_F(CliFiles, QueryOnlyReads) {
  const CliResult none = Run({"query", "warehouse", "select 1"});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.err, HasSubstr("nothing was loaded yet"));
  WritePipeline("p",
                "  raw: { extract: { from: file, path: a.csv } }\n  l: { load: { from: raw, to: warehouse, table: x } }\n"
                "  m: { load: { from: raw, to: warehouse, table: shop.per_day } }\n");
  ASSERT_EQ(Run({"run", "p.yaml"}).code, 0);
  const auto refused = [&](const std::string& connection, const std::string& sql, int code, const std::string& text) {
    const CliResult result = Run({"query", connection, sql});
    EXPECT_EQ(result.code, code) << sql;
    EXPECT_THAT(result.err, HasSubstr(text)) << sql;
    EXPECT_THAT(result.out, IsEmpty());
  };
  for (const char* sql : {"insert into x values (3, 3)", "delete from x", "drop table x", "create temp table y as select 1",
                          "attach 'z.db' as z", "pragma journal_mode = delete", "vacuum"})
    refused("warehouse", sql, 2, "query only reads");
  refused("warehouse", "with a as (select 3, 3) insert into x select * from a", 1, "readonly");
  refused("warehouse", "select 1; delete from x", 2, "2 statements");
  refused("warehouse", "", 2, "0 statements");
  refused("warehouse", "select * from nosuch", 1, "no such table: nosuch");
  refused("warehouse", "select * from main2.x", 1, "no such table: main2.x");
  refused("warehouse", "select * from shop.per_day", 1,
          "; SQLite has no schemas: the table 'shop.per_day' is called shop_per_day here");
  refused("warehouse", "select * from shop_per_dya", 1, "did you mean shop_per_day?");
  refused("warehous", "select 1", 3, "there is no connection 'warehous'; the configuration has: warehouse");
  refused("warehouse", "with recursive r(i) as (select 1 union all select i + 1 from r where i <= 100000) select i from r", 2,
          "more than 100000 rows; add a limit");
  EXPECT_EQ(Warehouse("select id, amount from x order by id"), "id,amount\n1,10\n2,20\n");
  EXPECT_EQ(Warehouse("select null a, 2.5 b, 'x,y' c, x'00ff' d -- ; a comment\n;"), "a,b,c,d\n,2.5,\"x,y\",\\x00ff\n");
}

TEST_F(CliFiles, ConfigurationDoctorAndVersionSayWhatIsThere) {
  Write("millrace.yaml", "version: 1\nlog:\n  level: warn\n");
  const CliResult shown =
      Run({"config", "show", "--origin", "-o", "json", "--set", "worker.concurrency=3", "--set",
           "connections.warehouse.type=postgres", "--set", "connections.warehouse.dsn=postgres://u:hush@h/d"},
          {.env = {{"MILLRACE_QUEUE__PREFIX", "zz"}}});
  ASSERT_EQ(shown.code, 0) << shown.err;
  EXPECT_THAT(shown.out, Not(HasSubstr("hush")));
  std::map<std::string, std::pair<std::string, std::string>> values;
  for (const auto& v : nlohmann::json::parse(shown.out)) values[v.at("key")] = {v.at("value"), v.at("origin")};
  EXPECT_EQ(values["worker.concurrency"].first, "3");
  EXPECT_THAT(values["worker.concurrency"].second, HasSubstr("flag"));
  EXPECT_THAT(values["queue.prefix"].second, HasSubstr("MILLRACE_QUEUE__PREFIX"));
  EXPECT_THAT(values["log.level"].second, HasSubstr("millrace.yaml:3:"));
  EXPECT_EQ(values["broker.shards"].second, "default");
  EXPECT_THAT(values["connections.warehouse.dsn"].first, HasSubstr("***"));
  const auto doctor = RunJson({"doctor"});
  EXPECT_GE(doctor.size(), 5u);
  for (const auto& finding : doctor) EXPECT_TRUE(finding.at("ok")) << finding;
  const auto down = RunJson({"doctor", "--set", "connections.warehouse.type=postgres", "--set",
                             "connections.warehouse.dsn=postgres://u:hush@127.0.0.1:1/d"},
                            1);
  EXPECT_THAT(down.dump(), AllOf(HasSubstr("check connections.warehouse.dsn"), Not(HasSubstr("hush"))));
  const auto version = RunJson({"version"});
  EXPECT_EQ(version[0].at("component"), "millrace");
  EXPECT_THAT(version.dump(), AnyOf(HasSubstr("\"jemalloc 5."), HasSubstr("\"C library\""))) << "the latter with sanitizers";
  EXPECT_EQ(Run({"--version"}).out, version[0].at("version").get<std::string>() + "\n");
}

}  // namespace
}  // namespace millrace::testing
