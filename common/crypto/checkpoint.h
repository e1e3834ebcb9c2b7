// Signed checkpoints over the audit chains, in files outside the ledger: what makes tail truncation, a restored older database
// and a full recomputation visible. Format and threat model: ops/docs/audit.md.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/base/secret.h"
#include "common/crypto/audit.h"

namespace millrace {

inline constexpr auto kCheckpointInterval = std::chrono::seconds{10};
inline constexpr std::size_t kCheckpointRecordsMax = 10'000;  // pending records that force a checkpoint before its time
inline constexpr std::size_t kCheckpointLineBytesMax = 256u << 20;
// A line without news says that the chains are as they were: a record that is older than it must have been there.
inline constexpr auto kCheckpointQuietInterval = std::chrono::hours{1};
// After so many bytes (or as many as the heads of all chains take) a line holds all heads again, so that the next process start
// need not read further back. What the heads cost is thus bounded by what the news cost.
inline constexpr std::uint64_t kCheckpointFullEveryBytes = 256u << 10;

using PublicKey = std::array<std::uint8_t, 32>;
using Signature = std::array<std::uint8_t, 64>;

// An Ed25519 key pair. Immutable, so it may be shared between threads.
class SigningKey {
 public:
  // Reads the key file, or makes a new pair when there is none: the secret at `path` (mode 0600, directories made 0700), the
  // public half in hex at `path`.pub. kRejected: the file is readable by others. kCorrupt: not a key file.
  static Result<SigningKey> LoadOrCreate(const std::string& path);
  // REQUIRES: `seed` has 32 bytes. kInvalidArgument otherwise.
  static Result<SigningKey> FromSeed(std::string_view seed);
  Signature Sign(std::string_view bytes) const;
  const PublicKey& public_key() const { return public_; }

 private:
  Secret secret_;  // 64 bytes: seed and public key, as libsodium wants them
  PublicKey public_{};
};

bool VerifySignature(std::string_view bytes, const Signature& signature, const PublicKey& key);
Result<PublicKey> ReadPublicKey(const std::string& path);  // a .pub file: 64 hex digits

// What a checkpoint keeps of a record: enough to name the record and the row after everything in the database was recomputed.
struct CheckpointEntry {
  AuditWriterId writer;
  std::uint64_t seq = 0;
  Digest hash{};
  std::vector<std::uint32_t> leaf_prefixes;  // the first 4 bytes of each leaf, big-endian
  static CheckpointEntry Of(const AuditRecord& record);
};

// The last line of the file that a checkpoint's writer found when it started: files cannot go missing unnoticed.
struct CheckpointLink {
  AuditWriterId log;
  std::uint64_t sequence = 0;
  Digest line{};  // SHA-256 of it
};
struct Checkpoint {
  int format = 2;              // 1: always full and complete, no link
  AuditWriterId log;           // which process start wrote it: one file each
  std::uint64_t sequence = 0;  // 1, 2, 3 ... in the file
  Digest previous{};           // SHA-256 of the line before it; zeros for the first
  WallTime at{};
  bool complete = true;                     // every chain was read to its end: no older record may turn up later
  bool full = true;                         // `heads` are those of all chains
  std::optional<CheckpointLink> continues;  // of the first line only
  std::vector<AuditHead> heads;             // those that changed since the line before it, or all
  std::vector<CheckpointEntry> records;     // audit records since the checkpoint before it
  std::string SignedBytes() const;          // canonical; what the signature covers
};

// One line without its newline, and back. ParseCheckpointLine checks the form and, with `key`, the signature: kCorrupt for
// either, kUnsupported for a newer format.
std::string CheckpointLine(const Checkpoint& checkpoint, const SigningKey& key);
Result<Checkpoint> ParseCheckpointLine(std::string_view line, const PublicKey& key);

// Appends checkpoints of one process start to its own file, `<dir>/<log>.checkpoints`. Not thread-safe: owned by its caller.
class CheckpointWriter {
 public:
  // Makes `dir` (0700) when it is missing; the file is made at the first write. `log` is fresh for each process start. Goes on
  // where the file that was written last ends, unless it is not sound (which is logged): then all heads are written anew.
  static Result<CheckpointWriter> Open(const std::string& dir, SigningKey key, AuditWriterId log,
                                       Millis interval = kCheckpointInterval);
  CheckpointWriter(CheckpointWriter&& other) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) = delete;
  ~CheckpointWriter();

  // True when MaybeWrite would write: so that the caller reads all heads only then.
  bool Due(MonoTime now) const;
  // Keeps `new_records` and, when the interval has passed since the last checkpoint (or too many are kept), appends one signed
  // line and fsyncs it. Of `heads` (all chains) it writes those that are not in a line already. Returns whether it wrote;
  // nothing new is written once in kCheckpointQuietInterval. After an error the records are still kept. `complete`: see
  // Checkpoint.
  Result<bool> MaybeWrite(MonoTime now, WallTime at, std::span<const AuditHead> heads, std::span<const AuditRecord> new_records,
                          bool complete = true);
  // Writes now whatever is kept (at shutdown).
  Result<bool> Flush(MonoTime now, WallTime at, std::span<const AuditHead> heads, bool complete = true);
  // The heads that are in a line of this file or of those that it continues: nothing up to them need be signed again.
  const std::map<AuditWriterId, AuditHead>& written() const { return written_; }
  const std::string& path() const { return path_; }

 private:
  CheckpointWriter(std::string dir, SigningKey key, AuditWriterId log, Millis interval);
  Result<void> Append(const std::string& line);

  std::string dir_, path_;
  SigningKey key_;
  AuditWriterId log_;
  Millis interval_;
  int fd_ = -1;
  std::uint64_t size_ = 0, sequence_ = 0;
  Digest previous_{};
  std::optional<MonoTime> last_, quiet_since_;
  std::map<AuditWriterId, AuditHead> written_;
  std::optional<CheckpointLink> continues_;
  std::uint64_t since_full_ = 0;  // bytes
  bool full_due_ = true;
  std::vector<CheckpointEntry> pending_;
};

// Everything the checkpoints of a directory say, merged.
struct CheckpointSet {
  struct Pin {
    Digest hash{};
    WallTime at{};                                            // of the first checkpoint that holds it
    std::optional<std::vector<std::uint32_t>> leaf_prefixes;  // absent when it is known as a head only
  };
  std::map<std::pair<AuditWriterId, std::uint64_t>, Pin> pins;
  std::map<AuditWriterId, std::uint64_t> last_seq;  // the highest pinned seq of each chain
  std::uint64_t files = 0, checkpoints = 0;
  std::optional<WallTime> newest;
  std::vector<WallTime> times;  // of the complete ones
  // Why the files themselves cannot be trusted: "FILE:LINE: signature does not verify". Empty when all is well.
  std::vector<std::string> problems;
  // Two checkpoints that pin different hashes for one (writer, seq).
  std::vector<std::pair<AuditWriterId, std::uint64_t>> forks;
  std::vector<std::string> torn;  // last lines cut off by a crash while being written; not an error

  void Merge(const Checkpoint& checkpoint);
};

// Where a folder's checkpoints stand: the last line of the file that was written last, and the heads of all chains then.
struct CheckpointTail {
  CheckpointLink last;
  std::map<AuditWriterId, AuditHead> heads;
  std::uint64_t since_full = 0;  // bytes behind the last line that holds all heads
};
// Reads backwards and no further than to a line with all heads. Nothing: there is no checkpoint. kCorrupt: a line is not sound.
Result<std::optional<CheckpointTail>> ReadCheckpointTail(const std::string& dir, const PublicKey& key);

// Reads every *.checkpoints file of `dir`. kNotFound: no such directory or no file in it.
Result<CheckpointSet> ReadCheckpoints(const std::string& dir, const PublicKey& key);

}  // namespace millrace
