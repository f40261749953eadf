// Runs one queue in a separate process, so that queues do not share a heap or an event loop: contender.mjs name
// database.
import { CONTENDERS } from './contenders.mjs';

const [name, database] = process.argv.slice(2);
const contender = new CONTENDERS[name]();
const started = contender.start(database);
// Reported with the first answer.
started.catch(() => undefined);

const OPERATIONS = {
  enqueue: async ({ count }) => {
    const startedAt = performance.now();
    await contender.enqueue(count);
    return { seconds: (performance.now() - startedAt) / 1_000 };
  },
  work: (asked) => contender.work(asked),
};

process.on('message', async ({ op, ...asked }) => {
  try {
    await started;
    process.send(await OPERATIONS[op](asked));
  } catch (error) {
    process.send({ error: error.stack });
  }
});

process.on('disconnect', async () => {
  await contender.stop();
  process.exit();
});
