// Rules of the architecture that no import shows. Imports themselves: .dependency-cruiser.cjs.
//
// Usage: node scripts/check-rules.mjs [--prune], in the folder to check
//
// Two rules are younger than much of the code. scripts/exempt/ lists the files that still break them; a file that no longer
// does must leave its list, which --prune does. No file joins a list.
import { existsSync, globSync, readFileSync, writeFileSync } from 'node:fs';
import { WORDS } from './words.mjs';

const OWNERS = {
  agents: [
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
  leases: ['tasks', 'task_counts', 'leases', 'results'],
  database: ['idempotency_keys', 'quota_buckets'],
  metrics: ['agent_metrics'],
  config: ['agent_configs'],
  concurrency: ['concurrency_windows'],
  operators: ['operator_tokens', 'audit_log'],
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
    pattern: /\bdialect\.concurrent\b|\bisShared\b/g,
    allowed: /^src\/database\//,
    exempt: 'dialect',
    instead:
      'only src/database knows which database it is: let a method of the transaction do nothing on SQLite',
  },
  // Keywords in capitals only, or prose such as "removed from tasks" would match.
  ...Object.entries(OWNERS).map(([folder, tables]) => ({
    pattern: new RegExp(`\\b(?:FROM|JOIN|INTO|UPDATE)\\s+["\`]?(?:${tables.join('|')})\\b`, 'g'),
    // Another program's database, whose tables have the names of this one's.
    allowed: new RegExp(`^src/${folder}/|^src/database/original\\.ts$`),
    instead: `the table belongs to src/${folder}: call its service (or rename the CTE)`,
  })),
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

/** Files that may still break a rule, one a line and sorted. */
class Exemptions {
  used = new Set();

  constructor(name) {
    this.path = `scripts/exempt/${name}.txt`;
    this.files = existsSync(this.path) ? readFileSync(this.path, 'utf8').split('\n').filter(Boolean) : [];
  }

  covers(file) {
    if (!this.files.includes(file)) return false;
    this.used.add(file);
    return true;
  }

  /** The entries that no longer break the rule. Call it when every file was checked. */
  get stale() {
    return this.files.filter((file) => !this.used.has(file));
  }

  prune() {
    const kept = this.files.filter((file) => this.used.has(file));
    if (this.stale.length > 0) writeFileSync(this.path, kept.map((file) => `${file}\n`).join(''));
  }
}

const exemptions = { words: new Exemptions('words'), dialect: new Exemptions('dialect') };
const problems = [];

function check(file, text, { pattern, instead, exempt }) {
  for (const { 0: found, index } of text.matchAll(pattern)) {
    if (exempt && exemptions[exempt].covers(file)) return;
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
  for (const { pattern, use } of WORDS)
    check(file, text, { pattern, instead: `write: ${use}`, exempt: 'words' });
}
for (const list of Object.values(exemptions)) {
  if (process.argv.includes('--prune')) list.prune();
  else
    for (const file of list.stale)
      problems.push(`${list.path}: ${file} keeps the rule now: delete the entry (npm run rules -- --prune)`);
}
for (const problem of problems) console.error(problem);
if (problems.length > 0) process.exitCode = 1;
