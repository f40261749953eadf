import type { MigrationInterface, QueryRunner } from 'typeorm';
import { columnTypes, isShared } from './column-types';

/** Which kinds of tasks each agent takes, as its claims tell. */
export class AgentKinds1764600200000 implements MigrationInterface {
  name = 'AgentKinds1764600200000';

  async up(runner: QueryRunner): Promise<void> {
    const { bigint } = columnTypes(runner);
    await runner.query(`CREATE TABLE agent_kinds (
      agent_id ${bigint} NOT NULL REFERENCES agents (id),
      kind text NOT NULL,
      asked_at ${bigint} NOT NULL,
      capacity integer CHECK (capacity > 0),
      PRIMARY KEY (agent_id, kind)
    )`);
    // Without asked_at: it changes all the time, and an index that it is in would change with it.
    await runner.query(`CREATE INDEX agent_kinds_by_kind ON agent_kinds (kind, agent_id)`);
    if (isShared(runner)) await runner.query(`ALTER TABLE agent_kinds SET (fillfactor = 50)`);
  }

  /** Migrations go forward only: undoing one on SQLite would cascade into rows that are still wanted. */
  down(): Promise<void> {
    return Promise.reject(new Error('Migrations go forward only; restore a backup instead.'));
  }
}
