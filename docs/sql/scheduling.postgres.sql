-- scheduling/continuity.queries.ts: selectContinuity
SELECT since, last_seen_at FROM service_continuity WHERE id = 1;

-- scheduling/continuity.queries.ts: updateContinuity
UPDATE service_continuity SET since = $1, last_seen_at = $2 WHERE id = 1;
