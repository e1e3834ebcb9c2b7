// millrace-history-check: verifies S1 to S10 over what a test left behind. Exit code 0: all hold, 1: a violation, 2: something
// could not be read.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "tests/checker/check.h"

namespace {

std::optional<millrace::checker::Window> ParseWindow(const char* option, const std::string& text) {
  const auto colon = text.find(':');
  if (colon == std::string::npos) {
    std::fprintf(stderr, "millrace-history-check: %s: '%s' is not FROM:TO\n", option, text.c_str());
    return std::nullopt;
  }
  return millrace::checker::Window{std::stoll(text.substr(0, colon)), std::stoll(text.substr(colon + 1))};
}

}  // namespace

int main(int argc, char** argv) {
  millrace::checker::Inputs in;
  CLI::App app{"Compares clients' accepted lists, witnesses, destinations and processes' histories with the ledger."};
  app.add_option("--ledger", in.ledger, "PostgreSQL conninfo or URI, or a SQLite file")->required();
  app.add_option("--history", in.history, "folder of the histories (MILLRACE_HISTORY of the processes)");
  app.add_option("--accepted", in.accepted,
                 R"(JSON lines {"job": uuid, "class": "ledger"|"redis", "at": micros} or {"run": uuid})");
  app.add_option("--witness", in.witness, "lines '<job> <token>', one per attempt that did its work");
  app.add_option("--destination", in.destination, "PostgreSQL or SQLite file that holds the receipts");
  std::vector<std::string> targets;
  app.add_option("--target", targets, "append-only table of the destination with provenance, and rows per effect: name=360");
  app.add_option("--checkpoints", in.checkpoints, "folder of the audit trail's checkpoints");
  app.add_option("--public-key", in.public_key, "of the checkpoints, needed with --checkpoints");
  app.add_flag("--no-audit", in.skip_audit, "the audit trail is not as its writers left it, on purpose");
  app.add_flag("--ended", in.ended, "nothing may still be open");
  app.add_flag("--contiguous-slots", in.contiguous_slots, "every instant of every schedule is a slot that fired");
  std::string slots;
  app.add_option("--slots", slots, "FROM:TO, micros since 1970: with --contiguous-slots, every active schedule's there too");
  std::vector<std::string> windows;
  app.add_option("--redis-may-lose", windows, "FROM:TO, micros since 1970: jobs of class redis accepted then may be lost");
  CLI11_PARSE(app, argc, argv);
  for (const std::string& target : targets) {
    const auto equals = target.find('=');
    in.targets.push_back({target.substr(0, equals), equals == std::string::npos ? 0 : std::stoll(target.substr(equals + 1))});
  }
  for (const std::string& text : windows) {
    const auto window = ParseWindow("--redis-may-lose", text);
    if (!window) return 2;
    in.redis_may_lose.push_back(*window);
  }
  if (!slots.empty()) {
    const auto window = ParseWindow("--slots", slots);
    if (!window) return 2;
    in.slots = *window;
  }
  const auto report = millrace::checker::Check(in);
  if (!report) {
    std::fprintf(stderr, "millrace-history-check: %s\n", report.error().message.c_str());
    return 2;
  }
  std::fputs(millrace::checker::Text(*report).c_str(), stdout);
  return report->ExitCode();
}
