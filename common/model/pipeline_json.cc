#include "common/model/pipeline_json.h"

#include "common/model/json_codec.h"

namespace millrace {

template <class Ar, json_codec::MaybeConst<ParamSpec> T>
void Describe(Ar& ar, T& v) {
  const ParamSpec d;
  ar("name", v.name);
  ar("type", v.type);
  ar("default", v.default_value, d.default_value);
  ar("required", v.required, d.required);
}

template <class Ar, json_codec::MaybeConst<Pipeline> T>
void Describe(Ar& ar, T& v) {
  const Pipeline d;
  ar("name", v.name);
  ar("description", v.description, d.description);
  ar("schedules", v.schedules, d.schedules);
  ar("params", v.params, d.params);
  ar("stages", v.stages);
}

std::string ToJson(const Pipeline& pipeline) { return json_codec::Write(pipeline); }

Result<Pipeline> PipelineFromJson(std::string_view json) { return json_codec::Read<Pipeline>(json, "pipeline"); }

}  // namespace millrace
