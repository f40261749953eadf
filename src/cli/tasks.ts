import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import {
  type ApiOptions,
  apiCommand,
  callAndPrint,
  fetchText,
  type Json,
  listCommand,
  noteIfEmpty,
  watchable,
} from './api-command';
import { agentId, choiceOption, futureTimeOption, id, integer, pastTimeOption } from './arguments';
import { get, post, queryString } from './client';
import { CommandError, EXIT } from './command-error';
import { escapeControls, fields, table, truncated } from './print';
import type { Terminal } from './terminal';

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

/** How many characters of a task's last error a row shows. */
const MAX_ERROR = 40;

const OUTCOMES = ['success', 'timeout', 'error', 'unsaid', 'cancelled', 'expired'];

/** The states in which a task can be cancelled, and those in which it can be retried. */
const CANCELLABLE = ['scheduled', 'queued', 'leased'];
const RETRYABLE = ['dead', 'cancelled'];

/** Adds the commands for tasks. */
export function addTasks(program: Command, terminal: Terminal): void {
  const task = program.command('task').alias('tasks').description('enqueue, show, cancel and retry tasks');
  apiCommand(
    task,
    'add [kind] [fields...]',
    'enqueue a task, or all tasks of a file, all or none',
    'task add dns query=example.com server=9.9.9.9 --priority 5',
    'task add tcp host=192.0.2.1 port=443 --not-after 2030-01-01T00:00:00Z',
    `task add dns 'query="123"'        # quoted as JSON: text, not a number`,
    'task add --file tasks.json        # [{"kind": "dns", "spec": {"query": "example.com"}}, ...]',
    'generate-tasks | control-plane task add --file -',
  )
    .option('--file <file>', 'a JSON array of tasks, or {"tasks": [...]}; - is standard input')
    .option('--priority <n>', 'higher goes first', integer)
    .addOption(futureTimeOption('--run-at', 'not before'))
    .addOption(futureTimeOption('--not-after', 'no attempt starts after this time'))
    .option('--max-attempts <n>', 'the number of attempts before it is dead', integer)
    .option('--unique-key <key>', 'refuse it while an unfinished task has this key')
    .option(
      '--idempotency-key <key>',
      'a repeated call with the same key enqueues nothing twice (default: a random key)',
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
          ? JSON.stringify({ tasks: [{ kind: requireKind(kind), spec: parseSpec(specFields), ...own }] })
          : readTasks(
              terminal,
              file,
              kind !== undefined || Object.values(own).some((value) => value !== undefined),
            );
      return callAndPrint(
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
  listCommand(
    task,
    'list',
    'list tasks, newest first',
    'task list --state dead --kind dns',
    'task list --agent 12 --outcome error --from 2h',
    'task list --json | jq .items[].id',
  )
    .addOption(
      choiceOption('--state <state>', 'only in this state', [...CANCELLABLE, 'completed', ...RETRYABLE]),
    )
    .option('--kind <kind>', 'only of this kind')
    .option('--target <target>', 'only of this target')
    .option('--agent <id>', 'only those that the agent holds, or whose last attempt it ended', agentId)
    .addOption(
      choiceOption('--outcome <outcome>', 'only those whose last attempt had this outcome', OUTCOMES),
    )
    .addOption(pastTimeOption('--from', 'only those whose last attempt ended at this time or later'))
    .addOption(pastTimeOption('--to', 'only those whose last attempt ended before this time'))
    .action(({ state, kind, target, agent: agent_id, outcome, from, to, limit, cursor, ...options }) =>
      callAndPrint(
        terminal,
        options,
        get(`/v1/tasks${queryString({ state, kind, target, agent_id, outcome, from, to, limit, cursor })}`),
        ({ items }) => table(items.map(toRow), TASK),
      ),
    );
  apiCommand(task, 'get', 'show a task with all attempts and observations', 'task get 1203')
    .argument('<id>', "the task's id", id)
    .option('--cursor <cursor>', 'the cursor that the previous page printed')
    .action((of, { cursor, ...options }) =>
      callAndPrint(terminal, options, get(`/v1/tasks/${of}${queryString({ cursor })}`), renderTask),
    );
  watchable(
    apiCommand(
      task,
      'why',
      'explain why a task does not run, and what to change so that it does',
      'task why 1203',
    ),
  )
    .argument('<id>', "the task's id", id)
    .action((of, options) => callAndPrint(terminal, options, get(`/v1/tasks/${of}/why`), renderWhy));
  bulkChange(
    apiCommand(
      task,
      'cancel',
      'cancel an unfinished task, or all that match; live leases are revoked',
      'task cancel 1203',
      'task cancel --kind dns --state queued --dry-run',
      'task cancel --agent 12',
      'task cancel --all',
    ),
    CANCELLABLE,
  )
    .argument('[id]', "the task's id", id)
    .action((of: number | undefined, options) => change(terminal, 'cancel', of, options));
  bulkChange(
    apiCommand(
      task,
      'retry',
      'reopen a dead or cancelled task, or all that match',
      'task retry 1203',
      'task retry --state dead --kind http',
      'task retry --outcome expired --from 1h',
    ),
    RETRYABLE,
  )
    .argument('[id]', "the task's id", id)
    .action((of: number | undefined, options) => change(terminal, 'retry', of, options));
  watchable(
    apiCommand(task, 'stats', 'show the number of tasks in the queue', 'task stats', 'task stats --watch'),
  ).action((options) =>
    callAndPrint(terminal, options, get('/v1/tasks/stats'), (stats) => {
      noteIfEmpty(terminal, stats.depths);
      return depths(stats);
    }),
  );
}

/** Renders the queue's depths as a table, below the totals; an empty queue has only the totals. */
const depths = ({ depths, ...others }: Json) => fields(depths.length === 0 ? others : { ...others, depths });

/** A task as a table shows it, with the beginning of its last error. */
const toRow = ({ last_error: error, ...task }: Json): object => ({
  ...task,
  last_error: error && truncated(error, MAX_ERROR),
});

/** Renders a task with its attempts. The cursor of further attempts is printed apart. */
const renderTask = ({ next_cursor: _, ...task }: Json) => fields(task);

/** Renders why a task does not run: the sentence, then the facts and the changes that would let it run. */
function renderWhy({ message, changes, ...answer }: Json): string {
  const isMoot = (name: string) => name === 'before_is_exact' && answer.before === null;
  const known = Object.entries(answer).filter(([name, value]) => value !== null && !isMoot(name));
  return `${escapeControls(message)}\n\n${fields({ ...Object.fromEntries(known), changes })}`;
}

const bulkChange = (command: Command, states: readonly string[]): Command =>
  command
    .addOption(choiceOption('--state <state>', 'all in this state', states))
    .option('--kind <kind>', 'all of this kind')
    .option('--target <target>', 'all of this target')
    .option('--agent <id>', 'all that the agent holds, or whose last attempt it ended', agentId)
    .addOption(choiceOption('--outcome <outcome>', 'all whose last attempt had this outcome', OUTCOMES))
    .addOption(pastTimeOption('--from', 'all whose last attempt ended at this time or later'))
    .addOption(pastTimeOption('--to', 'all whose last attempt ended before this time'))
    .option('--all', 'every one')
    .option('--dry-run', 'only print how many match');

interface BulkChange extends ApiOptions {
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
  { state, kind, target, agent: agent_id, outcome, from, to, all, dryRun: dry_run, ...options }: BulkChange,
): Promise<void> {
  const chosen = { state, kind, target, agent_id, outcome, from, to, all };
  const filter = { ...chosen, dry_run };
  const isFiltered = Object.values(filter).some((value) => value !== undefined);
  const isChosen = Object.values(chosen).some((value) => value !== undefined);
  if (of === undefined ? !isChosen : isFiltered)
    throw new CommandError(
      'Name one task by its id, or many by a filter such as --state and --agent, or every one by --all.',
      EXIT.usage,
    );
  if (of !== undefined) {
    const path = `/v1/tasks/${of}/${name}`;
    return callAndPrint(terminal, options, post(path, undefined, name === 'cancel'), renderTask);
  }
  // The server changes tasks for a few seconds per call, and answers how many.
  const call = post(`/v1/tasks/${name}`, filter, true);
  let matched: number | undefined;
  let changed = 0;
  let isDone = false;
  while (!isDone) {
    const answer = JSON.parse(await fetchText(terminal, options, call));
    matched ??= answer.matched as number;
    changed += answer.changed;
    isDone = dry_run === true || answer.changed === 0 || answer.changed >= answer.matched;
    if (!isDone && terminal.isInteractive) terminal.note(`${changed} of ${matched} so far`);
  }
  if (options.json) terminal.printJson(JSON.stringify({ matched, changed }));
  else terminal.print(fields({ matched, changed }));
}

/** Parses the value of a spec's field: JSON if it is JSON, otherwise text. */
function parseValue(text: string): unknown {
  try {
    const value: unknown = JSON.parse(text);
    // 007, 1.0 and numbers that a double can't hold exactly stay text.
    return typeof value === 'number' && String(value) !== text ? text : value;
  } catch {
    return text;
  }
}

function requireKind(kind: string | undefined): string {
  if (kind === undefined || kind.includes('='))
    throw new CommandError(
      'Name the kind of the task first, such as: task add dns query=example.com',
      EXIT.usage,
    );
  return kind;
}

function parseSpec(given: readonly string[]): Record<string, unknown> {
  const spec = new Map<string, unknown>();
  for (const text of given) {
    const cut = text.indexOf('=');
    if (cut < 1)
      throw new CommandError(`${text} is not a field of the spec; it must be name=value.`, EXIT.usage);
    const name = text.slice(0, cut);
    if (spec.has(name)) throw new CommandError(`The field ${name} of the spec is there twice.`, EXIT.usage);
    spec.set(name, parseValue(text.slice(cut + 1)));
  }
  return Object.fromEntries(spec);
}

function readTasks(terminal: Terminal, file: string, hasOtherArguments: boolean): string {
  if (hasOtherArguments)
    throw new CommandError('With --file, everything about the tasks is in the file.', EXIT.usage);
  const { text, value } = terminal.readJson(file);
  if (Array.isArray(value)) return `{"tasks":${text}}`;
  if (typeof value === 'object' && value !== null && 'tasks' in value) return text;
  throw new CommandError(`${file} must hold an array of tasks, or an object with "tasks".`, EXIT.usage);
}
