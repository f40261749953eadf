import type { MigrationInterface, QueryRunner } from 'typeorm';

/** Whose trace a task belongs to: the W3C `traceparent` that it was enqueued with. */
export class Traces1764600100000 implements MigrationInterface {
  name = 'Traces1764600100000';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query('ALTER TABLE tasks ADD COLUMN traceparent text');
  }

  /** Migrations go forward only: undoing one on SQLite would cascade into rows that are still wanted. */
  down(): Promise<void> {
    return Promise.reject(new Error('Migrations go forward only; restore a backup instead.'));
  }
}
