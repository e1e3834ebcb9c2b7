"""What bench/peers, bench/figures and bench/sweep share: one run of `millrace bench`, medians with ranges, the machine, the page."""
import contextlib, json, os, pathlib, random, shlex, socket, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "ops" / "docs" / "benchmarks.md"


def say(text):
    print(text, file=sys.stderr, flush=True)


def build_argument(parser):
    parser.add_argument("--build", default=str(ROOT / "build" / "release"), help="build folder of the millrace to measure")


def program(build, who, path="bin/millrace"):
    found = pathlib.Path(build).resolve() / path
    if not found.exists():
        sys.exit(f"{who}: there is no {found}: cmake --preset release && cmake --build build/release")
    return str(found)


def bench(millrace, *words, timeout=1200, own=True):
    """The report of `millrace bench WORDS`, in an installation of its own and without any configuration of this user's. "sound" says
    whether nothing was lost, done twice, corrupted or different; RuntimeError: there is no report."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run([millrace, "bench", *words, *(["--own"] if own else []), "-o", "json", "--home", home],
                              capture_output=True, text=True, cwd=home, timeout=timeout)
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "millrace bench failed")
    return json.loads(done.stdout)


@contextlib.contextmanager
def servers():
    """Redis (AOF everysec) and PostgreSQL (fsync on, which is looked at) of their own. Yields their folder and environment."""
    script = str(ROOT / "tests" / "support" / "servers.sh")
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)
        folder = pathlib.Path(home) / "servers"
        try:
            subprocess.run([script, "start", str(folder)], check=True, capture_output=True, env={**os.environ, "MILLRACE_SERVERS_FSYNC": "on"})
            words = dict(shlex.split(line)[1].split("=", 1) for line in (folder / "env").read_text().splitlines())
            require_durable(words["MILLRACE_TEST_POSTGRES"])
            yield folder, {**os.environ, **words}
        finally:
            subprocess.run([script, "stop", str(folder)], capture_output=True)


def require_durable(dsn):
    for setting in ("fsync", "synchronous_commit"):
        found = subprocess.run(["psql", "-XAtq", dsn, "-c", f"show {setting}"], capture_output=True, text=True).stdout.strip()
        if found != "on":
            raise RuntimeError(f"PostgreSQL has {setting} '{found}', not 'on': what is measured there says nothing")


def use_log_segments(dsn):
    """Has PostgreSQL make 1 GiB of log segments, use them once and keep them, as one that has run for a while: see UseLogSegments
    in client/bench/installation.cc."""
    texts = ["alter system set min_wal_size = '1GB'", "select pg_reload_conf()",
             "do $$ begin for i in 1..64 loop perform pg_logical_emit_message(false, 'bench', ''); perform pg_switch_wal(); "
             "end loop; end $$", "checkpoint"]
    subprocess.run(["psql", "-Xq", "-v", "ON_ERROR_STOP=1", dsn, *[w for t in texts for w in ("-c", t)]], check=True, capture_output=True)


def free_port():
    """Of 127.0.0.1, and below those that the kernel gives to outgoing connections: nobody takes it before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def broker(millrace):
    """A broker over servers of its own that nobody uses. Yields its process and its workers' endpoint."""
    with servers() as (folder, env):
        workers = f"tcp://127.0.0.1:{free_port()}"
        config = folder / "millrace.yaml"
        config.write_text(f"""version: 1
home: {folder}/home
lake: {folder}
ledger: {{ dsn: "{env['MILLRACE_TEST_POSTGRES']}" }}
queue: {{ redis: "{env['MILLRACE_TEST_REDIS']}" }}
broker: {{ listen_clients: "tcp://127.0.0.1:{free_port()}", listen_workers: "{workers}" }}
audit: {{ checkpoint_dir: {folder}/checkpoints, key_file: {folder}/audit.key }}
""")
        with open(folder / "broker.log", "w+") as log:
            process = subprocess.Popen([millrace, "--config", str(config), "broker"], stdout=log, stderr=log)
            try:
                for _ in range(200):  # it has every shard
                    if pathlib.Path(log.name).read_text().count(": ready in epoch") >= 16:
                        break
                    if process.poll() is not None:
                        raise RuntimeError(f"the broker ended: {pathlib.Path(log.name).read_text()[-300:]}")
                    time.sleep(0.1)
                else:
                    raise RuntimeError("the broker has not all shards after 20 s")
                yield process, workers
            finally:
                process.terminate()
                process.wait()


def median_and_range(values, form="{:,.0f}"):
    if len(values) == 1:
        return form.replace(":", ":z", 1).format(values[0]) + " (one run)"
    middle, least, most = (form.replace(":", ":z", 1).format(v) for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def machine():
    cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    return f"{os.cpu_count()} cores of {cpu}, Linux {os.uname().release}, load average before: {open('/proc/loadavg').read().split()[0]}"


def markdown(head, rows):
    return "\n".join("| " + " | ".join(words) + " |" for words in [head, ["---"] * len(head), *rows])


def section(name):
    """What stands between the marks `name` of ops/docs/benchmarks.md, and the page before and after it."""
    begin, end = f"<!-- {name}: written by bench/{name} -->", f"<!-- {name}: end -->"
    page = PAGE.read_text()
    at, until = page.index(begin) + len(begin), page.index(end)
    return page[at:until].strip("\n"), page[:at], page[until:]


def write_section(name, text):
    _, before, after = section(name)
    PAGE.write_text(before + "\n\n" + text.strip("\n") + "\n\n" + after)


def line_of(name, lines, cell):
    """The index of the table's line that begins with this cell. It must be there."""
    at = next((i for i, line in enumerate(lines) if line.startswith(f"| {cell} |")), None)
    if at is None:
        sys.exit(f"{name}: the table has no line '{cell}' yet: write the whole of it first")
    return at


def require_lines(name, cells):
    """Before the work that replace_lines puts there."""
    lines = section(name)[0].splitlines()
    for cell in cells:
        line_of(name, lines, cell)


def replace_lines(name, rows, note):
    """Puts these rows of a table in the place of those that begin with the same cell, and the note below the section's first line."""
    lines = section(name)[0].splitlines()
    for row in rows:
        lines[line_of(name, lines, row[0])] = "| " + " | ".join(row) + " |"
    lines.insert(1, note)
    write_section(name, "\n".join(lines))
