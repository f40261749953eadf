// The cost of a task on PostgreSQL: row versions, index entries and bytes of the write-ahead log, read from the log
// itself (pg_walinspect), so that nothing is estimated or left out.
import pg from 'pg';
import { enqueue, workersAt } from './load.mjs';
import { newDatabase, startReplicas, startScript } from './processes.mjs';
import { count, figure, table } from './report.mjs';
import { MAX_CLAIM } from './wire.mjs';

/** The tasks before the measurement, so that tables and indexes are not empty. */
const WARM_UP_CALLS = 8;

/**
 * Counts the records of the log between two positions, for each relation. A record's first block belongs to the
 * relation that it changes.
 */
const RECORDS = `
  SELECT coalesce(relation.relname::text, 'other') AS relation, block.resource_manager || '/' ||
    regexp_replace(block.record_type, '\\+INIT$', '') AS record, count(*)::int AS count
  FROM pg_get_wal_block_info($1, $2) AS block
  LEFT JOIN pg_class AS relation ON pg_relation_filenode(relation.oid) = block.relfilenode
  WHERE block.block_id = 0
    AND block.reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
  GROUP BY 1, 2`;
const BYTES = `SELECT sum(record_size)::float8 AS records, sum(fpi_size)::float8 AS pages FROM pg_get_wal_stats($1, $2)`;

/** The class of each type of record. A leaf split contains the entry that caused it. */
const CLASSES = {
  inserted: ['Heap/INSERT'],
  updated: ['Heap/UPDATE'],
  updatedInPage: ['Heap/HOT_UPDATE'],
  deleted: ['Heap/DELETE'],
  locked: ['Heap/LOCK'],
  entries: [
    'Btree/INSERT_LEAF',
    'Btree/INSERT_POST',
    'Btree/SPLIT_L',
    'Btree/SPLIT_R',
    'Gin/INSERT',
    'Hash/INSERT',
    'Gist/PAGE_UPDATE',
  ],
};

/** Reads the log records of one database. */
class LogReader {
  static async on(database) {
    const client = new pg.Client(database);
    await client.connect();
    await client.query('CREATE EXTENSION IF NOT EXISTS pg_walinspect');
    return Object.assign(new LogReader(), { client });
  }

  async #position() {
    // Its own record is a position up to which the log can be read.
    const { rows } = await this.client.query(
      `SELECT pg_logical_emit_message(false, 'bench', '', true) AS at`,
    );
    return rows[0].at;
  }

  /** @returns for each task: the number of records of each class, by relation and in total, and the bytes */
  async count(tasks, work) {
    const from = await this.#position();
    await work();
    const to = await this.#position();
    const { rows: records } = await this.client.query(RECORDS, [from, to]);
    const [bytes] = (await this.client.query(BYTES, [from, to])).rows;
    const relations = {};
    const total = Object.fromEntries(Object.keys(CLASSES).map((name) => [name, 0]));
    for (const { relation, record, count: times } of records) {
      const found = Object.entries(CLASSES).find(([, kinds]) => kinds.includes(record));
      if (!found) continue;
      const [name] = found;
      relations[relation] ??= {};
      relations[relation][name] = (relations[relation][name] ?? 0) + times / tasks;
      total[name] += times / tasks;
    }
    return { ...total, bytes: bytes.records / tasks, pageBytes: bytes.pages / tasks, relations };
  }

  end() {
    return this.client.end();
  }
}

export async function rows({ quick }) {
  const calls = quick ? 20 : 100;
  const tasks = calls * MAX_CLAIM;
  const { servers, database } = await startReplicas(1);
  const [server] = servers;
  const workers = await workersAt(servers, WARM_UP_CALLS + calls);
  const log = await LogReader.on(database);
  const leases = new Map();
  // Each agent holds as many leases as one claim grants.
  const claim = async (some) => {
    for (const worker of some) {
      const ids = await worker.claim(MAX_CLAIM);
      if (ids.length !== MAX_CLAIM) throw new Error(`${ids.length} leases for a claim of ${MAX_CLAIM}`);
      leases.set(worker, ids);
    }
  };
  const report = async (some) => {
    for (const worker of some) await worker.report(leases.get(worker));
  };
  const [first, others] = [workers.slice(0, WARM_UP_CALLS), workers.slice(WARM_UP_CALLS)];
  await enqueue(server, first.length * MAX_CLAIM, { atOnce: MAX_CLAIM });
  await claim(first);
  await report(first);
  const steps = {
    enqueue: await log.count(tasks, () => enqueue(server, tasks, { atOnce: MAX_CLAIM })),
    claim: await log.count(tasks, () => claim(others)),
    report: await log.count(tasks, () => report(others)),
  };
  for (const worker of workers) worker.close();
  await server.stop();
  await log.end();

  const baseline = await graphileWorker(tasks);
  const shown = [
    ...Object.entries(steps).map(([step, counted]) => ({ step, ...counted })),
    { step: 'claim and report', ...sum(steps.claim, steps.report) },
    { step: 'graphile-worker: enqueue', ...baseline.enqueue },
    { step: 'graphile-worker: lock and complete', ...baseline.work },
  ];
  const columns = {
    'Rows inserted': ({ inserted }) => figure(inserted),
    'Updated with indexes': ({ updated }) => figure(updated),
    'Updated in their page': ({ updatedInPage }) => figure(updatedInPage),
    Deleted: ({ deleted }) => figure(deleted),
    Locked: ({ locked }) => figure(locked),
    'Index entries': ({ entries }) => figure(entries),
  };
  return [
    table(
      `Writes for each task, ${MAX_CLAIM} at a time (PostgreSQL)`,
      {
        Step: ({ step }) => step,
        ...columns,
        'New versions': (row) => figure(row.inserted + row.updated + row.updatedInPage),
        'WAL, bytes': ({ bytes }) => figure(bytes),
        'Full pages, bytes': ({ pageBytes }) => figure(pageBytes),
      },
      shown,
      [`Counted from the write-ahead log by pg_walinspect, over ${count(tasks)} tasks.`],
    ),
    table(
      'The same by table and index',
      { Step: ({ step }) => step, Relation: ({ relation }) => relation, ...columns },
      Object.entries(steps).flatMap(([step, { relations }]) =>
        Object.entries(relations)
          .map(([relation, counted]) => ({ step, relation, ...counted }))
          // Leave out records that are not written for every task.
          .filter((row) => Object.keys(CLASSES).some((name) => row[name] >= 0.005))
          .sort((a, b) => (a.relation < b.relation ? -1 : 1)),
      ),
    ),
  ];
}

const sum = (a, b) =>
  Object.fromEntries(
    [...Object.keys(CLASSES), 'bytes', 'pageBytes'].map((name) => [name, a[name] + b[name]]),
  );

/** The same for a queue that is a library, which deletes completed tasks. */
async function graphileWorker(tasks) {
  const database = await newDatabase('postgres');
  const script = startScript('./contender.mjs', { args: ['graphile-worker', database] });
  const run = async (number) => {
    await script.ask({ op: 'enqueue', count: number });
    await script.ask({ op: 'work', count: number });
  };
  await run(WARM_UP_CALLS * MAX_CLAIM);
  const log = await LogReader.on(database);
  const enqueued = await log.count(tasks, () => script.ask({ op: 'enqueue', count: tasks }));
  const work = await log.count(tasks, () => script.ask({ op: 'work', count: tasks }));
  await log.end();
  await script.stop();
  return { enqueue: enqueued, work };
}
