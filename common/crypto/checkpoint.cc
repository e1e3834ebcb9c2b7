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
#include <utility>

#include "common/base/log.h"

namespace millrace {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 2;
constexpr std::string_view kDomainV1 = "millrace checkpoint v1";
constexpr std::string_view kDomain = "millrace checkpoint v2";
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
  checkpoint.format = json.at("v").get<int>();
  if (checkpoint.format != 1) {
    checkpoint.complete = json.at("complete").get<bool>();
    checkpoint.full = json.at("full").get<bool>();
    if (const Json& link = json.at("continues"); !link.is_null()) {
      CheckpointLink& to = checkpoint.continues.emplace();
      MILLRACE_TRY_ASSIGN(to.log, AuditWriterId::Parse(link.at(0).get<std::string>()));
      to.sequence = link.at(1).get<std::uint64_t>();
      MILLRACE_TRY_ASSIGN(to.line, DigestFromHex(link.at(2).get<std::string>()));
    }
  }
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

std::string PathOf(const std::string& dir, AuditWriterId log) { return dir + "/" + log.ToString() + std::string(kSuffix); }

// About what a head takes in a line.
constexpr std::uint64_t kHeadBytes = 120;

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
  std::string bytes(format == 1 ? kDomainV1 : kDomain);
  bytes += log.AsBytes();
  AppendBigEndian(bytes, sequence);
  AppendDigest(bytes, previous);
  AppendBigEndian(bytes, static_cast<std::uint64_t>(ToUnixMicros(at)));
  if (format != 1) {
    AppendBigEndian(bytes, complete ? 1 : 0);
    AppendBigEndian(bytes, full ? 1 : 0);
    AppendBigEndian(bytes, continues ? 1 : 0);
    if (continues) {
      bytes += continues->log.AsBytes();
      AppendBigEndian(bytes, continues->sequence);
      AppendDigest(bytes, continues->line);
    }
  }
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
  Json json{{"v", checkpoint.format},
            {"log", checkpoint.log.ToString()},
            {"seq", checkpoint.sequence},
            {"previous", ToHex(checkpoint.previous)},
            {"at_us", ToUnixMicros(checkpoint.at)},
            {"heads", std::move(heads)},
            {"records", std::move(records)},
            {"signature", ToHex(key.Sign(checkpoint.SignedBytes()))}};
  if (checkpoint.format != 1) {
    const auto& link = checkpoint.continues;
    json["complete"] = checkpoint.complete;
    json["full"] = checkpoint.full;
    json["continues"] = link ? Json::array({link->log.ToString(), link->sequence, ToHex(link->line)}) : Json(nullptr);
  }
  return json.dump();
}

Result<Checkpoint> ParseCheckpointLine(std::string_view line, const PublicKey& key) try {
  if (line.size() > kCheckpointLineBytesMax) return Fail(ErrorCode::kCorrupt, "a checkpoint has {} bytes", line.size());
  const Json json = Json::parse(line);
  if (const int format = json.at("v").get<int>(); format < 1 || format > kFormat)
    return Fail(ErrorCode::kUnsupported, "checkpoint format {} is not known, this program knows up to {}", format, kFormat);
  MILLRACE_TRY_ASSIGN(Checkpoint checkpoint, FromJson(json));
  MILLRACE_TRY_ASSIGN(const Signature signature, SignatureFromHex(json.at("signature").get<std::string>()));
  if (!VerifySignature(checkpoint.SignedBytes(), signature, key))
    return Fail(ErrorCode::kCorrupt, "the signature does not verify with this public key");
  return checkpoint;
} catch (const Json::exception&) {
  return Fail(ErrorCode::kCorrupt, "not a checkpoint");
}

CheckpointWriter::CheckpointWriter(std::string dir, SigningKey key, AuditWriterId log, Millis interval)
    : dir_(std::move(dir)), path_(PathOf(dir_, log)), key_(std::move(key)), log_(log), interval_(interval) {}

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
      quiet_since_(other.quiet_since_),
      written_(std::move(other.written_)),
      continues_(other.continues_),
      since_full_(other.since_full_),
      full_due_(other.full_due_),
      pending_(std::move(other.pending_)) {}

CheckpointWriter::~CheckpointWriter() {
  if (fd_ >= 0) close(fd_);
}

Result<CheckpointWriter> CheckpointWriter::Open(const std::string& dir, SigningKey key, AuditWriterId log, Millis interval) {
  std::error_code failed;
  if (std::filesystem::create_directories(dir, failed))
    std::filesystem::permissions(dir, std::filesystem::perms::owner_all, failed);
  if (failed) return Fail(ErrorCode::kRejected, "cannot make {}: {}", dir, failed.message());
  auto tail = ReadCheckpointTail(dir, key.public_key());
  CheckpointWriter writer(dir, std::move(key), log, interval);
  if (!tail) {
    LogWarn("audit checkpoints: {}: starting anew in {}", tail.error().message, writer.path_);
  } else if (*tail) {
    writer.continues_ = (*tail)->last;
    writer.written_ = std::move((*tail)->heads);
    writer.since_full_ = (*tail)->since_full;
    writer.full_due_ = false;
  }
  return writer;
}

bool CheckpointWriter::Due(MonoTime now) const {
  return !last_ || now - *last_ >= interval_ || pending_.size() >= kCheckpointRecordsMax;
}

Result<bool> CheckpointWriter::MaybeWrite(MonoTime now, WallTime at, std::span<const AuditHead> heads,
                                          std::span<const AuditRecord> new_records, bool complete) {
  for (const AuditRecord& record : new_records) pending_.push_back(CheckpointEntry::Of(record));
  if (!Due(now)) return false;
  return Flush(now, at, heads, complete);
}

Result<bool> CheckpointWriter::Flush(MonoTime now, WallTime at, std::span<const AuditHead> heads, bool complete) {
  Checkpoint checkpoint;
  checkpoint.full = full_due_ || since_full_ >= std::max(kCheckpointFullEveryBytes, heads.size() * kHeadBytes);
  bool news = !pending_.empty();
  for (const AuditHead& head : heads) {
    const auto written = written_.find(head.writer);
    const bool changed = written == written_.end() || written->second.seq != head.seq || written->second.hash != head.hash;
    if (changed || checkpoint.full) checkpoint.heads.push_back(head);
    news = news || changed;
  }
  if (!quiet_since_) quiet_since_ = now;
  if (!news && now - *quiet_since_ < kCheckpointQuietInterval) {
    last_ = now;
    return false;
  }
  checkpoint.log = log_;
  checkpoint.complete = complete;
  if (sequence_ == 0) checkpoint.continues = continues_;
  checkpoint.sequence = sequence_ + 1;
  checkpoint.previous = previous_;
  checkpoint.at = at;
  checkpoint.records = pending_;
  const std::string line = CheckpointLine(checkpoint, key_);
  MILLRACE_TRY(Append(line));
  sequence_ = checkpoint.sequence;
  previous_ = Sha256(line);
  last_ = quiet_since_ = now;
  for (const AuditHead& head : checkpoint.heads) written_[head.writer] = head;
  full_due_ = false;
  since_full_ = checkpoint.full ? 0 : since_full_ + line.size();
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
  if (checkpoint.complete) times.push_back(checkpoint.at);
  if (!newest || *newest < checkpoint.at) newest = checkpoint.at;
}

namespace {

// Which lines there are, and which ones others continue.
struct Links {
  std::map<std::pair<AuditWriterId, std::uint64_t>, Digest> lines;
  std::vector<std::pair<std::string, CheckpointLink>> wanted;  // by which file
};

void ReadFile(const std::filesystem::path& path, const PublicKey& key, CheckpointSet& set, Links& links) {
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
        name != checkpoint->log.ToString() + std::string(kSuffix) || (checkpoint->continues && number != 1)) {
      set.problems.push_back(
          fmt::format("{}:{}: checkpoint {} does not follow the line before it: lines were removed, "
                      "reordered or come from another file",
                      name, number, checkpoint->sequence));
      return;
    }
    previous = Sha256(line);
    log = checkpoint->log;
    links.lines.emplace(std::pair(*log, number), previous);
    if (checkpoint->continues) links.wanted.emplace_back(name, *checkpoint->continues);
    set.Merge(*checkpoint);
  }
  if (in.bad() || !in.eof()) set.problems.push_back(fmt::format("{}: cannot be read", name));
}

// Goes through the lines of one file from its end to its start, reading no more of it than is asked for.
class BackwardReader {
 public:
  explicit BackwardReader(const std::string& path) : in_(path, std::ios::binary | std::ios::ate) {
    if (in_) begin_ = static_cast<std::uint64_t>(in_.tellg());
    static_cast<void>(Next());  // what stands behind the last newline was cut off while it was written
  }
  // Without its newline; nothing at the start of the file.
  std::optional<std::string> Next() {
    while (true) {
      const std::size_t newline = buffer_.rfind('\n');
      if (newline != std::string::npos) {
        std::string line = buffer_.substr(newline + 1);
        buffer_.resize(newline);
        return line;
      }
      if (begin_ == 0) {
        if (done_ || !in_) return std::nullopt;
        done_ = true;
        return std::exchange(buffer_, {});
      }
      const std::uint64_t n = std::min<std::uint64_t>(begin_, std::max<std::uint64_t>(kChunk, buffer_.size()));
      std::string chunk(n, '\0');
      begin_ -= n;
      in_.seekg(static_cast<std::streamoff>(begin_));
      if (!in_.read(chunk.data(), static_cast<std::streamsize>(n))) return std::nullopt;
      buffer_.insert(0, chunk);
    }
  }

 private:
  static constexpr std::uint64_t kChunk = 64u << 10;
  std::ifstream in_;
  std::uint64_t begin_ = 0;  // of what is in the buffer
  std::string buffer_;
  bool done_ = false;
};

Result<std::optional<std::filesystem::path>> WrittenLast(const std::string& dir) {
  std::error_code failed;
  std::optional<std::pair<std::filesystem::file_time_type, std::filesystem::path>> last;
  for (std::filesystem::directory_iterator it(dir, failed), end; !failed && it != end; it.increment(failed)) {
    if (it->path().extension() != kSuffix || it->file_size(failed) == 0 || failed) continue;
    const std::pair file{it->last_write_time(failed), it->path()};
    if (!last || *last < file) last = file;
  }
  if (failed) return Fail(ErrorCode::kUnavailable, "cannot read {}: {}", dir, failed.message());
  if (!last) return std::optional<std::filesystem::path>{};
  return std::optional(last->second);
}

}  // namespace

Result<std::optional<CheckpointTail>> ReadCheckpointTail(const std::string& dir, const PublicKey& key) {
  MILLRACE_TRY_ASSIGN(const auto newest, WrittenLast(dir));
  if (!newest) return std::optional<CheckpointTail>{};
  std::optional<CheckpointTail> tail;
  std::string path = newest->string();
  std::optional<CheckpointLink> wanted;  // the line to go on with; none: the last one
  while (true) {
    BackwardReader reader(path);
    std::optional<CheckpointLink> before;
    std::optional<Digest> expected;
    while (const auto line = reader.Next()) {
      auto checkpoint = ParseCheckpointLine(*line, key);
      if (!checkpoint) return Prefixed(std::move(checkpoint.error()), "{}", path);
      const Digest digest = Sha256(*line);
      if (wanted && checkpoint->sequence > wanted->sequence) continue;
      if ((wanted && (checkpoint->sequence != wanted->sequence || digest != wanted->line)) || (expected && digest != *expected))
        return Fail(ErrorCode::kCorrupt, "{}: checkpoint {} is not the one that others continue", path, checkpoint->sequence);
      wanted.reset();
      expected = checkpoint->previous;
      if (!tail) tail = CheckpointTail{{checkpoint->log, checkpoint->sequence, digest}, {}, 0};
      for (const AuditHead& head : checkpoint->heads) tail->heads.try_emplace(head.writer, head);
      if (checkpoint->full) return tail;
      tail->since_full += line->size();
      before = checkpoint->continues;
    }
    if (!tail && !wanted) return tail;  // nothing but a torn line
    if (!before) return Fail(ErrorCode::kCorrupt, "{}: the lines that it continues are not there", path);
    wanted = before;
    path = PathOf(dir, before->log);
  }
}

Result<CheckpointSet> ReadCheckpoints(const std::string& dir, const PublicKey& key) {
  std::error_code failed;
  std::vector<std::filesystem::path> files;
  for (std::filesystem::directory_iterator it(dir, failed), end; !failed && it != end; it.increment(failed))
    if (it->path().extension() == kSuffix) files.push_back(it->path());
  if (failed) return Fail(ErrorCode::kNotFound, "cannot read checkpoints in {}: {}", dir, failed.message());
  if (files.empty()) return Fail(ErrorCode::kNotFound, "no *{} file in {}", kSuffix, dir);
  std::ranges::sort(files);
  CheckpointSet set;
  Links links;
  for (const auto& path : files) ReadFile(path, key, set, links);
  for (const auto& [name, link] : links.wanted) {
    const auto line = links.lines.find({link.log, link.sequence});
    if (line == links.lines.end() || line->second != link.line)
      set.problems.push_back(
          fmt::format("{}:1: continues line {} of {}{}, which is not there: a file or its last lines were removed", name,
                      link.sequence, link.log.ToString(), kSuffix));
  }
  return set;
}

}  // namespace millrace
