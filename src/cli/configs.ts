import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { type Change, changesBetween, valueAt } from '../config/changes';
import { seconds } from './arguments';
import { EXIT, Failure } from './failure';
import { fields, table } from './print';
import type { Terminal } from './terminal';
import { type Common, fetchText, get, listing, listOf, perform, query, verb } from './verbs';

const CONFIG = ['revision', 'seq', 'issued_at', 'expires_at', 'in_force', 'rollout'];

/** Adds the commands about the agents' configuration. */
export function addConfigs(program: Command, terminal: Terminal): void {
  const config = program.command('config').description('publish the configuration of the agents');
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
      terminal,
      options,
      {
        method: 'POST',
        path: '/v1/configs',
        body: `{"config":${terminal.readJson(file).text}${expires_in === undefined ? '' : `,"expires_in":${expires_in}`}}`,
        idempotencyKey,
        repeatable: true,
      },
      fields,
    ),
  );
  verb(
    config,
    'show [revision]',
    'show a configuration; the newest if none is named',
    'config show',
    'config show a3f1c2d4e5b60718 --json',
  ).action(async (revision: string | undefined, options: Common) => {
    const shown = revision ?? (await newestRevision(terminal, options));
    await perform(terminal, options, get(`/v1/configs/${encodeURIComponent(shown)}`), fields);
  });
  listing(config, 'list', 'list what was published, newest first', 'config list').action(
    ({ limit, cursor, ...options }) =>
      perform(terminal, options, get(`/v1/configs${query({ limit, cursor })}`), listOf(...CONFIG)),
  );
  verb(
    config,
    'diff [from] [to]',
    'show what a configuration changed: the newest, or the one named, against the one before it; or one against another',
    'config diff',
    'config diff a3f1c2d4e5b60718',
    'config diff 0f9e8d7c6b5a4938 a3f1c2d4e5b60718',
  ).action(async (from: string | undefined, to: string | undefined, options: Common) => {
    if (to !== undefined) return diffBetween(terminal, options, from as string, to);
    const shown = from ?? (await newestRevision(terminal, options));
    const diff = await fetchText(terminal, options, get(`${pathOf(shown)}/diff`));
    if (options.json) return terminal.printJson(diff);
    const { revision, previous_revision, changes } = JSON.parse(diff);
    const before =
      previous_revision === null ? undefined : await detailOf(terminal, options, previous_revision);
    showDiff(terminal, before, await detailOf(terminal, options, revision), changes);
  });
  publishing(
    verb(
      config,
      'rollback <revision>',
      'publish the content of an earlier configuration again, as a new one',
      'config rollback a3f1c2d4e5b60718',
    ),
  ).action((revision: string, { expiresIn: expires_in, idempotencyKey = randomUUID(), ...options }) =>
    perform(
      terminal,
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

async function newestRevision(terminal: Terminal, options: Common): Promise<string> {
  const page = JSON.parse(await fetchText(terminal, options, get('/v1/configs?limit=1')));
  if (page.items.length === 0) throw new Failure('Nothing was published yet.', EXIT.failed);
  return page.items[0].revision;
}

const pathOf = (revision: string) => `/v1/configs/${encodeURIComponent(revision)}`;

/** What a diff needs of a configuration. */
interface Detail {
  readonly revision: string;
  readonly seq: number;
  readonly config: object;
}

const detailOf = async (terminal: Terminal, options: Common, revision: string): Promise<Detail> =>
  JSON.parse(await fetchText(terminal, options, get(pathOf(revision))));

async function diffBetween(terminal: Terminal, options: Common, from: string, to: string): Promise<void> {
  const before = await detailOf(terminal, options, from);
  const after = await detailOf(terminal, options, to);
  const changes = changesBetween(before.config, after.config);
  if (options.json) terminal.printJson(JSON.stringify({ revision: to, previous_revision: from, changes }));
  else showDiff(terminal, before, after, changes);
}

/** @param before undefined for the first configuration, which is compared with an empty object */
function showDiff(
  terminal: Terminal,
  before: Detail | undefined,
  after: Detail,
  changes: readonly Change[],
): void {
  const name = (detail: Detail | undefined) =>
    detail ? `${detail.revision} (seq ${detail.seq})` : 'an empty configuration';
  terminal.note(`from ${name(before)} to ${name(after)}`);
  const rows = changes.map(({ op, path, value }) => ({
    op,
    path,
    before: op === 'add' ? undefined : valueAt(before?.config, path),
    value,
  }));
  terminal.print(
    rows.length === 0 ? 'Nothing differs.' : table(rows, ['op', 'path', 'before', 'value'], Infinity),
  );
}
