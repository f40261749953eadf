import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Json, Lease } from './api';
import { DnsClient } from './dns-sink';
import { type Answer, type Credentials, credentialsOf, ServerClient } from './harness';
import type { ServerProcess } from './processes';

/** How long an agent waits for tasks, for the answer of a target, and for that of a server. */
const WAIT_MS = 2_000;
const QUERY_MS = 250;
const ANSWER_MS = 10_000;
/** How soon an agent gives up a claim whose answer it does not want to wait for, to repeat it. */
const IMPATIENT_MS = 30;
const PAUSE_MS = 50;
/** How often an agent that is to stop tries to get an answer. */
const MAX_TRIES = 100;

/** Agents that do what they lease: each starts when it is told, asks the target, and reports at once. */
export class PacedFleet {
  private readonly client = new DnsClient();
  private isStopping = false;
  private readonly finished: Promise<Error | undefined>;
  /** Claims that were sent again under their key. */
  repeated = 0;

  private constructor(
    readonly urls: string[],
    agents: readonly Credentials[],
  ) {
    this.finished = Promise.all(agents.map((who, i) => this.work(who, i))).then(
      () => undefined,
      (error) => error,
    );
  }

  /**
   * Registers agents and has them work.
   * @param capacity how many tasks each does at a time
   */
  static async start(servers: readonly ServerProcess[], count: number): Promise<PacedFleet> {
    const urls = servers.map(({ url }) => url);
    const agents = await Promise.all(
      Array.from({ length: count }, (_, i) =>
        (servers[i % servers.length] as ServerProcess).register(`paced-${randomUUID()}`),
      ),
    );
    return new PacedFleet(urls, agents);
  }

  /** Ends when every agent has done what it has leased. @throws Error one of them was refused */
  async stop(): Promise<void> {
    this.isStopping = true;
    const error = await this.finished;
    this.client.close();
    if (error) throw error;
  }

  private async work(who: Credentials, index: number): Promise<void> {
    for (let round = index; !this.isStopping; round++) {
      const key = randomUUID();
      const claim = { capacities: { dns: 4 }, wait_ms: WAIT_MS };
      if (round % 10 === 0) {
        await this.call(who, '/claim', claim, key, round, IMPATIENT_MS);
        this.repeated++;
      }
      const answer = await this.insist(who, '/claim', claim, key, round);
      const receivedAt = performance.now();
      const leases: Lease[] = answer?.leases ?? [];
      if (leases.length === 0) continue;
      const completed = await Promise.all(leases.map((lease) => this.check(lease, receivedAt)));
      await this.insist(who, '/report', { completed, cancelled: [] }, undefined, round);
    }
  }

  /** Does a check. @returns its report */
  private async check({ lease_id, spec, start_in_ms = 0 }: Lease, receivedAt: number): Promise<object> {
    await sleep(Math.max(0, Math.ceil(receivedAt + start_in_ms - performance.now())));
    const port = Number(String((spec as Json).server).split(':')[1]);
    const rttMs = await this.client.query(port, `lease-${lease_id}.example`, QUERY_MS);
    return rttMs === null
      ? { lease_id, outcome: 'timeout', failure: 'timeout' }
      : { lease_id, outcome: 'success', rtt_ms: rttMs };
  }

  /** Calls one replica after the other until one answers. */
  private async insist(
    who: Credentials,
    path: string,
    body: object,
    key: string | undefined,
    round: number,
  ): Promise<Json> {
    for (let tries = 0; !this.isStopping || tries < MAX_TRIES; tries++) {
      const answer = await this.call(who, path, body, key, round + tries, ANSWER_MS);
      if (answer && answer.status < 300) return answer.body;
      if (answer && answer.status < 500 && !answer.body.retryable)
        throw new Error(`${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
      await sleep(PAUSE_MS);
    }
    return undefined;
  }

  private async call(
    who: Credentials,
    path: string,
    body: object,
    key: string | undefined,
    tries: number,
    withinMs: number,
  ): Promise<Answer | undefined> {
    const url = this.urls[tries % this.urls.length] as string;
    try {
      return await new ServerClient(url).request('POST', path, {
        headers: { ...credentialsOf(who), ...(key === undefined ? {} : { 'idempotency-key': key }) },
        body: { agent_id: who.agent_id, ...body },
        signal: AbortSignal.timeout(withinMs),
      });
    } catch {
      return undefined;
    }
  }
}
