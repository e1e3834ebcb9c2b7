// Limits and helpers of the wire codec beside Encode and Decode (messages.h). Everything here is stateless and thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/base/limits.h"
#include "common/base/result.h"
#include "common/model/job.h"
#include "common/wire/messages.h"

namespace millrace::wire {

// What a body may hold. Decode refuses more; a sender splits its batches before it comes to that.
inline constexpr std::size_t kHeaderBytes = 2;                       // protocol version, kind
inline constexpr std::size_t kListItemsMax = kStagesPerPipelineMax;  // of any list that has no narrower limit
inline constexpr std::size_t kHeldMax = kListItemsMax;               // attempts of one worker
inline constexpr std::size_t kNamesMax = 1000;                       // queues, kinds, roots of one worker
inline constexpr std::size_t kPathBytesMax = 4096;
inline constexpr std::size_t kEffectBytesMax = 8192;
inline constexpr std::size_t kKeptListedMax = 100'000;  // jobs of one ListKeptReply
// Of ListKept: it may hold the name of a line (queue, kind, limit key, root; priority, org and what is between them) and a
// place.
inline constexpr std::size_t kCursorBytesMax = 3 * kNameBytesMax + kPathBytesMax + 64;
// Senders close a batch before its items exceed this; the rest of the frame limit is room for the largest single item.
inline constexpr std::size_t kBatchBytesMax = 4u << 20;

// The kind of an encoded frame, for routing and logs; kUnknown when it is none (or another protocol version).
Kind KindOf(std::string_view frame);
std::string_view Name(Kind kind);  // "hello", "ended_reply", ...; "unknown"

// Upper bounds of an item's encoded size, for splitting batches by kBatchBytesMax.
std::size_t SizeBound(const JobSpec& spec);
std::size_t SizeBound(const Grant::Job& job);
std::size_t SizeBound(const AttemptReport& report);
std::size_t SizeBound(const RunUpdate::Stage& stage);

// The same positional arrays as inside SubmitJobs and SubmitRun, behind one version byte: for stores that hold a spec as
// opaque bytes. Decoding is as strict as Decode: kInvalidArgument for anything that is not exactly such a value.
std::string EncodeJobSpec(const JobSpec& spec);
Result<JobSpec> DecodeJobSpec(std::string_view bytes);
std::string EncodeRunSpec(const RunSpec& spec);
Result<RunSpec> DecodeRunSpec(std::string_view bytes);

}  // namespace millrace::wire
