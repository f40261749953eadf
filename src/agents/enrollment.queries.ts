import type { Statements, Transaction } from '../database/statements';
import type { EnrollmentTokenEntity } from './enrollment-token.entity';

/** Condition: the token is neither revoked nor expired at `$2`. */
const WORKS = 'revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)';

/** Lists the hashes of valid tokens, newest first. */
export async function listWorkingTokens(
  statements: Statements,
  limit: number,
  now: number,
): Promise<string[]> {
  const rows = await statements.rows<{ token_hash: string }>(
    `SELECT token_hash FROM enrollment_tokens WHERE ${WORKS} ORDER BY id DESC LIMIT $1`,
    limit,
    now,
  );
  return rows.map(({ token_hash: hash }) => hash);
}

/** Finds a valid token, also if it is used up. */
export function findWorkingToken(
  tx: Transaction,
  hash: string,
): Promise<Pick<EnrollmentTokenEntity, 'id' | 'labels' | 'uses' | 'max_uses'> | undefined> {
  return tx.first(
    `SELECT id, labels, uses, max_uses FROM enrollment_tokens WHERE token_hash = $1 AND ${WORKS}`,
    hash,
    tx.now,
  );
}

/**
 * Counts a use, if one is left. The condition is part of the update, so that concurrent uses never exceed the limit.
 * @returns whether one was left
 */
export async function countTokenUse(tx: Transaction, tokenId: number): Promise<boolean> {
  const changed = await tx.run(
    `UPDATE enrollment_tokens SET uses = uses + 1
     WHERE id = $1 AND ${WORKS} AND (max_uses IS NULL OR uses < max_uses)`,
    tokenId,
    tx.now,
  );
  return changed === 1;
}

export async function insertToken(
  tx: Transaction,
  token: Pick<EnrollmentTokenEntity, 'name' | 'labels' | 'token_hash' | 'max_uses' | 'expires_at'>,
): Promise<EnrollmentTokenEntity> {
  const [row] = await tx.rows<EnrollmentTokenEntity>(
    `INSERT INTO enrollment_tokens (name, labels, token_hash, max_uses, uses, created_at, expires_at)
     VALUES ($1, $2, $3, $4, 0, $5, $6) RETURNING *`,
    token.name,
    token.labels,
    token.token_hash,
    token.max_uses,
    tx.now,
    token.expires_at,
  );
  return row as EnrollmentTokenEntity;
}

/** Lists tokens with ids below `belowId`, newest first. */
export function listTokens(
  statements: Statements,
  belowId: number,
  limit: number,
): Promise<EnrollmentTokenEntity[]> {
  return statements.rows(
    'SELECT * FROM enrollment_tokens WHERE id < $1 ORDER BY id DESC LIMIT $2',
    belowId,
    limit,
  );
}

export function findToken(tx: Transaction, id: number): Promise<EnrollmentTokenEntity | undefined> {
  return tx.first('SELECT * FROM enrollment_tokens WHERE id = $1', id);
}

export async function markTokenRevoked(tx: Transaction, id: number): Promise<void> {
  await tx.run('UPDATE enrollment_tokens SET revoked_at = $2 WHERE id = $1', id, tx.now);
}
