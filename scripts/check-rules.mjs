// Rules of the architecture that no import shows. Imports themselves: .dependency-cruiser.cjs.
//
// Usage: node scripts/check-rules.mjs, in the folder to check
import { globSync, readFileSync } from 'node:fs';
import { WORDS } from './words.mjs';

/** The tables of each folder, and which other folders may read them. Nobody else names them; nobody else writes them. */
const OWNERS = {
  agents: {
    tables: [
      'agents',
      'agent_heartbeats',
      'agent_labels',
      'agent_kinds',
      'agent_outcomes',
      'agent_last_errors',
      'agent_about',
      'agent_config_states',
      'agent_owner_tokens',
      'agent_usage',
      'enrollment_tokens',
    ],
  },
  // The states of tasks are written here alone.
  queue: {
    tables: [
      'tasks',
      'lanes',
      'ready',
      'scheduled',
      'task_expiries',
      'unique_keys',
      'finished_tasks',
      'task_counts',
      'task_count_deltas',
    ],
    readers: ['leases', 'tasks'],
  },
  leases: { tables: ['leases'], readers: ['queue', 'tasks'] },
  database: { tables: ['idempotency_keys', 'quota_buckets'] },
  metrics: { tables: ['agent_metrics'] },
  config: { tables: ['agent_configs'] },
  concurrency: { tables: ['concurrency_windows'], readers: ['queue', 'tasks'] },
  operators: { tables: ['operator_tokens', 'audit_log'] },
};

const RULES = [
  {
    pattern: /\bprocess\.env\b/g,
    allowed: /^src\/settings\.ts$/,
    instead: 'the environment is read once, in src/settings.ts: inject Settings',
  },
  {
    pattern: /\.transaction\(|\bcreateQueryRunner\(/g,
    allowed: /^src\/database\//,
    instead: 'all writes go through database.write(work)',
  },
  {
    pattern: /\bDate\.now\(|\bnew Date\(\)/g,
    allowed: /^src\/clock\.ts$|\.spec\.ts$/,
    instead: 'tests replace the time: use clock.now()',
  },
  {
    pattern: /\bforwardRef\(/g,
    allowed: /^$/,
    instead: 'turn the backward edge into a hook that the other side subscribes to',
  },
  {
    pattern: /\bdialect\.concurrent\b|\binstanceof (?:Sqlite|Postgres)Database\b/g,
    allowed: /^src\/database\//,
    instead:
      'only src/database knows which database it is: let a method of the transaction do nothing on SQLite',
  },
  {
    pattern: /\bSELECT\b|\bINSERT INTO\b|\bDELETE FROM\b|\bUPDATE \w+ SET\b/g,
    // The command line works on databases without the application, one that is not its own included.
    allowed: /\.queries\.ts$|^src\/(?:database|cli)\/|\.spec\.ts$|^examples\//,
    instead: 'SQL stands in x.queries.ts, one operation a function',
  },
  // Keywords in capitals only, or prose such as "removed from tasks" would match.
  ...Object.entries(OWNERS).flatMap(([folder, { tables, readers = [] }]) => {
    const rule = (keywords, folders, instead) => ({
      pattern: new RegExp(`\\b(?:${keywords})\\s+["\`]?(?:${tables.join('|')})\\b`, 'g'),
      // Another program's database, whose tables have the names of this one's.
      allowed: new RegExp(`^src/(?:${folders.join('|')})/|^src/database/original\\.ts$`),
      instead,
    });
    return [
      rule(
        'FROM|JOIN',
        [folder, ...readers],
        `the table belongs to src/${folder}: call its service (or rename the CTE)`,
      ),
      rule(
        'INTO|UPDATE|DELETE FROM',
        [folder],
        `the table is written by src/${folder} alone: call its service`,
      ),
    ];
  }),
];

// Blanked and not cut out, so that line numbers stay true.
const withoutComments = (text) =>
  text.replace(/^\s*\/\*[\s\S]*?\*\/|^\s*\/\/.*|\s\/\/ .*$/gm, (comment) => comment.replace(/[^\n]/g, ' '));

/** The words are checked in all text that people read; the list itself and its test name them. */
const PROSE = [
  '{src,test,scripts,bench,migrations,deploy}/**/*.{ts,mts,mjs,sh,yaml,yml,cfg,service}',
  'examples/*.mjs',
  'examples/*/{src,test}/**/*.ts',
  'docs/**/*.md',
  '{README,CONTRIBUTING,SECURITY}.md',
];
const NAMES_THE_WORDS = /^scripts\/words\.mjs$|^test\/behaviour\/rules\.e2e-spec\.ts$/;

const problems = [];

function check(file, text, { pattern, instead }) {
  for (const { 0: found, index } of text.matchAll(pattern)) {
    const line = text.slice(0, index).split('\n').length;
    problems.push(`${file}:${line}: "${found.replace(/\s+/g, ' ')}": ${instead}`);
  }
}

for (const file of globSync(['src/**/*.ts', 'examples/whois-kind/src/**/*.ts']).sort()) {
  const text = withoutComments(readFileSync(file, 'utf8'));
  for (const rule of RULES) if (!rule.allowed.test(file)) check(file, text, rule);
}
for (const file of [...new Set(globSync(PROSE))].sort()) {
  if (NAMES_THE_WORDS.test(file)) continue;
  const text = readFileSync(file, 'utf8');
  for (const { pattern, use } of WORDS) check(file, text, { pattern, instead: `write: ${use}` });
}
for (const problem of problems) console.error(problem);
if (problems.length > 0) process.exitCode = 1;
