// Everything the broker's audit thread does, one step at a time: follows the audit chains and has what is sound signed. Apart
// from the ledger's thread, over a connection of its own: a look reads, hashes and signs the records of ten seconds, and
// commits that waited for it would be late by as much. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "common/base/clock.h"
#include "common/crypto/audit_source.h"
#include "common/ledger/audit_follow.h"

namespace millrace {

// Called with the heads of all chains and the records since the last call, all of them checked to be chains. Runs on the audit
// thread. `now` is this process's clock, not the database's: who can write to the database must not say what time it is.
using CheckpointHook = std::function<void(WallTime now, const AuditNews& news)>;

// A look reads so many records and then rests: what works for jobs at that time, on few cores, need not wait for all of it. One
// that was begun anew because there were too many does not rest, or it would never be at its end.
inline constexpr std::uint32_t kAuditPageRecords = 64;
inline constexpr Millis kAuditRest{10};
// More than this, all pages together, is handed over before the look is at its end.
inline constexpr std::size_t kAuditRecordsMax = 10'000;

struct AuditPumpOptions {
  CheckpointHook checkpoint;                          // REQUIRED
  std::map<AuditWriterId, AuditHead> checkpointed{};  // heads that are signed already
  Millis interval{10'000};                            // from the beginning of a look to that of the next one
  std::uint32_t page = kAuditPageRecords;
};

class AuditPump {
 public:
  // `source` and `clock` must outlive the pump. The first look is due after one interval.
  AuditPump(AuditPumpOptions options, AuditSource& source, const Clock& clock);

  // Reads one page when one is due. With the last page of a look, or when kAuditRecordsMax are kept, the hook is called with
  // all that was read since it was called last; in the latter case heads are asked for anew. Returns when Step wants to be
  // called again. What cannot be read is logged, and looked at again after one interval.
  MonoTime Step();
  // Reads what is left and calls the hook, without rests: at the end, when nothing is written any more. Gives up after
  // `budget`; what was read by then is handed over as incomplete.
  void Finish(Millis budget);

 private:
  void Page(MonoTime deadline);  // the first of a look, unless looking_; the last one ends it
  void HandOver();

  const AuditPumpOptions options_;
  AuditSource& source_;
  const Clock& clock_;
  AuditFollower follower_;
  AuditNews news_;        // since the hook was called
  bool looking_ = false;  // in the middle of a look
  bool behind_ = false;   // the look before was not at its end
  MonoTime next_, look_began_{};
};

}  // namespace millrace
