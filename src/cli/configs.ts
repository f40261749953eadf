import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { type Change, changesBetween, valueAt } from '../config/changes';
import { type ApiOptions, apiCommand, callAndPrint, fetchText, listCommand, pageTable } from './api-command';
import { durationSeconds } from './arguments';
import { get, queryString } from './client';
import { CommandError, EXIT } from './command-error';
import { fields, table } from './print';
import type { Terminal } from './terminal';

const CONFIG = ['revision', 'seq', 'issued_at', 'expires_at', 'in_force', 'rollout'];

/** Adds the commands for the agents' configuration. */
export function addConfigs(program: Command, terminal: Terminal): void {
  const config = program
    .command('config')
    .alias('configs')
    .description('publish the configuration of the agents');
  const publishing = (command: Command) =>
    command
      .option('--expires-in <duration>', 'how long agents may use it, such as 30d', durationSeconds)
      .option(
        '--idempotency-key <key>',
        'a repeated call with the same key publishes nothing twice (default: a random key)',
      );
  publishing(
    apiCommand(
      config,
      'publish <file>',
      'sign a configuration, a JSON object, and put it in force; - is standard input',
      'config publish config.json --expires-in 30d',
    ),
  ).action((file: string, { expiresIn: expires_in, idempotencyKey = randomUUID(), ...options }) =>
    callAndPrint(
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
  apiCommand(
    config,
    'show [revision]',
    'show a configuration; the newest if none is named',
    'config show',
    'config show a3f1c2d4e5b60718 --json',
  ).action(async (revision: string | undefined, options: ApiOptions) => {
    const shown = revision ?? (await newestRevision(terminal, options));
    await callAndPrint(terminal, options, get(`/v1/configs/${encodeURIComponent(shown)}`), fields);
  });
  listCommand(config, 'list', 'list published configurations, newest first', 'config list').action(
    ({ limit, cursor, ...options }) =>
      callAndPrint(
        terminal,
        options,
        get(`/v1/configs${queryString({ limit, cursor })}`),
        pageTable(...CONFIG),
      ),
  );
  apiCommand(
    config,
    'diff [from] [to]',
    'compare a configuration, by default the newest, with the previous one; or compare two',
    'config diff',
    'config diff a3f1c2d4e5b60718',
    'config diff 0f9e8d7c6b5a4938 a3f1c2d4e5b60718',
  ).action(async (from: string | undefined, to: string | undefined, options: ApiOptions) => {
    if (to !== undefined) return diffBetween(terminal, options, from as string, to);
    const shown = from ?? (await newestRevision(terminal, options));
    const diff = await fetchText(terminal, options, get(`${pathOf(shown)}/diff`));
    if (options.json) return terminal.printJson(diff);
    const { revision, previous_revision, changes } = JSON.parse(diff);
    const before =
      previous_revision === null ? undefined : await fetchDetail(terminal, options, previous_revision);
    showDiff(terminal, before, await fetchDetail(terminal, options, revision), changes);
  });
  publishing(
    apiCommand(
      config,
      'rollback <revision>',
      'publish the content of an earlier configuration again, as a new one',
      'config rollback a3f1c2d4e5b60718',
    ),
  ).action((revision: string, { expiresIn: expires_in, idempotencyKey = randomUUID(), ...options }) =>
    callAndPrint(
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

async function newestRevision(terminal: Terminal, options: ApiOptions): Promise<string> {
  const page = JSON.parse(await fetchText(terminal, options, get('/v1/configs?limit=1')));
  if (page.items.length === 0) throw new CommandError('Nothing was published yet.', EXIT.failed);
  return page.items[0].revision;
}

const pathOf = (revision: string) => `/v1/configs/${encodeURIComponent(revision)}`;

/** The fields of a configuration that a diff needs. */
interface Detail {
  readonly revision: string;
  readonly seq: number;
  readonly config: object;
}

const fetchDetail = async (terminal: Terminal, options: ApiOptions, revision: string): Promise<Detail> =>
  JSON.parse(await fetchText(terminal, options, get(pathOf(revision))));

async function diffBetween(terminal: Terminal, options: ApiOptions, from: string, to: string): Promise<void> {
  const before = await fetchDetail(terminal, options, from);
  const after = await fetchDetail(terminal, options, to);
  const changes = changesBetween(before.config, after.config);
  if (options.json) terminal.printJson(JSON.stringify({ revision: to, previous_revision: from, changes }));
  else showDiff(terminal, before, after, changes);
}

/** Prints a diff. @param before undefined for the first configuration, which is compared with an empty object */
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
