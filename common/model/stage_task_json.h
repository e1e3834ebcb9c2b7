// Descriptions that both stage tasks and manifests need. Private to this folder, like json_codec.h.
#pragma once

#include "common/model/json_codec.h"
#include "common/model/stage_task.h"

namespace millrace {

template <class Ar, json_codec::MaybeConst<RowCounts> T>
void Describe(Ar& ar, T& v) {
  ar("read", v.read);
  ar("loaded", v.loaded);
  ar("filtered", v.filtered);
  ar("quarantined", v.quarantined);
  ar("deduplicated", v.deduplicated);
}

template <class Ar, json_codec::MaybeConst<ResultFile> T>
void Describe(Ar& ar, T& v) {
  ar("path", v.path);
  ar("bytes", v.bytes);
  ar("sha256", v.sha256);
}

template <class Ar, json_codec::MaybeConst<StageResult> T>
void Describe(Ar& ar, T& v) {
  const StageResult d;
  ar("ok", v.ok);
  ar("error_class", v.error_class, d.error_class);
  ar("error", v.error, d.error);
  ar("retryable", v.retryable, d.retryable);
  ar("rows", v.rows);
  ar("input_rows", v.input_rows, d.input_rows);
  ar("bytes_read", v.bytes_read, d.bytes_read);
  ar("bytes_written", v.bytes_written, d.bytes_written);
  ar("inserted", v.inserted, d.inserted);
  ar("updated", v.updated, d.updated);
  ar("unchanged", v.unchanged, d.unchanged);
  ar("deleted", v.deleted, d.deleted);
  ar("already_applied", v.already_applied, d.already_applied);
  ar("manifest", v.manifest, d.manifest);
  ar("target", v.target, d.target);
  ar("plan", v.plan, d.plan);
  ar("quarantine", v.quarantine, d.quarantine);
  ar("output", v.output, d.output);
  ar("output_file", v.output_file);
  ar("full", v.full);
}

}  // namespace millrace
