// What the drivers of Node share. A driver is called `worker N` or `produce N GAP_MS` (0: as fast as it goes, in batches).
// A producer says SET when it is connected, and starts when a line comes in. A worker reports when it has seen all jobs, or
// nothing more for 20 s.
// A job's payload is "<number> <send time, ns> <pseudo-random hex>", 100 bytes; the worker counts each number.
const { createHash } = require('node:crypto');
const BYTES = 100, WARMUP = 50, STANDSTILL_MS = 20000;
const now = () => process.hrtime.bigint();
const noise = createHash('sha512').update('millrace').digest('hex').repeat(2);
function payload(number) {
  const head = `${number} ${now()} `;
  const at = (number * 7) % 100;
  return head + noise.slice(at, at + BYTES - head.length);
}
class Handler {
  constructor(jobs) {
    this.jobs = jobs; this.seen = new Uint8Array(jobs); this.executed = 0; this.distinct = 0; this.first = 0n; this.last = 0n;
    this.latencies = [];
    let before = 0, since = Date.now();
    setInterval(() => {
      if (this.executed !== before || this.executed === 0) { before = this.executed; since = Date.now(); }
      else if (Date.now() - since > STANDSTILL_MS) { this.report(); process.exit(0); }
    }, 1000).unref();
  }
  handle(text) {
    const t = now(), [number, sent] = text.split(' ');
    if (this.executed++ === 0) this.first = t;
    this.last = t;
    if (this.seen[number]++ === 0) this.distinct++;
    if (this.latencies.length < 5000) this.latencies.push(Number(t - BigInt(sent)) / 1000);
    return this.distinct === this.jobs;
  }
  report() {
    const l = this.latencies.slice(Math.min(WARMUP, this.latencies.length >> 1)).sort((a, b) => a - b);
    const q = (p) => Math.round(l[Math.min(l.length - 1, Math.ceil(p * l.length) - 1)] ?? 0);
    console.log(`DONE ${this.first} ${this.last} ${this.executed} ${this.distinct} ${q(0.5)} ${q(0.99)}`);
  }
}
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
// Calls `batch(list of payloads)` for all, `outstanding` of them at a time, or `batch([one])` every gap ms.
async function produce(jobs, gap, size, outstanding, batch) {
  console.log('SET');
  await new Promise((resolve) => process.stdin.once('data', resolve));
  process.stdin.destroy();
  const begin = now(), step = gap ? 1 : size;
  let next = 0;
  const lane = async () => {
    while (next < jobs) {
      const list = [], end = Math.min(jobs, next + step);
      for (; next < end; next++) list.push(payload(next));
      await batch(list);
      if (gap) await sleep(gap);
    }
  };
  await Promise.all(Array.from({ length: gap ? 1 : outstanding }, lane));
  console.log(`PRODUCED ${begin} ${now()}`);
}
// Ends the process a moment after the last job: repetitions that come late are still counted, and acknowledgements leave.
async function finish(handler, close) { await sleep(500); handler.report(); try { await close(); } catch { } process.exit(0); }
const [mode, count, gap] = process.argv.slice(2);
module.exports = { Handler, produce, finish, sleep, mode, jobs: Number(count), gap: Number(gap || 0) };
