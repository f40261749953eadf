-- tasks/politeness.queries.ts: selectChecksOf
SELECT * FROM (
  SELECT id, task_id, agent_id, coalesce(start_at, granted_at) AS start_at, ended_at, ending FROM leases WHERE task_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) AND ended_at IS NOT NULL AND ended_at >= $2
  UNION ALL SELECT id, task_id, agent_id, coalesce(start_at, granted_at) AS start_at, ended_at, ending FROM leases WHERE kind = $3 AND task_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($4::json) AS value)) AND ending IS NULL) AS l
  WHERE (task_id, id) > ($5, $6) ORDER BY task_id, id LIMIT $7;

-- tasks/politeness.queries.ts: selectTaskFrom
SELECT id, created_at FROM tasks WHERE id >= $1 ORDER BY id LIMIT 1;

-- tasks/politeness.queries.ts: selectTasksOf
SELECT id, kind, created_at, finished_at FROM tasks WHERE target = $1 AND id + 0 < $2 ORDER BY id + 0 DESC LIMIT $3;

-- tasks/task-lists.queries.ts: selectLastId
SELECT max(id) AS id FROM tasks;

-- tasks/task-lists.queries.ts: selectListed
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at, page.at
  FROM (SELECT id, at FROM (SELECT id, at FROM (SELECT id AS id, 0 AS at, CAST(NULL AS bigint) AS attempt_id FROM tasks WHERE true AND id < $2 ORDER BY id DESC LIMIT $1) AS p0) AS pages ORDER BY id DESC LIMIT $1) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at, page.at
  FROM (SELECT id, at FROM (SELECT id, at FROM (SELECT task_id + 0 AS id, 0 AS at, CAST(NULL AS bigint) AS attempt_id FROM ready WHERE kind = $2 AND task_id + 0 < $3 ORDER BY id DESC LIMIT $1) AS p0) AS pages ORDER BY id DESC LIMIT $1) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at, page.at
  FROM (SELECT id, at FROM (SELECT id, at FROM (SELECT task_id AS id, finished_at AS at, CAST(NULL AS bigint) AS attempt_id FROM finished_tasks WHERE kind = $2 AND state = $3 AND (finished_at, task_id) < ($4, $5) ORDER BY at DESC, id DESC LIMIT $1) AS p0) AS pages ORDER BY at DESC, id DESC LIMIT $1) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;
SELECT task_id AS id, ended_at AS at, id AS attempt_id FROM leases WHERE agent_id = $1 AND ending = 'error' AND ending <> 'success' AND (ended_at, task_id) < ($2, $3) ORDER BY at DESC, id DESC LIMIT 1 OFFSET 1999;
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at, page.at
  FROM (SELECT id, at FROM (SELECT id, at FROM (SELECT task_id AS id, 9999999999999 AS at, CAST(NULL AS bigint) AS attempt_id FROM leases WHERE agent_id = $2 AND state = 'active' AND task_id < $3 ORDER BY id DESC LIMIT $1) AS p0 UNION ALL SELECT id, at FROM (SELECT id, at, attempt_id FROM (SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at, page.at, page.attempt_id
  FROM (SELECT task_id AS id, ended_at AS at, id AS attempt_id FROM leases WHERE agent_id = $4 AND ending = 'error' AND ending <> 'success' AND (ended_at, task_id) < ($5, $6) AND (ended_at, task_id) >= ($7, $8)) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id) AS v
  WHERE CASE WHEN v.state IN ('scheduled', 'queued', 'leased', 'completed', 'cancelled', 'dead') THEN true ELSE false END AND CASE WHEN CASE WHEN v.state = 'leased' THEN v.held_by = $9 ELSE v.last_agent_id = $10 END THEN true ELSE false END AND (v.attempt_id IS NULL OR v.attempt_id = v.last_lease_id) ORDER BY at DESC, id DESC LIMIT $1) AS p1) AS pages ORDER BY at DESC, id DESC LIMIT $1) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;
SELECT id + 0 AS id, 0 AS at, CAST(NULL AS bigint) AS attempt_id FROM tasks WHERE target = $1 AND id + 0 > $2 ORDER BY id ASC LIMIT 1 OFFSET 1999;
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at, page.at
  FROM (SELECT id, at FROM (SELECT id, at FROM (SELECT id, at, attempt_id FROM (SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at, page.at, page.attempt_id
  FROM (SELECT id + 0 AS id, 0 AS at, CAST(NULL AS bigint) AS attempt_id FROM tasks WHERE target = $2 AND id + 0 > $3 AND id + 0 <= $4) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id) AS v
  WHERE CASE WHEN v.state IN ('scheduled', 'queued', 'leased', 'completed', 'cancelled', 'dead') THEN true ELSE false END AND CASE WHEN ((v.kind = $5 AND v.target = $6)) THEN true ELSE false END AND (v.attempt_id IS NULL OR v.attempt_id = v.last_lease_id) ORDER BY id ASC LIMIT $1) AS p0) AS pages ORDER BY id ASC LIMIT $1) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;

-- tasks/task-lists.queries.ts: selectMatching
SELECT * FROM (SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at
  FROM ((SELECT value::bigint AS id FROM json_array_elements_text($1::json) AS value)) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id) AS v WHERE CASE WHEN v.state IN ('queued') THEN true ELSE false END AND CASE WHEN v.kind = $2 THEN true ELSE false END AND CASE WHEN v.id <= $3 THEN true ELSE false END AND CASE WHEN CASE WHEN v.state = 'leased' THEN false ELSE v.last_agent_id = $4 END THEN true ELSE false END AND CASE WHEN v.last_outcome = $5 THEN true ELSE false END AND CASE WHEN v.last_ended_at >= $6 THEN true ELSE false END AND CASE WHEN v.last_ended_at < $7 THEN true ELSE false END ORDER BY v.id;

-- tasks/task-why.queries.ts: countBefore
SELECT lane.id, (SELECT count(*) FROM (SELECT 1 AS one FROM ready q WHERE q.lane_id = lane.id AND (q.rank, q.task_id) < ($2, $3) AND (q.not_after IS NULL OR q.not_after > $4)
  ORDER BY q.rank, q.task_id LIMIT $5) AS best) AS count
  FROM (SELECT value::bigint AS id FROM json_array_elements_text($1::json) AS value) AS lane;

-- tasks/task-why.queries.ts: countCompleted
SELECT count(*) AS count, min(lately.finished_at) AS first
  FROM (SELECT task_id, finished_at FROM finished_tasks
  WHERE kind = $1 AND state = 'completed' AND finished_at > $2 ORDER BY finished_at DESC, task_id DESC LIMIT $3) AS lately
  CROSS JOIN tasks t WHERE t.id = lately.task_id AND t.target = $4;

-- tasks/task-why.queries.ts: countDue
SELECT t.kind, t.target, count(*) AS count,
  sum(CASE WHEN t.priority > $1 OR (t.priority = $1 AND t.id < $2) THEN 1 ELSE 0 END) AS before
  FROM (SELECT task_id FROM scheduled WHERE run_at <= $3 AND task_id <> $2 ORDER BY run_at, task_id LIMIT $4) AS due
  CROSS JOIN tasks t WHERE t.id = due.task_id GROUP BY t.kind, t.target;

-- tasks/task-why.queries.ts: countHeld
SELECT agent_id, count(*) AS held, sum(CASE WHEN kind = $2 THEN 1 ELSE 0 END) AS of_kind FROM (
  SELECT agent_id, kind FROM leases
  WHERE state = 'active' AND agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) LIMIT $3) AS live
  GROUP BY agent_id;

-- tasks/task-why.queries.ts: countMovingBefore
SELECT t.kind, t.target, count(*) AS count
  FROM (SELECT q.task_id FROM (SELECT CAST($1 AS bigint) AS id) AS lane CROSS JOIN ready q WHERE q.lane_id = lane.id AND (q.rank, q.task_id) < ($2, $3) AND (q.not_after IS NULL OR q.not_after > $4)
  ORDER BY q.rank, q.task_id LIMIT $5) AS best
  CROSS JOIN tasks t CROSS JOIN concurrency_windows w
  WHERE t.id = best.task_id AND w.kind = t.kind AND w.target = t.target AND w.scope = 'target'
  AND w.moved_through IS NOT NULL
  GROUP BY t.kind, t.target;

-- tasks/task-why.queries.ts: selectDeadline
SELECT deadline_at FROM leases WHERE id = $1;

-- tasks/task-why.queries.ts: selectLastFailed
SELECT id, agent_id, attempt, state, ended_at, CASE WHEN state = 'cancelled' THEN outcome END AS outcome
  FROM leases WHERE task_id = $1 AND ended_at IS NOT NULL AND state IN ('cancelled', 'expired') ORDER BY id DESC LIMIT 1;

-- tasks/tasks.queries.ts: selectAttemptSizes
SELECT id, bytes FROM (
  SELECT id, 0 AS bytes FROM leases WHERE kind = $4 AND task_id = $1 AND ending IS NULL
  UNION ALL
  SELECT * FROM (
  SELECT id, coalesce(octet_length(observations), 0) AS bytes FROM leases
  WHERE task_id = $1 AND id + 0 < $2 AND ended_at IS NOT NULL ORDER BY id + 0 DESC LIMIT $3) AS ended
  ) AS attempts WHERE id < $2 ORDER BY id DESC LIMIT $3;

-- tasks/tasks.queries.ts: selectAttempts
SELECT id, agent_id, attempt, state, granted_at, start_at, deadline_at, ended_at, report, outcome, failure, rtt_ms,
  observations, reported_at
  FROM leases WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) ORDER BY id;

-- tasks/tasks.queries.ts: selectKeyHolders
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at
  FROM (SELECT u.task_id AS id FROM (SELECT key FROM json_to_recordset($1::json) AS row(key text)) AS r
  CROSS JOIN unique_keys u WHERE u.unique_key = r.key) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;

-- tasks/tasks.queries.ts: selectTask
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at
  FROM (SELECT CAST($1 AS bigint) AS id) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;

-- tasks/tasks.queries.ts: selectTasks
SELECT page.id AS id, t.kind AS kind, t.target AS target, t.spec AS spec, CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
  WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END AS state, t.priority AS priority, t.run_at AS run_at, t.not_after AS not_after, CASE WHEN live.id IS NOT NULL THEN live.attempt ELSE t.attempts END AS attempts, t.max_attempts AS max_attempts, t.unique_key AS unique_key, t.reason AS reason, t.traceparent AS traceparent, t.created_at AS created_at, CASE WHEN live.id IS NOT NULL THEN live.granted_at ELSE t.updated_at END AS updated_at, t.finished_at AS finished_at, live.id AS lease_id, live.agent_id AS held_by, ended.id AS last_lease_id, ended.agent_id AS last_agent_id, ended.ending AS last_outcome, ended.error AS last_error, ended.ended_at AS last_ended_at
  FROM ((SELECT value::bigint AS id FROM json_array_elements_text($1::json) AS value)) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE kind = t.kind AND task_id = t.id AND ending IS NULL LIMIT 1) AS live ON true
  LEFT JOIN LATERAL (SELECT * FROM leases WHERE task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked' ORDER BY id + 0 DESC LIMIT 1) AS ended ON true
  WHERE t.id = page.id;
