// BullMQ: addBulk of 1000 (four at a time are not faster), removeOnComplete, concurrency 200 (the fastest measured here).
const { Queue, Worker } = require('bullmq');
const { Handler, produce, finish, mode, jobs, gap } = require(process.env.PEERS_D + '/common.cjs');
const connection = { host: '127.0.0.1', port: Number(process.env.REDIS_PORT), maxRetriesPerRequest: null };
const opts = { removeOnComplete: true, removeOnFail: true };
(async () => {
  if (mode === 'produce') {
    const queue = new Queue('bench', { connection });
    await queue.waitUntilReady();
    await produce(jobs, gap, 1000, 1, (list) => queue.addBulk(list.map((data) => ({ name: 'noop', data, opts }))));
    await queue.close();
    process.exit(0);
  }
  const handler = new Handler(jobs);
  const worker = new Worker('bench', async (job) => { if (handler.handle(job.data)) finish(handler, () => worker.close(true)); },
    { connection, concurrency: 200, autorun: false });
  await worker.waitUntilReady();
  worker.run();
  console.log('READY');
})();
