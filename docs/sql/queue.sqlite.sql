-- queue/depth.queries.ts: addCounts
INSERT INTO task_counts (kind, scheduled, queued, leased, completed, cancelled, dead) SELECT kind, scheduled, queued, leased, completed, cancelled, dead FROM (SELECT value ->> 'kind' AS kind, value ->> 'scheduled' AS scheduled, value ->> 'queued' AS queued, value ->> 'leased' AS leased, value ->> 'completed' AS completed, value ->> 'cancelled' AS cancelled, value ->> 'dead' AS dead FROM json_each($1)) AS r
  WHERE true ORDER BY kind
  ON CONFLICT (kind) DO UPDATE SET scheduled = task_counts.scheduled + excluded.scheduled, queued = task_counts.queued + excluded.queued, leased = task_counts.leased + excluded.leased, completed = task_counts.completed + excluded.completed, cancelled = task_counts.cancelled + excluded.cancelled, dead = task_counts.dead + excluded.dead;

-- queue/depth.queries.ts: hasDeltas
SELECT 1 AS one FROM task_count_deltas LIMIT 1;

-- queue/depth.queries.ts: insertDeltas
INSERT INTO task_count_deltas (kind, scheduled, queued, leased, completed, cancelled, dead) SELECT kind, scheduled, queued, leased, completed, cancelled, dead FROM (SELECT value ->> 'kind' AS kind, value ->> 'scheduled' AS scheduled, value ->> 'queued' AS queued, value ->> 'leased' AS leased, value ->> 'completed' AS completed, value ->> 'cancelled' AS cancelled, value ->> 'dead' AS dead FROM json_each($1)) AS r;

-- queue/depth.queries.ts: selectCounts
SELECT kind, sum(scheduled) AS scheduled, sum(queued) AS queued, sum(leased) AS leased, sum(completed) AS completed, sum(cancelled) AS cancelled, sum(dead) AS dead FROM (
  SELECT kind, scheduled, queued, leased, completed, cancelled, dead FROM task_counts UNION ALL SELECT kind, scheduled, queued, leased, completed, cancelled, dead FROM task_count_deltas) AS counts
  GROUP BY kind ORDER BY kind;

-- queue/depth.queries.ts: selectKinds
SELECT kind FROM lanes WHERE target = '' ORDER BY kind;

-- queue/depth.queries.ts: selectOldest
SELECT 0 AS place, (SELECT created_at FROM tasks WHERE id = (
  SELECT task_id FROM scheduled WHERE kind = $1  ORDER BY task_id + 0 LIMIT 1)) AS created_at UNION ALL SELECT 1 AS place, (SELECT created_at FROM tasks WHERE id = (
  SELECT task_id FROM ready WHERE kind = $2  ORDER BY task_id + 0 LIMIT 1)) AS created_at UNION ALL SELECT 2 AS place, (SELECT created_at FROM tasks WHERE id = (
  SELECT task_id FROM leases WHERE kind = $3 AND ending IS NULL ORDER BY task_id LIMIT 1)) AS created_at;

-- queue/depth.queries.ts: takeDeltas
DELETE FROM task_count_deltas RETURNING kind, scheduled, queued, leased, completed, cancelled, dead;

-- queue/lanes.queries.ts: addToLanes
UPDATE lanes SET queued = lanes.queued + r.count,
  head_rank = CASE WHEN lanes.head_id IS NULL OR (r.rank, r.head) < (lanes.head_rank, lanes.head_id) THEN r.rank ELSE lanes.head_rank END,
  head_id = CASE WHEN lanes.head_id IS NULL OR (r.rank, r.head) < (lanes.head_rank, lanes.head_id) THEN r.head ELSE lanes.head_id END
  FROM (SELECT value ->> 'id' AS id, value ->> 'count' AS count, value ->> 'rank' AS rank, value ->> 'head' AS head FROM json_each($1)) AS r
  WHERE lanes.id = r.id AND $2 IS NOT NULL;

-- queue/lanes.queries.ts: countInLanes
SELECT l.kind, l.target, l.queued FROM (SELECT value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN lanes l WHERE l.kind = r.kind AND l.target = r.target;

-- queue/lanes.queries.ts: countStopped
SELECT l.kind, sum(l.queued) AS queued FROM concurrency_windows w CROSS JOIN lanes l
  WHERE w.scope = 'target' AND w.slots = 0 AND l.kind = w.kind AND l.target = w.target GROUP BY l.kind;

-- queue/lanes.queries.ts: deleteIdleLanes
DELETE FROM lanes WHERE id IN (
  SELECT l.id FROM lanes l WHERE l.target > '' AND l.queued = 0 AND NOT EXISTS (
  SELECT 1 FROM concurrency_windows w WHERE w.kind = l.kind AND w.target = l.target AND w.scope = 'target')
  ORDER BY l.id LIMIT $1 );

-- queue/lanes.queries.ts: findBefore
SELECT rank, task_id AS id FROM ready WHERE lane_id = $1 AND (rank, task_id) < ($2, $3) ORDER BY rank, task_id LIMIT 1;

-- queue/lanes.queries.ts: forgetOpenings
UPDATE lanes SET opens_at = 0 WHERE opens_at IS NOT NULL;

-- queue/lanes.queries.ts: hasOwnLanes
SELECT 1 AS one FROM lanes WHERE target > '' LIMIT 1;

-- queue/lanes.queries.ts: insertLanes
INSERT INTO lanes (kind, target, is_open, queued) SELECT kind, target, 1, 0 FROM (SELECT value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  WHERE true ORDER BY kind, target ON CONFLICT (kind, target) DO NOTHING;

-- queue/lanes.queries.ts: insertReady
INSERT INTO ready (lane_id, rank, task_id, kind, ready_at, not_after) SELECT lane_id, rank, task_id, kind, ready_at, not_after FROM (SELECT value ->> 'lane_id' AS lane_id, value ->> 'rank' AS rank, value ->> 'task_id' AS task_id, value ->> 'kind' AS kind, value ->> 'ready_at' AS ready_at, value ->> 'not_after' AS not_after FROM json_each($1)) AS r;

-- queue/lanes.queries.ts: isAnyLaneDue
SELECT 1 AS one FROM lanes WHERE opens_at <= $1 AND head_id IS NOT NULL LIMIT 1;

-- queue/lanes.queries.ts: isAnyReady
SELECT * FROM (SELECT task_id FROM ready WHERE lane_id = $1 AND (rank, task_id) >= ($2, $3) AND (not_after IS NULL OR not_after > $4)
  ORDER BY rank, task_id LIMIT 1) AS shared
  UNION ALL SELECT * FROM (SELECT head_id FROM lanes WHERE kind = $5 AND is_open = 1 AND head_id IS NOT NULL
  ORDER BY head_rank, head_id LIMIT 1) AS open LIMIT 1;

-- queue/lanes.queries.ts: openDueLanes
UPDATE lanes SET is_open = 1, opens_at = NULL WHERE id IN (
  SELECT id FROM lanes WHERE opens_at <= $1 AND head_id IS NOT NULL ORDER BY opens_at LIMIT $2 )
  RETURNING kind, target, queued;

-- queue/lanes.queries.ts: removeFromLanes
UPDATE lanes SET queued = lanes.queued - r.count, head_rank = (SELECT rank FROM ready WHERE lane_id = lanes.id AND (rank, task_id) >= (lanes.head_rank, lanes.head_id)
  ORDER BY rank, task_id LIMIT 1), head_id = (SELECT task_id FROM ready WHERE lane_id = lanes.id AND (rank, task_id) >= (lanes.head_rank, lanes.head_id)
  ORDER BY rank, task_id LIMIT 1)
  FROM (SELECT value ->> 'id' AS id, value ->> 'count' AS count FROM json_each($1)) AS r
  WHERE lanes.id = r.id AND $2 IS NOT NULL;

-- queue/lanes.queries.ts: removeReady
DELETE FROM ready WHERE (lane_id, rank, task_id) IN (SELECT lane_id, rank, task_id FROM (SELECT value ->> 'lane_id' AS lane_id, value ->> 'rank' AS rank, value ->> 'task_id' AS task_id FROM json_each($1)) AS r) RETURNING lane_id, rank, task_id, kind, ready_at, not_after;

-- queue/lanes.queries.ts: selectLanes
SELECT l.id, l.kind, l.target FROM (SELECT value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN lanes l WHERE l.kind = r.kind AND l.target = r.target;

-- queue/lanes.queries.ts: selectOfTarget
SELECT id, kind, target, priority, not_after, state FROM tasks WHERE target = $1 AND id + 0 > $2 ORDER BY id + 0 LIMIT $3;

-- queue/lanes.queries.ts: selectOpenAmong
SELECT l.id, l.target, w.inherited, w.max_slots, w.max_rate, w.adaptive, w.slots, w.leased, w.rate, w.last_start_us, w.recent_starts, w.hold_until FROM lanes l
  LEFT JOIN concurrency_windows w ON w.kind = l.kind AND w.target = l.target AND w.scope = 'target'
  WHERE l.id IN (SELECT value FROM json_each($1)) AND l.kind = $2 AND l.is_open = 1;

-- queue/lanes.queries.ts: selectOpenLanes
SELECT l.id, l.target, l.head_rank, l.head_id, w.inherited, w.max_slots, w.max_rate, w.adaptive, w.slots, w.leased, w.rate, w.last_start_us, w.recent_starts, w.hold_until
  FROM (SELECT id, kind, target, head_rank, head_id FROM lanes
  WHERE kind = $1 AND is_open = 1 AND head_id IS NOT NULL ORDER BY head_rank, head_id LIMIT $2) AS l
  LEFT JOIN concurrency_windows w ON w.kind = l.kind AND w.target = l.target AND w.scope = 'target'
  ORDER BY l.head_rank, l.head_id;

-- queue/lanes.queries.ts: selectReady
SELECT r.lane_id, k.value ->> 0 AS rank, k.value ->> 1 AS task_id
  FROM (SELECT value ->> 'lane_id' AS lane_id, value ->> 'from_rank' AS from_rank, value ->> 'from_id' AS from_id FROM json_each($1)) AS r CROSS JOIN json_each((SELECT json_group_array(json_array(rank, task_id)) FROM (SELECT rank, task_id FROM ready WHERE lane_id = r.lane_id AND (rank, task_id) >= (r.from_rank, r.from_id) AND (not_after IS NULL OR not_after > $2)
  ORDER BY rank, task_id LIMIT $3))) AS k;

-- queue/lanes.queries.ts: setLaneStates
UPDATE lanes SET is_open = r.is_open, opens_at = r.opens_at
  FROM (SELECT value ->> 'id' AS id, value ->> 'is_open' AS is_open, value ->> 'opens_at' AS opens_at FROM json_each($1)) AS r
  WHERE lanes.id = r.id AND $2 IS NOT NULL;

-- queue/lanes.queries.ts: takeFound
DELETE FROM ready WHERE (lane_id, rank, task_id) IN (SELECT lane_id, rank, task_id FROM (SELECT value ->> 'lane_id' AS lane_id, value ->> 'rank' AS rank, value ->> 'task_id' AS task_id, value ->> 'from_rank' AS from_rank, value ->> 'from_id' AS from_id FROM json_each($1)) AS r) AND (not_after IS NULL OR not_after > $2) RETURNING lane_id, rank, task_id, kind, ready_at, not_after;

-- queue/lanes.queries.ts: takeReady
DELETE FROM ready WHERE (lane_id, rank, task_id) IN (SELECT * FROM (SELECT * FROM (SELECT lane_id, rank, task_id FROM ready WHERE lane_id = $2 AND (rank, task_id) >= ($3, $4) AND (not_after IS NULL OR not_after > $1)
  ORDER BY rank, task_id LIMIT $5) AS p0)) RETURNING lane_id, rank, task_id, kind, ready_at, not_after;
DELETE FROM ready WHERE (lane_id, rank, task_id) IN (SELECT * FROM (SELECT * FROM (SELECT lane_id, rank, task_id FROM ready WHERE lane_id = $2 AND (rank, task_id) >= ($3, $4) AND (not_after IS NULL OR not_after > $1)
  ORDER BY rank, task_id LIMIT $5) AS p0 UNION ALL SELECT * FROM (SELECT lane_id, rank, task_id FROM ready WHERE lane_id = $6 AND (rank, task_id) >= ($7, $8) AND (not_after IS NULL OR not_after > $1)
  ORDER BY rank, task_id LIMIT $9) AS p1)) RETURNING lane_id, rank, task_id, kind, ready_at, not_after;

-- queue/transitions.queries.ts: deleteTasks
DELETE FROM tasks WHERE id IN (SELECT value FROM json_each($1));

-- queue/transitions.queries.ts: insertExpiries
INSERT INTO task_expiries (not_after, task_id) SELECT not_after, task_id FROM (SELECT value ->> 'not_after' AS not_after, value ->> 'task_id' AS task_id FROM json_each($1)) AS r;

-- queue/transitions.queries.ts: insertFinished
INSERT INTO finished_tasks (kind, state, finished_at, task_id) SELECT $2, $3, $4, id FROM (SELECT value AS id FROM json_each($1)) AS r;

-- queue/transitions.queries.ts: insertScheduled
INSERT INTO scheduled (task_id, kind, run_at) SELECT task_id, kind, run_at FROM (SELECT value ->> 'task_id' AS task_id, value ->> 'kind' AS kind, value ->> 'run_at' AS run_at FROM json_each($1)) AS r;

-- queue/transitions.queries.ts: insertTasks
INSERT INTO tasks (kind, target, spec, priority, run_at, not_after, max_attempts, unique_key, traceparent, state, attempts, created_at, updated_at)
  SELECT kind, target, spec, priority, run_at, not_after, max_attempts, unique_key, traceparent, 'open', 0, $2, $2 FROM (SELECT value ->> 'kind' AS kind, value ->> 'target' AS target, value ->> 'spec' AS spec, value ->> 'priority' AS priority, value ->> 'run_at' AS run_at, value ->> 'not_after' AS not_after, value ->> 'max_attempts' AS max_attempts, value ->> 'unique_key' AS unique_key, value ->> 'traceparent' AS traceparent FROM json_each($1)) AS r RETURNING id;

-- queue/transitions.queries.ts: insertUniqueKeys
INSERT INTO unique_keys (unique_key, task_id) SELECT unique_key, task_id
  FROM (SELECT value ->> 'unique_key' AS unique_key, value ->> 'task_id' AS task_id FROM json_each($1)) AS r;

-- queue/transitions.queries.ts: isAnyDue
SELECT task_id FROM (SELECT task_id FROM scheduled WHERE run_at <= $1 ORDER BY run_at LIMIT 1) AS due
  UNION ALL
  SELECT task_id FROM (SELECT task_id FROM task_expiries WHERE not_after <= $1 ORDER BY not_after LIMIT 1) AS expired;

-- queue/transitions.queries.ts: removeExpiries
DELETE FROM task_expiries WHERE (not_after, task_id) IN (SELECT not_after, task_id FROM (SELECT value ->> 'not_after' AS not_after, value ->> 'task_id' AS task_id FROM json_each($1)) AS r);

-- queue/transitions.queries.ts: removeFinished
DELETE FROM finished_tasks WHERE (kind, state, finished_at, task_id) IN (SELECT kind, state, finished_at, task_id FROM (SELECT value ->> 'kind' AS kind, value ->> 'state' AS state, value ->> 'finished_at' AS finished_at, value ->> 'task_id' AS task_id FROM json_each($1)) AS r);

-- queue/transitions.queries.ts: removeScheduled
DELETE FROM scheduled WHERE task_id IN (SELECT value FROM json_each($1)) RETURNING task_id;

-- queue/transitions.queries.ts: removeUniqueKeys
DELETE FROM unique_keys WHERE unique_key IN (SELECT unique_key FROM (SELECT value ->> 'unique_key' AS unique_key FROM json_each($1)) AS r);

-- queue/transitions.queries.ts: reopenTasks
UPDATE tasks SET state = 'open', reason = NULL, attempts = 0, run_at = NULL, finished_at = NULL, updated_at = $2,
  not_after = CASE WHEN not_after > $2 THEN not_after END
  WHERE id IN (SELECT value FROM json_each($1));

-- queue/transitions.queries.ts: selectExpired
SELECT task_id FROM task_expiries WHERE not_after <= $1 ORDER BY not_after, task_id LIMIT $2;

-- queue/transitions.queries.ts: selectTakenTasks
SELECT id, kind, target, priority, not_after, unique_key, traceparent, attempts, spec FROM tasks WHERE id IN (SELECT value FROM json_each($1));

-- queue/transitions.queries.ts: selectTransitionTasks
SELECT id, kind, target, priority, not_after, unique_key, traceparent, attempts FROM tasks WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id;

-- queue/transitions.queries.ts: setBackBackoffs
UPDATE tasks SET run_at = max($1, run_at - $2) WHERE attempts > 0 AND run_at > $1
  AND id IN (SELECT task_id FROM scheduled WHERE run_at > $1);
UPDATE scheduled SET run_at = max($1, run_at - $2) WHERE run_at > $1 AND EXISTS (SELECT 1 FROM tasks t WHERE t.id = scheduled.task_id AND t.attempts > 0);

-- queue/transitions.queries.ts: takeDue
DELETE FROM scheduled WHERE (task_id) IN (SELECT * FROM (SELECT * FROM (SELECT task_id FROM scheduled WHERE run_at <= $1 ORDER BY run_at, task_id LIMIT $2) AS p0)) RETURNING task_id;

-- queue/transitions.queries.ts: takeFinishedBefore
DELETE FROM finished_tasks WHERE (kind, state, finished_at, task_id) IN (SELECT * FROM (SELECT * FROM (SELECT kind, state, finished_at, task_id FROM finished_tasks WHERE kind = $1 AND state = $2 AND finished_at < $3 ORDER BY finished_at, task_id LIMIT $4) AS p0)) RETURNING kind, state, finished_at, task_id;

-- queue/transitions.queries.ts: updateTasks
UPDATE tasks SET state = $3, attempts = $4, reason = NULL, updated_at = $2, finished_at = $2
  WHERE id IN (SELECT value FROM json_each($1));
UPDATE tasks SET state = r.state, attempts = coalesce(r.attempts, tasks.attempts), reason = r.reason, updated_at = $2,
  run_at = CASE WHEN r.sets_run_at = 1 THEN r.run_at ELSE tasks.run_at END,
  finished_at = CASE WHEN r.state <> 'open' THEN CAST($2 AS bigint) END
  FROM (SELECT value ->> 'id' AS id, value ->> 'state' AS state, value ->> 'attempts' AS attempts, value ->> 'sets_run_at' AS sets_run_at, value ->> 'run_at' AS run_at, value ->> 'reason' AS reason FROM json_each($1)) AS r
  WHERE tasks.id = r.id AND $3 IS NOT NULL;
