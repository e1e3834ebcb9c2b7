#include "common/wire/codec.h"

namespace millrace::wire {

std::string_view Name(Kind kind) {
  switch (kind) {
    case Kind::kUnknown: return "unknown";
    case Kind::kHello: return "hello";
    case Kind::kBeat: return "beat";
    case Kind::kEnded: return "ended";
    case Kind::kGoodbye: return "goodbye";
    case Kind::kOrphans: return "orphans";
    case Kind::kWelcome: return "welcome";
    case Kind::kGrant: return "grant";
    case Kind::kEndedReply: return "ended_reply";
    case Kind::kRevoke: return "revoke";
    case Kind::kBrokerBeat: return "broker_beat";
    case Kind::kAdopt: return "adopt";
    case Kind::kSubmitJobs: return "submit_jobs";
    case Kind::kSubmitRun: return "submit_run";
    case Kind::kWatch: return "watch";
    case Kind::kStatus: return "status";
    case Kind::kCancel: return "cancel";
    case Kind::kCancelReply: return "cancel_reply";
    case Kind::kSetQueue: return "set_queue";
    case Kind::kSetQueueReply: return "set_queue_reply";
    case Kind::kListQueues: return "list_queues";
    case Kind::kListQueuesReply: return "list_queues_reply";
    case Kind::kListUnserved: return "list_unserved";
    case Kind::kListUnservedReply: return "list_unserved_reply";
    case Kind::kListKept: return "list_kept";
    case Kind::kListKeptReply: return "list_kept_reply";
    case Kind::kSubmitReply: return "submit_reply";
    case Kind::kRunUpdate: return "run_update";
    case Kind::kStatusReply: return "status_reply";
    case Kind::kProblem: return "problem";
  }
  return "unknown";
}

}  // namespace millrace::wire
