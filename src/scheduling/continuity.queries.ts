import type { Statements, Transaction } from '../database/statements';
import type { ContinuityEntity } from './continuity.entity';

/** Since when the service runs without a gap, and when it was last seen to. */
export function selectContinuity(
  statements: Statements,
): Promise<Pick<ContinuityEntity, 'since' | 'last_seen_at'> | undefined> {
  return statements.first('SELECT since, last_seen_at FROM service_continuity WHERE id = 1');
}

/** Records that the service runs. */
export async function updateContinuity(tx: Transaction, since: number, lastSeenAt: number): Promise<void> {
  await tx.run('UPDATE service_continuity SET since = $1, last_seen_at = $2 WHERE id = 1', since, lastSeenAt);
}
