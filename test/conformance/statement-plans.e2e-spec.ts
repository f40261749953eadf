import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { onPostgres, TestServer } from '../helpers/harness';

const FOLDER = 'docs/sql';

/** Tables that stay small: operators make their rows by hand, or a job keeps them short. */
const SMALL =
  /^(operator_tokens|enrollment_tokens|sqlite_sequence|task_counts|task_count_deltas|audit_head|service_continuity)$/;

/** Operations that read a whole table on purpose, and why no request waits for them. */
const READ_ALL: Record<string, string> = {
  'agents/agent-kinds.queries.ts: cutFutureKinds': 'once, after the clock was set back',
  'agents/agent-kinds.queries.ts: deleteKindsAskedBefore': 'a job, every hour',
  'agents/agent-outcomes.queries.ts: cutFutureOutcomes': 'once, after the clock was set back',
  'agents/agents.queries.ts: listNewestCredentials': 'at the start, with a limit',
  'agents/agents.queries.ts: movePreviousTokenExpiries': 'once, after the clock was set back',
  'agents/fleet.queries.ts: listAgents': 'a page in the order of ids; its filters are in list-plans',
  'agents/fleet-metrics.queries.ts: groupByHeartbeatAge': 'a scrape, on the reading connection',
  'agents/fleet-metrics.queries.ts: countByConfigState': 'a scrape, on the reading connection',
  'agents/heartbeats.queries.ts: cutFutureHeartbeats': 'once, after the clock was set back',
  'agents/heartbeats.queries.ts: listSeenSince': 'at the start',
  'agents/imported-agents.queries.ts: selectTakenIds': 'an import, before the service starts',
  'concurrency/windows.queries.ts: countTargetWindows': 'a scrape, with a limit',
  'concurrency/windows.queries.ts: limitLastStarts': 'once, after the clock was set back',
  'config/config.queries.ts: findNewestConfig': 'the last of its index',
  'leases/leases.queries.ts: adjustDeadlines': 'once, after an outage; live leases only',
  'leases/leases.queries.ts: countInWindows': 'limits are set; live leases only, once for all limits',
  'operators/audit.queries.ts: findUnrecordedTable': 'at the start, the first is enough',
  'operators/audit.queries.ts: findUnrecordedToken': 'at the start',
  'queue/lanes.queries.ts: deleteIdleLanes': 'a job, every hour, with a limit',
  'queue/lanes.queries.ts: forgetOpenings': 'once, after the clock was set back',
  'queue/lanes.queries.ts: hasOwnLanes': 'past the lanes of kinds, the first is enough',
};

interface Operation {
  readonly name: string;
  readonly sql: string;
}

/** The final text of every statement of the program, as it is committed. */
function operations(): Operation[] {
  const ending = onPostgres ? '.postgres.sql' : '.sqlite.sql';
  return readdirSync(FOLDER)
    .filter((file) => file.endsWith(ending))
    .flatMap((file) => readFileSync(join(FOLDER, file), 'utf8').split(/^-- /m).slice(1))
    .flatMap((section) => {
      const end = section.indexOf('\n');
      return section
        .slice(end)
        .split(/;\n/)
        .map((sql) => ({ name: section.slice(0, end), sql: sql.trim() }))
        .filter(({ sql }) => sql !== '');
    });
}

/** The tables that a plan reads as a whole; of an index that has only some of the rows it may read all. */
const tablesReadIn = (plan: string, partialIndexes: ReadonlySet<string>): string[] =>
  [
    ...plan.matchAll(
      onPostgres ? /Seq Scan on (\w+)()/g : /^SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?/gm,
    ),
  ].flatMap(([, table, index = '']) => (partialIndexes.has(index) ? [] : [table as string]));

describe('the plan of each statement', () => {
  let server: TestServer;

  beforeAll(async () => {
    server = await TestServer.start();
  });
  afterAll(() => server.stop());

  /** The plan, whatever the statistics are: the tables are empty, so PostgreSQL is told that reading one costs a lot. */
  const planOf = (sql: string): Promise<string> =>
    server.database.write(async (tx) => {
      if (!onPostgres) {
        const values = Array.from({ length: new Set(sql.match(/\$\d+/g)).size }, () => null);
        return (await tx.rows<{ detail: string }>(`EXPLAIN QUERY PLAN ${sql}`, ...values))
          .map(({ detail }) => detail)
          .join('\n');
      }
      await tx.run('SET LOCAL enable_seqscan = off');
      const rows = await tx.rows<{ 'QUERY PLAN': string }>(`EXPLAIN (GENERIC_PLAN) ${sql}`);
      return rows.map((row) => row['QUERY PLAN']).join('\n');
    });

  it('reads no large table as a whole, but for the named operations', async () => {
    const names = await tableNames();
    const partial = await partialIndexes();
    const found: string[] = [];
    for (const { name, sql } of operations()) {
      const aliases = new Map(
        [
          ...sql.matchAll(/(?:FROM|JOIN|UPDATE) (\w+)(?: AS)? (?!WHERE|SET|JOIN|CROSS|LEFT|ORDER|ON)(\w+)/g),
        ].map(([, table, alias]) => [alias, table]),
      );
      for (const read of tablesReadIn(await planOf(sql), partial)) {
        const table = names.has(read) ? read : (aliases.get(read) ?? read);
        if (names.has(table) && !SMALL.test(table) && !(name in READ_ALL))
          found.push(`${name} reads all of ${table}`);
      }
    }
    expect(found).toEqual([]);
  });

  async function tableNames(): Promise<Set<string>> {
    const rows = await server.rows(
      onPostgres
        ? `SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace`
        : `SELECT name FROM sqlite_schema WHERE type = 'table'`,
    );
    return new Set(rows.map(({ name }) => name as string));
  }

  /** Needed on SQLite alone, whose plans don't tell an index that is searched by its condition from one that is read. */
  async function partialIndexes(): Promise<Set<string>> {
    if (onPostgres) return new Set();
    const rows = await server.rows(
      `SELECT name FROM sqlite_schema WHERE type = 'index' AND sql LIKE '% WHERE %'`,
    );
    return new Set(rows.map(({ name }) => name as string));
  }

  it('is that of operations that there are', () => {
    const names = new Set(operations().map(({ name }) => name));
    expect(Object.keys(READ_ALL).filter((name) => !names.has(name))).toEqual([]);
  });
});
