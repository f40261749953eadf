-- concurrency/windows.queries.ts: addLeased
UPDATE concurrency_windows SET leased = concurrency_windows.leased + r.by_count
  FROM (SELECT value ->> 'id' AS id, value ->> 'by_count' AS by_count FROM json_each($1)) AS r
  WHERE concurrency_windows.id = r.id AND $2 IS NOT NULL;

-- concurrency/windows.queries.ts: countTargetWindows
SELECT state, count(*) AS count FROM (
  SELECT CASE WHEN slots <= 1 THEN 'lowest' WHEN leased >= slots THEN 'full' ELSE 'open' END AS state
  FROM concurrency_windows WHERE scope = 'target' LIMIT $1) AS w
  GROUP BY state;

-- concurrency/windows.queries.ts: deleteWindows
DELETE FROM concurrency_windows WHERE id IN (
  SELECT w.id FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope);

-- concurrency/windows.queries.ts: insertWindows
INSERT INTO concurrency_windows (scope, kind, target, slots, leased, moved_through)
  SELECT scope, kind, target, slots, leased, moved_through FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target, value ->> 'slots' AS slots, value ->> 'leased' AS leased, value ->> 'moved_through' AS moved_through FROM json_each($1)) AS r WHERE true
  ON CONFLICT (kind, target, scope) DO UPDATE SET slots = excluded.slots;

-- concurrency/windows.queries.ts: lockNamedWindows
SELECT w.id, w.scope, w.kind, w.target, w.slots, w.leased, w.moved_through FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope ORDER BY w.id;

-- concurrency/windows.queries.ts: lockWindows
SELECT id, scope, kind, target, slots, leased, moved_through FROM concurrency_windows WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id;

-- concurrency/windows.queries.ts: selectMovedThrough
SELECT kind, target, moved_through FROM concurrency_windows WHERE id = $1;

-- concurrency/windows.queries.ts: selectMovingWindows
SELECT id, scope, kind, target, slots, leased, moved_through FROM concurrency_windows WHERE moved_through IS NOT NULL  ORDER BY id + 0;
SELECT id, scope, kind, target, slots, leased, moved_through FROM concurrency_windows WHERE moved_through IS NOT NULL AND kind = $1 ORDER BY id + 0;

-- concurrency/windows.queries.ts: selectNamedWindows
SELECT w.id, w.scope, w.kind, w.target, w.slots, w.leased, w.moved_through FROM (SELECT value ->> 'scope' AS scope, value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope ORDER BY w.id;

-- concurrency/windows.queries.ts: selectShownWindows
SELECT scope, kind, slots, leased FROM concurrency_windows WHERE scope = 'kind'
  UNION ALL
  SELECT scope, kind, slots, leased FROM concurrency_windows WHERE kind = '' AND target = '' AND scope = 'global';

-- concurrency/windows.queries.ts: selectTargetWindows
SELECT w.id, w.scope, w.kind, w.target, w.slots, w.leased, w.moved_through FROM (SELECT value ->> 'kind' AS kind, value ->> 'target' AS target FROM json_each($1)) AS r
  CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = 'target';

-- concurrency/windows.queries.ts: selectWideWindows
SELECT id, scope, kind, target, slots, leased, moved_through FROM concurrency_windows WHERE scope IN ('global', 'kind')
  UNION ALL SELECT * FROM (SELECT id, scope, kind, target, slots, leased, moved_through FROM concurrency_windows WHERE scope = 'target' LIMIT 1) AS any_target;

-- concurrency/windows.queries.ts: selectWindowPage
SELECT id, scope, kind, target, slots, leased, moved_through FROM concurrency_windows WHERE id < $1 AND scope = $2 AND kind = $3 AND ((kind = $4 AND target = $5) OR (kind = $6 AND target = $7)) ORDER BY id DESC LIMIT $8;

-- concurrency/windows.queries.ts: setMovedThrough
UPDATE concurrency_windows SET moved_through = $2 WHERE id = $1;
