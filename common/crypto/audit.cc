#include "common/crypto/audit.h"

#include <openssl/evp.h>

#include <bit>
#include <cstring>
#include <memory>

#include "common/base/check.h"

namespace millrace {
namespace {

struct MdContextFree {
  void operator()(EVP_MD_CTX* context) const noexcept { EVP_MD_CTX_free(context); }
};

// Fetching the algorithm by name costs more than hashing a row, so both live as long as the thread.
class Hasher {
 public:
  Hasher() : context_(EVP_MD_CTX_new()) { MILLRACE_CHECK(context_ != nullptr, "out of memory for SHA-256"); }
  Hasher& Begin() {
    static const EVP_MD* const kSha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);  // lives as long as the process
    MILLRACE_CHECK(kSha256 != nullptr && EVP_DigestInit_ex2(context_.get(), kSha256, nullptr) == 1, "SHA-256 failed");
    return *this;
  }
  Hasher& Add(const void* bytes, std::size_t size) {
    MILLRACE_CHECK(EVP_DigestUpdate(context_.get(), bytes, size) == 1, "SHA-256 failed");
    return *this;
  }
  Digest End() {
    Digest digest;
    unsigned size = 0;
    MILLRACE_CHECK(EVP_DigestFinal_ex(context_.get(), digest.data(), &size) == 1 && size == digest.size(), "SHA-256 failed");
    return digest;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, MdContextFree> context_;
};

Hasher& BeginHash() {
  thread_local Hasher hasher;
  return hasher.Begin();
}

constexpr std::uint8_t kLeafPrefix = 0x00;
constexpr std::uint8_t kNodePrefix = 0x01;

void AppendBigEndian(std::string& out, std::uint64_t value) {
  if constexpr (std::endian::native == std::endian::little) value = __builtin_bswap64(value);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void AppendText(std::string& out, std::string_view text) {
  AppendBigEndian(out, text.size());
  out += text;
}

// Part of the stored format: ops/docs/audit.md. Never renumber.
constexpr char kTagTable = 'R';
constexpr char kTagText = 'T';
constexpr char kTagInteger = 'I';
constexpr char kTagNull = 'N';

constexpr std::string_view kRecordDomain = "millrace audit record v1";
constexpr std::string_view kPrunedDomain = "millrace pruned chain v1";

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Digest Sha256(std::string_view bytes) { return BeginHash().Add(bytes.data(), bytes.size()).End(); }

std::string ToHex(std::span<const std::uint8_t> bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::uint8_t byte : bytes) {
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

Result<Digest> DigestFromHex(std::string_view hex) {
  Digest digest;
  if (hex.size() != digest.size() * 2)
    return Fail(ErrorCode::kCorrupt, "a digest has {} hex digits, expected {}", hex.size(), digest.size() * 2);
  for (std::size_t i = 0; i < digest.size(); ++i) {
    const int high = HexValue(hex[2 * i]);
    const int low = HexValue(hex[2 * i + 1]);
    if (high < 0 || low < 0) return Fail(ErrorCode::kCorrupt, "a digest has a character that is no hex digit");
    digest[i] = static_cast<std::uint8_t>(high * 16 + low);
  }
  return digest;
}

CanonicalRow::CanonicalRow(std::string_view table) {
  bytes_.reserve(512);  // most rows, at once
  bytes_ += kTagTable;
  AppendText(bytes_, table);
}

CanonicalRow& CanonicalRow::Add(std::string_view text) {
  bytes_ += kTagText;
  AppendText(bytes_, text);
  return *this;
}

CanonicalRow& CanonicalRow::Add(std::int64_t value) {
  bytes_ += kTagInteger;
  AppendBigEndian(bytes_, sizeof value);
  AppendBigEndian(bytes_, static_cast<std::uint64_t>(value));
  return *this;
}

CanonicalRow& CanonicalRow::AddNull() {
  bytes_ += kTagNull;
  AppendBigEndian(bytes_, 0);
  return *this;
}

Digest CanonicalRow::Leaf() const { return BeginHash().Add(&kLeafPrefix, 1).Add(bytes_.data(), bytes_.size()).End(); }

Digest MerkleRoot(std::span<const Digest> leaves) {
  if (leaves.empty()) return Sha256({});
  // Pairing neighbours and carrying an odd last node up unchanged gives the RFC 9162 tree (left side: largest power of two).
  std::vector<Digest> level(leaves.begin(), leaves.end());
  while (level.size() > 1) {
    const std::size_t pairs = level.size() / 2;
    for (std::size_t i = 0; i < pairs; ++i) {
      level[i] = BeginHash()
                     .Add(&kNodePrefix, 1)
                     .Add(level[2 * i].data(), level[2 * i].size())
                     .Add(level[2 * i + 1].data(), level[2 * i + 1].size())
                     .End();
    }
    if (level.size() % 2 == 1) {
      level[pairs] = level.back();
      level.resize(pairs + 1);
    } else {
      level.resize(pairs);
    }
  }
  return level.front();
}

Digest AuditRecord::Hash() const {
  std::string bytes;
  bytes.reserve(kRecordDomain.size() + actor.size() + 128);
  AppendText(bytes, kRecordDomain);
  bytes += writer.AsBytes();
  AppendBigEndian(bytes, seq);
  bytes.append(reinterpret_cast<const char*>(previous.data()), previous.size());
  AppendBigEndian(bytes, static_cast<std::uint64_t>(ToUnixMicros(at)));
  AppendText(bytes, actor);
  bytes.append(reinterpret_cast<const char*>(root.data()), root.size());
  return Sha256(bytes);
}

std::string PrunedChain::SignedBytes() const {
  const auto digest = [](std::string& bytes, const Digest& d) {
    bytes.append(reinterpret_cast<const char*>(d.data()), d.size());
  };
  std::string bytes;
  AppendText(bytes, kPrunedDomain);
  bytes += writer.AsBytes();
  AppendBigEndian(bytes, number);
  AppendBigEndian(bytes, through);
  digest(bytes, through_hash);
  AppendBigEndian(bytes, rows);
  digest(bytes, leaves);
  AppendBigEndian(bytes, static_cast<std::uint64_t>(ToUnixMicros(before)));
  AppendBigEndian(bytes, static_cast<std::uint64_t>(ToUnixMicros(at)));
  AppendText(bytes, actor);
  return bytes;
}

void PrunedLeaves::Add(std::uint32_t leaf) {
  if (leaf / 8 >= bits.size()) bits.resize(leaf / 8 + 1, '\0');
  bits[leaf / 8] = static_cast<char>(static_cast<unsigned char>(bits[leaf / 8]) | 1u << (leaf % 8));
}

std::uint64_t PrunedLeaves::Count() const {
  std::uint64_t n = 0;
  for (const char c : bits) n += static_cast<std::uint64_t>(std::popcount(static_cast<unsigned char>(c)));
  return n;
}

Digest DigestOf(std::span<const PrunedLeaves> leaves) {
  std::string bytes;
  AppendText(bytes, kPrunedDomain);
  for (const PrunedLeaves& record : leaves) {
    AppendBigEndian(bytes, record.seq);
    AppendText(bytes, record.bits);
  }
  return Sha256(bytes);
}

AuditRecord AuditChain::Next(std::vector<Digest> leaves, WallTime at) const {
  AuditRecord record;
  record.writer = writer_;
  record.seq = seq_ + 1;
  record.previous = head_;
  record.at = at;
  record.actor = actor_;
  record.root = MerkleRoot(leaves);
  record.leaves = std::move(leaves);
  return record;
}

void AuditChain::Advance(const AuditRecord& committed) {
  MILLRACE_CHECK(committed.writer == writer_ && committed.seq == seq_ + 1 && committed.previous == head_,
                 "audit record {} of writer {} does not follow {} of writer {}", committed.seq, committed.writer.ToString(),
                 seq_, writer_.ToString());
  seq_ = committed.seq;
  head_ = committed.Hash();
}

void AuditChain::Resume(const AuditRecord& last) {
  MILLRACE_CHECK(last.writer == writer_ && (last.seq > seq_ || (last.seq == seq_ && last.Hash() == head_)),
                 "audit record {} of writer {} is not the end of a chain that is at {}", last.seq, last.writer.ToString(),
                 seq_);
  seq_ = last.seq;
  head_ = last.Hash();
}

}  // namespace millrace
