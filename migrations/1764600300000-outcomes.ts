import type { MigrationInterface, QueryRunner } from 'typeorm';
import { columnTypes, isShared } from './column-types';

/** How attempts end: counted for each agent, and remembered with each task. */
export class Outcomes1764600300000 implements MigrationInterface {
  name = 'Outcomes1764600300000';

  async up(runner: QueryRunner): Promise<void> {
    const { bigint } = columnTypes(runner);
    const statements = [
      // No reference to the agent: counts are written a little later than what they count, and must not fail for it.
      `CREATE TABLE agent_outcomes (
        agent_id ${bigint} NOT NULL,
        span_ms ${bigint} NOT NULL,
        starts_at ${bigint} NOT NULL,
        success ${bigint} NOT NULL,
        timeout ${bigint} NOT NULL,
        error ${bigint} NOT NULL,
        unsaid ${bigint} NOT NULL,
        cancelled ${bigint} NOT NULL,
        expired ${bigint} NOT NULL,
        PRIMARY KEY (agent_id, span_ms, starts_at)
      )`,
      // What is rolled up, and what is deleted. Without the counts, so it stays as it is when they change.
      `CREATE INDEX agent_outcomes_by_time ON agent_outcomes (span_ms, starts_at)`,
      // In a healthy fleet few spans are in it: which agents fail is found without reading the others'.
      `CREATE INDEX agent_outcomes_failed ON agent_outcomes (span_ms, starts_at, agent_id)
        WHERE error + cancelled + expired > 0`,
      `CREATE TABLE agent_last_errors (
        agent_id ${bigint} NOT NULL PRIMARY KEY,
        at ${bigint} NOT NULL,
        task_id ${bigint} NOT NULL,
        outcome text NOT NULL CHECK (outcome IN ('timeout', 'error', 'cancelled', 'expired')),
        message text
      )`,
      `CREATE TABLE agent_about (
        agent_id ${bigint} NOT NULL PRIMARY KEY,
        version text NOT NULL,
        said_at ${bigint} NOT NULL
      )`,
      `CREATE INDEX agent_about_by_version ON agent_about (version, agent_id)`,
      // Ends with the agent now, so that a page of a list is read in its order.
      `DROP INDEX agent_config_states_by_revision`,
      `CREATE INDEX agent_config_states_by_revision ON agent_config_states (revision, status, agent_id)`,

      // All four of the last attempt that ended; null until one has.
      `ALTER TABLE tasks ADD COLUMN last_agent_id ${bigint}`,
      `ALTER TABLE tasks ADD COLUMN last_outcome text
        CHECK (last_outcome IN ('success', 'timeout', 'error', 'unsaid', 'cancelled', 'expired'))`,
      `ALTER TABLE tasks ADD COLUMN last_error text`,
      `ALTER TABLE tasks ADD COLUMN last_ended_at ${bigint}`,
      // Operators' lists by the last attempt, in the order of when it ended; by target in the order of ids. Most tasks succeed: what
      // went otherwise has indexes of its own, which those cost nothing. The two of the successful only grow, at the ends of the
      // kinds and agents. One by their target would change a page for each target of a report: 7 of 45 us for each task on SQLite.
      `CREATE INDEX tasks_by_outcome ON tasks (kind, last_outcome, state, last_ended_at, id)
        WHERE last_outcome <> 'success'`,
      `CREATE INDEX tasks_by_agent_and_outcome ON tasks (last_agent_id, last_outcome, state, last_ended_at, id)
        WHERE last_outcome <> 'success'`,
      `CREATE INDEX tasks_by_target_and_outcome ON tasks (target, last_outcome, id) WHERE last_outcome <> 'success'`,
      `CREATE INDEX tasks_by_success ON tasks (kind, last_ended_at, id) WHERE last_outcome = 'success'`,
      `CREATE INDEX tasks_by_agent_and_success ON tasks (last_agent_id, last_ended_at, id)
        WHERE last_outcome = 'success'`,
    ];
    // Rows change all the time and never what is indexed: what each page leaves free takes the new version.
    if (isShared(runner)) statements.push(`ALTER TABLE agent_outcomes SET (fillfactor = 50)`);
    for (const statement of statements) await runner.query(statement);
  }

  /** Migrations go forward only: undoing one on SQLite would cascade into rows that are still wanted. */
  down(): Promise<void> {
    return Promise.reject(new Error('Migrations go forward only; restore a backup instead.'));
  }
}
