-- leases/leases.queries.ts: adjustDeadlines
UPDATE leases SET deadline_at = max($1, deadline_at + $2), lifetime_ends_at = lifetime_ends_at + $2
  WHERE ended_at IS NULL AND (deadline_at < $1 OR $2 < 0);

-- leases/leases.queries.ts: countHeldByKind
SELECT r.agent_id, k.value ->> 0 AS kind, k.value ->> 1 AS count, k.value ->> 2 AS oldest
  FROM (SELECT value ->> 'agent_id' AS agent_id, value ->> 'from_id' AS from_id FROM json_each($1)) AS r CROSS JOIN json_each((SELECT json_group_array(json_array(kind, count, oldest)) FROM (SELECT kind, count(*) AS count, min(id) AS oldest FROM leases
  WHERE state = 'active' AND agent_id = r.agent_id AND id + 0 >= r.from_id GROUP BY kind))) AS k;

-- leases/leases.queries.ts: countInWindows
SELECT kind, CASE WHEN (kind, target) IN (SELECT r.kind, r.target FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r) THEN target END AS target,
  sum(count) AS count
  FROM (
  SELECT l.kind, CASE WHEN l.kind IN (SELECT r.kind FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r WHERE r.scope = 'target')
  THEN (SELECT t.target FROM tasks t WHERE t.id = l.task_id) END AS target, count(*) AS count
  FROM leases l
  WHERE l.ending IS NULL AND (l.kind IN (SELECT r.kind FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r)
  OR EXISTS (SELECT 1 FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r WHERE r.scope = 'global'))
  GROUP BY 1, 2) AS live
  GROUP BY 1, 2;

-- leases/leases.queries.ts: countLeasedByTarget
SELECT target, count(*) AS count FROM (
  SELECT (SELECT t.target FROM tasks t WHERE t.id = l.task_id) AS target
  FROM leases l WHERE l.kind = $1 AND l.ending IS NULL) AS live
  GROUP BY target;

-- leases/leases.queries.ts: deleteLeasesOf
DELETE FROM leases WHERE ended_at IS NOT NULL AND task_id IN (SELECT value FROM json_each($1));

-- leases/leases.queries.ts: earliestDeadline
SELECT deadline_at FROM leases WHERE ended_at IS NULL AND deadline_at >= $1 ORDER BY deadline_at LIMIT 1;

-- leases/leases.queries.ts: endLeases
UPDATE leases SET state = r.state, ended_at = $2, ending = r.ending, report = r.report, outcome = r.outcome,
  observations = r.observations, error = r.error, failure = r.failure, rtt_ms = r.rtt_ms,
  reported_at = CASE WHEN r.report IS NOT NULL THEN CAST($2 AS bigint) END
  FROM (SELECT value ->> 'id' AS id, value ->> 'state' AS state, value ->> 'ending' AS ending, value ->> 'report' AS report, value ->> 'outcome' AS outcome, value ->> 'observations' AS observations, value ->> 'error' AS error, value ->> 'failure' AS failure, value ->> 'rtt_ms' AS rtt_ms FROM json_each($1)) AS r
  WHERE leases.id = r.id AND coalesce(leases.state, '') = 'active' AND $3 IS NOT NULL;

-- leases/leases.queries.ts: extendLeases
UPDATE leases SET deadline_at = max(leases.deadline_at, min(r.until, leases.lifetime_ends_at))
  FROM (SELECT value ->> 'id' AS id, value ->> 'agent_id' AS agent_id, value ->> 'until' AS until FROM json_each($1)) AS r
  WHERE leases.id = r.id AND leases.agent_id = r.agent_id AND coalesce(leases.state, '') = 'active'
  AND $2 IS NOT NULL
  RETURNING leases.id, leases.agent_id, leases.deadline_at;

-- leases/leases.queries.ts: insertLeases
INSERT INTO leases (task_id, agent_id, kind, attempt, start_at, state, granted_at, deadline_at, lifetime_ends_at)
  SELECT task_id, agent_id, kind, attempt, start_at, 'active', $2, $3, $4
  FROM (SELECT value ->> 'task_id' AS task_id, value ->> 'agent_id' AS agent_id, value ->> 'kind' AS kind, value ->> 'attempt' AS attempt, value ->> 'start_at' AS start_at FROM json_each($1)) AS r
  RETURNING id, task_id;

-- leases/leases.queries.ts: keepLateReports
UPDATE leases SET report = r.report, outcome = r.outcome, observations = r.observations,
  failure = r.failure, rtt_ms = r.rtt_ms, reported_at = $2
  FROM (SELECT value ->> 'id' AS id, value ->> 'report' AS report, value ->> 'outcome' AS outcome, value ->> 'observations' AS observations, value ->> 'failure' AS failure, value ->> 'rtt_ms' AS rtt_ms FROM json_each($1)) AS r
  WHERE leases.id = r.id AND leases.report IS NULL AND $3 IS NOT NULL;

-- leases/leases.queries.ts: lockHeldBy
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.state = 'active' AND l.agent_id IN (SELECT value FROM json_each($1))
  ORDER BY l.id;

-- leases/leases.queries.ts: lockLiveOf
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts FROM (SELECT value ->> 'kind' AS kind, value ->> 'task_id' AS task_id FROM json_each($1)) AS r
  CROSS JOIN leases l JOIN tasks t ON t.id = l.task_id
  WHERE l.kind = r.kind AND l.task_id = r.task_id AND l.ending IS NULL AND $2 IS NOT NULL
  ORDER BY l.id;

-- leases/leases.queries.ts: lockOverdue
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.ended_at IS NULL AND l.deadline_at >= $1 AND l.deadline_at <= $2
  ORDER BY l.deadline_at, l.id LIMIT $3;

-- leases/leases.queries.ts: lockReported
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts, l.state, l.report, l.outcome FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.id IN (SELECT value FROM json_each($2))
  AND (l.id, l.agent_id) IN (SELECT r.id, r.agent_id FROM (SELECT value ->> 'id' AS id, value ->> 'agent_id' AS agent_id FROM json_each($1)) AS r)
  ORDER BY l.id;

-- leases/leases.queries.ts: selectLive
SELECT l.id AS lease_id, t.id, t.kind, t.spec, t.traceparent, l.deadline_at, l.start_at FROM leases l JOIN tasks t ON t.id = l.task_id
  WHERE l.id IN (SELECT value FROM json_each($1)) AND l.agent_id = $2 AND coalesce(l.state, '') = 'active';

-- leases/leases.queries.ts: selectPreviousLeases
SELECT r.id, (SELECT l.id FROM leases l WHERE l.task_id = r.task_id AND l.ended_at IS NOT NULL AND l.id + 0 < r.id ORDER BY l.id + 0 DESC LIMIT 1) AS previous
  FROM (SELECT value ->> 'id' AS id, value ->> 'task_id' AS task_id FROM json_each($1)) AS r;

-- leases/leases.queries.ts: selectSpecs
SELECT id, spec FROM tasks WHERE id IN (SELECT value FROM json_each($1));
