import type { MigrationInterface, QueryRunner } from 'typeorm';
import { columnTypes, isShared } from './column-types';

/** The first schema. Instants are milliseconds UTC in `*_at` columns; ids are never reused. */
export class Initial1764000000000 implements MigrationInterface {
  name = 'Initial1764000000000';

  async up(runner: QueryRunner): Promise<void> {
    const { identity, bigint } = columnTypes(runner);
    const statements = [
      `CREATE TABLE enrollment_tokens (
        id ${identity},
        name text NOT NULL,
        labels text NOT NULL,
        token_hash text NOT NULL UNIQUE,
        max_uses ${bigint},
        uses ${bigint} NOT NULL,
        created_at ${bigint} NOT NULL,
        expires_at ${bigint},
        revoked_at ${bigint},
        CHECK (uses >= 0 AND (max_uses IS NULL OR uses <= max_uses))
      )`,

      `CREATE TABLE agents (
        id ${identity},
        hostname text,
        hostname_key text,
        origin text NOT NULL CHECK (origin IN ('open', 'enrolled', 'operator')),
        state text NOT NULL CHECK (state IN ('active', 'draining', 'disabled', 'revoked', 'deleted')),
        token_hash text NOT NULL,
        token_expires_at ${bigint},
        previous_token_hash text,
        previous_token_expires_at ${bigint},
        enrollment_token_id ${bigint} REFERENCES enrollment_tokens (id),
        registered_at ${bigint} NOT NULL,
        handed_over_at ${bigint},
        trial_ends_at ${bigint},
        first_lease_at ${bigint},
        CHECK ((hostname IS NULL) = (hostname_key IS NULL))
      )`,
      `CREATE UNIQUE INDEX agents_hostname ON agents (hostname_key)
        WHERE hostname_key IS NOT NULL AND state <> 'deleted'`,
      // Those that registered openly a short while ago: who never comes back is found without reading the fleet.
      // Operators' lists.
      `CREATE INDEX agents_by_state ON agents (state, id)`,
      `CREATE INDEX agents_by_enrollment_token ON agents (enrollment_token_id, id)
        WHERE enrollment_token_id IS NOT NULL`,
      `CREATE INDEX agents_on_trial ON agents (trial_ends_at) WHERE trial_ends_at IS NOT NULL`,
      // Few agents have any, so they are not columns of each.
      `CREATE TABLE agent_owner_tokens (
        agent_id ${bigint} NOT NULL REFERENCES agents (id),
        token_hash text NOT NULL,
        expires_at ${bigint},
        PRIMARY KEY (agent_id, token_hash)
      )`,
      // Apart from the agents and narrow: a commit of many heartbeats writes few pages.
      `CREATE TABLE agent_heartbeats (
        agent_id ${bigint} NOT NULL PRIMARY KEY REFERENCES agents (id),
        last_heartbeat_at ${bigint} NOT NULL
      )`,
      `CREATE TABLE agent_labels (
        agent_id ${bigint} NOT NULL REFERENCES agents (id),
        name text NOT NULL,
        value text NOT NULL,
        PRIMARY KEY (agent_id, name)
      )`,
      `CREATE INDEX agent_labels_by_value ON agent_labels (name, value, agent_id)`,
      // A row an agent, of its last day.
      `CREATE TABLE agent_usage (
        agent_id ${bigint} NOT NULL PRIMARY KEY REFERENCES agents (id),
        day integer NOT NULL,
        metrics_bytes ${bigint} NOT NULL,
        observations_bytes ${bigint} NOT NULL
      )`,
      // Apart from the heartbeats: it changes with a roll-out only.
      `CREATE TABLE agent_config_states (
        agent_id ${bigint} NOT NULL PRIMARY KEY REFERENCES agents (id),
        revision text NOT NULL,
        status text NOT NULL CHECK (status IN ('applied', 'failed')),
        message text,
        reported_at ${bigint} NOT NULL
      )`,
      // Operators' view of a roll-out.
      `CREATE INDEX agent_config_states_by_revision ON agent_config_states (revision, status)`,

      // Replicas on one database tell each other here that the service runs.
      `CREATE TABLE service_continuity (
        id integer NOT NULL PRIMARY KEY CHECK (id = 1),
        since ${bigint} NOT NULL,
        last_seen_at ${bigint} NOT NULL
      )`,
      `INSERT INTO service_continuity (id, since, last_seen_at) VALUES (1, 0, 0)`,

      `CREATE TABLE operator_tokens (
        id ${identity},
        name text NOT NULL,
        role text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
        origin text NOT NULL CHECK (origin IN ('setting', 'file', 'issued')),
        token_hash text NOT NULL UNIQUE,
        created_at ${bigint} NOT NULL,
        expires_at ${bigint},
        revoked_at ${bigint},
        last_used_at ${bigint}
      )`,

      `CREATE TABLE audit_log (
        id ${bigint} NOT NULL PRIMARY KEY,
        at ${bigint} NOT NULL,
        operator_token_id ${bigint} NOT NULL,
        operator_name text NOT NULL,
        address text NOT NULL,
        action text NOT NULL,
        subject text NOT NULL,
        "before" text,
        "after" text,
        hash text NOT NULL
      )`,
      // Operators' lists, each in the order that it is shown in.
      `CREATE INDEX audit_log_by_time ON audit_log (at, id)`,
      `CREATE INDEX audit_log_by_subject ON audit_log (subject, at, id)`,
      `CREATE INDEX audit_log_by_action ON audit_log (action, at, id)`,
      `CREATE INDEX audit_log_by_token ON audit_log (operator_token_id, at, id)`,
      `CREATE TABLE audit_head (
        id integer NOT NULL PRIMARY KEY CHECK (id = 1),
        last_id ${bigint} NOT NULL,
        last_hash text NOT NULL
      )`,
      `INSERT INTO audit_head (id, last_id, last_hash) VALUES (1, 0, '')`,

      `CREATE TABLE tasks (
        id ${identity},
        kind text NOT NULL,
        target text NOT NULL,
        spec text NOT NULL,
        state text NOT NULL
          CHECK (state IN ('scheduled', 'waiting', 'queued', 'leased', 'completed', 'cancelled', 'dead')),
        priority integer NOT NULL,
        run_at ${bigint},
        not_after ${bigint},
        attempts integer NOT NULL,
        max_attempts integer NOT NULL,
        unique_key text,
        lease_id ${bigint},
        reason text,
        created_at ${bigint} NOT NULL,
        updated_at ${bigint} NOT NULL,
        finished_at ${bigint},
        CHECK ((state = 'leased') = (lease_id IS NOT NULL))
      )`,
      // The hot states, each by the order it is taken in.
      `CREATE INDEX tasks_queued ON tasks (kind, priority DESC, id) WHERE state = 'queued'`,
      `CREATE INDEX tasks_waiting ON tasks (kind, target, priority DESC, id) WHERE state = 'waiting'`,
      // The best of all waiting tasks of a kind, whatever their target.
      `CREATE INDEX tasks_waiting_by_rank ON tasks (kind, priority DESC, id) WHERE state = 'waiting'`,
      `CREATE INDEX tasks_scheduled ON tasks (run_at, id) WHERE state = 'scheduled'`,
      `CREATE INDEX tasks_not_after ON tasks (not_after)
        WHERE not_after IS NOT NULL AND state IN ('scheduled', 'waiting', 'queued')`,
      `CREATE UNIQUE INDEX tasks_unique_key ON tasks (unique_key)
        WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'waiting', 'queued', 'leased')`,
      // Operators' lists and retention.
      `CREATE INDEX tasks_by_kind_and_state ON tasks (kind, state, id)`,
      `CREATE INDEX tasks_by_target ON tasks (target, id)`,
      `CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL`,

      `CREATE TABLE task_counts (
        kind text NOT NULL,
        state text NOT NULL,
        count ${bigint} NOT NULL,
        PRIMARY KEY (kind, state)
      )`,

      // No reference to the agent: to delete one, all leases would be read, or each would pay for one more index.
      `CREATE TABLE leases (
        id ${identity},
        task_id ${bigint} NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        agent_id ${bigint} NOT NULL,
        attempt integer NOT NULL,
        state text NOT NULL CHECK (state IN ('active', 'completed', 'cancelled', 'expired', 'revoked')),
        granted_at ${bigint} NOT NULL,
        deadline_at ${bigint} NOT NULL,
        lifetime_ends_at ${bigint} NOT NULL,
        ended_at ${bigint}
      )`,
      // At most one live lease for a task, whatever the code does.
      `CREATE UNIQUE INDEX leases_active_task ON leases (task_id) WHERE state = 'active'`,
      `CREATE INDEX leases_active_deadline ON leases (deadline_at) WHERE state = 'active'`,
      `CREATE INDEX leases_active_agent ON leases (agent_id) WHERE state = 'active'`,
      `CREATE INDEX leases_by_task ON leases (task_id, id)`,

      `CREATE TABLE results (
        id ${identity},
        task_id ${bigint} NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        lease_id ${bigint} NOT NULL UNIQUE,
        agent_id ${bigint} NOT NULL,
        standing text NOT NULL CHECK (standing IN ('final', 'attempt', 'late')),
        report text NOT NULL CHECK (report IN ('completed', 'cancelled')),
        outcome text CHECK (outcome IN ('success', 'timeout', 'error')),
        observations text NOT NULL,
        received_at ${bigint} NOT NULL
      )`,
      // One final result for a task, whatever the code does.
      `CREATE UNIQUE INDEX results_final ON results (task_id) WHERE standing = 'final'`,
      `CREATE INDEX results_by_task ON results (task_id)`,

      `CREATE TABLE idempotency_keys (
        scope text NOT NULL,
        idempotency_key text NOT NULL,
        request_hash text NOT NULL,
        response text NOT NULL,
        created_at ${bigint} NOT NULL,
        PRIMARY KEY (scope, idempotency_key)
      )`,
      `CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at)`,

      `CREATE TABLE agent_metrics (
        id ${identity},
        agent_id ${bigint} NOT NULL REFERENCES agents (id),
        envelope_hash text NOT NULL,
        measured_at ${bigint} NOT NULL,
        received_at ${bigint} NOT NULL,
        counters text NOT NULL,
        gauges text NOT NULL
      )`,
      `CREATE UNIQUE INDEX agent_metrics_envelope ON agent_metrics (agent_id, envelope_hash)`,
      `CREATE INDEX agent_metrics_by_time ON agent_metrics (agent_id, measured_at, id)`,
      `CREATE INDEX agent_metrics_received ON agent_metrics (received_at)`,

      `CREATE TABLE agent_configs (
        seq ${identity},
        revision text NOT NULL UNIQUE,
        issued_at ${bigint} NOT NULL,
        expires_at ${bigint} NOT NULL,
        config text NOT NULL,
        kid text NOT NULL,
        signature text NOT NULL
      )`,

      `CREATE TABLE concurrency_windows (
        id ${identity},
        scope text NOT NULL CHECK (scope IN ('global', 'kind', 'target')),
        kind text NOT NULL,
        target text NOT NULL,
        ceiling integer CHECK (ceiling >= 0),
        ready ${bigint} NOT NULL CHECK (ready >= 0),
        leased ${bigint} NOT NULL CHECK (leased >= 0),
        waiting ${bigint} NOT NULL CHECK (waiting >= 0),
        updated_at ${bigint} NOT NULL,
        expires_at ${bigint} NOT NULL
      )`,
      // The row of everything is there from the start: whoever counts tasks locks it.
      `INSERT INTO concurrency_windows (scope, kind, target, ready, leased, waiting, updated_at, expires_at)
        VALUES ('global', '', '', 0, 0, 0, 0, 0)`,
      `CREATE UNIQUE INDEX concurrency_windows_key ON concurrency_windows (kind, target, scope)`,
      `CREATE INDEX concurrency_windows_ceiling ON concurrency_windows (scope, kind, target) WHERE ceiling IS NOT NULL`,
      `CREATE INDEX concurrency_windows_kinds ON concurrency_windows (kind) WHERE scope = 'kind'`,
      `CREATE INDEX concurrency_windows_waiting ON concurrency_windows (kind, target)
        WHERE scope = 'target' AND waiting > 0`,
      `CREATE INDEX concurrency_windows_expiry ON concurrency_windows (expires_at)`,
    ];
    if (isShared(runner)) {
      // Rows change often and never what is indexed: what each page leaves free takes the new version, and the indexes
      // stay as they are.
      for (const table of ['agent_heartbeats', 'agent_usage', 'concurrency_windows', 'task_counts'])
        statements.push(`ALTER TABLE ${table} SET (fillfactor = 50)`);
      // The front of a queue is where the dead rows are, and each claim walks past them.
      for (const table of ['tasks', 'leases'])
        statements.push(`ALTER TABLE ${table} SET (autovacuum_vacuum_scale_factor = 0.02)`);
      // A process that has its database for itself keeps its quotas in memory.
      statements.push(`CREATE UNLOGGED TABLE quota_buckets (
        key text NOT NULL PRIMARY KEY,
        debt bigint NOT NULL,
        settled_at bigint NOT NULL,
        rate bigint NOT NULL,
        period_ms bigint NOT NULL,
        burst bigint NOT NULL,
        admitted bigint NOT NULL
      ) WITH (fillfactor = 50)`);
    }
    for (const statement of statements) await runner.query(statement);
  }

  /** Migrations go forward only: undoing one on SQLite would cascade into rows that are still wanted. */
  down(): Promise<void> {
    return Promise.reject(new Error('Migrations go forward only; restore a backup instead.'));
  }
}
