import type { MigrationInterface, QueryRunner } from 'typeorm';

/** Lets the best of all waiting tasks of a kind be found, whatever their target. */
export class WaitingByRank1764100000000 implements MigrationInterface {
  name = 'WaitingByRank1764100000000';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query(
      `CREATE INDEX tasks_waiting_by_rank ON tasks (kind, priority DESC, id) WHERE state = 'waiting'`,
    );
  }

  /** Migrations go forward only, as the first one says. */
  down(): Promise<void> {
    return Promise.reject(new Error('Migrations go forward only; restore a backup instead.'));
  }
}
