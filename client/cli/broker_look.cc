#include "client/cli/broker_look.h"

#include "client/cli/broker_client.h"
#include "common/model/job.h"
#include "common/wire/zmq_transport.h"

namespace millrace::cli {
namespace {

constexpr Millis kLook{1000};

bool Answers(const Context& context) {
  const auto transport = wire::MakeZmqTransport(wire::MakeZmqContext());
  if (!transport) return false;
  auto client = BrokerClient::Connect(**transport, context.ClientEndpoint(), context.clock());
  return client && client->Status(context.clock().Now() + kLook);
}

}  // namespace

void SayIfNobodyRuns(const Context& context, std::string_view what) {
  if (Answers(context)) return;
  fmt::print(stderr, "recorded; no broker answers at {}: {} waits for one ('{}')\n", context.ClientEndpoint(), what,
             context.embedded() ? "millrace up --home " + context.config().home : "millrace broker");
}

std::string ForeignKind(std::string_view kind) {
  if (kind == kJobKindStage || kind == kJobKindCommand) return {};
  return fmt::format(
      "kind '{}' waits for a connected worker that serves it: 'millrace worker' and 'millrace up' serve {} and {}", kind,
      kJobKindStage, kJobKindCommand);
}

}  // namespace millrace::cli
