// The baseline for the cost of HTTP and JSON: Fastify with the same requests and answers and nothing else. It stores,
// checks and logs nothing. The benchmark starts it as a separate process.
import { fastify } from 'fastify';

const http = fastify({ bodyLimit: 4 * 1024 * 1024 });

let nextId = 1;

http.get('/healthz', async () => ({ status: 'ok' }));

http.post('/register', async () => ({
  agent_id: nextId++,
  auth_token: `dcpa_${'x'.repeat(49)}`,
  lease_duration_ms: 60_000,
  heartbeat_timeout_ms: 45_000,
}));

http.post('/heartbeat', async ({ body }) => ({ agent_id: body.agent_id, next_deadline_ms: 45_000 }));

http.post('/claim', async ({ body }) => ({
  leases: Array.from({ length: body.capacities.dns }, () => {
    const id = nextId++;
    return {
      lease_id: id,
      task_id: id,
      kind: 'dns',
      lease_until_ms: 60_000,
      spec: { kind: 'dns', query: `host-${id}.example.com`, server: `192.0.2.${id % 250}`, record_type: 'A' },
    };
  }),
}));

http.post('/extend', async ({ body }) => ({
  outcomes: body.lease_ids.map((id) => ({ lease_id: id, new_deadline_ms: 60_000 })),
  revoked: [],
}));

http.post('/metrics', async (_, reply) => {
  reply.code(202);
  return { accepted: true, id: String(nextId++) };
});

http.post('/report', async ({ body }) => ({ acknowledged: body.completed.length }));

http.post('/v1/tasks', async ({ body }, reply) => {
  reply.code(201);
  return { tasks: body.tasks.map(() => ({ id: nextId++, state: 'queued' })) };
});

await http.listen({ host: '127.0.0.1', port: Number(process.argv[2]) });
