import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type DatabaseTarget, readSettings } from '../settings';
import { type Call, callApi, isThere, nameOf } from './api';
import { EXIT, Failure } from './failure';
import { fields, note, print, table } from './print';

/** What every command that calls the API takes. */
interface Common {
  json?: true;
  timeout: number;
  tokenFile?: string;
}

// biome-ignore lint/suspicious/noExplicitAny: answers are shown as they come; the server is who knows their form
type Shown = any;

const SECONDS: Record<string, number> = { '': 1, s: 1, m: 60, h: 3_600, d: 86_400 };

/** `90d`, `12h`, `30m`, `45s` or a number of seconds. */
function seconds(text: string): number {
  const match = /^(\d{1,10})([smhd]?)$/.exec(text);
  if (!match) throw new InvalidArgumentError('It must be a duration such as 90d, 12h, 30m or 45s.');
  return Number(match[1]) * (SECONDS[match[2] as string] as number);
}

function whole(text: string): number {
  const value = /^-?\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError('It must be a whole number.');
  return value;
}

function id(text: string): number {
  const value = whole(text);
  if (value < 1) throw new InvalidArgumentError('It must be an id: a whole number from 1.');
  return value;
}

function patience(text: string): number {
  const value = whole(text);
  if (value < 1 || value > 3_600) throw new InvalidArgumentError('It must be from 1 to 3600 seconds.');
  return value;
}

/** `name=value`, gathered. */
function pair(text: string, before: Record<string, string> = {}): Record<string, string> {
  const cut = text.indexOf('=');
  if (cut < 1) throw new InvalidArgumentError('It must be name=value.');
  if (Object.hasOwn(before, text.slice(0, cut))) throw new InvalidArgumentError('It is there twice.');
  return { ...before, [text.slice(0, cut)]: text.slice(cut + 1) };
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

/**
 * A file's JSON, as its text too: that is what is sent, so that the server judges what the file says. Read and written
 * anew, a name that is there twice would go with one value less, and a number that is too large as null.
 */
function readJson(file: string): { text: string; value: unknown } {
  let bytes: Buffer;
  try {
    bytes = readFileSync(file === '-' ? 0 : file);
  } catch (error) {
    throw new Failure(`${file} can't be read (${(error as NodeJS.ErrnoException).code}).`, EXIT.misused);
  }
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return { text, value: JSON.parse(text) };
  } catch (error) {
    throw new Failure(`${file} does not hold JSON: ${(error as Error).message}.`, EXIT.misused);
  }
}

/** A query of those parameters that were given. */
function query(parameters: Record<string, string | number | readonly string[] | undefined>): string {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    for (const one of [value ?? []].flat()) given.append(name, String(one));
  return given.size === 0 ? '' : `?${given}`;
}

/** Makes the call and shows the answer. */
async function perform(
  options: Common,
  call: Call,
  show: (answer: Shown) => string,
  { alsoWithoutServer = false } = {},
): Promise<void> {
  try {
    const text = await callApi(readSettings(), { ...options, alsoWithoutServer }, call);
    if (options.json) return print(text === '' ? '{}' : text);
    const answer = text === '' ? undefined : JSON.parse(text);
    print(show(answer));
    if (typeof answer?.next_cursor === 'string') note(`There is more: --cursor ${answer.next_cursor}`);
  } catch (error) {
    const envelope = options.json && error instanceof Failure ? error.envelope : undefined;
    throw envelope === undefined ? error : new Failure(envelope, (error as Failure).exitCode);
  }
}

const get = (path: string): Call => ({ method: 'GET', path, repeatable: true });
const post = (path: string, body: object | undefined, repeatable: boolean): Call => ({
  method: 'POST',
  path,
  body: body && JSON.stringify(body),
  repeatable,
});
/** Repeated where the answer was lost, it would say that there is no such thing. */
const remove = (path: string): Call => ({ method: 'DELETE', path, repeatable: false });

const listOf =
  (...columns: string[]) =>
  (page: { items: object[] }) =>
    table(page.items, columns);

/** A command that calls the API. */
function verb(parent: Command, usage: string, summary: string, ...examples: string[]): Command {
  return parent
    .command(usage)
    .description(summary)
    .option('--json', "the API's own JSON on standard output, errors as JSON on standard error")
    .option('--timeout <seconds>', 'how long to wait for an answer', patience, 30)
    .option('--token-file <file>', "a file with the operator's token, in place of CONTROL_PLANE_TOKEN")
    .addHelpText('after', `\nExamples:\n${examples.map((line) => `  $ control-plane ${line}`).join('\n')}`);
}

/** A command that lists something. */
function listing(parent: Command, summary: string, ...examples: string[]): Command {
  return verb(parent, 'list', summary, ...examples)
    .option('--limit <n>', 'how many, at most 500', whole)
    .option('--cursor <cursor>', 'where the list before ended');
}

/** Adds the commands that act through the API. */
export function addOperatorsCommands(program: Command): void {
  addAgents(program);
  addTasks(program.command('task').description('enqueue tasks, see what became of them'));
  addConfigs(program.command('config').description('publish the configuration of the agents'));
  addTokens(program);
  addAudit(program.command('audit').description('see who changed what'));
}

const credentials = (agent: object) =>
  `${fields(agent)}\n\nGive both to the agent, as X-Agent-Id and X-Agent-Token. The token is not shown again.`;

const AGENT = ['id', 'hostname', 'status', 'live_leases', 'last_heartbeat_at', 'labels'];
const labelOption = () =>
  new Option('--label <name=value>', 'a label; may be repeated').argParser<Record<string, string>>(pair);

function addAgents(program: Command): void {
  const create = async (
    hostname: string | undefined,
    { label: labels, ...options }: Common & { label?: Record<string, string> },
  ) =>
    perform(options, post('/v1/agents', { hostname, labels }, false), credentials, {
      alsoWithoutServer: true,
    });
  verb(
    program,
    'create-agent [hostname]',
    "create an agent by hand, and show its credentials once; works on the database's file where no server runs",
    'create-agent probe-fra-1',
  )
    .addOption(labelOption())
    .action(create);

  const agents = program.command('agents').description('see the fleet, and decide about agents');
  listing(agents, 'list agents, newest first', 'agents list --status offline')
    .option('--status <status>', 'online, offline, draining, disabled or revoked')
    .option('--hostname <hostname>', 'only this one')
    .addOption(labelOption())
    .action(({ status, hostname, label: labels = {}, limit, cursor, ...options }) => {
      const label = Object.entries(labels).map(([name, value]) => `${name}:${value}`);
      return perform(
        options,
        get(`/v1/agents${query({ status, hostname, label, limit, cursor })}`),
        listOf(...AGENT),
      );
    });
  verb(agents, 'show', 'show an agent', 'agents show 12')
    .argument('<id>', "the agent's id", id)
    .action((agent, options) => perform(options, get(`/v1/agents/${agent}`), fields));
  verb(agents, 'create [hostname]', 'the same as create-agent', 'agents create probe-fra-1 --label region=eu')
    .addOption(labelOption())
    .action(create);
  for (const [name, summary] of [
    ['disable', 'shut an agent out until it is enabled; its leases are revoked'],
    ['enable', 'let a disabled or draining agent work again'],
    ['drain', 'give an agent no new work; what it holds it may finish'],
    ['revoke', 'shut an agent out for good; its leases are revoked'],
  ] as const) {
    verb(agents, name, summary, `agents ${name} 12`)
      .argument('<id>', "the agent's id", id)
      .action((agent, options) =>
        perform(options, post(`/v1/agents/${agent}/${name}`, undefined, true), fields),
      );
  }
  verb(agents, 'rotate', 'give an agent a new token, and show it once', 'agents rotate 12 --revoke-old')
    .argument('<id>', "the agent's id", id)
    .option('--revoke-old', 'the token that it has is void at once, and not only when the new one is used')
    .action((agent, { revokeOld: revoke_old, ...options }) =>
      perform(options, post(`/v1/agents/${agent}/rotate`, { revoke_old }, false), credentials),
    );
  verb(agents, 'delete', 'delete an agent; its results stay, its hostname is free', 'agents delete 12')
    .argument('<id>', "the agent's id", id)
    .action((agent, options) =>
      perform(options, remove(`/v1/agents/${agent}`), () => `Agent ${agent} is deleted.`),
    );
}

const TASK = ['id', 'kind', 'target', 'state', 'priority', 'attempts', 'run_at', 'created_at', 'reason'];

function addTasks(task: Command): void {
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
    .option('--run-at <time>', 'not before (RFC 3339)')
    .option('--not-after <time>', 'no attempt begins from then on (RFC 3339)')
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
          : tasksOf(file, kind !== undefined || Object.values(own).some((value) => value !== undefined));
      return perform(
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
    'list tasks, newest first',
    'task list --state dead --kind dns',
    'task list --json | jq .items[].id',
  )
    .option('--state <state>', 'scheduled, waiting, queued, leased, completed, cancelled or dead')
    .option('--kind <kind>', 'only of this kind')
    .option('--target <target>', 'only aimed at this')
    .action(({ state, kind, target, limit, cursor, ...options }) =>
      perform(options, get(`/v1/tasks${query({ state, kind, target, limit, cursor })}`), listOf(...TASK)),
    );
  verb(task, 'get', 'show a task with every attempt and what was observed', 'task get 1203')
    .argument('<id>', "the task's id", id)
    .option('--cursor <cursor>', 'where the attempts shown before ended')
    .action((of, { cursor, ...options }) =>
      perform(options, get(`/v1/tasks/${of}${query({ cursor })}`), fields),
    );
  verb(task, 'cancel', 'cancel an unfinished task; a live lease is revoked', 'task cancel 1203')
    .argument('<id>', "the task's id", id)
    .action((of, options) => perform(options, post(`/v1/tasks/${of}/cancel`, undefined, true), fields));
  verb(task, 'retry', 'reopen a dead or cancelled task', 'task retry 1203')
    .argument('<id>', "the task's id", id)
    .action((of, options) => perform(options, post(`/v1/tasks/${of}/retry`, undefined, false), fields));
  verb(task, 'stats', 'show how deep the queue is', 'task stats').action((options) =>
    perform(options, get('/v1/tasks/stats'), fields),
  );
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

function tasksOf(file: string, mixed: boolean): string {
  if (mixed) throw new Failure('With --file, everything about the tasks is in the file.', EXIT.misused);
  const { text, value } = readJson(file);
  if (Array.isArray(value)) return `{"tasks":${text}}`;
  if (typeof value === 'object' && value !== null && 'tasks' in value) return text;
  throw new Failure(`${file} must hold an array of tasks, or an object with "tasks".`, EXIT.misused);
}

const CONFIG = ['revision', 'seq', 'issued_at', 'expires_at', 'in_force', 'rollout'];

function addConfigs(config: Command): void {
  const publishing = (command: Command) =>
    command
      .option('--expires-in <duration>', 'how long agents may use it, such as 30d', seconds)
      .option(
        '--idempotency-key <key>',
        'the same key again publishes nothing twice (default: a random one)',
      );
  publishing(
    verb(
      config,
      'publish <file>',
      'sign a configuration, a JSON object, and put it in force; - is standard input',
      'config publish config.json --expires-in 30d',
    ),
  ).action((file: string, { expiresIn: expires_in, idempotencyKey = randomUUID(), ...options }) =>
    perform(
      options,
      {
        method: 'POST',
        path: '/v1/configs',
        body: `{"config":${readJson(file).text}${expires_in === undefined ? '' : `,"expires_in":${expires_in}`}}`,
        idempotencyKey,
        repeatable: true,
      },
      fields,
    ),
  );
  verb(
    config,
    'show [revision]',
    'show a configuration; the newest where none is named',
    'config show',
    'config show a3f1c2d4e5b60718 --json',
  ).action(async (revision: string | undefined, options: Common) => {
    const shown = revision ?? (await newestRevision(options));
    await perform(options, get(`/v1/configs/${encodeURIComponent(shown)}`), fields);
  });
  listing(config, 'list what was published, newest first', 'config list').action(
    ({ limit, cursor, ...options }) =>
      perform(options, get(`/v1/configs${query({ limit, cursor })}`), listOf(...CONFIG)),
  );
  publishing(
    verb(
      config,
      'rollback <revision>',
      'publish the content of an earlier configuration again, as a new one',
      'config rollback a3f1c2d4e5b60718',
    ),
  ).action((revision: string, { expiresIn: expires_in, idempotencyKey = randomUUID(), ...options }) =>
    perform(
      options,
      {
        method: 'POST',
        path: `/v1/configs/${encodeURIComponent(revision)}/rollback`,
        body: JSON.stringify({ expires_in }),
        idempotencyKey,
        repeatable: true,
      },
      fields,
    ),
  );
}

async function newestRevision(options: Common): Promise<string> {
  const access = { ...options, alsoWithoutServer: false };
  const page = JSON.parse(await callApi(readSettings(), access, get('/v1/configs?limit=1')));
  if (page.items.length === 0) throw new Failure('Nothing was published yet.', EXIT.failed);
  return page.items[0].revision;
}

const SHOWN_ONCE = 'The token is not shown again.';

function addTokens(program: Command): void {
  const token = program.command('token').description("give and withdraw operators' tokens");
  verb(
    token,
    'create <name>',
    "make an operator's token, and show it once; works on the database's file where no server runs",
    'token create alice --role operator --expires-in 90d',
  )
    .requiredOption('--role <role>', 'what it may do: viewer, operator or admin')
    .option(
      '--expires-in <duration>',
      'how long it is good for, such as 90d; for ever where it is left out',
      seconds,
    )
    .action((name: string, { role, expiresIn: expires_in, ...options }) =>
      perform(
        options,
        post('/v1/operator-tokens', { name, role, expires_in }, false),
        (made) => `${fields(made)}\n\n${SHOWN_ONCE}`,
        { alsoWithoutServer: true },
      ),
    );
  listing(token, "list operators' tokens, withdrawn ones too", 'token list').action(
    ({ limit, cursor, ...options }) =>
      perform(
        options,
        get(`/v1/operator-tokens${query({ limit, cursor })}`),
        listOf('id', 'name', 'role', 'origin', 'created_at', 'expires_at', 'revoked_at', 'last_used_at'),
      ),
  );
  verb(token, 'revoke', 'withdraw a token, effective at once', 'token revoke 2')
    .argument('<id>', "the token's id", id)
    .action((of, options) =>
      perform(options, remove(`/v1/operator-tokens/${of}`), () => `Token ${of} is withdrawn.`),
    );

  const enrollment = program
    .command('enrollment')
    .description('give and withdraw tokens that agents register with');
  verb(
    enrollment,
    'create <name>',
    'make an enrollment token, and show it once',
    'enrollment create rack-7 --label region=eu --max-uses 20 --expires-in 1d',
  )
    .addOption(labelOption())
    .option('--expires-in <duration>', 'how long it is good for, such as 1d', seconds)
    .option('--max-uses <n>', 'how many agents may register with it', whole)
    .action((name: string, { label: labels, expiresIn: expires_in, maxUses: max_uses, ...options }) =>
      perform(
        options,
        post('/v1/enrollment-tokens', { name, labels, expires_in, max_uses }, false),
        (made) => `${fields(made)}\n\n${SHOWN_ONCE}`,
      ),
    );
  listing(enrollment, 'list enrollment tokens', 'enrollment list').action(({ limit, cursor, ...options }) =>
    perform(
      options,
      get(`/v1/enrollment-tokens${query({ limit, cursor })}`),
      listOf('id', 'name', 'labels', 'uses', 'max_uses', 'created_at', 'expires_at', 'revoked_at'),
    ),
  );
  verb(enrollment, 'revoke', 'withdraw an enrollment token; its agents stay', 'enrollment revoke 3')
    .argument('<id>', "the token's id", id)
    .action((of, options) =>
      perform(options, remove(`/v1/enrollment-tokens/${of}`), () => `Enrollment token ${of} is withdrawn.`),
    );
}

async function verifyFile(target: DatabaseTarget): Promise<object> {
  // Loaded here, for what they need takes longer to load than most commands take.
  const { inspectDatabase } = await import('../database/open-database.js');
  const { pendingMigrations } = await import('../database/migrations.js');
  const { verifyChain } = await import('../operators/audit-log.js');
  return inspectDatabase(target, async (statements) => {
    if ((await pendingMigrations(statements.manager.dataSource)).length > 0)
      throw new Failure(
        `${nameOf(target)} lacks migrations: control-plane migrate applies them.`,
        EXIT.failed,
      );
    return verifyChain(statements);
  });
}

function addAudit(audit: Command): void {
  listing(
    audit,
    'list changes, newest first',
    'audit list --subject agent/12',
    'audit list --action task.cancel',
  )
    .option('--action <action>', 'only this action, such as agent.disable')
    .option('--subject <subject>', 'only changes of this, such as agent/12')
    .option('--token <id>', 'only changes made with this token', id)
    .option('--since <time>', 'from then on (RFC 3339)')
    .option('--until <time>', 'before then (RFC 3339)')
    .action(({ action, subject, token, since, until, limit, cursor, ...options }) =>
      perform(
        options,
        get(`/v1/audit${query({ action, subject, operator_token_id: token, since, until, limit, cursor })}`),
        listOf('id', 'at', 'operator_name', 'address', 'action', 'subject', 'before', 'after'),
      ),
    );
  verb(
    audit,
    'verify',
    "follow the chain of the audit log; reads the database's file where it is there and no CONTROL_PLANE_URL is set",
    'audit verify',
  ).action(async (options: Common) => {
    const settings = readSettings();
    const text =
      settings.url === undefined && isThere(settings.database)
        ? JSON.stringify(await verifyFile(settings.database))
        : await callApi(settings, { ...options, alsoWithoutServer: false }, get('/v1/audit/verification'));
    print(options.json ? text : fields(JSON.parse(text)));
    if (!JSON.parse(text).intact) throw new Failure('The audit log is not what was recorded.', EXIT.failed);
  });
}
