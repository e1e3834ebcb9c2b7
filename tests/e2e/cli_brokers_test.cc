// What people are told where several brokers share an installation.
#include <gmock/gmock.h>

#include "tests/support/cli_installation.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;

class CliBrokers : public CliInstallation {};

TEST_P(CliBrokers, ASecondOneOfTheSameNameIsToldApart) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--name", "b1"}));
  EXPECT_THAT(BrokerSaid(), ::testing::Not(HasSubstr("another broker is called")));
  const auto clients = wire::HoldPort().value(), workers = wire::HoldPort().value();
  const std::string second = "broker.listen_clients=tcp://127.0.0.1:" + std::to_string(clients.number);
  const auto other = Start(With({"broker", "--name", "b1", "--set", second, "--set",
                                 "broker.listen_workers=tcp://127.0.0.1:" + std::to_string(workers.number)}));
  EXPECT_TRUE(Eventually([&] { return other->Err().contains("another broker is called 'b1' too"); }, kPatience))
      << other->Err();
  const auto shared = [&] {
    const auto brokers = Json({"status"}).at("brokers");
    return brokers.size() == 2 && !brokers.at(0).at("shards").empty() && !brokers.at(1).at("shards").empty();
  };
  ASSERT_TRUE(Eventually(shared, kPatience)) << Do({"status"}).out;
  const auto says_once = [&] {
    const std::string out = Do({"status"}).out;
    const auto at = out.find("the one that answers here");
    return at != std::string::npos && out.find("the one that answers here", at + 1) == std::string::npos;
  };
  EXPECT_TRUE(Eventually(says_once)) << Do({"status"}).out;

  // Of the two, one serves org 1; the other one leads there.
  const std::vector<std::string> submit{"job",          "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})",
                                        "--durability", "redis"};
  auto there = submit;
  there.insert(there.end(), {"--set", second});
  const CliResult a = Do(submit), b = Do(there);
  EXPECT_EQ(a.code, 0) << a.err;
  EXPECT_EQ(b.code, 0) << b.err;
  other->Signal(SIGTERM);
  EXPECT_EQ(other->Wait(kPatience).code, 0) << other->Err();
  Stop();
}

INSTANTIATE_TEST_SUITE_P(Distributed, CliBrokers, ::testing::Values(Form::kPostgres), FormName);

}  // namespace
}  // namespace millrace::testing
