"""What the drivers in Python share; the same rules as common.cjs."""
import hashlib, math, os, sys, threading, time
BYTES, WARMUP, STANDSTILL_S = 100, 50, 20
NOISE = hashlib.sha512(b"millrace").hexdigest() * 2
MODE, JOBS, GAP = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.0


def payload(number):
    head = f"{number} {time.monotonic_ns()} "
    at = number * 7 % 100
    return head + NOISE[at:at + BYTES - len(head)]


class Handler:
    def __init__(self):
        self.seen, self.executed, self.distinct, self.first, self.last, self.latencies = bytearray(JOBS), 0, 0, 0, 0, []
        threading.Thread(target=self.watch_for_standstill, daemon=True).start()

    def watch_for_standstill(self):
        before, since = 0, time.monotonic()
        while True:
            time.sleep(1)
            if self.executed != before or not self.executed:
                before, since = self.executed, time.monotonic()
            elif time.monotonic() - since > STANDSTILL_S:
                self.finish()

    def handle(self, text):
        t = time.monotonic_ns()
        number, sent, _ = text.split(" ", 2)
        if self.executed == 0:
            self.first = t
        self.executed += 1
        self.last = t
        n = int(number)
        if not self.seen[n]:
            self.seen[n] = 1
            self.distinct += 1
        if len(self.latencies) < 5000:
            self.latencies.append((t - int(sent)) / 1000)
        if self.distinct == JOBS:
            threading.Thread(target=self.finish, daemon=True).start()

    def finish(self):
        """A moment after the last job: repetitions that come late are still counted."""
        time.sleep(0.5)
        l = sorted(self.latencies[min(WARMUP, len(self.latencies) // 2):])
        q = lambda p: round(l[min(len(l) - 1, math.ceil(p * len(l)) - 1)])
        print("DONE", self.first, self.last, self.executed, self.distinct, q(0.5), q(0.99), flush=True)
        os._exit(0)


def produce(size, batch):
    print("SET", flush=True)
    sys.stdin.readline()
    begin = time.monotonic_ns()
    step = 1 if GAP else size
    for i in range(0, JOBS, step):
        batch([payload(j) for j in range(i, min(JOBS, i + step))])
        if GAP:
            time.sleep(GAP)
    print("PRODUCED", begin, time.monotonic_ns(), flush=True)
