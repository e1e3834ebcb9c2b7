// graphile-worker: addJobs of 1000, four at a time (one: 9 % slower); fetches 1000 at a time (localQueue), completes in batches, 100 jobs at once.
const { run, makeWorkerUtils, Logger } = require('graphile-worker');
const { Handler, produce, finish, sleep, mode, jobs, gap } = require(process.env.PEERS_D + '/common.cjs');
const preset = {
  worker: {
    connectionString: process.env.PGURL, concurrentJobs: 100, maxPoolSize: 10, logger: new Logger(() => () => {}),
    localQueue: { size: 1000 }, completeJobBatchDelay: 0, failJobBatchDelay: 0,
  },
};
(async () => {
  const utils = await makeWorkerUtils({ preset });
  await utils.migrate();
  if (mode === 'produce') {
    await produce(jobs, gap, 1000, 4, (list) => utils.addJobs(list.map((p) => ({ identifier: 'noop', payload: { p } }))));
    await utils.release();
    process.exit(0);
  }
  const handler = new Handler(jobs);
  const noop = async ({ p }) => { if (handler.handle(p)) finish(handler, () => runner.stop()); };
  const runner = await run({ preset, taskList: { noop }, noHandleSignals: true });
  await sleep(300);
  console.log('READY');
})();
