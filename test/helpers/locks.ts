import type { Transaction } from '../../src/database/statements';
import type { TestServer } from './harness';
import { until } from './until';

/** Takes locks in a unit of work of its own. @returns what ends that unit */
export async function holdLocks(
  server: TestServer,
  lock: (tx: Transaction) => Promise<unknown>,
): Promise<() => Promise<void>> {
  const held = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  const unit = server.database.write(async (tx) => {
    await lock(tx);
    held.resolve();
    await gate.promise;
  });
  await Promise.race([held.promise, unit]);
  return () => {
    gate.resolve();
    return unit;
  };
}

/** Waits until a unit of work waits for a lock of another. For PostgreSQL. */
export async function untilBlocked(server: TestServer): Promise<void> {
  const isBlocked = `SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`;
  await until('a unit that waits for a lock', async () => (await server.rows(isBlocked)).length > 0);
}

/** Lists the ids of a table's rows that no unit has locked, in ascending order. For PostgreSQL. */
export function freeRows(server: TestServer, table: string): Promise<number[]> {
  return server.database.write(async (tx) => {
    const rows = await tx.rows<{ id: number }>(`SELECT id FROM ${table} ORDER BY id FOR UPDATE SKIP LOCKED`);
    return rows.map(({ id }) => id);
  });
}
