#include "worker/stage/input_sql.h"

#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "common/drivers/duckdb.h"
#include "worker/stage/extract/plain_rows.h"
#include "worker/stage/extract/sources.h"
#include "worker/stage/files.h"

namespace millrace {
namespace {

constexpr std::size_t kManifestBytesMax = 64u << 20;

std::string PathOf(const DatasetFile& file, std::string_view lake) {
  return file.referenced ? file.path : fmt::format("{}/{}", lake, file.path);
}

}  // namespace

Result<Manifest> LoadManifest(std::string_view lake, OrgId org, std::string_view pipeline, const StageInput& input) {
  const std::string path = fmt::format("{}/{}", lake, ManifestPath(org, pipeline, input.stage, input.effect));
  auto text = ReadWholeFile(path, kManifestBytesMax);
  if (!text) return Prefixed(std::move(text.error()), "dataset of stage '{}'", input.stage);
  auto manifest = ManifestFromJson(*text);
  if (!manifest) return Fail(ErrorCode::kCorrupt, "manifest {}: {}", path, manifest.error().message);
  if (manifest->effect != input.effect) {
    return Fail(ErrorCode::kCorrupt, "manifest {}: of effect '{}', not '{}'", path, manifest->effect, input.effect);
  }
  return std::move(*manifest);
}

Result<void> VerifySources(const Manifest& manifest) {
  for (const auto& file : manifest.files) {
    if (!file.referenced) continue;
    const auto stamp = StampFile(file.path);
    if (!stamp)
      return Fail(ErrorCode::kConflict, "{} was extracted and has changed since: {}", file.path, stamp.error().message);
    if (stamp->bytes != file.bytes) {
      return Fail(ErrorCode::kConflict, "{} has changed since it was extracted: {} bytes, then {}", file.path, stamp->bytes,
                  file.bytes);
    }
    if (stamp->mtime_us == file.mtime_us) continue;
    MILLRACE_TRY_ASSIGN(const std::string digest, Sha256OfFile(file.path));
    if (digest != file.sha256) {
      return Fail(ErrorCode::kConflict, "{} has changed since it was extracted: same size, other content", file.path);
    }
  }
  return {};
}

Result<void> VerifyLake(const Manifest& manifest, std::string_view lake) {
  for (const auto& file : manifest.files) {
    if (file.referenced) continue;
    const std::string path = PathOf(file, lake);
    const auto stamp = StampFile(path);
    if (!stamp) continue;
    if (stamp->bytes != file.bytes) {
      return Fail(ErrorCode::kCorrupt, "{} is damaged: {} bytes, published with {}; start a new run", path, stamp->bytes,
                  file.bytes);
    }
    MILLRACE_TRY_ASSIGN(const std::string digest, Sha256OfFile(path));
    if (digest != file.sha256) {
      return Fail(ErrorCode::kCorrupt, "{} is damaged: SHA-256 {}, published with {}; start a new run", path, digest,
                  file.sha256);
    }
  }
  return {};
}

Result<SourceWatch> SourceWatch::Start(const std::vector<std::string>& paths) {
  SourceWatch watch;
  for (const auto& path : paths) {
    MILLRACE_TRY_ASSIGN(const FileStamp stamp, StampFile(path));
    watch.files_.push_back({path, stamp});
  }
  return watch;
}

Result<SourceWatch> SourceWatch::Start(const std::vector<Manifest>& manifests) {
  std::vector<std::string> paths;
  for (const auto& manifest : manifests)
    for (const auto& file : manifest.files)
      if (file.referenced) paths.push_back(file.path);
  auto watch = Start(paths);
  if (!watch) return Fail(ErrorCode::kConflict, "a source has changed since it was extracted: {}", watch.error().message);
  return watch;
}

Result<void> SourceWatch::Untouched() const {
  for (const auto& [path, before] : files_) {
    const auto now = StampFile(path);
    if (!now) return Fail(ErrorCode::kConflict, "{} changed while it was read: {}", path, now.error().message);
    if (*now != before) return Fail(ErrorCode::kConflict, "{} changed while it was read", path);
  }
  return {};
}

std::vector<std::string> InputPaths(const Manifest& manifest, std::string_view lake) {
  std::vector<std::string> paths;
  for (const auto& file : manifest.files) paths.push_back(PathOf(file, lake));
  return paths;
}

namespace {

Result<ReaderOptions> ReaderOf(const Manifest& manifest) {
  ReaderOptions options{.format = manifest.files.front().format, .columns = manifest.columns, .options = manifest.read_options};
  options.options.erase(std::string(kProvenRows));
  const auto skip = options.options.find("skip_bad_rows");
  if (skip != options.options.end()) {
    options.skip_bad_rows = skip->second == "true";
    options.options.erase(skip);
  }
  for (const auto& file : manifest.files) {
    if (file.format != options.format)
      return Fail(ErrorCode::kCorrupt, "the manifest of stage '{}' mixes file formats", manifest.stage);
  }
  return options;
}

// -1: not proven.
std::int64_t ProvenRows(const Manifest& manifest) {
  const auto found = manifest.read_options.find(std::string(kProvenRows));
  std::int64_t rows = -1;
  if (found != manifest.read_options.end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), rows);
  return rows;
}

}  // namespace

Result<std::string> InputSql(const Manifest& manifest, std::string_view lake) {
  if (manifest.columns.empty()) return Fail(ErrorCode::kCorrupt, "the manifest of stage '{}' has no columns", manifest.stage);
  if (manifest.files.empty()) {
    std::string list;
    for (const auto& c : manifest.columns) {
      list += fmt::format("{}CAST(NULL AS {}) AS {}", list.empty() ? "" : ", ", c.type, duck::QuoteName(c.name));
    }
    return fmt::format("SELECT {} WHERE false", list);
  }
  MILLRACE_TRY_ASSIGN(const ReaderOptions options, ReaderOf(manifest));
  return ReaderSelect(InputPaths(manifest, lake), options);
}

Result<std::string> OfferInput(duck::Connection& connection, const Manifest& manifest, std::string_view lake) {
  const std::int64_t rows = ProvenRows(manifest);
  if (rows < 0 || manifest.files.empty()) return InputSql(manifest, lake);
  MILLRACE_TRY_ASSIGN(const ReaderOptions options, ReaderOf(manifest));
  auto source = PlainRows(InputPaths(manifest, lake), options, rows);
  if (source == nullptr) return InputSql(manifest, lake);
  MILLRACE_TRY_ASSIGN(const std::string table, connection.Offer(std::move(source)));
  return "SELECT * FROM " + table;
}

}  // namespace millrace
