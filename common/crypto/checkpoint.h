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

struct Checkpoint {
  AuditWriterId log;           // which process start wrote it: one file each
  std::uint64_t sequence = 0;  // 1, 2, 3 ... in the file
  Digest previous{};           // SHA-256 of the line before it; zeros for the first
  WallTime at{};
  std::vector<AuditHead> heads;          // all chains
  std::vector<CheckpointEntry> records;  // audit records since the checkpoint before it
  std::string SignedBytes() const;       // canonical; what the signature covers
};

// One line without its newline, and back. ParseCheckpointLine checks the form and, with `key`, the signature: kCorrupt for
// either, kUnsupported for a newer format.
std::string CheckpointLine(const Checkpoint& checkpoint, const SigningKey& key);
Result<Checkpoint> ParseCheckpointLine(std::string_view line, const PublicKey& key);

// Appends checkpoints of one process start to its own file, `<dir>/<log>.checkpoints`. Not thread-safe: owned by its caller.
class CheckpointWriter {
 public:
  // Makes `dir` (0700) when it is missing; the file is made at the first write. `log` is fresh for each process start.
  static Result<CheckpointWriter> Open(const std::string& dir, SigningKey key, AuditWriterId log,
                                       Millis interval = kCheckpointInterval);
  CheckpointWriter(CheckpointWriter&& other) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) = delete;
  ~CheckpointWriter();

  // True when MaybeWrite would write: so that the caller reads all heads only then.
  bool Due(MonoTime now) const;
  // Keeps `new_records` and, when the interval has passed since the last checkpoint (or too many are kept), appends one signed
  // line and fsyncs it. Returns whether it wrote; nothing new is not written. After an error the records are still kept.
  Result<bool> MaybeWrite(MonoTime now, WallTime at, std::span<const AuditHead> heads,
                          std::span<const AuditRecord> new_records);
  // Writes now whatever is kept (at shutdown).
  Result<bool> Flush(MonoTime now, WallTime at, std::span<const AuditHead> heads);
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
  std::optional<MonoTime> last_;
  std::vector<AuditHead> last_heads_;
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
  // Why the files themselves cannot be trusted: "FILE:LINE: signature does not verify". Empty when all is well.
  std::vector<std::string> problems;
  // Two checkpoints that pin different hashes for one (writer, seq).
  std::vector<std::pair<AuditWriterId, std::uint64_t>> forks;
  std::vector<std::string> torn;  // last lines cut off by a crash while being written; not an error

  void Merge(const Checkpoint& checkpoint);
};

// Reads every *.checkpoints file of `dir`. kNotFound: no such directory or no file in it.
Result<CheckpointSet> ReadCheckpoints(const std::string& dir, const PublicKey& key);

}  // namespace millrace
