-- agents/agent-about.queries.ts: deleteVersion
DELETE FROM agent_about WHERE agent_id = $1;

-- agents/agent-about.queries.ts: listVersions
SELECT * FROM agent_about WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));

-- agents/agent-about.queries.ts: upsertVersions
INSERT INTO agent_about (agent_id, version, said_at)
  SELECT r.agent_id, r.version, $2
  FROM (SELECT agent_id, version FROM json_to_recordset($1::json) AS row(agent_id bigint, version text)) AS r JOIN agents a ON a.id = r.agent_id
  WHERE true ORDER BY r.agent_id
  ON CONFLICT (agent_id) DO UPDATE SET version = excluded.version, said_at = excluded.said_at
  WHERE agent_about.version <> excluded.version;

-- agents/agent-kinds.queries.ts: countTakers
SELECT CASE WHEN a.state <> 'active' THEN a.state WHEN h.last_heartbeat_at > $3 THEN 'online' ELSE 'offline' END AS status, count(*) AS count, max(k.asked_at) AS asked_at FROM agent_kinds k JOIN agents a ON a.id = k.agent_id JOIN agent_heartbeats h ON h.agent_id = k.agent_id
  WHERE k.kind = $1 AND k.asked_at > $2 AND a.state <> 'deleted'
  GROUP BY CASE WHEN a.state <> 'active' THEN a.state WHEN h.last_heartbeat_at > $3 THEN 'online' ELSE 'offline' END ORDER BY status;

-- agents/agent-kinds.queries.ts: cutFutureKinds
UPDATE agent_kinds SET asked_at = $1 WHERE asked_at > $1;

-- agents/agent-kinds.queries.ts: deleteKinds
DELETE FROM agent_kinds WHERE (agent_id, kind) IN (
  SELECT agent_id, kind FROM (SELECT agent_id, kind FROM json_to_recordset($1::json) AS row(agent_id bigint, kind text)) AS r)
  RETURNING agent_id;

-- agents/agent-kinds.queries.ts: deleteKindsAskedBefore
DELETE FROM agent_kinds WHERE (agent_id, kind) IN (
  SELECT agent_id, kind FROM agent_kinds WHERE asked_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)
  AND asked_at <= $1;

-- agents/agent-kinds.queries.ts: deleteKindsOf
DELETE FROM agent_kinds WHERE agent_id = $1;

-- agents/agent-kinds.queries.ts: findNearestTaker
SELECT a.id, CASE WHEN a.state <> 'active' THEN a.state WHEN h.last_heartbeat_at > $3 THEN 'online' ELSE 'offline' END AS status, CASE WHEN h.last_heartbeat_at > $3 THEN 0 ELSE 1 END AS is_silent
  FROM agent_kinds k JOIN agents a ON a.id = k.agent_id JOIN agent_heartbeats h ON h.agent_id = k.agent_id
  WHERE k.kind = $1 AND k.asked_at > $2 AND a.state <> 'deleted' AND a.state <> 'revoked' AND NOT (a.state = 'active' AND h.last_heartbeat_at > $3)
  ORDER BY CASE WHEN a.state = 'draining' AND h.last_heartbeat_at > $3 THEN 0 WHEN a.state = 'active' THEN 1
  WHEN a.state = 'draining' THEN 2 ELSE 3 END, h.last_heartbeat_at DESC, a.id LIMIT 1;

-- agents/agent-kinds.queries.ts: listKinds
SELECT agent_id, kind FROM agent_kinds
  WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) AND asked_at > $2;

-- agents/agent-kinds.queries.ts: listOnlineTakers
SELECT a.id, k.capacity FROM agent_kinds k JOIN agents a ON a.id = k.agent_id JOIN agent_heartbeats h ON h.agent_id = k.agent_id
  WHERE k.kind = $1 AND k.asked_at > $2 AND a.state <> 'deleted' AND a.state = 'active' AND h.last_heartbeat_at > $3 AND k.agent_id > $4 ORDER BY k.agent_id LIMIT $5;

-- agents/agent-kinds.queries.ts: upsertKinds
INSERT INTO agent_kinds (agent_id, kind, asked_at, capacity)
  SELECT agent_id, kind, $2, capacity
  FROM (SELECT agent_id, kind, capacity FROM json_to_recordset($1::json) AS row(agent_id bigint, kind text, capacity bigint)) AS r
  WHERE true ORDER BY agent_id, kind
  ON CONFLICT (agent_id, kind) DO UPDATE SET asked_at = excluded.asked_at, capacity = excluded.capacity;

-- agents/agent-outcomes.queries.ts: addCounts
INSERT INTO agent_outcomes (agent_id, span_ms, starts_at, success, timeout, error, unsaid, cancelled, expired)
  SELECT agent_id, $2, starts_at, success, timeout, error, unsaid, cancelled, expired FROM (SELECT agent_id, starts_at, success, timeout, error, unsaid, cancelled, expired FROM json_to_recordset($1::json) AS row(agent_id bigint, starts_at bigint, success bigint, timeout bigint, error bigint, unsaid bigint, cancelled bigint, expired bigint)) AS r
  WHERE true ORDER BY agent_id, starts_at
  ON CONFLICT (agent_id, span_ms, starts_at) DO UPDATE SET
  success = agent_outcomes.success + excluded.success, timeout = agent_outcomes.timeout + excluded.timeout, error = agent_outcomes.error + excluded.error, unsaid = agent_outcomes.unsaid + excluded.unsaid, cancelled = agent_outcomes.cancelled + excluded.cancelled, expired = agent_outcomes.expired + excluded.expired;

-- agents/agent-outcomes.queries.ts: countFailing
SELECT count(*) AS count FROM (SELECT agent_id FROM agent_outcomes
  WHERE agent_id IN (SELECT agent_id FROM agent_outcomes WHERE error + cancelled + expired > 0 AND span_ms = 600000 AND starts_at > $1 AND starts_at <= $2) AND span_ms = 600000 AND starts_at > $1 AND starts_at <= $2
  GROUP BY agent_id HAVING sum(success + timeout + error + unsaid + cancelled + expired) >= 5 AND 2 * sum(error + cancelled + expired) > sum(success + timeout + error + unsaid + cancelled + expired)) AS f JOIN agents a ON a.id = f.agent_id
  WHERE a.state IN ('active', 'draining');

-- agents/agent-outcomes.queries.ts: cutFutureOutcomes
DELETE FROM agent_outcomes WHERE starts_at > $1;
UPDATE agent_last_errors SET at = $1 WHERE at > $1;

-- agents/agent-outcomes.queries.ts: deleteOutcomesOf
DELETE FROM agent_outcomes WHERE agent_id = $1;
DELETE FROM agent_last_errors WHERE agent_id = $1;

-- agents/agent-outcomes.queries.ts: listLastErrors
SELECT * FROM agent_last_errors WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));

-- agents/agent-outcomes.queries.ts: storeErrors
INSERT INTO agent_last_errors (agent_id, at, task_id, outcome, message)
  SELECT agent_id, at, task_id, outcome, message
  FROM (SELECT agent_id, at, task_id, outcome, message FROM json_to_recordset($1::json) AS row(agent_id bigint, at bigint, task_id bigint, outcome text, message text)) AS r
  WHERE true ORDER BY agent_id
  ON CONFLICT (agent_id) DO UPDATE SET at = excluded.at, task_id = excluded.task_id, outcome = excluded.outcome,
  message = excluded.message
  WHERE CASE
  WHEN (excluded.message IS NULL) = (agent_last_errors.message IS NULL) THEN excluded.at >= agent_last_errors.at
  WHEN excluded.message IS NULL THEN excluded.at >= agent_last_errors.at + $2
  ELSE excluded.at > agent_last_errors.at - $2 END;

-- agents/agent-outcomes.queries.ts: sumOutcomes
SELECT agent_id, sum(success) AS day_success, sum(CASE WHEN span_ms = 600000 AND starts_at > $2 THEN success ELSE 0 END) AS hour_success, sum(timeout) AS day_timeout, sum(CASE WHEN span_ms = 600000 AND starts_at > $2 THEN timeout ELSE 0 END) AS hour_timeout, sum(error) AS day_error, sum(CASE WHEN span_ms = 600000 AND starts_at > $2 THEN error ELSE 0 END) AS hour_error, sum(unsaid) AS day_unsaid, sum(CASE WHEN span_ms = 600000 AND starts_at > $2 THEN unsaid ELSE 0 END) AS hour_unsaid, sum(cancelled) AS day_cancelled, sum(CASE WHEN span_ms = 600000 AND starts_at > $2 THEN cancelled ELSE 0 END) AS hour_cancelled, sum(expired) AS day_expired, sum(CASE WHEN span_ms = 600000 AND starts_at > $2 THEN expired ELSE 0 END) AS hour_expired
  FROM agent_outcomes
  WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) AND starts_at + span_ms > $3 AND starts_at <= $4
  GROUP BY agent_id;

-- agents/agent-outcomes.queries.ts: takeSpans
DELETE FROM agent_outcomes WHERE (agent_id, span_ms, starts_at) IN (
  SELECT agent_id, span_ms, starts_at FROM agent_outcomes WHERE span_ms = $1 AND starts_at <= $2
  ORDER BY starts_at LIMIT $3 FOR UPDATE SKIP LOCKED)
  AND span_ms = $1 AND starts_at <= $2
  RETURNING agent_id, starts_at, success, timeout, error, unsaid, cancelled, expired;

-- agents/agents.queries.ts: deleteAgents
DELETE FROM agent_labels WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_kinds WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_outcomes WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_last_errors WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_about WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_owner_tokens WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_config_states WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_usage WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agent_heartbeats WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
DELETE FROM agents WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));

-- agents/agents.queries.ts: deleteLabels
DELETE FROM agent_labels WHERE agent_id = $1;

-- agents/agents.queries.ts: deleteOwnerTokens
DELETE FROM agent_owner_tokens WHERE agent_id = $1;

-- agents/agents.queries.ts: findAgent
SELECT a.*, h.last_heartbeat_at FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id WHERE a.id = $1 AND a.state <> 'deleted';

-- agents/agents.queries.ts: findCredentials
SELECT id, state, token_hash, token_expires_at, previous_token_hash, previous_token_expires_at FROM agents WHERE id = $1;

-- agents/agents.queries.ts: findIdByHostnameKey
SELECT id FROM agents WHERE hostname_key = $1 AND state <> 'deleted';

-- agents/agents.queries.ts: insertAgent
INSERT INTO agents (hostname, hostname_key, origin, state, token_hash, token_expires_at, registered_at, trial_ends_at)
  VALUES ($1, $2, $3, 'active', $4, $5, $6, $7) RETURNING id;

-- agents/agents.queries.ts: isKnown
SELECT id FROM agents WHERE id = $1;

-- agents/agents.queries.ts: listHostnames
SELECT id, hostname FROM agents WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));

-- agents/agents.queries.ts: listLabels
SELECT agent_id, name, value FROM agent_labels WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) ORDER BY agent_id, name;

-- agents/agents.queries.ts: listLabelsNamed
SELECT agent_id, name, value FROM agent_labels WHERE name IN (SELECT name FROM (SELECT name FROM json_to_recordset($1::json) AS row(name text)) AS r) ORDER BY agent_id, name;

-- agents/agents.queries.ts: listNewestCredentials
SELECT id, state, token_hash, token_expires_at, previous_token_hash, previous_token_expires_at FROM agents WHERE state <> 'deleted' ORDER BY id DESC LIMIT $1;

-- agents/agents.queries.ts: lockServiceStates
SELECT id, state, token_hash, token_expires_at, previous_token_hash, previous_token_expires_at, first_lease_at FROM agents WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value))
  ORDER BY id FOR SHARE;

-- agents/agents.queries.ts: markFirstLeases
UPDATE agents SET first_lease_at = $2 WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) AND first_lease_at IS NULL;

-- agents/agents.queries.ts: movePreviousTokenExpiries
UPDATE agents SET previous_token_expires_at = greatest($1, previous_token_expires_at - $2)
  WHERE previous_token_expires_at > $1;

-- agents/agents.queries.ts: updateState
UPDATE agents SET state = $2 WHERE id = $1;

-- agents/agents.queries.ts: updateToken
UPDATE agents SET token_hash = $2, token_expires_at = $3, previous_token_hash = $4, previous_token_expires_at = $5
  WHERE id = $1;

-- agents/agents.queries.ts: upsertLabels
INSERT INTO agent_labels (agent_id, name, value)
  SELECT $1, name, value FROM (SELECT name, value FROM json_to_recordset($2::json) AS row(name text, value text)) AS l WHERE true
  ON CONFLICT (agent_id, name) DO UPDATE SET value = excluded.value;

-- agents/agents.queries.ts: voidPreviousToken
UPDATE agents SET previous_token_hash = NULL, previous_token_expires_at = NULL WHERE id = $1 AND token_hash = $2;

-- agents/budgets.queries.ts: addUsage
INSERT INTO agent_usage (agent_id, day, metrics_bytes, observations_bytes, advance)
  SELECT agent_id, $2, bytes, 0, advance
  FROM (SELECT agent_id, bytes, advance FROM json_to_recordset($1::json) AS row(agent_id bigint, bytes bigint, advance bigint)) AS r
  WHERE true ORDER BY agent_id
  ON CONFLICT (agent_id) DO UPDATE SET
  metrics_bytes = CASE WHEN agent_usage.day >= excluded.day THEN agent_usage.metrics_bytes + excluded.metrics_bytes + CASE WHEN agent_usage.day >= excluded.day AND agent_usage.metrics_bytes + excluded.metrics_bytes + excluded.advance <= $4 THEN excluded.advance ELSE 0 END ELSE excluded.metrics_bytes END,
  observations_bytes = CASE WHEN agent_usage.day >= excluded.day THEN agent_usage.observations_bytes ELSE 0 END,
  advance = CASE WHEN agent_usage.day >= excluded.day AND agent_usage.metrics_bytes + excluded.metrics_bytes + excluded.advance <= $4 THEN excluded.advance ELSE 0 END,
  day = greatest(agent_usage.day, excluded.day)
  WHERE NOT (agent_usage.day >= excluded.day) OR agent_usage.metrics_bytes = 0 OR agent_usage.metrics_bytes + excluded.metrics_bytes <= $3
  RETURNING agent_id, metrics_bytes AS used, advance;

-- agents/config-states.queries.ts: countByRevision
SELECT s.revision, s.status, count(*) AS count
  FROM agent_config_states s JOIN agents a ON a.id = s.agent_id
  WHERE s.revision IN (SELECT revision FROM (SELECT revision FROM json_to_recordset($1::json) AS row(revision text)) AS r)
  AND a.state IN ('active', 'draining')
  GROUP BY s.revision, s.status;

-- agents/config-states.queries.ts: countInService
SELECT count(*) AS count FROM agents WHERE state IN ('active', 'draining');

-- agents/config-states.queries.ts: listConfigStates
SELECT * FROM agent_config_states WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));

-- agents/config-states.queries.ts: upsertConfigStates
INSERT INTO agent_config_states (agent_id, revision, status, message, reported_at)
  SELECT agent_id, revision, status, message, $2
  FROM (SELECT agent_id, revision, status, message FROM json_to_recordset($1::json) AS row(agent_id bigint, revision text, status text, message text)) AS r
  WHERE true ORDER BY agent_id
  ON CONFLICT (agent_id) DO UPDATE SET revision = excluded.revision, status = excluded.status,
  message = excluded.message, reported_at = excluded.reported_at
  WHERE agent_config_states.revision <> excluded.revision OR agent_config_states.status <> excluded.status
  OR agent_config_states.message IS DISTINCT FROM excluded.message
  RETURNING agent_id;

-- agents/enrollment.queries.ts: countTokenUse
UPDATE enrollment_tokens SET uses = uses + 1
  WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2) AND (max_uses IS NULL OR uses < max_uses);

-- agents/enrollment.queries.ts: findToken
SELECT * FROM enrollment_tokens WHERE id = $1;

-- agents/enrollment.queries.ts: findWorkingToken
SELECT id, labels, uses, max_uses FROM enrollment_tokens WHERE token_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2);

-- agents/enrollment.queries.ts: insertToken
INSERT INTO enrollment_tokens (name, labels, token_hash, max_uses, uses, created_at, expires_at)
  VALUES ($1, $2, $3, $4, 0, $5, $6) RETURNING *;

-- agents/enrollment.queries.ts: listTokens
SELECT * FROM enrollment_tokens WHERE id < $1 ORDER BY id DESC LIMIT $2;

-- agents/enrollment.queries.ts: listWorkingTokens
SELECT token_hash FROM enrollment_tokens WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2) ORDER BY id DESC LIMIT $1;

-- agents/enrollment.queries.ts: markTokenRevoked
UPDATE enrollment_tokens SET revoked_at = $2 WHERE id = $1;

-- agents/fleet-metrics.queries.ts: countByConfigState
SELECT CASE WHEN s.revision = $1 THEN s.status ELSE 'other' END AS state, count(*) AS count
  FROM agent_config_states s JOIN agents a ON a.id = s.agent_id WHERE a.state IN ('active', 'draining')
  GROUP BY CASE WHEN s.revision = $1 THEN s.status ELSE 'other' END;

-- agents/fleet-metrics.queries.ts: groupByHeartbeatAge
SELECT state, bucket, count(*) AS count, sum(online) AS online, sum(silent) AS silent, sum(age) AS ages FROM (
  SELECT state, age, CASE WHEN heard > $2 THEN 1 ELSE 0 END AS online,
  CASE WHEN age > $3 THEN 1 ELSE 0 END AS silent, CASE WHEN age <= 1000 THEN 0 WHEN age <= 60000 THEN 1 ELSE 2 END AS bucket
  FROM (
  SELECT a.state, h.last_heartbeat_at AS heard,
  CASE WHEN h.last_heartbeat_at < $1 THEN $1 - h.last_heartbeat_at ELSE 0 END AS age
  FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id WHERE a.state <> 'deleted') AS heard) AS aged
  GROUP BY state, bucket;

-- agents/fleet.queries.ts: listAgents
SELECT a.*, h.last_heartbeat_at FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id  WHERE a.state <> 'deleted' ORDER BY a.id DESC LIMIT $1;
SELECT a.*, h.last_heartbeat_at FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id  WHERE a.state <> 'deleted' AND a.id < $1 AND a.hostname_key = $2 AND a.state = $3 AND h.last_heartbeat_at > $4 AND a.id IN (SELECT agent_id FROM agent_outcomes WHERE agent_id = $5) AND a.id IN (SELECT agent_id FROM agent_labels WHERE name = $6 AND value = $7) ORDER BY a.id DESC LIMIT $8;

-- agents/heartbeats.queries.ts: cutFutureHeartbeats
UPDATE agent_heartbeats SET last_heartbeat_at = $1 WHERE last_heartbeat_at > $1;

-- agents/heartbeats.queries.ts: insertHeartbeat
INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2);

-- agents/heartbeats.queries.ts: listSeenSince
SELECT agent_id FROM agent_heartbeats WHERE last_heartbeat_at > $1;

-- agents/heartbeats.queries.ts: storeHeartbeats
WITH locked AS (
  SELECT agent_id FROM agent_heartbeats WHERE agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($2::json) AS value)) ORDER BY agent_id FOR UPDATE)
  UPDATE agent_heartbeats SET last_heartbeat_at = greatest(agent_heartbeats.last_heartbeat_at, r.at)
  FROM (SELECT agent_id, at FROM json_to_recordset($1::json) AS row(agent_id bigint, at bigint)) AS r CROSS JOIN locked
  WHERE locked.agent_id = r.agent_id AND agent_heartbeats.agent_id = locked.agent_id
  AND agent_heartbeats.agent_id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($2::json) AS value));

-- agents/imported-agents.queries.ts: insertImported
INSERT INTO agents (id, hostname, hostname_key, origin, state, token_hash, token_expires_at, registered_at)
  VALUES ($1, $2, $3, 'open', $4, $5, $6, $7);
INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2);

-- agents/imported-agents.queries.ts: selectTakenHostnames
SELECT hostname_key AS key FROM agents WHERE hostname_key IS NOT NULL AND state <> 'deleted';

-- agents/imported-agents.queries.ts: selectTakenIds
SELECT id FROM agents;

-- agents/registration.queries.ts: findOwnerToken
SELECT * FROM agent_owner_tokens
  WHERE agent_id = $1 AND token_hash = $2 AND (expires_at IS NULL OR expires_at > $3);

-- agents/registration.queries.ts: insertOwnerToken
INSERT INTO agent_owner_tokens (agent_id, token_hash, expires_at) VALUES ($1, $2, $3);

-- agents/registration.queries.ts: lockEndedTrials
SELECT id FROM agents WHERE trial_ends_at <= $1 ORDER BY trial_ends_at LIMIT $2 FOR UPDATE SKIP LOCKED;
SELECT a.id, a.state, a.registered_at, a.first_lease_at, h.last_heartbeat_at, u.day
  FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id LEFT JOIN agent_usage u ON u.agent_id = a.id
  WHERE a.id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));

-- agents/registration.queries.ts: markEnrolled
UPDATE agents SET origin = 'enrolled', trial_ends_at = NULL, handed_over_at = NULL WHERE id = $1 AND origin = 'open';

-- agents/registration.queries.ts: updateEnrollmentToken
UPDATE agents SET enrollment_token_id = $2 WHERE id = $1;

-- agents/registration.queries.ts: updateHandOver
UPDATE agents SET handed_over_at = $2 WHERE id = $1;

-- agents/registration.queries.ts: updateTrialEnds
UPDATE agents SET trial_ends_at = r.ends
  FROM (SELECT id, ends FROM json_to_recordset($1::json) AS row(id bigint, ends bigint)) AS r WHERE agents.id = r.id;
