import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { futureOption, id, oneOf, pastOption, whole } from './arguments';
import { EXIT, Failure } from './failure';
import { fields, harmless, shortened, table } from './print';
import type { Terminal } from './terminal';
import {
  type Common,
  fetchText,
  get,
  listing,
  noteIfEmpty,
  perform,
  post,
  query,
  type Shown,
  verb,
  watching,
} from './verbs';

const TASK = [
  'id',
  'kind',
  'target',
  'state',
  'priority',
  'attempts',
  'run_at',
  'created_at',
  'reason',
  'last_outcome',
  'last_agent_id',
  'last_ended_at',
  'last_error',
];

/** How much of a task's last error a row shows, in characters. */
const MAX_ERROR = 40;

const OUTCOMES = ['success', 'timeout', 'error', 'unsaid', 'cancelled', 'expired'];

/** The states of tasks that can be cancelled, and of those that can be reopened. */
const UNFINISHED = ['scheduled', 'waiting', 'queued', 'leased'];
const REOPENED = ['dead', 'cancelled'];

/** Adds the commands about tasks. */
export function addTasks(program: Command, terminal: Terminal): void {
  const task = program.command('task').description('enqueue tasks, see what became of them');
  verb(
    task,
    'add [kind] [fields...]',
    'enqueue a task, or all of a file, all or none',
    'task add dns query=example.com server=9.9.9.9 --priority 5',
    'task add tcp host=192.0.2.1 port=443 --not-after 2030-01-01T00:00:00Z',
    `task add dns 'query="123"'        # quoted as JSON: text, not a number`,
    'task add --file tasks.json        # [{"kind": "dns", "spec": {"query": "example.com"}}, ...]',
    'generate-tasks | control-plane task add --file -',
  )
    .option('--file <file>', 'a JSON array of tasks, or {"tasks": [...]}; - is standard input')
    .option('--priority <n>', 'higher goes first', whole)
    .addOption(futureOption('--run-at', 'not before'))
    .addOption(futureOption('--not-after', 'no attempt begins from then on'))
    .option('--max-attempts <n>', 'how often it is tried before it is dead', whole)
    .option('--unique-key <key>', 'not while an unfinished task has this key')
    .option(
      '--idempotency-key <key>',
      'the same key and tasks again enqueue nothing twice (default: a random one)',
    )
    .action((kind: string | undefined, specFields: string[], options) => {
      const { file, priority, runAt, notAfter, maxAttempts, uniqueKey, idempotencyKey, ...common } = options;
      const own = {
        priority,
        run_at: runAt,
        not_after: notAfter,
        max_attempts: maxAttempts,
        unique_key: uniqueKey,
      };
      const body =
        file === undefined
          ? JSON.stringify({ tasks: [{ kind: kindOf(kind), spec: specOf(specFields), ...own }] })
          : tasksOf(
              terminal,
              file,
              kind !== undefined || Object.values(own).some((value) => value !== undefined),
            );
      return perform(
        terminal,
        common,
        {
          method: 'POST',
          path: '/v1/tasks',
          body,
          idempotencyKey: idempotencyKey ?? randomUUID(),
          repeatable: true,
        },
        (answer) => table(answer.tasks, ['id', 'state']),
      );
    });
  listing(
    task,
    'list',
    'list tasks, newest first',
    'task list --state dead --kind dns',
    'task list --agent 12 --outcome error --from 2h',
    'task list --json | jq .items[].id',
  )
    .addOption(oneOf('--state <state>', 'only in this state', [...UNFINISHED, 'completed', ...REOPENED]))
    .option('--kind <kind>', 'only of this kind')
    .option('--target <target>', 'only aimed at this')
    .option('--agent <id>', 'only those that it holds, or whose last attempt it ended', id)
    .addOption(oneOf('--outcome <outcome>', 'only those whose last attempt ended so', OUTCOMES))
    .addOption(pastOption('--from', 'only those whose last attempt ended from then on'))
    .addOption(pastOption('--to', 'only those whose last attempt ended before then'))
    .action(({ state, kind, target, agent: agent_id, outcome, from, to, limit, cursor, ...options }) =>
      perform(
        terminal,
        options,
        get(`/v1/tasks${query({ state, kind, target, agent_id, outcome, from, to, limit, cursor })}`),
        ({ items }) => table(items.map(inRow), TASK),
      ),
    );
  verb(task, 'get', 'show a task with every attempt and what was observed', 'task get 1203')
    .argument('<id>', "the task's id", id)
    .option('--cursor <cursor>', 'where the attempts shown before ended')
    .action((of, { cursor, ...options }) =>
      perform(terminal, options, get(`/v1/tasks/${of}${query({ cursor })}`), shown),
    );
  watching(verb(task, 'why', 'explain why a task does not run, and what would let it', 'task why 1203'))
    .argument('<id>', "the task's id", id)
    .action((of, options) => perform(terminal, options, get(`/v1/tasks/${of}/why`), explained));
  changing(
    verb(
      task,
      'cancel',
      'cancel an unfinished task, or all that match; live leases are revoked',
      'task cancel 1203',
      'task cancel --kind dns --state queued --dry-run',
      'task cancel --agent 12',
      'task cancel --all',
    ),
    UNFINISHED,
  )
    .argument('[id]', "the task's id", id)
    .action((of: number | undefined, options) => change(terminal, 'cancel', of, options));
  changing(
    verb(
      task,
      'retry',
      'reopen a dead or cancelled task, or all that match',
      'task retry 1203',
      'task retry --state dead --kind http',
      'task retry --outcome expired --from 1h',
    ),
    REOPENED,
  )
    .argument('[id]', "the task's id", id)
    .action((of: number | undefined, options) => change(terminal, 'retry', of, options));
  watching(verb(task, 'stats', 'show how deep the queue is', 'task stats', 'task stats --watch')).action(
    (options) =>
      perform(terminal, options, get('/v1/tasks/stats'), (stats) => {
        noteIfEmpty(terminal, stats.depths);
        return depths(stats);
      }),
  );
}

/** The depths as a table, below what is about all of them. An empty queue shows only that. */
const depths = ({ depths, ...others }: Shown) => fields(depths.length === 0 ? others : { ...others, depths });

/** A task as a row shows it: of its last error the beginning. */
const inRow = ({ last_error: error, ...task }: Shown): object => ({
  ...task,
  last_error: error && shortened(error, MAX_ERROR),
});

/** A task with its attempts; whether there are more of them is said apart. */
const shown = ({ next_cursor: _, ...task }: Shown) => fields(task);

/** The sentence, and below it what is known; each change with what it has. */
function explained({ message, changes, ...answer }: Shown): string {
  const isMoot = (name: string) => name === 'before_is_exact' && answer.before === null;
  const known = Object.entries(answer).filter(([name, value]) => value !== null && !isMoot(name));
  return `${harmless(message)}\n\n${fields({ ...Object.fromEntries(known), changes })}`;
}

const changing = (command: Command, states: readonly string[]): Command =>
  command
    .addOption(oneOf('--state <state>', 'all in this state', states))
    .option('--kind <kind>', 'all of this kind')
    .option('--target <target>', 'all aimed at this')
    .option('--agent <id>', 'all that it holds, or whose last attempt it ended', id)
    .addOption(oneOf('--outcome <outcome>', 'all whose last attempt ended so', OUTCOMES))
    .addOption(pastOption('--from', 'all whose last attempt ended from then on'))
    .addOption(pastOption('--to', 'all whose last attempt ended before then'))
    .option('--all', 'every one')
    .option('--dry-run', 'only say how many match');

interface Changing extends Common {
  state?: string;
  kind?: string;
  target?: string;
  agent?: number;
  outcome?: string;
  from?: string;
  to?: string;
  all?: true;
  dryRun?: true;
}

async function change(
  terminal: Terminal,
  name: 'cancel' | 'retry',
  of: number | undefined,
  { state, kind, target, agent: agent_id, outcome, from, to, all, dryRun: dry_run, ...options }: Changing,
): Promise<void> {
  const chosen = { state, kind, target, agent_id, outcome, from, to, all };
  const filter = { ...chosen, dry_run };
  const isFiltered = Object.values(filter).some((value) => value !== undefined);
  const isChosen = Object.values(chosen).some((value) => value !== undefined);
  if (of === undefined ? !isChosen : isFiltered)
    throw new Failure(
      'Name one task by its id, or many by a filter such as --state and --agent, or every one by --all.',
      EXIT.misused,
    );
  if (of !== undefined) {
    const path = `/v1/tasks/${of}/${name}`;
    return perform(terminal, options, post(path, undefined, name === 'cancel'), shown);
  }
  // The server works on it for some seconds at a time, and says how far it came.
  const call = post(`/v1/tasks/${name}`, filter, true);
  let matched: number | undefined;
  let changed = 0;
  for (;;) {
    const answer = JSON.parse(await fetchText(terminal, options, call));
    matched ??= answer.matched as number;
    changed += answer.changed;
    if (dry_run || answer.changed === 0 || answer.changed >= answer.matched) break;
    if (terminal.isInteractive) terminal.note(`${changed} of ${matched} so far`);
  }
  if (options.json) terminal.printJson(JSON.stringify({ matched, changed }));
  else terminal.print(fields({ matched, changed }));
}

/** A field of a spec: what reads as JSON is that, everything else is text. */
function specValue(text: string): unknown {
  try {
    const value: unknown = JSON.parse(text);
    // 007, 1.0 and what a number can't hold exactly stay what was written.
    return typeof value === 'number' && String(value) !== text ? text : value;
  } catch {
    return text;
  }
}

function kindOf(kind: string | undefined): string {
  if (kind === undefined || kind.includes('='))
    throw new Failure(
      'Name the kind of the task first, such as: task add dns query=example.com',
      EXIT.misused,
    );
  return kind;
}

function specOf(given: readonly string[]): Record<string, unknown> {
  const spec = new Map<string, unknown>();
  for (const text of given) {
    const cut = text.indexOf('=');
    if (cut < 1)
      throw new Failure(`${text} is not a field of the spec; it must be name=value.`, EXIT.misused);
    const name = text.slice(0, cut);
    if (spec.has(name)) throw new Failure(`The field ${name} of the spec is there twice.`, EXIT.misused);
    spec.set(name, specValue(text.slice(cut + 1)));
  }
  return Object.fromEntries(spec);
}

function tasksOf(terminal: Terminal, file: string, mixed: boolean): string {
  if (mixed) throw new Failure('With --file, everything about the tasks is in the file.', EXIT.misused);
  const { text, value } = terminal.readJson(file);
  if (Array.isArray(value)) return `{"tasks":${text}}`;
  if (typeof value === 'object' && value !== null && 'tasks' in value) return text;
  throw new Failure(`${file} must hold an array of tasks, or an object with "tasks".`, EXIT.misused);
}
