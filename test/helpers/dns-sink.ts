import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { Packet } from 'dns2';

/** A query that came in, in ms since the epoch. */
export interface Arrival {
  readonly index: number;
  readonly at: number;
  readonly name: string;
}

/** DNS servers on ports of their own that note when queries come in, in a thread of its own. */
export class DnsSink {
  private constructor(
    private readonly worker: Worker,
    readonly ports: readonly number[],
  ) {}

  /** @param ports how many */
  static async start(ports: number): Promise<DnsSink> {
    const worker = new Worker(join(__dirname, 'dns-sink-thread.mjs'), { workerData: { ports } });
    const [bound] = await once(worker, 'message');
    return new DnsSink(worker, bound);
  }

  /** Has one of them answer `capacity` queries in a second, and drop the others; null if it answers all. */
  answer(index: number, capacity: number | null): void {
    this.worker.postMessage({ index, capacity });
  }

  /** What came in so far. */
  async arrivals(): Promise<Arrival[]> {
    this.worker.postMessage({ reads: true });
    return (await once(this.worker, 'message'))[0];
  }

  async stop(): Promise<void> {
    await this.worker.terminate();
  }
}

/** Sends DNS queries to servers of this machine. */
export class DnsClient {
  private readonly socket: Socket = createSocket('udp4');
  private readonly waiting = new Map<number, () => void>();
  private lastId = 0;

  constructor() {
    this.socket.on('message', (message) => this.waiting.get(message.readUInt16BE(0))?.());
  }

  /** @returns the round-trip time in ms; null if there was no answer in time */
  async query(port: number, name: string, withinMs: number): Promise<number | null> {
    this.lastId = (this.lastId + 1) % 65_536;
    const id = this.lastId;
    const packet = new Packet();
    packet.header.id = id;
    packet.header.rd = 1;
    packet.questions.push({
      name,
      type: Packet.TYPE.A,
      class: Packet.CLASS.IN,
    } as (typeof packet.questions)[number]);
    const { promise, resolve } = Promise.withResolvers<number | null>();
    const since = performance.now();
    const late = setTimeout(() => resolve(null), withinMs);
    this.waiting.set(id, () => resolve(performance.now() - since));
    this.socket.send(packet.toBuffer(), port, '127.0.0.1');
    const rttMs = await promise;
    clearTimeout(late);
    this.waiting.delete(id);
    return rttMs;
  }

  close(): void {
    this.socket.close();
  }
}
