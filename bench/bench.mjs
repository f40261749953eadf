// Measures the built server: npm run bench [-- [--quick] [--database postgres] [--out file.json] [subject ...]].
// Every figure has a baseline of the same run, because the machine's own speed changes from one minute to the next.
// Subjects and results: docs/benchmarks.md.
import { parseArgs } from 'node:util';
import { callers } from './callers.mjs';
import { fleet } from './fleet.mjs';
import { heartbeats } from './heartbeats.mjs';
import { limits } from './limits.mjs';
import { pacing } from './pacing.mjs';
import { polls } from './polls.mjs';
import { stopPostgres } from './processes.mjs';
import { queue } from './queue.mjs';
import { registration } from './registration.mjs';
import { machine, print, write } from './report.mjs';
import { rows } from './rows.mjs';
import { scrapes } from './scrapes.mjs';
import { snapshot } from './snapshot.mjs';
import { traces } from './traces.mjs';

const EITHER = ['sqlite', 'postgres'];
/** By name: the function, its databases, and the most minutes that it may take. */
const SUBJECTS = {
  heartbeats: { run: heartbeats, databases: EITHER, minutes: 5 },
  fleet: { run: fleet, databases: EITHER, minutes: 20 },
  queue: { run: queue, databases: ['both'], minutes: 10 },
  callers: { run: callers, databases: ['postgres'], minutes: 10 },
  snapshot: { run: snapshot, databases: ['postgres'], minutes: 20 },
  limits: { run: limits, databases: EITHER, minutes: 30 },
  pacing: { run: pacing, databases: EITHER, minutes: 15 },
  rows: { run: rows, databases: ['postgres'], minutes: 5 },
  polls: { run: polls, databases: EITHER, minutes: 10 },
  registration: { run: registration, databases: EITHER, minutes: 10 },
  scrapes: { run: scrapes, databases: EITHER, minutes: 5 },
  traces: { run: traces, databases: EITHER, minutes: 5 },
};

const USAGE = `npm run bench -- [options] [subject ...]
Subjects (all, if none is named): ${Object.keys(SUBJECTS).join(', ')}
  --quick                  shorter and smaller
  --database NAME          sqlite or postgres, for subjects that run on either (default sqlite)
  --out FILE               also writes the figures as JSON
  --agents N,N,...         fleet: the numbers of agents
  --seconds N              fleet: duration of the measurement; snapshot: how long the snapshot is open
  --find                   fleet: searches for the largest fleet within the service levels
  --queued N               limits: the number of queued tasks
  --seed N                 fleet: another schedule of arrivals`;

/** The arguments are not valid. */
class UsageError extends Error {}

const wholeNumber = (name, text) => {
  if (!/^[1-9]\d{0,7}$/.test(text)) throw new UsageError(`--${name} must be a whole number from 1`);
  return Number(text);
};

function readArguments() {
  const { values, positionals } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      database: { type: 'string', default: 'sqlite' },
      out: { type: 'string' },
      agents: { type: 'string' },
      seconds: { type: 'string' },
      find: { type: 'boolean', default: false },
      queued: { type: 'string' },
      seed: { type: 'string', default: '1' },
    },
    allowPositionals: true,
  });
  if (!EITHER.includes(values.database)) throw new UsageError('--database must be sqlite or postgres');
  const unknown = positionals.find((name) => !Object.hasOwn(SUBJECTS, name));
  if (unknown !== undefined) throw new UsageError(`${unknown} is not a subject`);
  const numberOf = (name) => (values[name] === undefined ? undefined : wholeNumber(name, values[name]));
  return {
    ...values,
    agents: values.agents?.split(',').map((text) => wholeNumber('agents', text)),
    ...{ seconds: numberOf('seconds'), queued: numberOf('queued'), seed: numberOf('seed') },
    subjects: positionals.length > 0 ? positionals : Object.keys(SUBJECTS),
  };
}

/** Waits for the work. @throws it takes longer */
async function within(minutes, name, work) {
  let overdue;
  const tooLong = new Promise((_, reject) => {
    const message = `${name} did not end within ${minutes} minutes`;
    overdue = setTimeout(() => reject(new Error(message)), minutes * 60_000);
  });
  return Promise.race([work, tooLong]).finally(() => clearTimeout(overdue));
}

async function main() {
  const asked = readArguments();
  const { cores, model, node } = machine();
  console.log(`${cores} × ${model}, Node ${node}${asked.quick ? ', --quick' : ''}`);
  const measured = [];
  try {
    for (const name of asked.subjects) {
      const { run, databases, minutes } = SUBJECTS[name];
      const database = databases.includes(asked.database) ? asked.database : databases[0];
      console.error(`${name} (${database === 'both' ? EITHER.join(' and ') : database}) ...`);
      const tables = await within(minutes, name, run({ ...asked, database }));
      print(tables);
      measured.push(...tables);
      // After each subject, so that its results are kept if a later one fails.
      if (asked.out) write(asked.out, { cores, model, node, quick: asked.quick }, measured);
    }
  } finally {
    await stopPostgres();
  }
}

try {
  await main();
  process.exit();
} catch (error) {
  const isUsage = error instanceof UsageError || error.code?.startsWith('ERR_PARSE_ARGS');
  console.error(isUsage ? `${error.message}\n\n${USAGE}` : error);
  process.exit(1);
}
