-- config/config.queries.ts: findConfig
SELECT * FROM agent_configs WHERE revision = $1;

-- config/config.queries.ts: findConfigBefore
SELECT * FROM agent_configs WHERE seq < $1 ORDER BY seq DESC LIMIT 1;

-- config/config.queries.ts: findNewestConfig
SELECT c.*, greatest((SELECT max(seq) FROM agent_configs), (SELECT last_value FROM agent_configs_seq_seq WHERE is_called)) AS last_seq
  FROM agent_configs c ORDER BY seq DESC LIMIT 1;

-- config/config.queries.ts: insertConfig
INSERT INTO agent_configs (seq, revision, issued_at, expires_at, config, kid, signature)
  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (seq) DO NOTHING;

-- config/config.queries.ts: listConfigs
SELECT revision, seq, issued_at, expires_at, kid FROM agent_configs WHERE seq < $1 ORDER BY seq DESC LIMIT $2;

-- config/config.queries.ts: selectLastSeq
SELECT greatest((SELECT max(seq) FROM agent_configs), (SELECT last_value FROM agent_configs_seq_seq WHERE is_called)) AS seq;
