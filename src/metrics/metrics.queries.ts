import type { Statements, Transaction } from '../database/statements';
import type { MetricsEntity } from './metrics.entity';

/** An envelope as it is stored. */
export type Envelope = Omit<MetricsEntity, 'id' | 'received_at'>;

/** Where an envelope is in the order of a list, and its size. */
export interface EnvelopePlace {
  readonly id: number;
  readonly bytes: number;
}

/** An agent's envelopes of a span of time, by the instant of measurement, the latest first; those after a place in this order. */
export function listEnvelopes(
  statements: Statements,
  agentId: number,
  [from, to]: readonly [from: number, to: number],
  [beforeAt, beforeId]: readonly [at: number, id: number],
  limit: number,
): Promise<(EnvelopePlace & { readonly measured_at: number })[]> {
  return statements.rows(
    `SELECT id, measured_at, octet_length(counters) + octet_length(gauges) AS bytes FROM agent_metrics
     WHERE agent_id = $1 AND measured_at >= $2 AND measured_at < $3 AND (measured_at, id) < ($4, $5)
     ORDER BY measured_at DESC, id DESC LIMIT $6`,
    agentId,
    from,
    to,
    beforeAt,
    beforeId,
    limit,
  );
}

/** Envelopes by id, in the order of {@link listEnvelopes}. */
export function selectEnvelopes(statements: Statements, ids: readonly number[]): Promise<MetricsEntity[]> {
  return statements.rows<MetricsEntity>(
    `SELECT * FROM agent_metrics WHERE ${statements.dialect.isAmong('id', '$1')} ORDER BY measured_at DESC, id DESC`,
    JSON.stringify(ids),
  );
}

/** The envelopes that were received at an instant or later, the earliest first; those after a place in this order. */
export function listReceived(
  statements: Statements,
  at: number,
  id: number,
  limit: number,
): Promise<(EnvelopePlace & { readonly received_at: number })[]> {
  return statements.rows(
    `SELECT id, received_at, octet_length(counters) + octet_length(gauges) AS bytes FROM agent_metrics
     WHERE received_at >= $1 AND (received_at > $1 OR id > $2) ORDER BY received_at, id LIMIT $3`,
    at,
    id,
    limit,
  );
}

/** The samples of envelopes. */
export function selectSamples(
  statements: Statements,
  ids: readonly number[],
): Promise<Omit<MetricsEntity, 'id' | 'envelope_hash'>[]> {
  return statements.rows(
    `SELECT agent_id, measured_at, received_at, counters, gauges FROM agent_metrics
     WHERE ${statements.dialect.isAmong('id', '$1')}`,
    JSON.stringify(ids),
  );
}

/** Stores envelopes; those that are stored already are left as they are. */
export async function insertEnvelopes(tx: Transaction, envelopes: readonly Envelope[]): Promise<void> {
  const columns = {
    agent_id: 'integer',
    envelope_hash: 'text',
    measured_at: 'integer',
    counters: 'text',
    gauges: 'text',
  } as const;
  await tx.run(
    `INSERT INTO agent_metrics (agent_id, envelope_hash, measured_at, received_at, counters, gauges)
     SELECT agent_id, envelope_hash, measured_at, $2, counters, gauges FROM ${tx.dialect.rowset('$1', columns)} AS r
     WHERE true ON CONFLICT (agent_id, envelope_hash) DO NOTHING`,
    JSON.stringify(envelopes),
    tx.now,
  );
}

/** The ids of those of the envelopes that are stored. */
export function selectEnvelopeIds(
  tx: Transaction,
  envelopes: readonly Pick<Envelope, 'agent_id' | 'envelope_hash'>[],
): Promise<Pick<MetricsEntity, 'id' | 'agent_id' | 'envelope_hash'>[]> {
  return tx.rows(
    `SELECT m.id, m.agent_id, m.envelope_hash
     FROM ${tx.dialect.rowset('$1', { agent_id: 'integer', envelope_hash: 'text' })} AS r
     JOIN agent_metrics m ON m.agent_id = r.agent_id AND m.envelope_hash = r.envelope_hash`,
    JSON.stringify(envelopes.map(({ agent_id, envelope_hash }) => ({ agent_id, envelope_hash }))),
  );
}

/** Deletes envelopes that were received before an instant, the earliest first. @returns how many */
export function deleteEnvelopes(tx: Transaction, before: number, limit: number): Promise<number> {
  return tx.run(
    `DELETE FROM agent_metrics WHERE id IN (
       SELECT id FROM agent_metrics WHERE received_at < $1 ORDER BY received_at LIMIT $2)`,
    before,
    limit,
  );
}
