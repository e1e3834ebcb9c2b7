#include "client/cli/job_payload.h"

#include <sodium.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/base/limits.h"
#include "common/model/stage_task.h"
#include "common/wire/text.h"

namespace millrace::cli {
namespace {

// Of the character that `text` begins with; 1 for a byte that begins none.
std::size_t CharacterSize(std::string_view text) {
  const auto first = static_cast<unsigned char>(text.front());
  const std::size_t size = first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  return wire::IsText(text.substr(0, size)) ? size : 1;
}

std::string Escaped(std::string_view character) {
  const auto c = static_cast<unsigned char>(character.front());
  if (c == '\n') return "\\n";
  if (c == '\t') return "\\t";
  const bool c1 = c == 0xc2 && character.size() == 2 && static_cast<unsigned char>(character[1]) < 0xa0;
  if (c1) return fmt::format("\\x{:02x}\\x{:02x}", c, static_cast<unsigned char>(character[1]));
  if (c < 0x20 || c == 0x7f || !wire::IsText(character)) return fmt::format("\\x{:02x}", c);
  return std::string(character);
}

Result<void> CheckCommand(const CommandTask& task) {
  if (task.command.argv.front().empty()) return Fail(ErrorCode::kInvalidArgument, "payload: argv: names no program");
  if (!task.base_dir.starts_with('/'))
    return Fail(ErrorCode::kInvalidArgument, "payload: base_dir: '{}' is not absolute", task.base_dir);
  return {};
}

}  // namespace

std::string PayloadPreview(std::string_view payload) {
  std::string line;
  for (std::size_t at = 0; at < payload.size();) {
    if (at >= kPayloadPreviewBytes) return line + "...";
    const std::string_view character = payload.substr(at, CharacterSize(payload.substr(at)));
    line += Escaped(character);
    at += character.size();
  }
  return line;
}

std::string Base64(std::string_view bytes) {
  std::string text(sodium_base64_encoded_len(bytes.size(), sodium_base64_VARIANT_ORIGINAL), '\0');
  sodium_bin2base64(text.data(), text.size(), reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
                    sodium_base64_VARIANT_ORIGINAL);
  text.pop_back();  // the terminator
  return text;
}

Result<std::string> ReadPayload(const std::string& file) {
  std::ifstream opened;
  if (file != "-") {
    opened.open(file, std::ios::binary);
    if (!opened) return Fail(ErrorCode::kNotFound, "--payload: cannot read '{}'", file);
  }
  std::istream& in = file == "-" ? std::cin : opened;
  std::string payload(kPayloadBytesMax + 1, '\0');
  in.read(payload.data(), static_cast<std::streamsize>(payload.size()));
  payload.resize(static_cast<std::size_t>(in.gcount()));
  if (in.bad()) return Fail(ErrorCode::kNotFound, "--payload: cannot read '{}'", file);
  if (payload.size() > kPayloadBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "--payload: '{}' has more than {} bytes, the limit of a payload", file,
                kPayloadBytesMax);
  return payload;
}

Result<std::string> EditedPayload(std::string given, const JobSpec& again, JobId dead) {
  if (again.kind != kJobKindCommand) return given;
  const auto json = nlohmann::json::parse(given, nullptr, false);
  if (!json.is_object() || !json.contains("command")) return CommandPayload(given, again.id, again.org);
  auto edited = CommandTaskFromJson(given);
  if (!edited) return Fail(ErrorCode::kInvalidArgument, "{}", edited.error().message);
  if (edited->job != dead)
    return Fail(ErrorCode::kInvalidArgument, "payload: is the command of job {}; this is the requeue of job {}",
                edited->job.ToString(), dead.ToString());
  MILLRACE_TRY(CheckCommand(*edited));
  MILLRACE_TRY_ASSIGN(CommandTask task, CommandTaskFromJson(again.payload));
  edited->job = task.job;
  edited->org = task.org;
  task.command = edited->command;
  task.base_dir = edited->base_dir;
  if (task != *edited)
    return Fail(ErrorCode::kInvalidArgument,
                "payload: pipeline, stage or run differs from the dead job's: edit command and base_dir, and leave the rest "
                "as 'job show --payload' wrote it");
  return ToJson(task);
}

}  // namespace millrace::cli
