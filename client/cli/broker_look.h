// What a command says of a running broker, without needing one.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/cli/broker_client.h"
#include "client/cli/context.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"

namespace millrace::cli {

// The broker that serves the context's org, as the ledger has it. Empty: none that lives is known; `clients` alone is empty
// where the broker has not said it.
BrokerAddress OwnerOf(const Context& context, Ledger& ledger);

// The broker of this installation, if one answers. Used by one thread. Errors: no transport could be made.
class Door {
 public:
  // Asks the configured one for at most `patience`.
  static Result<Door> Open(const Context& context, Millis patience = Millis{3000});
  // The one that serves the context's org, where the ledger tells who that is. The configured one is asked first, for a moment
  // where the owner announces another address; where it is not the owner, he at that address, if he answers there himself; else
  // as Open. Each for `patience`.
  static Result<Door> OpenOwners(const Context& context, Ledger& ledger, Millis patience = Millis{3000});
  // The one that serves the context's org, unless its address is `asked`. No client: none is known that answers within
  // `patience`, or another one answers there, whose name `answered_by` has.
  static Result<Door> OpenOwnersBeside(const Context& context, Ledger& ledger, const std::string& asked,
                                       Millis patience = Millis{3000});
  Door(Door&&) = default;
  Door& operator=(Door&& other) noexcept;
  BrokerClient* client() { return client_ ? &*client_ : nullptr; }  // nullptr: none answers
  void Close() { client_.reset(); }                                 // it is asked nothing more
  const std::string& endpoint() const { return endpoint_; }         // of whom was asked last
  const std::string& answered_by() const { return answered_by_; }   // the name of who answered there; empty: nobody did
  wire::Transport& transport() { return *transport_; }

 private:
  Door() = default;
  static Result<Door> OpenAt(std::string endpoint, const Clock& clock, Millis patience);
  static Result<Door> OpenNamed(const BrokerAddress& broker, const Clock& clock, Millis patience);
  std::string endpoint_, answered_by_;
  std::unique_ptr<wire::Transport> transport_;
  std::optional<BrokerClient> client_;
};

// After something was recorded that a broker must take up: says on stderr that none answers, if so, and how to start one.
// `what`: "the new run". Asks the owner and the configured one, each for at most a second.
void SayIfNobodyRuns(const Context& context, Ledger& ledger, std::string_view what);

// What runs now of the run with this id, of `stages` stages, or of the job with this id (1), as the broker says that serves the
// context's org. Nothing as well when none answers within a second: it is not known then.
std::vector<wire::RunUpdate::Stage> RunningNow(const Context& context, Ledger& ledger, Uuid id, std::size_t stages);

// Of a kind that Millrace's own workers do not serve: that its job waits for a worker that does. Empty for all others.
std::string ForeignKind(std::string_view kind);

// Of what is ready and taken by no connected worker: what it is ("3 of kind 'mail'"), and what would help.
std::string UnservedText(const wire::ListUnservedReply::Item& item);
std::string UnservedFix(const wire::ListUnservedReply::Item& item, std::uint64_t workers);

}  // namespace millrace::cli
