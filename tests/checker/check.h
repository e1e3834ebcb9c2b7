// Compares what clients were told, what witnesses saw and what destinations hold with the ledger, and with the histories of the
// processes, and verifies S1 to S10 (ARCHITECTURE.md). The program around it is `millrace-history-check` (main.cc).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace millrace::checker {

// A table that only ever grows, without a unique key, whose rows carry effect and token (`provenance: true`).
struct AppendTarget {
  std::string table;  // qualified; both this and the column names stand in SQL as they are
  std::int64_t rows_per_effect = 0;
};

struct Window {  // micros since 1970, both ends in it
  std::int64_t from = 0, to = 0;
};

struct Inputs {
  std::string ledger;   // PostgreSQL conninfo or URI, or the path of a SQLite file
  std::string history;  // folder of the processes' histories; empty: none
  std::string
      accepted;  // JSON lines {"job": uuid, "class": "ledger"|"redis", "at": micros} or {"run": uuid}: what a client was told
  std::string witness;                // lines "<job> <token>": attempts that did their work
  std::string destination;            // PostgreSQL or SQLite file with the receipts; empty: not looked at
  std::vector<AppendTarget> targets;  // in `destination`
  std::string checkpoints;            // of the audit trail; empty: the trail is verified without, and the text says so
  std::string public_key;             // of the checkpoints: needed with them
  bool skip_audit = false;
  bool ended = false;             // nothing may still be open
  bool contiguous_slots = false;  // every instant of each schedule between its first and its last slot is a slot that fired,
  Window slots;  // and every one after `from` up to `to` of each schedule that is active; `to` = 0: not asked for
  // Of a PostgreSQL: micros by which its clock was set back, and the times of its receipts that this may have touched.
  std::int64_t destination_steps_back = 0;
  Window destination_stepped;
  std::vector<Window> redis_may_lose;  // jobs of class redis that were accepted in one of these
};

inline constexpr std::size_t kInvariants = 10;  // S1 .. S10

struct Violation {
  int invariant = 1;  // the n of Sn
  std::string code;   // lost, doubled, terminal, stale_accepted, token_order, org, audit, two_leases, slot, counts, truncated
  std::string text;
};

struct Report {
  std::vector<Violation> violations;
  std::array<std::int64_t, kInvariants> looked_at{};  // how many things each invariant was verified on: 0 means vacuous
  std::int64_t accepted = 0, done = 0, open = 0, lost = 0, doubled = 0, stale_accepted = 0;
  std::int64_t redis_accepted = 0, redis_lost = 0;  // of class redis, among the above; lost within their window
  std::int64_t redis_exposed = 0;                   // of class redis, accepted in a window
  std::int64_t runs = 0, slots = 0, effects = 0, effect_rows = 0, attempts = 0;
  std::int64_t operations = 0, files = 0, witnessed = 0;
  std::int64_t received = 0, overtaken = 0;  // grants that reached workers; of those, after a newer one of their job had
  std::int64_t torn = 0;                     // last lines of histories whose processes ended while they wrote them
  std::vector<std::string> unreadable;       // every other line of a history that is no operation: there is no verdict
  std::optional<std::int64_t> checkpoints;   // that the audit trail was verified against; empty: without any

  bool Has(std::string_view code) const;
  int ExitCode() const;  // 0: all hold, 1: a violation, 2: none, but something could not be read
};

// An error: something could not be read at all.
Result<Report> Check(const Inputs& inputs);

// For people: the counts, each invariant, the first violations of each code.
std::string Text(const Report& report);

}  // namespace millrace::checker
