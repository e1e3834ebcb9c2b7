# Reads GoogleTest's XML reports of the conformance tier. Writes one line per case to `list`: what it is about, the case, and
# the implementations that passed it, then what did not pass; prints the same in a line per suite and set of implementations
# ("cases of ..."), and then, for each subject, how many cases each implementation passed.
#   awk -v list=FILE -f conformance_cases.awk *.xml
function attribute(name,    at) {
  if (!match($0, " " name "=\"[^\"]*\"")) return ""
  return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 4)
}
function subject_of(file) {
  sub(/.*\//, "", file)
  if (file ~ /^job_queue/) return "queue"
  if (file ~ /^ledger/) return "ledger"
  if (file ~ /^(scheduler|backfill)/) return "scheduler"
  sub(/_test\.xml$/, "", file)
  return file
}
# "Suite.Case" and the implementation: the parameter's name, else that of the instantiation or of the suite.
function end_of_case(    suite, at, implementation) {
  suite = class
  sub(/^.*\//, "", suite)
  at = index(name, "/")
  implementation = at ? substr(name, at + 1) : suite
  if (implementation ~ /^[0-9]+$/) implementation = substr(class, 1, index(class, "/") - 1)
  if (!at) implementation = match(suite, /Sqlite|Postgres|Redis|Memory/) ? substr(suite, RSTART, RLENGTH) : "-"
  implementation = tolower(implementation)
  key = subject " " suite "." (at ? substr(name, 1, at - 1) : name)
  if (!(key in passed)) keys[++n] = key
  passed[key] = passed[key] (verdict == "passed" ? " " implementation : "")
  if (verdict != "passed") other[key] = other[key] "; " implementation ": " verdict
  if (verdict == "passed") {
    if (!count[subject, implementation]++) implementations[subject] = implementations[subject] " " implementation
  }
}
/<testcase / {
  subject = subject_of(FILENAME)
  name = attribute("name"); class = attribute("classname")
  verdict = attribute("result") == "completed" ? "passed" : "skipped"
  if ($0 ~ /\/>[ \t]*$/) end_of_case()
}
/<failure/ { verdict = "FAILED" }
/<\/testcase>/ { end_of_case() }
END {
  for (i = 1; i <= n; ++i) print keys[i] ":" passed[keys[i]] other[keys[i]] > list
  for (i = 1; i <= n; ++i) {
    dot = index(keys[i], ".")
    who = passed[keys[i]] other[keys[i]]
    sub(/^[ ;]+/, "", who)
    group = substr(keys[i], 1, dot - 1) " (" who ")"
    if (!(group in of_group)) groups[++m] = group
    of_group[group] = of_group[group] " " substr(keys[i], dot + 1)
  }
  for (i = 1; i <= m; ++i) print "cases of " groups[i] ":" of_group[groups[i]]
  for (i = 1; i <= n; ++i) {
    split(keys[i], words, " ")
    if (said[words[1]]++) continue
    cases = 0
    for (k = 1; k <= n; ++k) cases += index(keys[k], words[1] " ") == 1
    line = sprintf("conformance of %s: %d cases, passed by", words[1], cases)
    parts = split(implementations[words[1]], by, " ")
    for (k = 1; k <= parts; ++k) line = line sprintf("%s %s %d", k > 1 ? "," : "", by[k], count[words[1], by[k]])
    print line
  }
}
