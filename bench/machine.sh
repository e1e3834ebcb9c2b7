# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in bench/: what a figure must be read with.
# priority: a prefix that keeps other processes of a shared machine from delaying the measured ones, where that is allowed.
priority=()
nice -n -5 true 2>/dev/null && [[ -z $(nice -n -5 true 2>&1) ]] && priority=(nice -n -5)

machine_json() {  # MILLRACE
  jq -n --arg cpu "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)" --argjson cores "$(nproc)" \
    --arg memory "$(awk '/MemTotal/ {printf "%.1f GiB", $2 / 1048576}' /proc/meminfo)" --arg kernel "$(uname -r)" \
    --arg filesystem "$(stat -f -c %T "${TMPDIR:-/tmp}")" --arg load "$(cut -d' ' -f1-3 /proc/loadavg)" \
    --arg millrace "$("$1" version -o json 2>/dev/null | jq -r '.[0].version')" \
    --arg postgres "$(ls /usr/lib/postgresql 2>/dev/null | sort -V | tail -1)" \
    --arg redis "$(redis-server --version 2>/dev/null | sed -n 's/.*v=\([^ ]*\).*/\1/p')" \
    '{cpu: $cpu, cores: $cores, memory: $memory, kernel: $kernel, filesystem: $filesystem, load_before: $load, millrace: $millrace,
      postgres: $postgres, redis: $redis}'
}
