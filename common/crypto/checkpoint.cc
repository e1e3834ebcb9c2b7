#include "common/crypto/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

namespace millrace {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 1;
constexpr std::string_view kDomain = "millrace checkpoint v1";
constexpr std::string_view kSuffix = ".checkpoints";

void AppendBigEndian(std::string& out, std::uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) out += static_cast<char>(static_cast<std::uint8_t>(value >> shift));
}

void AppendDigest(std::string& out, const Digest& digest) {
  out.append(reinterpret_cast<const char*>(digest.data()), digest.size());
}

std::string PrefixesToHex(std::span<const std::uint32_t> prefixes) {
  std::string text;
  text.reserve(prefixes.size() * 8);
  for (const std::uint32_t prefix : prefixes) fmt::format_to(std::back_inserter(text), "{:08x}", prefix);
  return text;
}

Result<std::vector<std::uint32_t>> PrefixesFromHex(const std::string& hex) {
  std::vector<std::uint32_t> prefixes;
  if (hex.size() % 8 != 0) return Fail(ErrorCode::kCorrupt, "leaf prefixes are not groups of 8 hex digits");
  prefixes.reserve(hex.size() / 8);
  for (std::size_t i = 0; i < hex.size(); i += 8) {
    std::uint32_t value = 0;
    for (std::size_t j = i; j < i + 8; ++j) {
      const char c = hex[j];
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
      if (digit < 0) return Fail(ErrorCode::kCorrupt, "leaf prefixes are not groups of 8 hex digits");
      value = value << 4 | static_cast<std::uint32_t>(digit);
    }
    prefixes.push_back(value);
  }
  return prefixes;
}

Result<Signature> SignatureFromHex(const std::string& hex) {
  if (hex.size() != 128) return Fail(ErrorCode::kCorrupt, "a signature has {} hex digits, expected 128", hex.size());
  MILLRACE_TRY_ASSIGN(const Digest first, DigestFromHex(std::string_view(hex).substr(0, 64)));
  MILLRACE_TRY_ASSIGN(const Digest second, DigestFromHex(std::string_view(hex).substr(64)));
  Signature signature;
  std::copy(first.begin(), first.end(), signature.begin());
  std::copy(second.begin(), second.end(), signature.begin() + 32);
  return signature;
}

Result<Checkpoint> FromJson(const Json& json) {
  Checkpoint checkpoint;
  MILLRACE_TRY_ASSIGN(checkpoint.log, AuditWriterId::Parse(json.at("log").get<std::string>()));
  checkpoint.sequence = json.at("seq").get<std::uint64_t>();
  MILLRACE_TRY_ASSIGN(checkpoint.previous, DigestFromHex(json.at("previous").get<std::string>()));
  checkpoint.at = FromUnixMicros(json.at("at_us").get<std::int64_t>());
  for (const Json& item : json.at("heads")) {
    AuditHead head;
    MILLRACE_TRY_ASSIGN(head.writer, AuditWriterId::Parse(item.at(0).get<std::string>()));
    head.seq = item.at(1).get<std::uint64_t>();
    MILLRACE_TRY_ASSIGN(head.hash, DigestFromHex(item.at(2).get<std::string>()));
    checkpoint.heads.push_back(head);
  }
  for (const Json& item : json.at("records")) {
    CheckpointEntry entry;
    MILLRACE_TRY_ASSIGN(entry.writer, AuditWriterId::Parse(item.at(0).get<std::string>()));
    entry.seq = item.at(1).get<std::uint64_t>();
    MILLRACE_TRY_ASSIGN(entry.hash, DigestFromHex(item.at(2).get<std::string>()));
    MILLRACE_TRY_ASSIGN(entry.leaf_prefixes, PrefixesFromHex(item.at(3).get<std::string>()));
    checkpoint.records.push_back(std::move(entry));
  }
  return checkpoint;
}

bool SameHeads(std::span<const AuditHead> a, std::span<const AuditHead> b) {
  return std::ranges::equal(
      a, b, [](const AuditHead& x, const AuditHead& y) { return x.writer == y.writer && x.seq == y.seq && x.hash == y.hash; });
}

}  // namespace

CheckpointEntry CheckpointEntry::Of(const AuditRecord& record) {
  CheckpointEntry entry{record.writer, record.seq, record.Hash(), {}};
  entry.leaf_prefixes.reserve(record.leaves.size());
  for (const Digest& leaf : record.leaves)
    entry.leaf_prefixes.push_back(std::uint32_t{leaf[0]} << 24 | std::uint32_t{leaf[1]} << 16 | std::uint32_t{leaf[2]} << 8 |
                                  leaf[3]);
  return entry;
}

std::string Checkpoint::SignedBytes() const {
  std::string bytes(kDomain);
  bytes += log.AsBytes();
  AppendBigEndian(bytes, sequence);
  AppendDigest(bytes, previous);
  AppendBigEndian(bytes, static_cast<std::uint64_t>(ToUnixMicros(at)));
  AppendBigEndian(bytes, heads.size());
  for (const AuditHead& head : heads) {
    bytes += head.writer.AsBytes();
    AppendBigEndian(bytes, head.seq);
    AppendDigest(bytes, head.hash);
  }
  AppendBigEndian(bytes, records.size());
  for (const CheckpointEntry& entry : records) {
    bytes += entry.writer.AsBytes();
    AppendBigEndian(bytes, entry.seq);
    AppendDigest(bytes, entry.hash);
    AppendBigEndian(bytes, entry.leaf_prefixes.size());
    for (const std::uint32_t prefix : entry.leaf_prefixes) AppendBigEndian(bytes, prefix);
  }
  return bytes;
}

std::string CheckpointLine(const Checkpoint& checkpoint, const SigningKey& key) {
  Json heads = Json::array(), records = Json::array();
  for (const AuditHead& head : checkpoint.heads)
    heads.push_back(Json::array({head.writer.ToString(), head.seq, ToHex(head.hash)}));
  for (const CheckpointEntry& entry : checkpoint.records)
    records.push_back(Json::array({entry.writer.ToString(), entry.seq, ToHex(entry.hash), PrefixesToHex(entry.leaf_prefixes)}));
  return Json{{"v", kFormat},
              {"log", checkpoint.log.ToString()},
              {"seq", checkpoint.sequence},
              {"previous", ToHex(checkpoint.previous)},
              {"at_us", ToUnixMicros(checkpoint.at)},
              {"heads", std::move(heads)},
              {"records", std::move(records)},
              {"signature", ToHex(key.Sign(checkpoint.SignedBytes()))}}
      .dump();
}

Result<Checkpoint> ParseCheckpointLine(std::string_view line, const PublicKey& key) try {
  if (line.size() > kCheckpointLineBytesMax) return Fail(ErrorCode::kCorrupt, "a checkpoint has {} bytes", line.size());
  const Json json = Json::parse(line);
  if (const int format = json.at("v").get<int>(); format != kFormat)
    return Fail(ErrorCode::kUnsupported, "checkpoint format {} is not {}", format, kFormat);
  MILLRACE_TRY_ASSIGN(Checkpoint checkpoint, FromJson(json));
  MILLRACE_TRY_ASSIGN(const Signature signature, SignatureFromHex(json.at("signature").get<std::string>()));
  if (!VerifySignature(checkpoint.SignedBytes(), signature, key))
    return Fail(ErrorCode::kCorrupt, "the signature does not verify with this public key");
  return checkpoint;
} catch (const Json::exception&) {
  return Fail(ErrorCode::kCorrupt, "not a checkpoint");
}

CheckpointWriter::CheckpointWriter(std::string dir, SigningKey key, AuditWriterId log, Millis interval)
    : dir_(std::move(dir)),
      path_(dir_ + "/" + log.ToString() + std::string(kSuffix)),
      key_(std::move(key)),
      log_(log),
      interval_(interval) {}

CheckpointWriter::CheckpointWriter(CheckpointWriter&& other) noexcept
    : dir_(std::move(other.dir_)),
      path_(std::move(other.path_)),
      key_(std::move(other.key_)),
      log_(other.log_),
      interval_(other.interval_),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      sequence_(other.sequence_),
      previous_(other.previous_),
      last_(other.last_),
      last_heads_(std::move(other.last_heads_)),
      pending_(std::move(other.pending_)) {}

CheckpointWriter::~CheckpointWriter() {
  if (fd_ >= 0) close(fd_);
}

Result<CheckpointWriter> CheckpointWriter::Open(const std::string& dir, SigningKey key, AuditWriterId log, Millis interval) {
  std::error_code failed;
  if (std::filesystem::create_directories(dir, failed))
    std::filesystem::permissions(dir, std::filesystem::perms::owner_all, failed);
  if (failed) return Fail(ErrorCode::kRejected, "cannot make {}: {}", dir, failed.message());
  return CheckpointWriter(dir, std::move(key), log, interval);
}

bool CheckpointWriter::Due(MonoTime now) const {
  return !last_ || now - *last_ >= interval_ || pending_.size() >= kCheckpointRecordsMax;
}

Result<bool> CheckpointWriter::MaybeWrite(MonoTime now, WallTime at, std::span<const AuditHead> heads,
                                          std::span<const AuditRecord> new_records) {
  for (const AuditRecord& record : new_records) pending_.push_back(CheckpointEntry::Of(record));
  if (!Due(now)) return false;
  return Flush(now, at, heads);
}

Result<bool> CheckpointWriter::Flush(MonoTime now, WallTime at, std::span<const AuditHead> heads) {
  if (pending_.empty() && SameHeads(heads, last_heads_)) {
    last_ = now;
    return false;
  }
  Checkpoint checkpoint;
  checkpoint.log = log_;
  checkpoint.sequence = sequence_ + 1;
  checkpoint.previous = previous_;
  checkpoint.at = at;
  checkpoint.heads.assign(heads.begin(), heads.end());
  checkpoint.records = pending_;
  const std::string line = CheckpointLine(checkpoint, key_);
  MILLRACE_TRY(Append(line));
  sequence_ = checkpoint.sequence;
  previous_ = Sha256(line);
  last_ = now;
  last_heads_ = std::move(checkpoint.heads);
  pending_.clear();
  return true;
}

Result<void> CheckpointWriter::Append(const std::string& line) {
  if (fd_ < 0) {
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
    if (fd_ < 0) return Fail(ErrorCode::kRejected, "cannot make {}: {}", path_, std::strerror(errno));
    if (const int folder = open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); folder >= 0) {
      fsync(folder);
      close(folder);
    }
  }
  const std::string text = line + "\n";
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(fd_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;
    done += static_cast<std::size_t>(n);
  }
  if (done == text.size() && fsync(fd_) == 0) {
    size_ += text.size();
    return {};
  }
  const int why = errno;
  // Half a line would make every later one unreadable.
  if (ftruncate(fd_, static_cast<off_t>(size_)) != 0)
    return Fail(ErrorCode::kCorrupt, "{}: {}, and its last line cannot be removed", path_, std::strerror(why));
  return Fail(ErrorCode::kUnavailable, "cannot write {}: {}", path_, std::strerror(why));
}

void CheckpointSet::Merge(const Checkpoint& checkpoint) {
  const auto pin = [&](AuditWriterId writer, std::uint64_t seq, const Digest& hash) -> Pin& {
    auto [at, fresh] = pins.try_emplace({writer, seq}, Pin{hash, checkpoint.at, std::nullopt});
    if (!fresh && at->second.hash != hash) forks.emplace_back(writer, seq);
    at->second.at = std::min(at->second.at, checkpoint.at);
    auto& last = last_seq[writer];
    last = std::max(last, seq);
    return at->second;
  };
  for (const AuditHead& head : checkpoint.heads)
    if (head.seq != 0) pin(head.writer, head.seq, head.hash);
  for (const CheckpointEntry& entry : checkpoint.records) {
    Pin& pinned = pin(entry.writer, entry.seq, entry.hash);
    if (pinned.hash == entry.hash) pinned.leaf_prefixes = entry.leaf_prefixes;
  }
  ++checkpoints;
  if (!newest || *newest < checkpoint.at) newest = checkpoint.at;
}

namespace {

void ReadFile(const std::filesystem::path& path, const PublicKey& key, CheckpointSet& set) {
  ++set.files;
  const std::string name = path.filename().string();
  std::ifstream in(path, std::ios::binary);
  std::string line;
  std::uint64_t number = 0;
  Digest previous{};
  std::optional<AuditWriterId> log;
  while (std::getline(in, line)) {
    ++number;
    if (in.eof()) {  // no newline: the process died while it wrote this line, so nobody was told that it is there
      set.torn.push_back(fmt::format("{}:{}", name, number));
      return;
    }
    auto checkpoint = ParseCheckpointLine(line, key);
    if (!checkpoint) {
      set.problems.push_back(fmt::format("{}:{}: {}", name, number, checkpoint.error().message));
      return;
    }
    if (checkpoint->sequence != number || checkpoint->previous != previous || (log && *log != checkpoint->log) ||
        name != checkpoint->log.ToString() + std::string(kSuffix)) {
      set.problems.push_back(
          fmt::format("{}:{}: checkpoint {} does not follow the line before it: lines were removed, "
                      "reordered or come from another file",
                      name, number, checkpoint->sequence));
      return;
    }
    previous = Sha256(line);
    log = checkpoint->log;
    set.Merge(*checkpoint);
  }
  if (in.bad() || !in.eof()) set.problems.push_back(fmt::format("{}: cannot be read", name));
}

}  // namespace

Result<CheckpointSet> ReadCheckpoints(const std::string& dir, const PublicKey& key) {
  std::error_code failed;
  std::vector<std::filesystem::path> files;
  for (std::filesystem::directory_iterator it(dir, failed), end; !failed && it != end; it.increment(failed))
    if (it->path().extension() == kSuffix) files.push_back(it->path());
  if (failed) return Fail(ErrorCode::kNotFound, "cannot read checkpoints in {}: {}", dir, failed.message());
  if (files.empty()) return Fail(ErrorCode::kNotFound, "no *{} file in {}", kSuffix, dir);
  std::ranges::sort(files);
  CheckpointSet set;
  for (const auto& path : files) ReadFile(path, key, set);
  return set;
}

}  // namespace millrace
