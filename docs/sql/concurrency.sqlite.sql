-- concurrency/windows.queries.ts: addLeased
UPDATE concurrency_windows SET leased = concurrency_windows.leased + r.by_count
  FROM (SELECT value ->> 'id' AS id, value ->> 'by_count' AS by_count FROM json_each($1)) AS r
  WHERE concurrency_windows.id = r.id AND $2 IS NOT NULL;

-- concurrency/windows.queries.ts: countTargetWindows
SELECT state, count(*) AS count FROM (
  SELECT CASE WHEN slots <= 1 OR (adaptive = 1 AND rate <= $2) THEN 'lowest' WHEN leased >= slots THEN 'full' ELSE 'open' END AS state
  FROM concurrency_windows WHERE scope = 'target' LIMIT $1) AS w
  GROUP BY state;

-- concurrency/windows.queries.ts: deleteWindowChanges
DELETE FROM concurrency_window_changes WHERE id IN (
  SELECT id FROM concurrency_window_changes WHERE changed_at < $1 ORDER BY changed_at LIMIT $2);

-- concurrency/windows.queries.ts: deleteWindows
DELETE FROM concurrency_windows WHERE id IN (
  SELECT w.id FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope);

-- concurrency/windows.queries.ts: deleteWindowsById
DELETE FROM concurrency_windows WHERE id IN (SELECT value FROM json_each($1));

-- concurrency/windows.queries.ts: endEveryTargetUpdate
DELETE FROM concurrency_windows WHERE id = $1 AND scope = 'every_target' AND moved_through = $2 AND max_slots IS NULL AND max_rate IS NULL AND adaptive = 0;
UPDATE concurrency_windows SET moved_through = NULL WHERE id = $1 AND scope = 'every_target' AND moved_through = $2;

-- concurrency/windows.queries.ts: insertInherited
INSERT INTO concurrency_windows (scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, pacing, moved_through, expires_at, last_start_us, starts)
  SELECT scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, pacing, moved_through, expires_at, 0, 0 FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target, value ->> 'inherited' AS inherited, value ->> 'max_slots' AS max_slots, value ->> 'max_rate' AS max_rate, value ->> 'adaptive' AS adaptive, value ->> 'slots' AS slots, value ->> 'leased' AS leased, value ->> 'rate' AS rate, value ->> 'pacing' AS pacing, value ->> 'moved_through' AS moved_through, value ->> 'expires_at' AS expires_at FROM json_each($1)) AS r WHERE true ORDER BY kind, target
  ON CONFLICT (kind, target, scope) DO NOTHING;

-- concurrency/windows.queries.ts: insertWindowChanges
INSERT INTO concurrency_window_changes (scope, kind, target, changed_at, reason, rate_before, rate_after, evidence)
  SELECT scope, kind, target, changed_at, reason, rate_before, rate_after, evidence FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target, value ->> 'changed_at' AS changed_at, value ->> 'reason' AS reason, value ->> 'rate_before' AS rate_before, value ->> 'rate_after' AS rate_after, value ->> 'evidence' AS evidence FROM json_each($1)) AS r
  WHERE r.reason <> 'room' OR r.rate_after >= 2 * coalesce((
  SELECT c.rate_after FROM concurrency_window_changes c
  WHERE c.kind = r.kind AND c.target = r.target AND c.scope = r.scope ORDER BY c.id DESC LIMIT 1), 0);

-- concurrency/windows.queries.ts: insertWindows
INSERT INTO concurrency_windows (scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, pacing, moved_through, expires_at, last_start_us, starts)
  SELECT scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, pacing, moved_through, expires_at, 0, 0 FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target, value ->> 'inherited' AS inherited, value ->> 'max_slots' AS max_slots, value ->> 'max_rate' AS max_rate, value ->> 'adaptive' AS adaptive, value ->> 'slots' AS slots, value ->> 'leased' AS leased, value ->> 'rate' AS rate, value ->> 'pacing' AS pacing, value ->> 'moved_through' AS moved_through, value ->> 'expires_at' AS expires_at FROM json_each($1)) AS r WHERE true ORDER BY kind, target
  ON CONFLICT (kind, target, scope) DO UPDATE SET inherited = excluded.inherited, max_slots = excluded.max_slots, max_rate = excluded.max_rate, adaptive = excluded.adaptive, slots = excluded.slots, rate = excluded.rate, pacing = excluded.pacing, moved_through = excluded.moved_through,
  expires_at = excluded.expires_at, hold_until = CASE WHEN excluded.adaptive = 1 THEN concurrency_windows.hold_until END;

-- concurrency/windows.queries.ts: limitLastStarts
UPDATE concurrency_windows SET last_start_us = $1, recent_starts = NULL, hold_until = NULL WHERE last_start_us > $2;

-- concurrency/windows.queries.ts: lockIdle
SELECT id, scope, kind, target FROM concurrency_windows
  WHERE id IN (SELECT value FROM json_each($1)) AND inherited + 0 = 1 AND leased = 0 AND expires_at < $2
  ORDER BY id;

-- concurrency/windows.queries.ts: lockInherited
SELECT id, scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, last_start_us, recent_starts, starts, hold_until, moved_through, pacing FROM concurrency_windows WHERE inherited = 1 AND kind = $1 AND id > $2
  ORDER BY id LIMIT $3;

-- concurrency/windows.queries.ts: lockNamedWindows
SELECT w.id, w.scope, w.kind, w.target, w.inherited, w.max_slots, w.max_rate, w.adaptive, w.slots, w.leased, w.rate, w.last_start_us, w.recent_starts, w.starts, w.hold_until, w.moved_through, w.pacing FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope ORDER BY w.id;

-- concurrency/windows.queries.ts: lockWindows
SELECT id, scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, last_start_us, recent_starts, starts, hold_until, moved_through, pacing FROM concurrency_windows WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id;

-- concurrency/windows.queries.ts: selectChangesAbove
SELECT id, changed_at, reason, rate_before, rate_after, CASE WHEN reason = 'operator' THEN evidence ELSE '{}' END AS evidence
  FROM concurrency_window_changes WHERE kind = $1 AND target = $2 AND scope = $3 AND id > $4 ORDER BY id LIMIT $5;

-- concurrency/windows.queries.ts: selectInherited
SELECT kind, id FROM concurrency_windows WHERE inherited = 1 AND (kind, id) > ($1, $2) ORDER BY kind, id LIMIT $3;

-- concurrency/windows.queries.ts: selectLastLease
SELECT (SELECT seq FROM sqlite_sequence WHERE name = 'leases') AS id;

-- concurrency/windows.queries.ts: selectMovedThrough
SELECT kind, target, moved_through FROM concurrency_windows WHERE id = $1;

-- concurrency/windows.queries.ts: selectMovingWindows
SELECT id, scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, last_start_us, recent_starts, starts, hold_until, moved_through FROM concurrency_windows WHERE moved_through IS NOT NULL  ORDER BY id + 0;
SELECT id, scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, last_start_us, recent_starts, starts, hold_until, moved_through FROM concurrency_windows WHERE moved_through IS NOT NULL AND kind = $1 ORDER BY id + 0;

-- concurrency/windows.queries.ts: selectNamedWindows
SELECT w.id, w.scope, w.kind, w.target, w.inherited, w.max_slots, w.max_rate, w.adaptive, w.slots, w.leased, w.rate, w.last_start_us, w.recent_starts, w.starts, w.hold_until, w.moved_through FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope ORDER BY w.id;

-- concurrency/windows.queries.ts: selectShownWindows
SELECT scope, kind, slots, leased, rate FROM concurrency_windows WHERE scope = 'kind'
  UNION ALL
  SELECT scope, kind, slots, leased, rate FROM concurrency_windows WHERE kind = '' AND target = '' AND scope = 'global';

-- concurrency/windows.queries.ts: selectTargetWindows
SELECT w.id, w.scope, w.kind, w.target, w.inherited, w.max_slots, w.max_rate, w.adaptive, w.slots, w.leased, w.rate, w.last_start_us, w.recent_starts, w.starts, w.hold_until, w.moved_through FROM (SELECT value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = 'target';

-- concurrency/windows.queries.ts: selectWideWindows
SELECT id, scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, last_start_us, recent_starts, starts, hold_until, moved_through FROM concurrency_windows WHERE scope IN ('global', 'kind', 'every_target')
  UNION ALL SELECT * FROM (SELECT id, scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, last_start_us, recent_starts, starts, hold_until, moved_through FROM concurrency_windows WHERE scope = 'target' LIMIT 1) AS any_target;

-- concurrency/windows.queries.ts: selectWindow
SELECT scope, kind, target FROM concurrency_windows WHERE id = $1;

-- concurrency/windows.queries.ts: selectWindowChanges
SELECT id, scope, kind, target, changed_at, reason, rate_before, rate_after, evidence FROM concurrency_window_changes WHERE kind = $1 AND target = $2 AND scope = $3 AND id < $4
  ORDER BY id DESC LIMIT $5;

-- concurrency/windows.queries.ts: selectWindowPage
SELECT id, scope, kind, target, inherited, max_slots, max_rate, adaptive, slots, leased, rate, last_start_us, recent_starts, starts, hold_until, moved_through FROM concurrency_windows WHERE id < $1 AND (scope <> 'every_target' OR max_slots IS NOT NULL OR max_rate IS NOT NULL OR adaptive = 1) AND scope = $2 AND kind = $3 AND ((kind = $4 AND target = $5) OR (kind = $6 AND target = $7)) ORDER BY id DESC LIMIT $8;

-- concurrency/windows.queries.ts: setMovedThrough
UPDATE concurrency_windows SET moved_through = $2 WHERE id = $1;

-- concurrency/windows.queries.ts: updateBounds
UPDATE concurrency_windows SET max_slots = r.max_slots, max_rate = r.max_rate, adaptive = r.adaptive, slots = r.slots, rate = r.rate, hold_until = r.hold_until, pacing = r.pacing, expires_at = r.expires_at
  FROM (SELECT value ->> 'id' AS id, value ->> 'max_slots' AS max_slots, value ->> 'max_rate' AS max_rate, value ->> 'adaptive' AS adaptive, value ->> 'slots' AS slots, value ->> 'rate' AS rate, value ->> 'hold_until' AS hold_until, value ->> 'pacing' AS pacing, value ->> 'expires_at' AS expires_at FROM json_each($1)) AS r
  WHERE concurrency_windows.id = r.id AND $2 IS NOT NULL;

-- concurrency/windows.queries.ts: updatePacing
UPDATE concurrency_windows SET leased = r.leased, starts = r.starts, slots = r.slots, rate = r.rate, hold_until = r.hold_until, pacing = r.pacing
  FROM (SELECT value ->> 'id' AS id, value ->> 'leased' AS leased, value ->> 'starts' AS starts, value ->> 'slots' AS slots, value ->> 'rate' AS rate, value ->> 'hold_until' AS hold_until, value ->> 'pacing' AS pacing FROM json_each($1)) AS r
  WHERE concurrency_windows.id = r.id AND $2 IS NOT NULL;

-- concurrency/windows.queries.ts: updateStarts
UPDATE concurrency_windows SET leased = r.leased, last_start_us = r.last_start_us, recent_starts = r.recent_starts, starts = r.starts, expires_at = r.expires_at
  FROM (SELECT value ->> 'id' AS id, value ->> 'leased' AS leased, value ->> 'last_start_us' AS last_start_us, value ->> 'recent_starts' AS recent_starts, value ->> 'starts' AS starts, value ->> 'expires_at' AS expires_at FROM json_each($1)) AS r
  WHERE concurrency_windows.id = r.id AND $2 IS NOT NULL;
