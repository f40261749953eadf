// Rules of the architecture that no import shows. Imports themselves: .dependency-cruiser.cjs.
import { globSync, readFileSync } from 'node:fs';

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

let broken = 0;
for (const file of globSync(['src/**/*.ts', 'examples/whois-kind/src/**/*.ts']).sort()) {
  const text = withoutComments(readFileSync(file, 'utf8'));
  for (const { pattern, allowed, instead } of RULES) {
    if (allowed.test(file)) continue;
    for (const { 0: found, index } of text.matchAll(pattern)) {
      broken += 1;
      const line = text.slice(0, index).split('\n').length;
      console.error(`${file}:${line}: "${found.replace(/\s+/g, ' ')}": ${instead}`);
    }
  }
}
if (broken > 0) process.exitCode = 1;
