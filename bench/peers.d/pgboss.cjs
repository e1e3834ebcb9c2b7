// pg-boss: insert of 1000 (four at a time are a third slower), batches of 1000 to the handler, LISTEN/NOTIFY, no pause after a full batch.
const { PgBoss } = require('pg-boss');
const { Handler, produce, finish, sleep, mode, jobs, gap } = require(process.env.PEERS_D + '/common.cjs');
(async () => {
  const boss = new PgBoss({ connectionString: process.env.PGURL, supervise: false, schedule: false, useListenNotify: true });
  boss.on('error', (error) => console.error(error.message));
  await boss.start();
  if (mode === 'produce') {
    await produce(jobs, gap, 1000, 1, (list) => boss.insert('bench', list.map((p) => ({ data: { p } }))));
    process.exit(0);
  }
  await boss.createQueue('bench', { notify: true });
  const handler = new Handler(jobs);
  await boss.work('bench', { batchSize: 1000, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 }, async (list) => {
    let all = false;
    for (const job of list) all = handler.handle(job.data.p) || all;
    if (all) finish(handler, () => boss.stop({ graceful: false }));
  });
  await sleep(300);
  console.log('READY');
})();
