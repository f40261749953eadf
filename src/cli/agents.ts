import { type Command, Option } from 'commander';
import { type ApiOptions, apiCommand, callAndPrint, type Json, listCommand } from './api-command';
import { agentId, choiceOption, labelOption, pastTimeOption } from './arguments';
import { get, post, put, queryString, remove } from './client';
import { fields, table, truncated } from './print';
import type { Terminal } from './terminal';

const renderCredentials = (agent: object) =>
  `${fields(agent)}\n\nGive both to the agent, as X-Agent-Id and X-Agent-Token. The token is not shown again.`;

const AGENT = [
  'id',
  'hostname',
  'status',
  'live_leases',
  'last_heartbeat_at',
  'version',
  'kinds',
  'labels',
  'last_hour',
  'last_error',
];

const AGENT_CONFIG = [
  ...['id', 'hostname', 'status', 'last_heartbeat_at', 'version'],
  ...['config_status', 'config_revision', 'config_message'],
];

/** How many characters of an agent's last error a row shows. */
const MAX_ERROR = 40;
/** How many characters of its message about the configuration. */
const MAX_MESSAGE = 100;

const CONFIG_STATUSES = ['applied', 'failed', 'other', 'unsaid'];

const STATUSES = ['online', 'offline', 'draining', 'disabled', 'revoked'];

/** Adds the commands about agents. */
export function addAgents(program: Command, terminal: Terminal): void {
  const create = async (
    hostname: string | undefined,
    { label: labels, ...options }: ApiOptions & { label?: Record<string, string> },
  ) =>
    callAndPrint(terminal, options, post('/v1/agents', { hostname, labels }, false), renderCredentials, {
      allowInProcess: true,
    });
  apiCommand(
    program,
    'create-agent [hostname]',
    "create an agent by hand, and show its credentials once; works on the database's file if no server runs",
    'create-agent probe-fra-1',
  )
    .addOption(labelOption())
    .action(create);

  const agents = program.command('agents').description('list and manage agents');
  listCommand(
    agents,
    'list',
    'list agents, newest first',
    'agents list --status offline',
    'agents list --failing --watch 5',
    'agents list --config-status failed --kind dns',
  )
    .addOption(choiceOption('--status <status>', 'only these', STATUSES))
    .option('--hostname <hostname>', 'only this one')
    .addOption(labelOption())
    .option(
      '--failing',
      'only those whose attempts of the last hour, at least 5, ended in most cases by error, cancelled or expired',
    )
    .addOption(new Option('--not-failing', 'only the others').conflicts('failing'))
    .addOption(choiceOption('--config-status <status>', 'by the configuration in force', CONFIG_STATUSES))
    .option('--kind <kind>', 'only those that take tasks of this kind')
    .option('--version <version>', 'only those that report this version')
    .action(({ label: labels = {}, failing, notFailing, configStatus: config_status, ...given }) => {
      const { status, hostname, kind, version, limit, cursor, ...options } = given;
      const filter = {
        ...{ status, hostname, config_status, kind, version, limit, cursor },
        label: Object.entries(labels).map(([name, value]) => `${name}:${value}`),
        failing: failing ? 'true' : notFailing ? 'false' : undefined,
      };
      // A filter by configuration asks for what agents report about it.
      const columns = config_status === undefined ? AGENT : AGENT_CONFIG;
      return callAndPrint(terminal, options, get(`/v1/agents${queryString(filter)}`), ({ items }) =>
        table(items.map(toRow), columns),
      );
    });
  apiCommand(agents, 'show', 'show an agent', 'agents show 12')
    .argument('<id>', "the agent's id", agentId)
    .action((agent, options) => callAndPrint(terminal, options, get(`/v1/agents/${agent}`), renderAgent));
  apiCommand(
    agents,
    'create [hostname]',
    'the same as create-agent',
    'agents create probe-fra-1 --label region=eu',
  )
    .addOption(labelOption())
    .action(create);
  for (const [name, summary] of [
    ['disable', 'refuse all calls of an agent until it is enabled, and revoke its leases'],
    ['enable', 'enable a disabled or draining agent'],
    ['drain', 'give an agent no new work; it may finish its leases'],
    ['revoke', 'refuse all calls of an agent forever, and revoke its leases'],
  ] as const) {
    apiCommand(agents, name, summary, `agents ${name} 12`)
      .argument('<id>', "the agent's id", agentId)
      .action((agent, options) =>
        callAndPrint(terminal, options, post(`/v1/agents/${agent}/${name}`, undefined, true), renderAgent),
      );
  }
  apiCommand(
    agents,
    'labels',
    'replace all labels of an agent; without --label it has none',
    'agents labels 12 --label region=eu --label rack=7',
  )
    .argument('<id>', "the agent's id", agentId)
    .addOption(labelOption())
    .action((agent, { label: labels = {}, ...options }) =>
      callAndPrint(terminal, options, put(`/v1/agents/${agent}/labels`, { labels }), renderAgent),
    );
  listCommand(
    agents,
    'metrics',
    "list an agent's own metrics by time of measurement, latest first",
    'agents metrics 12 --since 2h',
    'agents metrics 12 --json --limit 500',
  )
    .argument('<id>', "the agent's id", agentId)
    .addOption(pastTimeOption('--since', 'measured at this time or later'))
    .addOption(pastTimeOption('--until', 'measured before this time'))
    .action((agent, { since, until, limit, cursor, ...options }) =>
      callAndPrint(
        terminal,
        options,
        get(`/v1/agents/${agent}/metrics${queryString({ from: since, to: until, limit, cursor })}`),
        renderSamples,
      ),
    );
  apiCommand(agents, 'rotate', 'give an agent a new token, and show it once', 'agents rotate 12 --revoke-old')
    .argument('<id>', "the agent's id", agentId)
    .option('--revoke-old', 'revoke the current token at once, not when the new one is first used')
    .action((agent, { revokeOld: revoke_old, ...options }) =>
      callAndPrint(
        terminal,
        options,
        post(`/v1/agents/${agent}/rotate`, { revoke_old }, false),
        renderCredentials,
      ),
    );
  apiCommand(
    agents,
    'delete',
    'delete an agent; its results are kept, and its hostname can be used again',
    'agents delete 12',
  )
    .argument('<id>', "the agent's id", agentId)
    .action((agent, options) =>
      callAndPrint(terminal, options, remove(`/v1/agents/${agent}`), () => `Agent ${agent} is deleted.`),
    );
}

/** An agent as a table shows it: with the outcomes of the last hour, and the beginning of its last error. */
function toRow({ outcomes, last_error: error, config, ...agent }: Json): object {
  const last_hour = Object.fromEntries(Object.entries(outcomes.hour).filter(([, count]) => count !== 0));
  const errorText = error && [error.outcome, error.message ?? ''].join(' ').trim();
  return {
    ...agent,
    ...{ last_hour, last_error: error && truncated(errorText, MAX_ERROR) },
    ...{ config_status: config?.status, config_revision: config?.revision },
    config_message: config?.message && truncated(config.message, MAX_MESSAGE),
  };
}

/** Renders an agent; no labels are `-`, as in lists. */
const renderAgent = (agent: Json) =>
  fields({ ...agent, labels: Object.keys(agent.labels).length === 0 ? null : agent.labels });

/** Renders a row for each sample of each envelope. */
function renderSamples({ items }: { items: Json[] }): string {
  const rows = items.flatMap(({ timestamp, counters, gauges }) => [
    ...counters.map((sample: object) => ({ timestamp, type: 'counter', ...sample })),
    ...gauges.map((sample: object) => ({ timestamp, type: 'gauge', ...sample })),
  ]);
  return table(rows, ['timestamp', 'type', 'name', 'value', 'unit']);
}
