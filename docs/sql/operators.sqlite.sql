-- operators/audit.queries.ts: advanceHead
UPDATE audit_head SET last_id = last_id + 1 WHERE id = 1 RETURNING id, last_id, last_hash;

-- operators/audit.queries.ts: appendEntry
INSERT INTO audit_log (id, at, operator_token_id, operator_name, address, action, subject, "before", "after", hash)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);
UPDATE audit_head SET last_hash = $1 WHERE id = 1;

-- operators/audit.queries.ts: findUnrecordedTable
SELECT 1 AS found FROM agent_configs WHERE NOT EXISTS (SELECT 1 FROM audit_log WHERE action LIKE 'config.%') LIMIT 1;

-- operators/audit.queries.ts: findUnrecordedToken
SELECT t.id FROM operator_tokens t
  WHERE NOT EXISTS (SELECT 1 FROM audit_log a WHERE a.subject = 'operator-token/' || t.id)
  ORDER BY t.id LIMIT 1;

-- operators/audit.queries.ts: isUnrevoked
SELECT id FROM operator_tokens WHERE id = $1 AND revoked_at IS NULL;

-- operators/audit.queries.ts: listEntries
SELECT * FROM audit_log WHERE action = $1 AND subject = $2 AND operator_token_id = $3 AND at >= $4 AND at < $5 AND (at, id) < (coalesce((SELECT at FROM audit_log WHERE id = $6), 9007199254740991), $6) ORDER BY at DESC, id DESC LIMIT $7;

-- operators/audit.queries.ts: selectAfterOfLast
SELECT "after" FROM audit_log WHERE action = $1 ORDER BY id DESC LIMIT 1;

-- operators/audit.queries.ts: selectEntries
SELECT * FROM audit_log WHERE id >= $1 AND id <= $2 ORDER BY id LIMIT $3;

-- operators/audit.queries.ts: selectForeignId
SELECT min(id) AS id FROM audit_log WHERE id < 1 OR id > $1;

-- operators/audit.queries.ts: selectHash
SELECT hash FROM audit_log WHERE id = $1;

-- operators/audit.queries.ts: selectHead
SELECT * FROM audit_head WHERE id = 1;

-- operators/operator-tokens.queries.ts: findByHash
SELECT * FROM operator_tokens WHERE token_hash = $1;

-- operators/operator-tokens.queries.ts: findToken
SELECT * FROM operator_tokens WHERE id = $1;

-- operators/operator-tokens.queries.ts: findUnrevoked
SELECT id, name, role, expires_at, last_used_at FROM operator_tokens WHERE token_hash = $1 AND revoked_at IS NULL;

-- operators/operator-tokens.queries.ts: hasValidAdmin
SELECT id FROM operator_tokens WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1) AND role = 'admin' AND id <> $2 LIMIT 1;

-- operators/operator-tokens.queries.ts: insertIssued
INSERT INTO operator_tokens (name, role, origin, token_hash, created_at, expires_at)
  VALUES ($1, $2, 'issued', $3, $4, $5) RETURNING *;

-- operators/operator-tokens.queries.ts: listAdminIds
SELECT id FROM operator_tokens WHERE role = 'admin';

-- operators/operator-tokens.queries.ts: listEarlierSettings
SELECT id FROM operator_tokens WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1) AND origin = 'setting' AND id <> $2 ORDER BY id;

-- operators/operator-tokens.queries.ts: listSlowHashes
SELECT token_hash FROM operator_tokens WHERE token_hash LIKE 'scrypt$%'
  ORDER BY id DESC;
SELECT token_hash FROM operator_tokens WHERE token_hash LIKE 'scrypt$%'
  AND revoked_at IS NULL ORDER BY id DESC LIMIT $1;

-- operators/operator-tokens.queries.ts: listTokens
SELECT * FROM operator_tokens WHERE id < $1 ORDER BY id DESC LIMIT $2;

-- operators/operator-tokens.queries.ts: listValidTokens
SELECT token_hash, id, name, role, expires_at, last_used_at FROM operator_tokens WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1) ORDER BY id DESC LIMIT $2;

-- operators/operator-tokens.queries.ts: markRevoked
UPDATE operator_tokens SET revoked_at = $2 WHERE id = $1;

-- operators/operator-tokens.queries.ts: markUsed
UPDATE operator_tokens SET last_used_at = $2 WHERE id IN (SELECT value FROM json_each($1));

-- operators/operator-tokens.queries.ts: upsertAdmin
INSERT INTO operator_tokens (name, role, origin, token_hash, created_at) VALUES ($1, 'admin', $2, $3, $4)
  ON CONFLICT (token_hash) DO UPDATE SET name = excluded.name, role = excluded.role, origin = excluded.origin,
  expires_at = NULL
  RETURNING id, revoked_at;
