// The words for how an attempt ended that are not a success: what the no_retry of a stage may name. Each is explained in a
// table of ops/docs/errors.md or ops/docs/loads.md, and no other is (tidy_test).
#pragma once

#include <string_view>

namespace millrace {

inline constexpr std::string_view kAttemptErrorClasses[] = {
    // Stages.
    "source_malformed", "missing_file", "schema_drift", "source_changed", "empty_extract", "bad_value", "data_rejected",
    "duplicate_column", "unsupported_type", "schema_mismatch", "corrupt", "contract_violation", "check_failed", "invalid_check",
    "sql_error", "io_error", "resource_exhausted", "unreachable_input", "sandbox_unavailable",
    // Loads.
    "replace_refused", "invalid_target", "unknown_connection", "destination_unavailable", "destination_conflict",
    "destination_full", "destination_rejected", "destination_corrupt", "stale_token", "outcome_unknown", "missing_unique_index",
    "duplicate_key_in_batch", "null_key", "empty_input", "source_unreadable",
    // Commands and their results.
    "command_failed", "temporary_failure", "command_not_startable", "result_too_large", "result_not_stored",
    "result_not_a_file",
    // Processes, workers, cancels.
    "timed_out", "crashed", "worker_lost", "not_started", "no_resources", "stage_program_unavailable", "lease_lost", "replaced",
    "drained", "revoked", "cancelled", "cancel_too_late", "cancel_unfenced", "fenced", "dependency_failed", "damaged_entry",
    // Another version, or a fault in Millrace.
    "unknown_kind", "malformed_payload", "invalid_order", "invalid_stage", "bad_stage_message", "internal_error"};

}  // namespace millrace
