#!/usr/bin/env bash
# Redis and PostgreSQL for tests, benchmarks and the demo: own data folder, free ports, ended by their own pids. With
# MILLRACE_SERVERS_FSYNC=off (ops/test) PostgreSQL syncs nothing to the disk: that would only show in a crash of the machine, and
# tests of such start servers of their own.
#   tests/support/servers.sh start DIR   starts both, writes DIR/env (export lines), prints it
#   tests/support/servers.sh stop DIR
#   tests/support/servers.sh port        prints a free port of 127.0.0.1
set -euo pipefail
action=${1:?start, stop or port} dir=${2:-}
[[ $action == port || -n $dir ]] || { echo "servers: $action which directory?" >&2; exit 2; }

pg_bin() {
  local found
  found=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
  [[ -x "$found/postgres" ]] || { echo "servers: no PostgreSQL server. Run: ops/setup" >&2; exit 6; }
  echo "$found"
}
# Free, and below the ports that the kernel gives to outgoing connections.
free_port() {
  perl -MIO::Socket::INET -e 'for (1 .. 1000) { my $port = 20000 + int rand 12000;
    if (IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1", LocalPort => $port)) { print $port; exit } } exit 1'
}
as_pg() { if [[ $EUID -eq 0 ]]; then setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; else "$@"; fi; }

case $action in
  port) free_port ;;
  start)
    command -v redis-server >/dev/null || { echo "servers: no redis-server. Run: ops/setup" >&2; exit 6; }
    bin=$(pg_bin)
    mkdir -p "$dir/redis" "$dir/pg"
    dir=$(cd "$dir" && pwd)
    chmod 755 "$dir"
    redis_port=$(free_port)
    redis-server --port "$redis_port" --bind 127.0.0.1 --dir "$dir/redis" --save "" --appendonly yes --appendfsync everysec \
      --daemonize yes --pidfile "$dir/redis/pid" --logfile "$dir/redis/log" >/dev/null
    pg_port=$(free_port)
    [[ $EUID -eq 0 ]] && chown postgres "$dir/pg"
    as_pg "$bin/initdb" -D "$dir/pg/data" -U postgres -A trust -E UTF8 --no-locale >"$dir/pg-init.log" 2>&1 || { cat "$dir/pg-init.log" >&2; exit 1; }
    as_pg "$bin/pg_ctl" -D "$dir/pg/data" -l "$dir/pg/log" -w -t 60 \
      -o "-p $pg_port -c listen_addresses=127.0.0.1 -c unix_socket_directories='$dir/pg' -c max_connections=200 -c shared_buffers=256MB -c fsync=${MILLRACE_SERVERS_FSYNC:-on}" start >/dev/null
    for _ in $(seq 100); do redis-cli -p "$redis_port" ping >/dev/null 2>&1 && break; sleep 0.05; done
    cat >"$dir/env" <<E2
export MILLRACE_TEST_REDIS=127.0.0.1:$redis_port
export MILLRACE_TEST_POSTGRES="host=127.0.0.1 port=$pg_port user=postgres dbname=postgres"
E2
    cat "$dir/env"
    ;;
  stop)
    [[ -f "$dir/redis/pid" ]] && kill "$(cat "$dir/redis/pid")" 2>/dev/null || true
    [[ -f "$dir/pg/data/postmaster.pid" ]] && kill -INT "$(head -1 "$dir/pg/data/postmaster.pid")" 2>/dev/null || true
    for _ in $(seq 100); do [[ -f "$dir/pg/data/postmaster.pid" ]] || break; sleep 0.1; done
    ;;
  *) echo "servers: '$action' is not start, stop or port" >&2; exit 2 ;;
esac
