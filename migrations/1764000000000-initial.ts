import type { MigrationInterface, QueryRunner } from 'typeorm';
import { columnTypes, isShared } from './column-types';

/** The states that tasks are counted by. */
const COUNTS = ['scheduled', 'queued', 'leased', 'completed', 'cancelled', 'dead'];

/** Creates the first schema. Instants are milliseconds UTC in `*_at` columns; ids are never reused. */
export class Initial1764000000000 implements MigrationInterface {
  name = 'Initial1764000000000';

  async up(runner: QueryRunner): Promise<void> {
    const { identity, bigint, keyedOnly } = columnTypes(runner);
    const generated = isShared(runner) ? 'STORED' : 'VIRTUAL';
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
      // For operators' lists.
      `CREATE INDEX agents_by_state ON agents (state, id)`,
      `CREATE INDEX agents_by_enrollment_token ON agents (enrollment_token_id, id)
        WHERE enrollment_token_id IS NOT NULL`,
      // Agents that registered openly a short while ago: finds those that never returned without reading the fleet.
      `CREATE INDEX agents_on_trial ON agents (trial_ends_at) WHERE trial_ends_at IS NOT NULL`,
      // In a table of their own, because few agents have any.
      `CREATE TABLE agent_owner_tokens (
        agent_id ${bigint} NOT NULL REFERENCES agents (id),
        token_hash text NOT NULL,
        expires_at ${bigint},
        PRIMARY KEY (agent_id, token_hash)
      )`,
      // Separate from the agents and narrow, so that a commit of many heartbeats writes few pages.
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
      // One row for each agent: its usage of the last day.
      `CREATE TABLE agent_usage (
        agent_id ${bigint} NOT NULL PRIMARY KEY REFERENCES agents (id),
        day integer NOT NULL,
        metrics_bytes ${bigint} NOT NULL,
        observations_bytes ${bigint} NOT NULL,
        advance ${bigint} NOT NULL
      )`,
      `CREATE TABLE agent_kinds (
        agent_id ${bigint} NOT NULL REFERENCES agents (id),
        kind text NOT NULL,
        asked_at ${bigint} NOT NULL,
        capacity integer CHECK (capacity > 0),
        PRIMARY KEY (agent_id, kind)
      )`,
      // Without asked_at, which changes often: the index would change with it.
      `CREATE INDEX agent_kinds_by_kind ON agent_kinds (kind, agent_id)`,
      // No reference to the agent: counts are written a little later, and must not fail if the agent was deleted meanwhile.
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
      // To roll up and to delete. Without the counts, so that it does not change with them.
      `CREATE INDEX agent_outcomes_by_time ON agent_outcomes (span_ms, starts_at)`,
      // Few spans in a healthy fleet are in it: finds failing agents without reading the others.
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
      // Separate from the heartbeats, because it changes only during a roll-out.
      `CREATE TABLE agent_config_states (
        agent_id ${bigint} NOT NULL PRIMARY KEY REFERENCES agents (id),
        revision text NOT NULL,
        status text NOT NULL CHECK (status IN ('applied', 'failed')),
        message text,
        reported_at ${bigint} NOT NULL
      )`,
      // For operators' view of a roll-out. The agent is its last column, so that a page of a list is read in order.
      `CREATE INDEX agent_config_states_by_revision ON agent_config_states (revision, status, agent_id)`,

      // Here replicas on one database record that the service runs.
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
      // For operators' lists, each in the order that is shown.
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

      // A task's row changes only when an attempt fails and when the task ends: the tables below hold whether an open task is
      // scheduled, queued or leased. No index has a column that changes, so that PostgreSQL writes the new version into the same
      // page and updates no index.
      `CREATE TABLE tasks (
        id ${identity},
        kind text NOT NULL,
        target text NOT NULL,
        spec text NOT NULL,
        state text NOT NULL CHECK (state IN ('open', 'completed', 'cancelled', 'dead')),
        priority integer NOT NULL,
        run_at ${bigint},
        not_after ${bigint},
        attempts integer NOT NULL,
        max_attempts integer NOT NULL,
        unique_key text,
        reason text,
        traceparent text,
        created_at ${bigint} NOT NULL,
        updated_at ${bigint} NOT NULL,
        finished_at ${bigint},
        CHECK ((state = 'open') = (finished_at IS NULL))
      )`,
      // The id is an expression, here and below, so that a look-up by id matches only the primary key: the planner's statistics of a
      // table that is often empty are wrong, and it could choose this index.
      `CREATE INDEX tasks_by_kind ON tasks (kind, (id + 0))`,
      `CREATE INDEX tasks_by_target ON tasks (target, (id + 0))`,
      // A lane holds tasks that are equal for a claim: of one kind, and of one target if that has had a limit. The best task of a
      // target's lane is stored here, so that a claim finds the lanes to take from without reading each.
      `CREATE TABLE lanes (
        id ${identity},
        kind text NOT NULL,
        target text NOT NULL,
        is_open integer NOT NULL CHECK (is_open IN (0, 1)),
        queued ${bigint} NOT NULL CHECK (queued >= 0),
        head_rank integer,
        head_id ${bigint},
        opens_at ${bigint},
        UNIQUE (kind, target)
      )`,
      `CREATE INDEX lanes_open ON lanes (kind, head_rank, head_id) WHERE is_open = 1 AND head_id IS NOT NULL`,
      // Lanes with tasks whose next start is too far ahead.
      `CREATE INDEX lanes_by_opening ON lanes (opens_at) WHERE opens_at IS NOT NULL AND head_id IS NOT NULL`,
      // The kinds that there have been: a handful among the lanes of all targets with limits.
      `CREATE INDEX lanes_of_kinds ON lanes (kind) WHERE target = ''`,
      // Tasks that may be claimed, in the order of claiming: rank is the negative priority, so that both columns ascend. A claim
      // deletes rows from it.
      `CREATE TABLE ready (
        lane_id ${bigint} NOT NULL,
        rank integer NOT NULL,
        task_id ${bigint} NOT NULL,
        kind text NOT NULL,
        ready_at ${bigint} NOT NULL,
        not_after ${bigint},
        PRIMARY KEY (lane_id, rank, task_id)
      )${keyedOnly}`,
      `CREATE INDEX ready_by_kind ON ready (kind, (task_id + 0))`,
      `CREATE TABLE scheduled (
        task_id ${bigint} NOT NULL PRIMARY KEY,
        kind text NOT NULL,
        run_at ${bigint} NOT NULL
      )`,
      `CREATE INDEX scheduled_due ON scheduled (run_at, task_id)`,
      `CREATE INDEX scheduled_by_kind ON scheduled (kind, (task_id + 0))`,
      // Scheduled and queued tasks that have a not_after.
      `CREATE TABLE task_expiries (
        not_after ${bigint} NOT NULL,
        task_id ${bigint} NOT NULL,
        PRIMARY KEY (not_after, task_id)
      )${keyedOnly}`,
      // The unique keys of unfinished tasks.
      `CREATE TABLE unique_keys (
        unique_key text NOT NULL PRIMARY KEY,
        task_id ${bigint} NOT NULL
      )${keyedOnly}`,
      // For operators' lists and for retention.
      `CREATE TABLE finished_tasks (
        kind text NOT NULL,
        state text NOT NULL CHECK (state IN ('completed', 'cancelled', 'dead')),
        finished_at ${bigint} NOT NULL,
        task_id ${bigint} NOT NULL,
        PRIMARY KEY (kind, state, finished_at, task_id)
      )${keyedOnly}`,
      // Each unit of work adds a row for each kind that it changed, and a job sums them up, so that no row is changed by all units.
      `CREATE TABLE task_counts (
        kind text NOT NULL PRIMARY KEY,
        ${COUNTS.map((state) => `${state} ${bigint} NOT NULL`).join(',\n        ')}
      )`,
      `CREATE TABLE task_count_deltas (
        kind text NOT NULL,
        ${COUNTS.map((state) => `${state} ${bigint} NOT NULL`).join(',\n        ')}
      )`,

      // An attempt, with its report. No reference to the task or the agent: each would cost an index or a look-up for every lease.
      `CREATE TABLE leases (
        id ${identity},
        task_id ${bigint} NOT NULL,
        agent_id ${bigint} NOT NULL,
        kind text NOT NULL,
        attempt integer NOT NULL,
        state text NOT NULL CHECK (state IN ('active', 'completed', 'cancelled', 'expired', 'revoked')),
        granted_at ${bigint} NOT NULL,
        deadline_at ${bigint} NOT NULL,
        lifetime_ends_at ${bigint} NOT NULL,
        ended_at ${bigint},
        ending text CHECK (ending IN ('success', 'timeout', 'error', 'unsaid', 'cancelled', 'expired', 'revoked')),
        report text CHECK (report IN ('completed', 'cancelled')),
        outcome text CHECK (outcome IN ('success', 'timeout', 'error')),
        observations text,
        error text,
        reported_at ${bigint},
        start_at ${bigint},
        failure text CHECK (failure IN ('refused', 'throttled', 'timeout', 'unreachable', 'local', 'policy')),
        rtt_ms double precision CHECK (rtt_ms >= 0),
        CHECK ((state = 'active') = (ended_at IS NULL) AND (state = 'active') = (ending IS NULL)),
        CHECK ((report IS NULL) = (reported_at IS NULL))
      )`,
      // Each of these expresses in another way that a lease is live, so that a query matches only its own index: with another's it
      // could read all live leases. The unique index allows at most one live lease for a task, because a task has one kind.
      `CREATE UNIQUE INDEX leases_live ON leases (kind, task_id) WHERE ending IS NULL`,
      `CREATE INDEX leases_live_by_deadline ON leases (deadline_at) WHERE ended_at IS NULL`,
      // By id next, so that a claim need not read the entries of leases that its agent ended before, which an open snapshot keeps.
      `CREATE INDEX leases_live_by_agent ON leases (agent_id, (id + 0)) WHERE state = 'active'`,
      // A live one is found by the index above: an entry for each lease, and not one more for its new version when it ends.
      `CREATE INDEX leases_by_task ON leases (task_id, (id + 0)) WHERE ended_at IS NOT NULL`,
      // For operators' lists of tasks by the outcome of the last attempt. Most succeed: the other outcomes have partial indexes.
      `CREATE INDEX leases_failed_by_kind ON leases (kind, ending, ended_at, task_id) WHERE ending <> 'success'`,
      `CREATE INDEX leases_failed_by_agent ON leases (agent_id, ending, ended_at, task_id) WHERE ending <> 'success'`,
      `CREATE INDEX leases_succeeded_by_agent ON leases (agent_id, ended_at, task_id) WHERE ending = 'success'`,

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

      // Only windows with a limit or a rate, set by an operator or inherited from the window of every target of the kind; counts
      // leases alone. Rates are starts per 1,000 s. The generated columns are for dashboards.
      `CREATE TABLE concurrency_windows (
        id ${identity},
        scope text NOT NULL CHECK (scope IN ('global', 'kind', 'every_target', 'target')),
        kind text NOT NULL,
        target text NOT NULL,
        inherited integer NOT NULL CHECK (inherited IN (0, 1)),
        max_slots integer CHECK (max_slots >= 0),
        max_rate ${bigint} CHECK (max_rate > 0),
        adaptive integer NOT NULL CHECK (adaptive IN (0, 1)),
        slots integer CHECK (slots >= 0),
        leased ${bigint} NOT NULL CHECK (leased >= 0),
        rate ${bigint} CHECK (rate > 0),
        last_start_us ${bigint} NOT NULL,
        recent_starts text,
        starts ${bigint} NOT NULL,
        hold_until ${bigint},
        pacing text,
        moved_through ${bigint},
        expires_at ${bigint},
        "limit" integer GENERATED ALWAYS AS (slots) ${generated},
        in_flight ${bigint} NOT NULL GENERATED ALWAYS AS (leased) ${generated},
        UNIQUE (kind, target, scope)
      )`,
      `CREATE INDEX concurrency_windows_by_scope ON concurrency_windows (scope, id)`,
      // Targets whose tasks are being moved to a lane of their own.
      `CREATE INDEX concurrency_windows_moving ON concurrency_windows (kind, target) WHERE moved_through IS NOT NULL`,
      // Of the targets of a kind that inherit, those that are idle, and those to update.
      `CREATE INDEX concurrency_windows_inherited ON concurrency_windows (kind, id) WHERE inherited = 1`,

      // Why the limit or the rate of a window changed: by its name, because an idle window is deleted and comes again.
      `CREATE TABLE concurrency_window_changes (
        id ${identity},
        scope text NOT NULL,
        kind text NOT NULL,
        target text NOT NULL,
        changed_at ${bigint} NOT NULL,
        reason text NOT NULL,
        rate_before ${bigint},
        rate_after ${bigint},
        evidence text NOT NULL
      )`,
      `CREATE INDEX concurrency_window_changes_by_window ON concurrency_window_changes (kind, target, scope, id)`,
      `CREATE INDEX concurrency_window_changes_by_time ON concurrency_window_changes (changed_at)`,
    ];
    if (isShared(runner)) {
      // Rows change often, but no indexed column: the free space of each page takes the new version, and no index changes.
      for (const table of [
        'agent_heartbeats',
        'agent_usage',
        'agent_kinds',
        'agent_outcomes',
        'concurrency_windows',
        'task_counts',
        'lanes',
      ])
        statements.push(`ALTER TABLE ${table} SET (fillfactor = 50)`);
      // Each row changes once: the new version goes into the same page.
      for (const table of ['tasks', 'leases']) statements.push(`ALTER TABLE ${table} SET (fillfactor = 50)`);
      // Vacuum after a number of rows rather than a share of the table, which may be empty or huge: dead rows are at the front of the
      // queue, and a claim must not read past many.
      for (const table of ['tasks', 'leases', 'ready', 'scheduled', 'task_count_deltas'])
        statements.push(
          `ALTER TABLE ${table} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
            autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 5000)`,
        );
      // Only on PostgreSQL: on SQLite the only process keeps its quotas in memory. The last generation of a key counts.
      statements.push(`CREATE UNLOGGED TABLE quota_buckets (
        key text NOT NULL,
        generation bigint NOT NULL,
        uses integer NOT NULL,
        debt bigint NOT NULL,
        settled_at bigint NOT NULL,
        rate bigint NOT NULL,
        period_ms bigint NOT NULL,
        burst bigint NOT NULL,
        asked bigint NOT NULL,
        admitted bigint NOT NULL,
        PRIMARY KEY (key, generation)
      ) WITH (fillfactor = 50)`);
    }
    for (const statement of statements) await runner.query(statement);
  }

  /** Fails: migrations go forward only, because undoing one on SQLite would cascade into rows that are still needed. */
  down(): Promise<void> {
    return Promise.reject(new Error('Migrations go forward only; restore a backup instead.'));
  }
}
