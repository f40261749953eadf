-- leases/leases.queries.ts: adjustDeadlines
UPDATE leases SET deadline_at = greatest($1, deadline_at + $2), lifetime_ends_at = lifetime_ends_at + $2
  WHERE ended_at IS NULL AND (deadline_at < $1 OR $2 < 0);

-- leases/leases.queries.ts: countHeldByKind
SELECT r.agent_id, k.kind, k.count, k.oldest
  FROM (SELECT agent_id, from_id FROM json_to_recordset($1::json) AS row(agent_id bigint, from_id bigint)) AS r CROSS JOIN LATERAL (SELECT kind, count(*) AS count, min(id) AS oldest FROM leases
  WHERE state = 'active' AND agent_id = r.agent_id AND id + 0 >= r.from_id GROUP BY kind) AS k;

-- leases/leases.queries.ts: countInWindows
SELECT kind, CASE WHEN (kind, target) IN (SELECT r.kind, r.target FROM (SELECT scope, kind, target FROM json_to_recordset($1::json) AS row(scope text, kind text, target text)) AS r) THEN target END AS target,
  sum(count) AS count
  FROM (
  SELECT l.kind, CASE WHEN l.kind IN (SELECT r.kind FROM (SELECT scope, kind, target FROM json_to_recordset($1::json) AS row(scope text, kind text, target text)) AS r WHERE r.scope = 'target')
  THEN (SELECT t.target FROM tasks t WHERE t.id = l.task_id) END AS target, count(*) AS count
  FROM leases l
  WHERE l.ending IS NULL AND (l.kind IN (SELECT r.kind FROM (SELECT scope, kind, target FROM json_to_recordset($1::json) AS row(scope text, kind text, target text)) AS r)
  OR EXISTS (SELECT 1 FROM (SELECT scope, kind, target FROM json_to_recordset($1::json) AS row(scope text, kind text, target text)) AS r WHERE r.scope = 'global'))
  GROUP BY 1, 2) AS live
  GROUP BY 1, 2;

-- leases/leases.queries.ts: countLeasedByTarget
SELECT target, count(*) AS count FROM (
  SELECT (SELECT t.target FROM tasks t WHERE t.id = l.task_id) AS target
  FROM leases l WHERE l.kind = $1 AND l.ending IS NULL) AS live
  GROUP BY target;

-- leases/leases.queries.ts: deleteLeasesOf
DELETE FROM leases WHERE ended_at IS NOT NULL AND task_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));

-- leases/leases.queries.ts: earliestDeadline
SELECT deadline_at FROM leases WHERE ended_at IS NULL AND deadline_at >= $1 ORDER BY deadline_at LIMIT 1;

-- leases/leases.queries.ts: endLeases
UPDATE leases SET state = r.state, ended_at = $2, ending = r.ending, report = r.report, outcome = r.outcome,
  observations = r.observations, error = r.error, failure = r.failure, rtt_ms = r.rtt_ms,
  reported_at = CASE WHEN r.report IS NOT NULL THEN CAST($2 AS bigint) END
  FROM (SELECT id, state, ending, report, outcome, observations, error, failure, rtt_ms FROM json_to_recordset($1::json) AS row(id bigint, state text, ending text, report text, outcome text, observations text, error text, failure text, rtt_ms double precision)) AS r
  WHERE leases.id = r.id AND coalesce(leases.state, '') = 'active' AND leases.id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($3::json) AS value));

-- leases/leases.queries.ts: extendLeases
SELECT l.id FROM leases l WHERE l.id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($2::json) AS value)) AND coalesce(l.state, '') = 'active' AND (l.id, l.agent_id) IN (SELECT r.id, r.agent_id FROM (SELECT id, agent_id FROM json_to_recordset($1::json) AS row(id bigint, agent_id bigint)) AS r)
  ORDER BY l.id FOR UPDATE;
UPDATE leases SET deadline_at = greatest(leases.deadline_at, least(r.until, leases.lifetime_ends_at))
  FROM (SELECT id, agent_id, until FROM json_to_recordset($1::json) AS row(id bigint, agent_id bigint, until bigint)) AS r
  WHERE leases.id = r.id AND leases.agent_id = r.agent_id AND coalesce(leases.state, '') = 'active'
  AND leases.id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($2::json) AS value))
  RETURNING leases.id, leases.agent_id, leases.deadline_at;

-- leases/leases.queries.ts: insertLeases
INSERT INTO leases (task_id, agent_id, kind, attempt, start_at, state, granted_at, deadline_at, lifetime_ends_at)
  SELECT task_id, agent_id, kind, attempt, start_at, 'active', $2, $3, $4
  FROM (SELECT task_id, agent_id, kind, attempt, start_at FROM json_to_recordset($1::json) AS row(task_id bigint, agent_id bigint, kind text, attempt bigint, start_at bigint)) AS r
  RETURNING id, task_id;

-- leases/leases.queries.ts: keepLateReports
UPDATE leases SET report = r.report, outcome = r.outcome, observations = r.observations,
  failure = r.failure, rtt_ms = r.rtt_ms, reported_at = $2
  FROM (SELECT id, report, outcome, observations, failure, rtt_ms FROM json_to_recordset($1::json) AS row(id bigint, report text, outcome text, observations text, failure text, rtt_ms double precision)) AS r
  WHERE leases.id = r.id AND leases.report IS NULL AND leases.id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($3::json) AS value));

-- leases/leases.queries.ts: lockHeldBy
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.state = 'active' AND l.agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value))
  ORDER BY l.id FOR UPDATE OF l;

-- leases/leases.queries.ts: lockLiveOf
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts FROM (SELECT kind, task_id FROM json_to_recordset($1::json) AS row(kind text, task_id bigint)) AS r
  CROSS JOIN leases l JOIN tasks t ON t.id = l.task_id
  WHERE l.kind = r.kind AND l.task_id = r.task_id AND l.ending IS NULL AND l.task_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($2::json) AS value))
  ORDER BY l.id FOR UPDATE OF l;

-- leases/leases.queries.ts: lockOverdue
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.ended_at IS NULL AND l.deadline_at >= $1 AND l.deadline_at <= $2
  ORDER BY l.deadline_at, l.id LIMIT $3 FOR UPDATE OF l SKIP LOCKED;

-- leases/leases.queries.ts: lockReported
SELECT l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts, l.state, l.report, l.outcome FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($2::json) AS value))
  AND (l.id, l.agent_id) IN (SELECT r.id, r.agent_id FROM (SELECT id, agent_id FROM json_to_recordset($1::json) AS row(id bigint, agent_id bigint)) AS r)
  ORDER BY l.id FOR UPDATE OF l;

-- leases/leases.queries.ts: selectLive
SELECT l.id AS lease_id, t.id, t.kind, t.spec, t.traceparent, l.deadline_at, l.start_at FROM leases l JOIN tasks t ON t.id = l.task_id
  WHERE l.id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) AND l.agent_id = $2 AND coalesce(l.state, '') = 'active';

-- leases/leases.queries.ts: selectPreviousLeases
SELECT r.id, (SELECT l.id FROM leases l WHERE l.task_id = r.task_id AND l.ended_at IS NOT NULL AND l.id + 0 < r.id ORDER BY l.id + 0 DESC LIMIT 1) AS previous
  FROM (SELECT id, task_id FROM json_to_recordset($1::json) AS row(id bigint, task_id bigint)) AS r;

-- leases/leases.queries.ts: selectSpecs
SELECT id, spec FROM tasks WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
