import type { Statements, Transaction } from '../database/statements';
import type { OperatorTokenEntity } from './operator-token.entity';

/** What a request needs of its token. */
export type CachedToken = Pick<OperatorTokenEntity, 'id' | 'name' | 'role' | 'expires_at' | 'last_used_at'>;

/** A stored token of the setting, or of the process itself. */
export type Bootstrap = Pick<OperatorTokenEntity, 'id' | 'revoked_at'>;

const CACHED = 'id, name, role, expires_at, last_used_at';
/** That a token is neither revoked nor expired; `$1` is now. */
const IS_VALID = 'revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)';

/** The valid tokens, the newest first, with their hashes. */
export function listValidTokens(
  statements: Statements,
  now: number,
  limit: number,
): Promise<(CachedToken & { token_hash: string })[]> {
  return statements.rows(
    `SELECT token_hash, ${CACHED} FROM operator_tokens WHERE ${IS_VALID} ORDER BY id DESC LIMIT $2`,
    now,
    limit,
  );
}

/** The valid tokens of earlier settings. */
export function listEarlierSettings(
  statements: Statements,
  now: number,
  currentId: number,
): Promise<{ id: number }[]> {
  return statements.rows(
    `SELECT id FROM operator_tokens WHERE ${IS_VALID} AND origin = 'setting' AND id <> $2 ORDER BY id`,
    now,
    currentId,
  );
}

/** Whether an admin has a valid token. @param besidesId a token that does not count */
export async function hasValidAdmin(statements: Statements, now: number, besidesId = 0): Promise<boolean> {
  const row = await statements.first(
    `SELECT id FROM operator_tokens WHERE ${IS_VALID} AND role = 'admin' AND id <> $2 LIMIT 1`,
    now,
    besidesId,
  );
  return row !== undefined;
}

/** The tokens of admins, valid or not. */
export async function listAdminIds(tx: Transaction): Promise<number[]> {
  const rows = await tx.rows<{ id: number }>(`SELECT id FROM operator_tokens WHERE role = 'admin'`);
  return rows.map(({ id }) => id);
}

/** The token of a hash, unless it is revoked. */
export function findUnrevoked(statements: Statements, tokenHash: string): Promise<CachedToken | undefined> {
  return statements.first<CachedToken>(
    `SELECT ${CACHED} FROM operator_tokens WHERE token_hash = $1 AND revoked_at IS NULL`,
    tokenHash,
  );
}

/** The token of a hash. */
export function findByHash(
  statements: Statements,
  tokenHash: string,
): Promise<OperatorTokenEntity | undefined> {
  return statements.first<OperatorTokenEntity>(
    'SELECT * FROM operator_tokens WHERE token_hash = $1',
    tokenHash,
  );
}

/** A token. */
export function findToken(statements: Statements, id: number): Promise<OperatorTokenEntity | undefined> {
  return statements.first<OperatorTokenEntity>('SELECT * FROM operator_tokens WHERE id = $1', id);
}

/** Tokens, revoked ones included, the newest first. */
export function listTokens(
  statements: Statements,
  beforeId: number,
  limit: number,
): Promise<OperatorTokenEntity[]> {
  return statements.rows<OperatorTokenEntity>(
    'SELECT * FROM operator_tokens WHERE id < $1 ORDER BY id DESC LIMIT $2',
    beforeId,
    limit,
  );
}

/** The slow hashes that are stored, the newest first. @param limit of those that are not revoked; all of them, if left out */
export async function listSlowHashes(statements: Statements, limit?: number): Promise<string[]> {
  const rows = await statements.rows<Pick<OperatorTokenEntity, 'token_hash'>>(
    `SELECT token_hash FROM operator_tokens WHERE token_hash LIKE 'scrypt$%'
     ${limit === undefined ? '' : 'AND revoked_at IS NULL'} ORDER BY id DESC ${limit === undefined ? '' : 'LIMIT $1'}`,
    ...(limit === undefined ? [] : [limit]),
  );
  return rows.map(({ token_hash: stored }) => stored);
}

/** Stores a token that an operator issues. */
export async function insertIssued(
  tx: Transaction,
  token: Pick<OperatorTokenEntity, 'name' | 'role' | 'token_hash' | 'expires_at'>,
): Promise<OperatorTokenEntity> {
  const [row] = await tx.rows<OperatorTokenEntity>(
    `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at, expires_at)
     VALUES ($1, $2, 'issued', $3, $4, $5) RETURNING *`,
    token.name,
    token.role,
    token.token_hash,
    tx.now,
    token.expires_at,
  );
  return row as OperatorTokenEntity;
}

/** Stores an admin's token, or makes a stored one an admin's that does not expire. */
export async function upsertAdmin(
  tx: Transaction,
  { name, origin, token_hash }: Pick<OperatorTokenEntity, 'name' | 'origin' | 'token_hash'>,
): Promise<Bootstrap> {
  const [row] = await tx.rows<Bootstrap>(
    `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at) VALUES ($1, 'admin', $2, $3, $4)
     ON CONFLICT (token_hash) DO UPDATE SET name = excluded.name, role = excluded.role, origin = excluded.origin,
       expires_at = NULL
     RETURNING id, revoked_at`,
    name,
    origin,
    token_hash,
    tx.now,
  );
  return row as Bootstrap;
}

/** Revokes a token. */
export async function markRevoked(tx: Transaction, id: number): Promise<void> {
  await tx.run('UPDATE operator_tokens SET revoked_at = $2 WHERE id = $1', id, tx.now);
}

/** Records that tokens are used now. */
export async function markUsed(tx: Transaction, ids: readonly number[]): Promise<void> {
  await tx.run(
    `UPDATE operator_tokens SET last_used_at = $2 WHERE ${tx.dialect.isAmong('id', '$1')}`,
    JSON.stringify(ids),
    tx.now,
  );
}
