import { randomUUID } from 'node:crypto';
import pg from 'pg';
import type { PostgresTarget } from '../settings';
import type { Announcement, Deliver } from './effects';
import type { Queryable } from './postgres';

const CHANNEL = 'control_plane';

/** A notification holds 8,000 bytes at the most; more announcements than fit go in several. */
const MAX_BYTES = 7_500;

/** How soon after a lost connection the next try is made, in milliseconds. */
const RETRY_MS = 500;

/** How often the connection is asked whether it is there, and how long it may take to answer. */
const PROBE_MS = 1_000;
const ANSWER_MS = 2_000;
const CONNECT_MS = 5_000;

/** Sends announcements to the other replicas, in the transaction that they are about. */
export async function publish(
  client: Queryable,
  sender: string,
  announcements: readonly Announcement[],
): Promise<void> {
  for (let i = 0; i < announcements.length; ) {
    const batch: Announcement[] = [];
    let bytes = sender.length + 20;
    do {
      const next = announcements[i] as Announcement;
      bytes += Buffer.byteLength(JSON.stringify(next)) + 1;
      if (batch.length > 0 && bytes > MAX_BYTES) break;
      batch.push(next);
      i++;
    } while (i < announcements.length);
    await client.query('SELECT pg_notify($1, $2)', [CHANNEL, JSON.stringify([sender, batch])]);
  }
}

/**
 * Hears what other replicas announce, on a connection of its own. When that is lost it is made anew, and whoever rests on
 * announcements is told that some may have been missed.
 */
export class Announcements {
  /** By which a process knows its own announcements, which it has heard already. */
  readonly id = randomUUID();
  private client: pg.Client | undefined;
  private timer: NodeJS.Timeout | undefined;
  private stopped = false;

  /** Whether a connection listens, as far as is known: one that went silent is noticed within 3 s. */
  get connected(): boolean {
    return this.client !== undefined;
  }

  constructor(
    private readonly target: PostgresTarget,
    private readonly deliver: Deliver,
    private readonly gap: () => void,
  ) {}

  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    const { client } = this;
    this.client = undefined;
    await client?.end().catch(() => undefined);
  }

  /** Begins to listen. @throws the driver's error where the server can't be reached */
  async connect(): Promise<void> {
    const client = new pg.Client({
      connectionString: this.target.url,
      application_name: 'control-plane announcements',
      connectionTimeoutMillis: CONNECT_MS,
      query_timeout: ANSWER_MS,
      keepAlive: true,
    });
    client.on('notification', ({ payload }) => this.hear(payload ?? ''));
    client.on('error', () => this.lost(client));
    client.on('end', () => this.lost(client));
    try {
      await client.connect();
      await client.query(`LISTEN ${CHANNEL}`);
    } catch (error) {
      client.end().catch(() => undefined);
      throw error;
    }
    if (this.stopped) return void client.end();
    this.client = client;
    this.probe(client);
  }

  /** A connection that was cut in between says nothing, so it is asked. */
  private probe(client: pg.Client): void {
    this.timer = setTimeout(() => {
      client.query('SELECT 1').then(
        () => this.client === client && this.probe(client),
        () => this.lost(client),
      );
    }, PROBE_MS).unref();
  }

  private lost(client: pg.Client): void {
    if (this.stopped || this.client !== client) return;
    this.client = undefined;
    clearTimeout(this.timer);
    client.end().catch(() => undefined);
    this.gap();
    this.tryAgain();
  }

  private tryAgain(): void {
    this.timer = setTimeout(() => {
      this.connect().then(
        // What was announced while nobody listened is lost too.
        () => this.gap(),
        () => {
          this.gap();
          if (!this.stopped) this.tryAgain();
        },
      );
    }, RETRY_MS).unref();
  }

  private hear(payload: string): void {
    let sender: string;
    let batch: Announcement[];
    try {
      [sender, batch] = JSON.parse(payload) as [string, Announcement[]];
      if (sender === this.id) return;
      for (const announcement of batch) this.deliver(...announcement);
    } catch {
      // Somebody else's, or of a version that says it otherwise: whatever it was is looked up.
      this.gap();
    }
  }
}
