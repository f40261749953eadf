import { QueueMaintainer } from '../../src/queue/maintenance';
import type { Json } from '../helpers/api';
import { type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';

const QUOTAS = ['REGISTER', 'HEARTBEAT', 'CLAIM', 'EXTEND', 'REPORT', 'METRICS', 'CONFIG'];
const KINDS = ['dns', 'http', 'tcp', 'ping', 'trace'];

/** A call that an agent makes as often as it may: again when `Retry-After` is over. */
class Paced {
  private notBefore = 0;

  constructor(private readonly clock: TestClock) {}

  async call(send: () => Promise<{ status: number; headers: Headers; body: Json }>): Promise<Json> {
    if (this.clock.now() < this.notBefore) return undefined;
    const { status, headers, body } = await send();
    if (status === 200) return body;
    expect(status).toBe(429);
    this.notBefore = this.clock.now() + Number(headers.get('retry-after')) * 1_000;
    return undefined;
  }
}

/**
 * An agent as the original's: it claims 4 of each kind again and again, whatever it holds, reports one by one, and extends
 * what it holds by little every 2 s. Under the default quotas it can report 12 a minute.
 */
describe.each([
  ['with extends', true],
  ['without extends', false],
])('an agent that claims more than it can report, %s', (_name, extends_) => {
  const clock = new TestClock();
  let server: TestServer;
  let agent: Credentials;

  beforeAll(async () => {
    server = await TestServer.start(Object.fromEntries(QUOTAS.map((name) => [`QUOTA_${name}`, 'default'])), {
      clock,
    });
    agent = await server.register('original');
  });
  afterAll(() => server.stop());

  it('works steadily, and hardly a lease expires', async () => {
    const tasks = extends_
      ? Array.from({ length: 100 }, (_, i) => taskOf(KINDS[i % 5] as string))
      : Array.from({ length: 100 }, () => dnsTask());
    await server.enqueue(...tasks);
    const [claims, extensions, reports, heartbeats] = Array.from({ length: 4 }, () => new Paced(clock)) as [
      Paced,
      Paced,
      Paced,
      Paced,
    ];
    const held: number[] = [];
    let done = 0;
    const doneInMinute: number[] = [];
    for (let second = 0; done < 100 && second < 600; second++) {
      const claimed = await claims.call(() =>
        server.agent(agent, '/claim', { capacities: Object.fromEntries(KINDS.map((kind) => [kind, 4])) }),
      );
      for (const { lease_id } of claimed?.leases ?? []) held.push(lease_id);
      expect(held.length).toBeLessThanOrEqual(20);
      if (held.length > 0) {
        const reported = await reports.call(() =>
          server.agent(agent, '/report', {
            completed: [{ lease_id: held[0], outcome: 'success' }],
            cancelled: [],
          }),
        );
        if (reported) {
          held.shift();
          done += reported.acknowledged;
        }
      }
      if (extends_ && second % 2 === 0 && held.length > 0)
        await extensions.call(() => server.agent(agent, '/extend', { lease_ids: held, extend_by_ms: 500 }));
      if (second % 15 === 0) await heartbeats.call(() => server.agent(agent, '/heartbeat'));
      clock.advance(1_000);
      await server.app.get(QueueMaintainer).reap();
      if (second % 60 === 59) doneInMinute.push(done);
    }
    expect(done).toBe(100);
    // What the quota for reports lets through: 12 a minute, each minute.
    expect(doneInMinute.every((sum, minute) => sum >= 11 * (minute + 1))).toBe(true);
    const [expired] = await server.rows(`SELECT count(*) AS count FROM leases WHERE state = 'expired'`);
    expect(expired.count).toBeLessThanOrEqual(2);
  });
});

function taskOf(kind: string): object {
  if (kind === 'dns') return dnsTask();
  if (kind === 'http') return { kind, spec: { url: 'https://example.com/' } };
  return { kind, spec: { host: 'example.com', ...(kind === 'tcp' ? { port: 443 } : {}) } };
}
