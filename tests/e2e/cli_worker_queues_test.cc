// Workers that take some queues only, as processes over Redis and PostgreSQL: what the flag and the configuration say is what a
// worker gets, and small stages run while the queue of the large ones is flooded.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/cli_runner.h"
#include "tests/support/redis_server.h"
#include "tests/support/test_postgres.h"

namespace millrace::testing {
namespace {

class CliWorkerQueues : public CliTest {
 protected:
  void WriteConfig(const std::string& dsn) {
    const std::string clients = fmt::format("tcp://127.0.0.1:{}", clients_.number);
    const std::string workers = fmt::format("tcp://127.0.0.1:{}", workers_.number);
    Write("config.yaml",
          fmt::format("version: 1\nhome: {0}\nlake: {1}\nledger: {{ dsn: \"{2}\" }}\nqueue: {{ redis: \"{3}\" }}\n"
                      "broker: {{ listen_clients: \"{4}\", listen_workers: \"{5}\" }}\n"
                      "worker: {{ brokers: [\"{5}\"], queues: [default, small], concurrency: 2 }}\n",
                      home_.string(), Path("lake"), dsn, redis_.endpoint(), clients, workers));
  }
  static std::vector<std::string> With(std::vector<std::string> args) {
    args.insert(args.end(), {"--config", "config.yaml"});
    return args;
  }
  // A command of that queue that ends when the file "release" is there.
  std::string Submit(const std::string& queue) {
    const CliResult result =
        Run(With({"job", "submit", "--kind", "command", "--queue", queue, "--payload",
                  fmt::format(R"({{"argv": ["sh", "-c", "until test -e {}; do sleep 0.05; done"]}})", Path("release")), "-q"}));
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out.substr(0, 36);
  }
  nlohmann::json Queue(const std::string& name) {
    const CliResult result = Run(With({"queue", "show", name, "-o", "json"}));
    const auto json = nlohmann::json::parse(result.out, nullptr, false);
    return json.is_array() && !json.empty() ? json[0] : nlohmann::json::object();
  }
  // The workers that had an attempt of the job.
  std::set<std::string> WorkersOf(const std::string& job) {
    std::set<std::string> workers;
    const auto shown = RunJson(With({"job", "show", job}));
    for (const auto& attempt : shown.at("attempts")) workers.insert(attempt.at("worker").get<std::string>());
    return workers;
  }
  nlohmann::json JobOf(const std::string& stage) {
    for (const auto& job : RunJson(With({"job", "list"})))
      if (job.value("stage", "") == stage) return job;
    return {};
  }

  RedisServer redis_{"everysec"};
  const wire::HeldPort clients_ = wire::HoldPort().value(), workers_ = wire::HoldPort().value();
};

TEST_F(CliWorkerQueues, SmallStagesRunWhileTheLargeOnesFloodTheirQueue) {
  MILLRACE_NEED_POSTGRES();
  ASSERT_TRUE(redis_.Start());
  TestDatabase database("cli_worker_queues");
  WriteConfig(database.dsn());
  const auto broker = Start(With({"broker"}));
  const auto large = Start(With({"worker", "--name", "large-1", "--queues", "large", "--concurrency", "1"}));
  const auto small = Start(With({"worker", "--name", "small-1"}));  // its queues are in the file
  ASSERT_TRUE(Eventually([&] {
    const CliResult status = Run(With({"status", "-o", "json"}));
    const auto json = nlohmann::json::parse(status.out, nullptr, false);
    return json.is_object() && json.value("workers", nlohmann::json::array()).size() == 2;
  })) << broker->Err();
  std::vector<std::string> flood;
  for (int i = 0; i < 8; ++i) flood.push_back(Submit("large"));
  ASSERT_TRUE(Eventually([&] { return Queue("large").value("running", 0) == 1; }));
  const std::string nobodys = Submit("other");

  Write("in.csv", "id,v\n1,a\n2,b\n3,c\n");
  Write("sized.yaml",
        "version: 1\npipeline: sized\nroute_by_size: 2\nstages:\n"
        "  rows: { extract: { from: file, path: in.csv } }\n"
        "  many: { transform: \"select * from rows\" }\n"
        "  few:  { transform: \"select count(*) as n from rows\", route_by_size: 100 }\n");
  ASSERT_EQ(Run(With({"pipeline", "apply", "sized.yaml"})).code, 0);
  ASSERT_EQ(Run(With({"run", "start", "sized"})).code, 0);
  ASSERT_TRUE(Eventually([&] { return JobOf("few").value("state", "") == "succeeded"; }, std::chrono::seconds{60}))
      << small->Err();
  const std::string few = JobOf("few").at("job"), many = JobOf("many").at("job"), rows = JobOf("rows").at("job");
  EXPECT_EQ(WorkersOf(few), std::set<std::string>{"small-1"});
  EXPECT_EQ(WorkersOf(rows), std::set<std::string>{"small-1"}) << "queue default";
  EXPECT_EQ(RunJson(With({"job", "show", few})).at("routed_to"), "small");
  auto queue = Queue("large");
  EXPECT_EQ(queue.at("running"), 1) << "the flood stands: " << queue.dump();
  EXPECT_EQ(queue.at("ready"), 8) << "seven of it, and the large stage";
  EXPECT_TRUE(WorkersOf(many).empty()) << "it waits behind the flood";
  EXPECT_EQ(Queue("other").at("unserved"), 1) << "neither takes this queue";

  Write("release", "");
  ASSERT_TRUE(Eventually([&] { return JobOf("many").value("state", "") == "succeeded"; }, std::chrono::seconds{60}))
      << large->Err();
  EXPECT_EQ(WorkersOf(many), std::set<std::string>{"large-1"});
  EXPECT_EQ(RunJson(With({"job", "show", many})).at("routed_to"), "large");
  for (const std::string& job : flood)
    EXPECT_TRUE(Eventually([&] { return WorkersOf(job) == std::set<std::string>{"large-1"}; })) << job;
  EXPECT_TRUE(WorkersOf(nobodys).empty());
  for (CliProcess* process : {small.get(), large.get(), broker.get()}) {
    process->Signal(SIGTERM);
    EXPECT_EQ(process->Wait(std::chrono::seconds{30}).code, 0) << process->Err();
  }
}

}  // namespace
}  // namespace millrace::testing
