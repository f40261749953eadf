// Writes docs/sql: the final text of each statement of the built program, for each database; with --check, fails if a committed
// file differs. So a change of a statement, also one by a shared piece, is seen in review.
//
// Each operation of a *.queries.ts is called with a transaction that keeps the statements and runs none, and with stand-ins for
// its other arguments. EXAMPLES has arguments for those whose text depends on them.
import { globSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';

const FOLDER = 'docs/sql';
const require = createRequire(import.meta.url);
require('reflect-metadata');
const { postgresDialect, sqliteDialect } = require('../dist/database/dialect.js');

const { TASK_STATES } = require('../dist/queue/task.entity.js');

const PART = { laneId: 1, from: { rank: 0, id: 0 }, limit: 1 };

const INSTANTS = {
  ...{ silentSince: 0, kindsSince: 0, revisionInForce: 'a' },
  selectFailing: (bind) => `SELECT agent_id FROM agent_outcomes WHERE agent_id = ${bind(1)}`,
};

/** By operation, lists of arguments behind the transaction. */
const EXAMPLES = {
  'agents.upsertLabels': [[1, { site: 'a' }]],
  'budgets.addUsage': [['metrics', [{ agent_id: 1, bytes: 1 }], 1, 1]],
  'depth.selectOldest': [
    [
      [
        { kind: 'dns', state: 'scheduled' },
        { kind: 'dns', state: 'queued' },
        { kind: 'dns', state: 'leased' },
      ],
    ],
  ],
  'fleet.listAgents': [
    [{ limit: 10 }, INSTANTS],
    [{ limit: 10, status: 'online', hostname: 'a', label: ['site:a'], cursor: 7, failing: true }, INSTANTS],
  ],
  'fleet-metrics.groupByHeartbeatAge': [[[1_000, 60_000], { now: 1, silentSince: 1, silentAfterMs: 1 }]],
  'lanes.selectReady': [[[PART], 2, 0]],
  'lanes.takeFound': [[[{ lane_id: 1, rank: 0, task_id: 1 }]]],
  'lanes.takeReady': [[[PART]], [[PART, PART]]],
  'operator-tokens.listSlowHashes': [[], [5]],
  'task-lists.selectListed': [
    [[{ in: 'all' }], { states: TASK_STATES }, 'newest', undefined, 10],
    [[{ in: 'queued', kind: 'dns' }], { states: ['queued'], kind: 'dns' }, 'newest', { at: 0, id: 9 }, 10],
    [
      [{ in: 'finished', kind: 'dns', state: 'dead' }],
      { states: ['dead'], kind: 'dns' },
      'newest',
      { at: 9, id: 9 },
      10,
    ],
    [
      [
        { in: 'held', agentId: 1 },
        { in: 'ended', by: 'agent_id', value: 1, ending: 'error' },
      ],
      { states: TASK_STATES, agentId: 1 },
      'newest',
      undefined,
      10,
    ],
    [
      [{ in: 'target', target: '192.0.2.1:53' }],
      { states: TASK_STATES, targets: [{ kind: 'dns', target: '192.0.2.1:53' }] },
      'oldest',
      undefined,
      10,
    ],
  ],
  'task-lists.selectMatching': [
    [[1], { states: ['queued'], kind: 'dns', agentId: 1, outcome: 'error', from: 1, to: 2, lastId: 3 }],
  ],
  'transitions.updateTasks': [
    [
      [
        { id: 1, state: 'completed', attempts: 1, reason: null },
        { id: 2, state: 'open', attempts: 1, reason: null, run_at: 1 },
        { id: 3, state: 'dead', attempts: 1, reason: 'max_attempts' },
      ],
    ],
  ],
  'windows.selectMovingWindows': [[], ['dns']],
};

/** Stands for any argument or row: a list of two, a map, a number, an object with any field. */
const anything = new Proxy(() => undefined, {
  apply: () => anything,
  get(_target, name) {
    if (name === 'then') return undefined;
    if (name === Symbol.toPrimitive) return (hint) => (hint === 'string' ? 'x' : 1);
    if (name === 'toJSON') return () => 1;
    if (name === 'size') return 2;
    if (name === 'has') return () => true;
    const items = [anything, anything];
    const member = name === 'get' ? undefined : items[name];
    return typeof member === 'function' ? member.bind(items) : (member ?? anything);
  },
});

/** Keeps the statements of one operation. */
class Recorder {
  now = 0;
  statements = [];

  constructor(dialect) {
    this.dialect = dialect;
  }

  async rows(sql) {
    this.statements.push(sql);
    return [anything];
  }

  async first(sql) {
    return (await this.rows(sql))[0];
  }

  async run(sql) {
    await this.rows(sql);
    return 1;
  }

  afterCommit() {}
  announce() {}
  async lockRows() {}
  async lockTable() {}
  async lockName() {}
}

/** Whether a function is an operation on the database, by the name of its first parameter. */
const isOperation = (value) =>
  typeof value === 'function' && /^(?:async )?(?:function \w*)?\(?(?:tx|statements)\b/.test(value.toString());

async function statementsOf(operation, dialect, args) {
  const recorder = new Recorder(dialect);
  // What it makes of the stand-ins' answers is no matter.
  await Promise.resolve()
    .then(() => operation(recorder, ...args))
    .catch(() => undefined);
  return recorder.statements;
}

/** Lines as they are in the source, without its indentation. */
const textOf = (sql) =>
  `${sql
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .join('\n  ')};\n`;

const missing = [];
const used = new Set();
const files = new Map();
for (const file of globSync('dist/**/*.queries.js').sort()) {
  const [, folder] = file.split(/[\\/]/);
  for (const [name, operation] of Object.entries(require(`../${file}`)).sort(([a], [b]) =>
    a < b ? -1 : 1,
  )) {
    if (!isOperation(operation)) continue;
    const key = `${basename(file, '.queries.js')}.${name}`;
    if (key in EXAMPLES) used.add(key);
    const examples = EXAMPLES[key] ?? [Array(operation.length - 1).fill(anything)];
    for (const [database, dialect] of [
      ['postgres', postgresDialect],
      ['sqlite', sqliteDialect],
    ]) {
      const texts = new Set();
      for (const args of examples)
        for (const sql of await statementsOf(operation, dialect, args)) texts.add(textOf(sql));
      if (texts.size === 0) missing.push(`${key} (${database})`);
      const path = `${folder}.${database}.sql`;
      const section = `-- ${folder}/${basename(file, '.js')}.ts: ${name}\n${[...texts].join('')}`;
      files.set(path, [...(files.get(path) ?? []), section]);
    }
  }
}
for (const key of Object.keys(EXAMPLES))
  if (!used.has(key)) missing.push(`${key}: there is no such operation, delete its example`);
if (missing.length > 0) {
  console.error(
    `No statement was seen of these, give them EXAMPLES in scripts/sql.mjs: ${missing.join(', ')}`,
  );
  process.exit(1);
}

const texts = new Map([...files].map(([path, sections]) => [path, sections.join('\n')]));
if (process.argv.includes('--check')) {
  const committed = new Set(readdirSync(FOLDER));
  const stale = [...texts].filter(
    ([path, text]) => !committed.has(path) || readFileSync(join(FOLDER, path), 'utf8') !== text,
  );
  const gone = [...committed].filter((path) => !texts.has(path));
  for (const path of [...stale.map(([path]) => path), ...gone]) {
    console.error(`${FOLDER}/${path} is out of date: run "npm run sql" and commit it.`);
    process.exitCode = 1;
  }
} else {
  rmSync(FOLDER, { recursive: true, force: true });
  mkdirSync(FOLDER, { recursive: true });
  for (const [path, text] of texts) writeFileSync(join(FOLDER, path), text);
}
