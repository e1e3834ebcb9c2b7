// The keys of one shard in Redis. All share a hash tag, so that the scripts run on a cluster too.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "common/base/ids.h"

namespace millrace {

struct ShardKeys {
  std::string tag, epoch, lines, due, flight, kept_due, kept, server, stubs, body, expiry, kept_body, kept_expiry, kept_lines,
      inbox;
  ShardKeys(std::string_view prefix, ShardId shard)
      : tag(fmt::format("{{{}:{}}}", prefix, shard.value())),
        epoch(tag + ":epoch"),
        lines(tag + ":lines"),
        due(tag + ":due"),
        flight(tag + ":flight"),
        kept_due(tag + ":kept_due"),
        kept(tag + ":kept"),
        server(tag + ":server"),
        stubs(tag + ":stubs"),
        body(tag + ":body"),
        expiry(tag + ":expiry"),
        kept_body(tag + ":kept_body"),
        kept_expiry(tag + ":kept_expiry"),
        kept_lines(tag + ":kept_lines"),
        inbox(tag + ":inbox") {}
};

}  // namespace millrace
