-- metrics/metrics.queries.ts: deleteEnvelopes
DELETE FROM agent_metrics WHERE id IN (
  SELECT id FROM agent_metrics WHERE received_at < $1 ORDER BY received_at LIMIT $2);

-- metrics/metrics.queries.ts: insertEnvelopes
INSERT INTO agent_metrics (agent_id, envelope_hash, measured_at, received_at, counters, gauges)
  SELECT agent_id, envelope_hash, measured_at, $2, counters, gauges FROM (SELECT agent_id, envelope_hash, measured_at, counters, gauges FROM json_to_recordset($1::json) AS row(agent_id bigint, envelope_hash text, measured_at bigint, counters text, gauges text)) AS r
  WHERE true ON CONFLICT (agent_id, envelope_hash) DO NOTHING;

-- metrics/metrics.queries.ts: listEnvelopes
SELECT id, measured_at, octet_length(counters) + octet_length(gauges) AS bytes FROM agent_metrics
  WHERE agent_id = $1 AND measured_at >= $2 AND measured_at < $3 AND (measured_at, id) < ($4, $5)
  ORDER BY measured_at DESC, id DESC LIMIT $6;

-- metrics/metrics.queries.ts: listReceived
SELECT id, received_at, octet_length(counters) + octet_length(gauges) AS bytes FROM agent_metrics
  WHERE received_at >= $1 AND (received_at > $1 OR id > $2) ORDER BY received_at, id LIMIT $3;

-- metrics/metrics.queries.ts: selectEnvelopeIds
SELECT m.id, m.agent_id, m.envelope_hash
  FROM (SELECT agent_id, envelope_hash FROM json_to_recordset($1::json) AS row(agent_id bigint, envelope_hash text)) AS r
  JOIN agent_metrics m ON m.agent_id = r.agent_id AND m.envelope_hash = r.envelope_hash;

-- metrics/metrics.queries.ts: selectEnvelopes
SELECT * FROM agent_metrics WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value)) ORDER BY measured_at DESC, id DESC;

-- metrics/metrics.queries.ts: selectSamples
SELECT agent_id, measured_at, received_at, counters, gauges FROM agent_metrics
  WHERE id = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($1::json) AS value));
