#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "common/base/check.h"
#include "common/base/fd.h"
#include "common/crypto/checkpoint.h"

namespace millrace {
namespace {

constexpr std::string_view kKeyHeader = "millrace audit key v1\n";
constexpr std::size_t kKeyFileBytesMax = 4096;

void InitSodium() {
  static const bool ready = sodium_init() >= 0;
  MILLRACE_CHECK(ready, "libsodium cannot start");
}

Result<std::string> ReadSmallFile(const std::string& path, struct stat* status) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0)
    return Fail(errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kRejected, "{}: {}", path, std::strerror(errno));
  if (status != nullptr && fstat(fd.get(), status) != 0)
    return Fail(ErrorCode::kRejected, "{}: {}", path, std::strerror(errno));
  std::string text(kKeyFileBytesMax, '\0');
  const ssize_t n = read(fd.get(), text.data(), text.size());
  if (n < 0) return Fail(ErrorCode::kRejected, "{}: {}", path, std::strerror(errno));
  text.resize(static_cast<std::size_t>(n));
  return text;
}

Result<void> WriteNewFile(const std::string& path, std::string_view text, mode_t mode) {
  const Fd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode));
  if (fd.get() < 0) return Fail(ErrorCode::kRejected, "cannot write {}: {}", path, std::strerror(errno));
  if (write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) || fsync(fd.get()) != 0)
    return Fail(ErrorCode::kRejected, "cannot write {}: {}", path, std::strerror(errno));
  return {};
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.remove_suffix(1);
  return text;
}

Result<SigningKey> ParseKeyFile(const std::string& path, std::string_view text) {
  if (!text.starts_with(kKeyHeader)) return Fail(ErrorCode::kCorrupt, "{} is not an audit key file", path);
  auto seed = DigestFromHex(Trim(text.substr(kKeyHeader.size())));
  if (!seed) return Fail(ErrorCode::kCorrupt, "{} is not an audit key file: the key is not 64 hex digits", path);
  auto key = SigningKey::FromSeed({reinterpret_cast<const char*>(seed->data()), seed->size()});
  WipeMemory(seed->data(), seed->size());
  return key;
}

Result<void> CreateKeyFile(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path();
  if (!parent.empty()) {
    std::error_code failed;
    if (std::filesystem::create_directories(parent, failed))
      std::filesystem::permissions(parent, std::filesystem::perms::owner_all, failed);
    if (failed) return Fail(ErrorCode::kRejected, "cannot make {}: {}", parent.string(), failed.message());
  }
  std::array<std::uint8_t, 32> seed;
  randombytes_buf(seed.data(), seed.size());
  std::string text = std::string(kKeyHeader) + ToHex(seed) + "\n";
  WipeMemory(seed.data(), seed.size());
  // Written aside and linked: two processes that start together end up with one key, and never with half of one.
  const std::string aside = fmt::format("{}.{}", path, getpid());
  auto written = WriteNewFile(aside, text, 0600);
  WipeMemory(text.data(), text.size());
  const bool linked = written && link(aside.c_str(), path.c_str()) == 0;
  const int why = errno;
  unlink(aside.c_str());
  if (!written) return written;
  if (!linked && why != EEXIST) return Fail(ErrorCode::kRejected, "cannot write {}: {}", path, std::strerror(why));
  return {};
}

}  // namespace

Result<SigningKey> SigningKey::FromSeed(std::string_view seed) {
  InitSodium();
  if (seed.size() != crypto_sign_SEEDBYTES) return Fail(ErrorCode::kInvalidArgument, "a signing key seed has 32 bytes");
  SigningKey key;
  std::string secret(crypto_sign_SECRETKEYBYTES, '\0');
  crypto_sign_seed_keypair(key.public_.data(), reinterpret_cast<unsigned char*>(secret.data()),
                           reinterpret_cast<const unsigned char*>(seed.data()));
  key.secret_ = Secret(std::move(secret));
  return key;
}

Result<SigningKey> SigningKey::LoadOrCreate(const std::string& path) {
  InitSodium();
  struct stat status{};
  auto text = ReadSmallFile(path, &status);
  if (!text && text.error().code == ErrorCode::kNotFound) {
    MILLRACE_TRY(CreateKeyFile(path));
    text = ReadSmallFile(path, &status);
  }
  if (!text) return std::unexpected(std::move(text.error()));
  if ((status.st_mode & 077) != 0)
    return Fail(ErrorCode::kRejected, "{} is accessible by others (mode {:04o}); run: chmod 600 {}", path,
                static_cast<unsigned>(status.st_mode & 07777), path);
  auto key = ParseKeyFile(path, *text);
  WipeMemory(text->data(), text->size());
  if (!key) return key;
  const std::string public_path = path + ".pub";
  if (access(public_path.c_str(), F_OK) != 0) MILLRACE_TRY(WriteNewFile(public_path, ToHex(key->public_key()) + "\n", 0644));
  return key;
}

Signature SigningKey::Sign(std::string_view bytes) const {
  MILLRACE_CHECK(secret_.Reveal().size() == crypto_sign_SECRETKEYBYTES, "signing with an empty key");
  Signature signature;
  crypto_sign_detached(signature.data(), nullptr, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
                       reinterpret_cast<const unsigned char*>(secret_.Reveal().data()));
  return signature;
}

bool VerifySignature(std::string_view bytes, const Signature& signature, const PublicKey& key) {
  InitSodium();
  return crypto_sign_verify_detached(signature.data(), reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
                                     key.data()) == 0;
}

Result<PublicKey> ReadPublicKey(const std::string& path) {
  MILLRACE_TRY_ASSIGN(const std::string text, ReadSmallFile(path, nullptr));
  auto key = DigestFromHex(Trim(text));
  if (!key) return Fail(ErrorCode::kCorrupt, "{} is not a public key: expected 64 hex digits", path);
  return *key;
}

}  // namespace millrace
