// Tasks claimed and reported 256 at a time, compared with two queues for PostgreSQL that are libraries: through HTTP,
// as agents do it, and in process, where both sides only work on the database.
import { enqueue, work, workersAt } from './load.mjs';
import { newDatabase, startBare, startScript, startServer } from './processes.mjs';
import { comparison } from './report.mjs';
import { MAX_CLAIM, MAX_ENQUEUE } from './wire.mjs';

const WORKERS = 4;

/** A queue in a separate process. */
async function inProcess(name, kind) {
  const script = startScript('./contender.mjs', { args: [name, await newDatabase(kind)] });
  return {
    enqueue: async (count) => count / (await script.ask({ op: 'enqueue', count })).seconds,
    work: async (count) => {
      const { done, seconds } = await script.ask({ op: 'work', workers: WORKERS, size: MAX_CLAIM, count });
      return done / seconds;
    },
    stop: script.stop,
  };
}

/** A server whose callers use HTTP. */
async function throughHttp(server) {
  const workers = await workersAt([server], WORKERS);
  return {
    enqueue: async (count) => {
      const startedAt = performance.now();
      await enqueue(server, count);
      return count / ((performance.now() - startedAt) / 1_000);
    },
    work: async (count) => (await work(workers, { size: MAX_CLAIM, count })).rate,
    stop: async () => {
      for (const worker of workers) worker.close();
      await server.stop();
    },
  };
}

export async function queue({ quick }) {
  const rounds = quick ? 3 : 7;
  const share = quick ? 10_000 : 30_000;
  const contenders = {
    bare: await throughHttp(await startBare()),
    httpSqlite: await throughHttp(await startServer('sqlite')),
    httpPostgres: await throughHttp(await startServer('postgres')),
    sqlite: await inProcess('control-plane', 'sqlite'),
    postgres: await inProcess('control-plane', 'postgres'),
    graphile: await inProcess('graphile-worker', 'postgres'),
    greedy: await inProcess('graphile-worker-2000', 'postgres'),
    boss: await inProcess('pg-boss', 'postgres'),
  };
  const worked = Object.fromEntries(Object.keys(contenders).map((name) => [name, []]));
  const enqueued = structuredClone(worked);
  // The first round is for warming up.
  for (let round = 0; round <= rounds; round++) {
    for (const [name, contender] of Object.entries(contenders)) {
      const enqueueRate = await contender.enqueue(share);
      const workRate = await contender.work(share);
      if (round === 0) continue;
      enqueued[name].push(enqueueRate);
      worked[name].push(workRate);
    }
  }
  for (const contender of Object.values(contenders)) await contender.stop();
  const rows = (rates, figures) =>
    figures.map(([figure, ours, baseline, theirs, aim]) => ({
      ...{ figure, ours: rates[ours], baseline, theirs: rates[theirs], aim },
    }));
  return [
    comparison(
      `Tasks a second claimed and reported, ${MAX_CLAIM} at a time, ${WORKERS} workers`,
      rows(worked, [
        ['SQLite, through HTTP', 'httpSqlite', 'graphile-worker in process', 'graphile', { min: 2 }],
        ['SQLite, in process', 'sqlite', 'graphile-worker in process', 'graphile'],
        ['PostgreSQL, through HTTP', 'httpPostgres', 'graphile-worker in process', 'graphile', { min: 1 }],
        ['PostgreSQL, in process', 'postgres', 'graphile-worker in process', 'graphile'],
        ['SQLite, in process', 'sqlite', 'the same, 2,000 fetched ahead', 'greedy'],
        ['PostgreSQL, in process', 'postgres', 'the same, 2,000 fetched ahead', 'greedy'],
        ['SQLite, through HTTP', 'httpSqlite', 'pg-boss in process', 'boss'],
        ['PostgreSQL, through HTTP', 'httpPostgres', 'pg-boss in process', 'boss'],
        ['PostgreSQL, in process', 'postgres', 'pg-boss in process', 'boss'],
        ['SQLite, through HTTP', 'httpSqlite', 'bare Fastify', 'bare'],
      ]),
      [
        'graphile-worker: 24 jobs at once, 500 fetched ahead, completed in batches, as its documentation advises; its tasks do nothing. pg-boss: jobs fetched and completed 256 at a time by 4 workers. Both on the same PostgreSQL as ours.',
      ],
    ),
    comparison(
      `Tasks a second enqueued, ${MAX_ENQUEUE} a call`,
      rows(enqueued, [
        ['SQLite, through HTTP', 'httpSqlite', 'graphile-worker in process', 'graphile'],
        ['PostgreSQL, through HTTP', 'httpPostgres', 'graphile-worker in process', 'graphile'],
        ['PostgreSQL, through HTTP', 'httpPostgres', 'pg-boss in process', 'boss'],
        ['SQLite, through HTTP', 'httpSqlite', 'bare Fastify', 'bare'],
      ]),
    ),
  ];
}
