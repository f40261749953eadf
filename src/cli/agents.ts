import { type Command, Option } from 'commander';
import { id, labelOption, oneOf, pastOption } from './arguments';
import { fields, shortened, table } from './print';
import type { Terminal } from './terminal';
import { type Common, get, listing, perform, post, put, query, remove, type Shown, verb } from './verbs';

const credentials = (agent: object) =>
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

/** How much of an agent's last error a row shows, in characters. */
const MAX_ERROR = 40;
/** And of what it says of its configuration. */
const MAX_MESSAGE = 100;

const CONFIG_STATUSES = ['applied', 'failed', 'other', 'unsaid'];

const STATUSES = ['online', 'offline', 'draining', 'disabled', 'revoked'];

/** Adds the commands about agents. */
export function addAgents(program: Command, terminal: Terminal): void {
  const create = async (
    hostname: string | undefined,
    { label: labels, ...options }: Common & { label?: Record<string, string> },
  ) =>
    perform(terminal, options, post('/v1/agents', { hostname, labels }, false), credentials, {
      alsoWithoutServer: true,
    });
  verb(
    program,
    'create-agent [hostname]',
    "create an agent by hand, and show its credentials once; works on the database's file if no server runs",
    'create-agent probe-fra-1',
  )
    .addOption(labelOption())
    .action(create);

  const agents = program.command('agents').description('see the fleet, and decide about agents');
  listing(
    agents,
    'list',
    'list agents, newest first',
    'agents list --status offline',
    'agents list --failing --watch 5',
    'agents list --config-status failed --kind dns',
  )
    .addOption(oneOf('--status <status>', 'only these', STATUSES))
    .option('--hostname <hostname>', 'only this one')
    .addOption(labelOption())
    .option('--failing', 'only those of which more than half of at least 5 attempts failed in the last hour')
    .addOption(new Option('--not-failing', 'only the others').conflicts('failing'))
    .addOption(oneOf('--config-status <status>', 'by the configuration in force', CONFIG_STATUSES))
    .option('--kind <kind>', 'only those that take tasks of this kind')
    .option('--version <version>', 'only those that say they are of this version')
    .action(({ label: labels = {}, failing, notFailing, configStatus: config_status, ...given }) => {
      const { status, hostname, kind, version, limit, cursor, ...options } = given;
      const filter = {
        ...{ status, hostname, config_status, kind, version, limit, cursor },
        label: Object.entries(labels).map(([name, value]) => `${name}:${value}`),
        failing: failing ? 'true' : notFailing ? 'false' : undefined,
      };
      // Who asks by the configuration wants to know what they say of it.
      const columns = config_status === undefined ? AGENT : AGENT_CONFIG;
      return perform(terminal, options, get(`/v1/agents${query(filter)}`), ({ items }) =>
        table(items.map(inRow), columns),
      );
    });
  verb(agents, 'show', 'show an agent', 'agents show 12')
    .argument('<id>', "the agent's id", id)
    .action((agent, options) => perform(terminal, options, get(`/v1/agents/${agent}`), shown));
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
        perform(terminal, options, post(`/v1/agents/${agent}/${name}`, undefined, true), shown),
      );
  }
  verb(
    agents,
    'labels',
    'replace all labels of an agent; without --label it has none',
    'agents labels 12 --label region=eu --label rack=7',
  )
    .argument('<id>', "the agent's id", id)
    .addOption(labelOption())
    .action((agent, { label: labels = {}, ...options }) =>
      perform(terminal, options, put(`/v1/agents/${agent}/labels`, { labels }), shown),
    );
  listing(
    agents,
    'metrics',
    'list what an agent sent to /metrics, by the time it was measured, the latest first',
    'agents metrics 12 --since 2h',
    'agents metrics 12 --json --limit 500',
  )
    .argument('<id>', "the agent's id", id)
    .addOption(pastOption('--since', 'measured from then on'))
    .addOption(pastOption('--until', 'measured before then'))
    .action((agent, { since, until, limit, cursor, ...options }) =>
      perform(
        terminal,
        options,
        get(`/v1/agents/${agent}/metrics${query({ from: since, to: until, limit, cursor })}`),
        samples,
      ),
    );
  verb(agents, 'rotate', 'give an agent a new token, and show it once', 'agents rotate 12 --revoke-old')
    .argument('<id>', "the agent's id", id)
    .option('--revoke-old', 'the token that it has is void at once, and not only when the new one is used')
    .action((agent, { revokeOld: revoke_old, ...options }) =>
      perform(terminal, options, post(`/v1/agents/${agent}/rotate`, { revoke_old }, false), credentials),
    );
  verb(agents, 'delete', 'delete an agent; its results stay, its hostname is free', 'agents delete 12')
    .argument('<id>', "the agent's id", id)
    .action((agent, options) =>
      perform(terminal, options, remove(`/v1/agents/${agent}`), () => `Agent ${agent} is deleted.`),
    );
}

/** An agent as a row shows it: of its outcomes those of the last hour, and of its last error the beginning. */
function inRow({ outcomes, last_error: error, config, ...agent }: Shown): object {
  const last_hour = Object.fromEntries(Object.entries(outcomes.hour).filter(([, count]) => count !== 0));
  const said = error && [error.outcome, error.message ?? ''].join(' ').trim();
  return {
    ...agent,
    ...{ last_hour, last_error: error && shortened(said, MAX_ERROR) },
    ...{ config_status: config?.status, config_revision: config?.revision },
    config_message: config?.message && shortened(config.message, MAX_MESSAGE),
  };
}

/** An agent; without labels it shows `-`, as lists do. */
const shown = (agent: Shown) =>
  fields({ ...agent, labels: Object.keys(agent.labels).length === 0 ? null : agent.labels });

/** A line for each sample of each envelope. */
function samples({ items }: { items: Shown[] }): string {
  const rows = items.flatMap(({ timestamp, counters, gauges }) => [
    ...counters.map((sample: object) => ({ timestamp, type: 'counter', ...sample })),
    ...gauges.map((sample: object) => ({ timestamp, type: 'gauge', ...sample })),
  ]);
  return table(rows, ['timestamp', 'type', 'name', 'value', 'unit']);
}
