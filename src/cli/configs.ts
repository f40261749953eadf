import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { changesBetween } from '../config/changes';
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
    await perform(terminal, options, get(`/v1/configs/${encodeURIComponent(shown)}/diff`), changes);
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

const changes = (diff: { changes: object[] }) =>
  diff.changes.length === 0 ? 'Nothing differs.' : table(diff.changes, ['op', 'path', 'value'], Infinity);

async function diffBetween(terminal: Terminal, options: Common, from: string, to: string): Promise<void> {
  const configOf = async (revision: string): Promise<object> =>
    JSON.parse(await fetchText(terminal, options, get(`/v1/configs/${encodeURIComponent(revision)}`))).config;
  const diff = {
    revision: to,
    previous_revision: from,
    changes: changesBetween(await configOf(from), await configOf(to)),
  };
  if (options.json) terminal.printJson(JSON.stringify(diff));
  else terminal.print(changes(diff));
}
