#include "client/cli/broker_look.h"

#include <algorithm>

#include "common/base/tell.h"
#include "common/model/job.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::cli {
namespace {

constexpr Millis kLook{1000};
constexpr Millis kFirstLook{300};  // at the configured broker, where the ledger names another one to ask

struct Owner {
  BrokerAddress address;
  bool has_namesake = false;  // another broker that lives has its name: the name does not tell who answers
};

Owner LookUpOwner(const Context& context, Ledger& ledger) {
  const auto shards = ledger.Shards(context.Deadline());
  const auto now = ledger.Now(context.Deadline());
  if (!shards || !now || shards->empty()) return {};
  const ShardId mine = ShardOf(context.org(), static_cast<std::uint16_t>(shards->size()));
  const auto shard = std::ranges::find(*shards, mine, &ShardStatus::shard);
  if (shard == shards->end() || !shard->owner || *now - shard->renewed_at >= kOwnershipTtl) return {};
  Owner owner{.address = {.name = shard->owner_name, .clients = {}}};
  const auto living = ledger.LivingBrokers(context.Deadline());
  if (!living) return owner;
  if (living->contains(*shard->owner)) owner.address.clients = living->at(*shard->owner).clients;
  owner.has_namesake = std::ranges::any_of(
      *living, [&](const auto& broker) { return broker.first != *shard->owner && broker.second.name == shard->owner_name; });
  return owner;
}

}  // namespace

BrokerAddress OwnerOf(const Context& context, Ledger& ledger) { return LookUpOwner(context, ledger).address; }

Door& Door::operator=(Door&& other) noexcept {
  client_.reset();  // before its transport
  endpoint_ = std::move(other.endpoint_);
  answered_by_ = std::move(other.answered_by_);
  transport_ = std::move(other.transport_);
  client_ = std::move(other.client_);
  return *this;
}

Result<Door> Door::OpenAt(std::string endpoint, const Clock& clock, Millis patience) {
  Door door;
  door.endpoint_ = std::move(endpoint);
  MILLRACE_TRY_ASSIGN(door.transport_, wire::MakeZmtpTransport());
  auto client = BrokerClient::Connect(*door.transport_, door.endpoint_, clock);
  if (!client) return door;
  auto status = client->Status(clock.Now() + patience);
  if (!status) return door;
  door.answered_by_ = std::move(status->broker);
  door.client_.emplace(std::move(*client));
  return door;
}

// From here, that address may be another broker's, and even another installation's: such a one is told nothing.
Result<Door> Door::OpenNamed(const BrokerAddress& broker, const Clock& clock, Millis patience) {
  MILLRACE_TRY_ASSIGN(Door door, OpenAt(broker.clients, clock, patience));
  if (door.answered_by_ != broker.name) door.Close();
  return door;
}

Result<Door> Door::Open(const Context& context, Millis patience) {
  return OpenAt(context.ClientEndpoint(), context.clock(), patience);
}

Result<Door> Door::OpenOwners(const Context& context, Ledger& ledger, Millis patience) {
  if (context.embedded()) return Open(context, patience);  // there is one broker, which everybody finds in the home
  const Owner owner = LookUpOwner(context, ledger);
  if (owner.address.clients.empty() || owner.address.clients == context.ClientEndpoint()) return Open(context, patience);
  MILLRACE_TRY_ASSIGN(Door configured, Open(context, std::min(patience, kFirstLook)));
  if (configured.answered_by() == owner.address.name && !owner.has_namesake) return configured;
  MILLRACE_TRY_ASSIGN(Door owners, OpenNamed(owner.address, context.clock(), patience));
  if (owners.client() != nullptr) return owners;
  if (configured.client() != nullptr) return configured;
  return Open(context, patience);
}

Result<Door> Door::OpenOwnersBeside(const Context& context, Ledger& ledger, const std::string& asked, Millis patience) {
  const BrokerAddress owner = context.embedded() ? BrokerAddress{} : OwnerOf(context, ledger);
  if (owner.clients.empty() || owner.clients == asked) return Door();
  return OpenNamed(owner, context.clock(), patience);
}

void SayIfNobodyRuns(const Context& context, Ledger& ledger, std::string_view what) {
  if (auto door = Door::OpenOwners(context, ledger, kLook); door && door->client() != nullptr) return;
  Tell("recorded; no broker answers at {}: {} waits for one ('{}')\n", context.ClientEndpoint(), what,
       context.embedded() ? "millrace up --home " + context.config().home : "millrace broker");
}

std::vector<wire::RunUpdate::Stage> RunningNow(const Context& context, Ledger& ledger, Uuid id, std::size_t stages) {
  auto door = Door::OpenOwners(context, ledger, kLook);
  if (!door || door->client() == nullptr) return {};
  auto seen = door->client()->Look(context.org(), RunId{id}, stages, context.clock().Now() + kLook);
  if (!seen) return {};
  std::erase_if(*seen, [](const auto& s) { return s.state != JobState::kRunning && s.state != JobState::kCancelling; });
  return std::move(*seen);
}

std::string ForeignKind(std::string_view kind) {
  if (kind == kJobKindStage || kind == kJobKindCommand) return {};
  return fmt::format(
      "kind '{}' waits for a connected worker that serves it: 'millrace worker' and 'millrace up' serve {} and {}", kind,
      kJobKindStage, kJobKindCommand);
}

std::string UnservedText(const wire::ListUnservedReply::Item& item) {
  return fmt::format("{} of kind '{}'{}", item.ready, item.kind,
                     item.root.empty() ? std::string{} : fmt::format(" under '{}'", item.root));
}

std::string UnservedFix(const wire::ListUnservedReply::Item& item, std::uint64_t workers) {
  if (item.kind != kJobKindStage && item.kind != kJobKindCommand)
    return fmt::format("connect a worker that serves kind '{}': 'millrace worker' and 'millrace up' serve {} and {}", item.kind,
                       kJobKindStage, kJobKindCommand);
  if (workers == 0) return "start 'millrace worker': none is connected";
  return fmt::format("start 'millrace worker' for queue '{}'{}: none that is connected takes these", item.queue,
                     item.root.empty() ? std::string{} : fmt::format(" where it reaches '{}'", item.root));
}

}  // namespace millrace::cli
