import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { hasPostgres } from '../../scripts/postgres-process.mjs';
import { PostgresServer } from '../helpers/postgres-server';
import { endAll, type ServerProcess } from '../helpers/processes';
import { type Change, clockOff, judge, Load, mutant, observe, startReplica } from '../helpers/replicas';

/** For machines with much else to do. */
const PATIENCE_MS = 180_000;
/** How long a load may take to show what is wrong. */
const SEARCH_MS = 30_000;

/** The program without one of the things that its promises depend on, and what tells. */
interface Mutant {
  readonly without: string;
  readonly changes: readonly Change[];
  /** Of what clients saw, or of what the tables say. */
  readonly seen: RegExp;
  /** How far the clocks of its two replicas are off. */
  readonly offMs?: number;
}

/** A placeholder within the text of a statement, as the build has it. */
const inserted = (expression: string): string => `\${${expression}}`;

const MUTANTS: readonly Mutant[] = [
  {
    without: 'the fence',
    changes: [
      [
        'leases/reports.js',
        `if (state === 'active') {`,
        `if (['active', 'expired', 'revoked'].includes(state)) {`,
      ],
      [
        'leases/leases.queries.js',
        `FROM ${inserted(`tx.dialect.rowset('$1', END)`)} AS r
     WHERE leases.id = r.id AND ${inserted(`isLive('leases')`)} AND`,
        `FROM ${inserted(`tx.dialect.rowset('$1', END)`)} AS r
     WHERE leases.id = r.id AND`,
      ],
    ],
    seen: /^report \d+: answered 500|^lease \d+: its (?:late )?report|^task \d+: \w+ with 2|^task \d+: \w+, and|^two final results/,
  },
  {
    without: 'exclusive claims, and the index by which a task has one live lease',
    changes: [
      [
        'queue/lanes.queries.js',
        inserted(`tx.dialect.takeRows('ready', READY_KEY, group.map((_, i) => within(i)))`) +
          ` RETURNING ${inserted('READY_COLUMNS')}`,
        inserted(
          `group.map((_, i) => 'SELECT * FROM (SELECT ' + READY_COLUMNS + ' FROM ready ' + within(i) + ') AS p' + i).join(' UNION ALL ')`,
        ),
      ],
      [
        'migrations/1764000000000-initial.js',
        'CREATE UNIQUE INDEX leases_live ',
        'CREATE INDEX leases_live ',
      ],
      [
        'queue/lanes.queries.js',
        '    return taken;\n',
        // The longer it takes between the two statements, the sooner two replicas meet there.
        '    await new Promise((done) => setTimeout(done, 10));\n    await removeReady(tx, taken);\n    return taken;\n',
      ],
    ],
    seen: /^claim \d+: answered 500|^two live leases|^lease \d+: granted|^task \d+: (?:leases?|\w+ with 2|\w+, and)/,
  },
  {
    without: 'giving slots back when leases end',
    changes: [['concurrency/windows.js', 'window.taken = -own.length;', 'window.taken = 0;']],
    seen: /^window .*: says \d+ leased|^a wrong window/,
  },
  {
    without: 'opening a lane again when its window has room',
    changes: [
      [
        'queue/transitions.js',
        'async applyWindows(tx, changed) {',
        'async applyWindows(tx, changed) { changed = changed.filter(({ room }) => room <= 0);',
      ],
    ],
    seen: /^a lane that is closed and has room/,
  },
  {
    without: 'part of the changes of the depth',
    changes: [['queue/depth.js', 'if (from === to)', `if (from === to || to === 'cancelled')`]],
    seen: /^count of dns \w+: says|^a wrong depth/,
  },
  {
    without: 'waiting for units under way when a limit is set',
    changes: [['concurrency/windows.js', `tx.lockName(exports.LIMITS_LOCK, 'shared')`, 'undefined']],
    seen: /^window .*: says \d+ leased|^a wrong window|^report \d+: answered 500/,
  },
  {
    without: 'the lock on a window when its slots are taken',
    changes: [
      [
        'concurrency/windows.queries.js',
        `ORDER BY id ${inserted('tx.dialect.forUpdate()')}\`, JSON.stringify(ids)`,
        'ORDER BY id`, JSON.stringify(ids)',
      ],
    ],
    seen: /^a slot beyond a limit|^window .*: \d+ leases were granted/,
  },
  {
    without: "the database's clock",
    changes: [
      [
        'database/postgres-database.js',
        'this.clock === this.serverClock ? now : this.clock.now()',
        'Date.now()',
      ],
    ],
    // Between the two less than what counts as an interruption, after which nobody is held to a deadline.
    offMs: 2_000,
    seen: /^lease \d+: (?:ended \d+ ms early|expired before)/,
  },
];

(hasPostgres ? describe : describe.skip)('the program', () => {
  let folder: string;
  let server: PostgresServer;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    // The server runs as another user if this is root.
    chmodSync(folder, 0o755);
    server = await PostgresServer.start(folder);
  }, PATIENCE_MS);

  afterAll(async () => {
    await endAll();
    await server?.stop('SIGINT');
    rmSync(folder, { recursive: true, force: true });
  }, PATIENCE_MS);

  /** Starts two replicas of a build on a database of their own, under load. */
  async function run(name: string, main: string | undefined, offMs: number) {
    const database = await server.create(name);
    const env = { SIGNING_KEY_FILE: join(folder, `${name}.pem`) };
    const replicas: ServerProcess[] = [];
    for (const byMs of [offMs, -offMs]) {
      const nodeArgs = byMs === 0 ? [] : ['--require', clockOff(folder, byMs)];
      replicas.push(await startReplica(folder, database, { main, env, nodeArgs }));
    }
    await observe(server, name);
    const load = await Load.start(folder, replicas);
    return {
      load,
      violations: () => judge(load, server, name),
      end: () => Promise.all(replicas.map((replica) => replica.end('SIGKILL'))),
    };
  }

  it(
    'is not found to break a promise as it is, while it works or afterwards',
    async () => {
      const { load, violations, end } = await run('as_it_is', undefined, 0);
      for (let i = 0; i < 5; i++) {
        await load.more(25);
        const seen = (await violations()).filter((one) => MUTANTS.some((mutant) => mutant.seen.test(one)));
        expect(seen).toEqual([]);
      }
      await load.stop();
      expect(await violations()).toEqual([]);
      await end();
    },
    PATIENCE_MS,
  );

  it.each(MUTANTS)(
    'would be found out without $without',
    async ({ without, changes, seen, offMs = 0 }) => {
      const name = `without_${without.replaceAll(/\W+/g, '_').toLowerCase()}`.slice(0, 60);
      const { load, violations, end } = await run(name, mutant(folder, name, changes), offMs);
      const isFound = async () => (await violations()).some((violation) => seen.test(violation));
      const until = performance.now() + SEARCH_MS;
      while (!(await isFound()) && performance.now() < until) await sleep(500);
      await load.stop();
      expect(await violations()).toContainEqual(expect.stringMatching(seen));
      await end();
    },
    PATIENCE_MS,
  );
});
