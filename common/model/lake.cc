#include "common/model/lake.h"

#include <fmt/format.h>
#include <sodium/crypto_hash_sha256.h>

#include <array>

#include "common/model/stage_task_json.h"

namespace millrace {
namespace {

constexpr std::size_t kPathPartBytesMax = 64;

std::string Sha256Hex(std::string_view text, std::size_t digits) {
  std::array<unsigned char, crypto_hash_sha256_BYTES> hash{};
  crypto_hash_sha256(hash.data(), reinterpret_cast<const unsigned char*>(text.data()), text.size());
  std::string hex;
  for (const unsigned char byte : hash) hex += fmt::format("{:02x}", byte);
  hex.resize(digits);
  return hex;
}

bool SafeChar(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-'; }

// The parser only lets safe names through. This is the second lock: no name can climb out of the lake, and two names that
// would look alike after cleaning still differ by their hash.
std::string PathPart(std::string_view name) {
  std::string out;
  for (const char c : name.substr(0, kPathPartBytesMax)) out += SafeChar(c) ? c : '_';
  if (out != name || out.empty()) out += "-" + Sha256Hex(name, 16);
  return out;
}

std::string EffectHash(std::string_view effect) { return Sha256Hex(effect, 32); }

}  // namespace

template <class Ar, json_codec::MaybeConst<DatasetFile> T>
void Describe(Ar& ar, T& v) {
  const DatasetFile d;
  ar("path", v.path);
  ar("referenced", v.referenced, d.referenced);
  ar("format", v.format, d.format);
  ar("bytes", v.bytes);
  ar("rows", v.rows);
  ar("mtime_us", v.mtime_us, d.mtime_us);
  ar("sha256", v.sha256, d.sha256);
}

template <class Ar, json_codec::MaybeConst<Manifest> T>
void Describe(Ar& ar, T& v) {
  const Manifest d;
  ar("effect", v.effect);
  ar("token", v.token);
  ar("run", v.run);
  ar("stage", v.stage);
  ar("layer", v.layer);
  ar("columns", v.columns);
  ar("files", v.files);
  ar("read_options", v.read_options, d.read_options);
  ar("rows", v.rows);
  ar("result", v.result);
}

std::string ToJson(const Manifest& manifest) { return json_codec::Write(manifest); }

Result<Manifest> ManifestFromJson(std::string_view json) { return json_codec::Read<Manifest>(json, "manifest"); }

std::string DatasetDir(OrgId org, std::string_view pipeline, std::string_view stage) {
  return fmt::format("{}/{}/{}", org.value(), PathPart(pipeline), PathPart(stage));
}

std::string ManifestPath(OrgId org, std::string_view pipeline, std::string_view stage, std::string_view effect) {
  return fmt::format("{}/manifests/{}.json", DatasetDir(org, pipeline, stage), EffectHash(effect));
}

std::string DataFilePath(OrgId org, std::string_view pipeline, std::string_view stage, std::string_view effect, Token token,
                         int number) {
  return fmt::format("{}/data/{}-{}-{}.parquet", DatasetDir(org, pipeline, stage), EffectHash(effect), token.value(), number);
}

std::string PinnedSchemaPath(OrgId org, std::string_view pipeline, std::string_view stage) {
  return DatasetDir(org, pipeline, stage) + "/schema.json";
}

}  // namespace millrace
