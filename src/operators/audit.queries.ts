import { Conditions } from '../database/conditions';
import type { Statements, Transaction } from '../database/statements';
import type { AuditEntity, AuditHeadEntity } from './audit.entity';

/** An instant after all others. */
const MAX_INSTANT = Number.MAX_SAFE_INTEGER;

/** Gives the next id of the chain. Locks its end, so that concurrent changes are appended one after the other. */
export function advanceHead(tx: Transaction): Promise<AuditHeadEntity | undefined> {
  return tx.first<AuditHeadEntity>(
    'UPDATE audit_head SET last_id = last_id + 1 WHERE id = 1 RETURNING id, last_id, last_hash',
  );
}

/** The fields of an entry in the order of the columns, which is the order that its hash is computed in. */
export function fieldsOf(row: Omit<AuditEntity, 'hash'>) {
  return [
    row.id,
    row.at,
    row.operator_token_id,
    row.operator_name,
    row.address,
    row.action,
    row.subject,
    row.before,
    row.after,
  ] as const;
}

/** Appends an entry to the chain. */
export async function appendEntry(tx: Transaction, row: AuditEntity): Promise<void> {
  await Promise.all([
    tx.run(
      `INSERT INTO audit_log (id, at, operator_token_id, operator_name, address, action, subject, "before", "after", hash)
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
      ...fieldsOf(row),
      row.hash,
    ),
    tx.run('UPDATE audit_head SET last_hash = $1 WHERE id = 1', row.hash),
  ]);
}

/** Whether an operator's token is not revoked. */
export async function isUnrevoked(tx: Transaction, tokenId: number): Promise<boolean> {
  const token = await tx.first(
    'SELECT id FROM operator_tokens WHERE id = $1 AND revoked_at IS NULL',
    tokenId,
  );
  return token !== undefined;
}

/** Which entries a list shows; instants in ms since the epoch. */
export interface AuditFilter {
  readonly action?: string | undefined;
  readonly subject?: string | undefined;
  readonly operatorTokenId?: number | undefined;
  readonly since?: number | undefined;
  readonly until?: number | undefined;
  readonly beforeId?: number | undefined;
}

/**
 * Lists entries, the newest first. By time first, so that each filter has an index for its range; ids have the same order unless
 * the clock was set back.
 */
export function listEntries(
  statements: Statements,
  filter: AuditFilter,
  limit: number,
): Promise<AuditEntity[]> {
  const filters = new Conditions()
    .add(filter.action, (value) => `action = ${value}`)
    .add(filter.subject, (value) => `subject = ${value}`)
    .add(filter.operatorTokenId, (value) => `operator_token_id = ${value}`)
    .add(filter.since, (value) => `at >= ${value}`)
    .add(filter.until, (value) => `at < ${value}`)
    .add(
      filter.beforeId,
      (id) => `(at, id) < (coalesce((SELECT at FROM audit_log WHERE id = ${id}), ${MAX_INSTANT}), ${id})`,
    );
  const most = filters.bind(limit);
  return statements.rows<AuditEntity>(
    `SELECT * FROM audit_log ${filters.where} ORDER BY at DESC, id DESC LIMIT ${most}`,
    ...filters.values,
  );
}

/** The hash of an entry. */
export async function selectHash(statements: Statements, id: number): Promise<string | undefined> {
  const entry = await statements.first<Pick<AuditEntity, 'hash'>>(
    'SELECT hash FROM audit_log WHERE id = $1',
    id,
  );
  return entry?.hash;
}

/** The end of the chain. */
export function selectHead(statements: Statements): Promise<AuditHeadEntity | undefined> {
  return statements.first<AuditHeadEntity>('SELECT * FROM audit_head WHERE id = 1');
}

/** Entries of a range of ids, by ascending ids. */
export function selectEntries(
  statements: Statements,
  fromId: number,
  throughId: number,
  limit: number,
): Promise<AuditEntity[]> {
  return statements.rows<AuditEntity>(
    'SELECT * FROM audit_log WHERE id >= $1 AND id <= $2 ORDER BY id LIMIT $3',
    fromId,
    throughId,
    limit,
  );
}

/** The lowest id that is not of the chain. */
export async function selectForeignId(statements: Statements, lastId: number): Promise<number | undefined> {
  const row = await statements.first<{ id: number | null }>(
    'SELECT min(id) AS id FROM audit_log WHERE id < 1 OR id > $1',
    lastId,
  );
  return row?.id ?? undefined;
}

/** A token whose making is not recorded. */
export async function findUnrecordedToken(statements: Statements): Promise<number | undefined> {
  const row = await statements.first<{ id: number }>(
    `SELECT t.id FROM operator_tokens t
     WHERE NOT EXISTS (SELECT 1 FROM audit_log a WHERE a.subject = 'operator-token/' || t.id)
     ORDER BY t.id LIMIT 1`,
  );
  return row?.id;
}

/**
 * Tables of other folders whose rows always have an entry with this action. They are only read, and here because a
 * database file is also verified without the application.
 */
const AUDITED_TABLES = [
  { table: 'agent_configs', action: `action LIKE 'config.%'` },
  { table: 'concurrency_windows', action: `action = 'concurrency-limits.set'` },
  { table: 'enrollment_tokens', action: `action = 'enrollment-token.create'` },
] as const;

/** The first of the audited tables that has rows and no entry about them. */
export async function findUnrecordedTable(statements: Statements): Promise<string | undefined> {
  for (const { table, action } of AUDITED_TABLES) {
    const row = await statements.first(
      `SELECT 1 AS found FROM ${table} WHERE NOT EXISTS (SELECT 1 FROM audit_log WHERE ${action}) LIMIT 1`,
    );
    if (row) return table;
  }
  return undefined;
}

/** What the newest entry of an action says of the state after it, as JSON. */
export async function selectAfterOfLast(statements: Statements, action: string): Promise<string | undefined> {
  const row = await statements.first<{ after: string }>(
    `SELECT "after" FROM audit_log WHERE action = $1 ORDER BY id DESC LIMIT 1`,
    action,
  );
  return row?.after;
}
