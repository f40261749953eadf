// The wire names and request bodies of the benchmark: if the contract changes, change them here.

/** The field of a limit, and of a window, with the most leases at once. */
export const LIMIT = 'limit';

/** The series that count commits, in GET /metrics. */
export const COMMITS = 'control_plane_commit_units_count';

/** The most leases that one claim grants. */
export const MAX_CLAIM = 256;
/** The most tasks that one call enqueues. */
export const MAX_ENQUEUE = 10_000;

/** Targets in two documentation networks, 200 in each: one for the workers' tasks, one for full targets. */
export const workTarget = (i) => `192.0.2.${i % 200}`;
export const otherTarget = (i) => `198.51.100.${i % 200}`;
/** Returns the target of a task as limits name it. */
export const limitTarget = (server) => `${server}:53`;

/** The headers that prove an agent. */
export const agentHeaders = ({ id, token }) => ({ 'x-agent-id': id, 'x-agent-token': token });

/** Creates tasks to enqueue. @param targetOf returns the server of each */
export const dnsTasks = (count, { from = 0, targetOf = workTarget, priority } = {}) =>
  Array.from({ length: count }, (_, i) => ({
    kind: 'dns',
    spec: { query: `host-${from + i}.example.com`, server: targetOf(from + i), record_type: 'A' },
    ...(priority === undefined ? {} : { priority }),
  }));

export const heartbeatBody = ({ id }) => ({ agent_id: id });
export const claimBody = ({ id }, count, waitMs) => ({
  agent_id: id,
  capacities: { dns: count },
  ...(waitMs === undefined ? {} : { wait_ms: waitMs }),
});
export const extendBody = ({ id }, leaseIds) => ({
  agent_id: id,
  lease_ids: leaseIds,
  extend_by_ms: 60_000,
});

/** Creates a report that completes leases, each with two observations. */
export const reportBody = ({ id }, leaseIds) => ({
  agent_id: id,
  completed: leaseIds.map((leaseId) => ({
    lease_id: leaseId,
    outcome: 'success',
    observations: [
      { name: 'rtt', value: 12.5, unit: 'ms' },
      { name: 'answers', value: ['192.0.2.1', '192.0.2.2'] },
    ],
  })),
  cancelled: [],
});

/** Creates an envelope of metrics. A different instant makes it a different envelope. */
export const metricsBody = ({ id }, at) => ({
  agent_id: id,
  timestamp: new Date(at).toISOString(),
  counters: [
    { name: 'checks', value: at % 1_000 },
    { name: 'checks_failed', value: at % 7 },
  ],
  gauges: [
    { name: 'in_flight', value: at % 4 },
    { name: 'cpu', value: 0.25, unit: 'ratio' },
    { name: 'rss', value: 52_428_800, unit: 'bytes' },
  ],
});

/**
 * Creates the limit of a window: of a target, of a kind, or, without either, of everything. @param limit null lifts
 * it
 */
export const limitOf = ({ kind, target }, limit) => ({
  ...(kind === undefined ? {} : { kind }),
  ...(target === undefined ? {} : { target }),
  [LIMIT]: limit,
});
