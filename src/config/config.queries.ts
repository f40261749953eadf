import type { Statements, Transaction } from '../database/statements';
import type { ConfigEntity } from './config.entity';

/** A bundle without its content. */
export type ConfigSummary = Omit<ConfigEntity, 'config' | 'signature'>;

/** Lists bundles without their content, the newest first. */
export function listConfigs(
  statements: Statements,
  beforeSeq: number,
  limit: number,
): Promise<ConfigSummary[]> {
  return statements.rows<ConfigSummary>(
    'SELECT revision, seq, issued_at, expires_at, kid FROM agent_configs WHERE seq < $1 ORDER BY seq DESC LIMIT $2',
    beforeSeq,
    limit,
  );
}

/** The bundle of a revision. */
export function findConfig(statements: Statements, revision: string): Promise<ConfigEntity | undefined> {
  return statements.first<ConfigEntity>('SELECT * FROM agent_configs WHERE revision = $1', revision);
}

/** The bundle before one, by `seq`. */
export function findConfigBefore(statements: Statements, seq: number): Promise<ConfigEntity | undefined> {
  return statements.first<ConfigEntity>(
    'SELECT * FROM agent_configs WHERE seq < $1 ORDER BY seq DESC LIMIT 1',
    seq,
  );
}

/** The last `seq` that was used, or skipped after a restore; 0 if there is none. */
export async function selectLastSeq(statements: Statements): Promise<number> {
  const row = await statements.first<{ seq: number | null }>(
    `SELECT ${statements.dialect.lastId('agent_configs', 'seq')} AS seq`,
  );
  return row?.seq ?? 0;
}

/** The newest bundle and, of the same instant, the last `seq` that was used or skipped. */
export function findNewestConfig(
  statements: Statements,
): Promise<(ConfigEntity & { last_seq: number }) | undefined> {
  return statements.first<ConfigEntity & { last_seq: number }>(
    `SELECT c.*, ${statements.dialect.lastId('agent_configs', 'seq')} AS last_seq
     FROM agent_configs c ORDER BY seq DESC LIMIT 1`,
  );
}

/** Stores a bundle. @returns whether it did: its `seq` was free */
export async function insertConfig(tx: Transaction, row: ConfigEntity): Promise<boolean> {
  const stored = await tx.run(
    `INSERT INTO agent_configs (seq, revision, issued_at, expires_at, config, kid, signature)
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (seq) DO NOTHING`,
    row.seq,
    row.revision,
    row.issued_at,
    row.expires_at,
    row.config,
    row.kid,
    row.signature,
  );
  return stored > 0;
}
