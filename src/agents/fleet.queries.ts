import { Conditions } from '../database/conditions';
import type { SqlValue, Statements } from '../database/statements';
import { olderThan } from '../http/pagination';
import type { AgentsQuery } from './agents.dto';
import { type KnownAgent, SELECT_AGENT } from './agents.queries';
import { hostnameKey } from './hostnames';
import { parseLabel } from './labels';

/** The state that the filters of a list depend on. */
export interface FleetInstants {
  /** Agents whose last heartbeat is not after this instant are offline, in ms since the epoch. */
  readonly silentSince: number;
  /** An agent no longer takes a kind that it did not ask for after this instant, in ms since the epoch. */
  readonly kindsSince: number;
  /** The revision of the configuration in force; empty if there is none. */
  readonly revisionInForce: string;
  /** Builds a query for the ids of failing agents. @param bind returns the parameter's name of a value */
  readonly selectFailing: (bind: (value: SqlValue) => string) => string;
}

/** Lists the agents of a page, newest first, and one more if there is a next page, without deleted ones. */
export function listAgents(
  statements: Statements,
  query: AgentsQuery,
  instants: FleetInstants,
): Promise<KnownAgent[]> {
  const { hostname, status, label = [], enrollment_token_id: enrolledBy, failing, limit } = query;
  const byHeartbeat = status === 'online' || status === 'offline';
  const filters = new Conditions(`a.state <> 'deleted'`)
    .add(query.cursor === undefined ? undefined : olderThan(query), (id) => `a.id < ${id}`)
    .add(hostname === undefined ? undefined : hostnameKey(hostname), (key) => `a.hostname_key = ${key}`)
    .add(byHeartbeat ? 'active' : status, (state) => `a.state = ${state}`)
    .add(byHeartbeat ? instants.silentSince : undefined, (since) =>
      status === 'online' ? `h.last_heartbeat_at > ${since}` : `h.last_heartbeat_at <= ${since}`,
    )
    .add(enrolledBy, (id) => `a.enrollment_token_id = ${id}`);
  const joined = join(query, filters, instants);
  if (failing !== undefined)
    filters.require(
      `a.id ${failing ? 'IN' : 'NOT IN'} (${instants.selectFailing((value) => filters.bind(value))})`,
    );
  for (const [name, value] of label.flatMap((one) => [parseLabel(one) ?? []]))
    filters.add(
      name,
      (of) =>
        `a.id IN (SELECT agent_id FROM agent_labels WHERE name = ${of} AND value = ${filters.bind(value ?? '')})`,
    );
  const most = filters.bind(limit + 1);
  return statements.rows<KnownAgent>(
    `${SELECT_AGENT} ${joined.tables} ${filters.where} ORDER BY ${joined.id} DESC LIMIT ${most}`,
    ...filters.values,
  );
}

/**
 * Joins the tables that have an index for the filters. The list is sorted by the first one's ids, so that a page is
 * read along its index: SQLite does not use the equality of a join's columns for that.
 */
function join(
  { version, kind, config_status: standing }: AgentsQuery,
  filters: Conditions,
  { kindsSince, revisionInForce }: FleetInstants,
): { tables: string; id: string } {
  const joins: string[] = [];
  const ids: string[] = [];
  const add = (table: string, as: string, condition: string) => {
    joins.push(`JOIN ${table} ${as} ON ${as}.agent_id = a.id`);
    ids.push(`${as}.agent_id`);
    filters.require(condition);
  };
  if (version !== undefined) add('agent_about', 'v', `v.version = ${filters.bind(version)}`);
  if (kind !== undefined)
    add('agent_kinds', 'k', `k.kind = ${filters.bind(kind)} AND k.asked_at > ${filters.bind(kindsSince)}`);
  if (standing === 'applied' || standing === 'failed')
    add(
      'agent_config_states',
      's',
      `s.revision = ${filters.bind(revisionInForce)} AND s.status = ${filters.bind(standing)}`,
    );
  else if (standing === 'other') {
    const revision = filters.bind(revisionInForce);
    filters.require(
      `a.id IN (SELECT agent_id FROM agent_config_states WHERE revision < ${revision} OR revision > ${revision})`,
    );
  } else if (standing === 'unsaid')
    filters.require('NOT EXISTS (SELECT 1 FROM agent_config_states s WHERE s.agent_id = a.id)');
  return { tables: joins.join(' '), id: ids[0] ?? 'a.id' };
}
