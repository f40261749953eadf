import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import type { PostgresTarget } from '../settings';
import type { Announcement, Deliver } from './effects';
import type { Queryable } from './postgres';

export const CHANNEL = 'control_plane';

/** The most bytes of one notification: PostgreSQL allows 8,000. More announcements go in several. */
const MAX_BYTES = 7_500;

/** The pause before a lost connection is opened again, in milliseconds. */
const RETRY_MS = 500;

/** The interval of probes, and how long their notification may take, in milliseconds. */
const PROBE_MS = 1_000;
const ANSWER_MS = 2_000;
const CONNECT_MS = 5_000;

/**
 * Sends announcements to the other replicas, in the transaction that they are about. It sends all of them before it
 * awaits anything, so that the caller's next statement is in the same round trip.
 */
export async function publish(
  client: Queryable,
  sender: string,
  announcements: readonly Announcement[],
): Promise<void> {
  const sent: Promise<unknown>[] = [];
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
    sent.push(client.query('SELECT pg_notify($1, $2)', [CHANNEL, JSON.stringify([sender, batch])]));
  }
  await Promise.all(sent);
}

/**
 * Receives the announcements of other replicas on its own connection. If that is lost, or notifications stop arriving,
 * it reconnects and calls `reportGap`, because announcements may have been lost.
 */
export class Announcements {
  /** Identifies the process's own announcements, which it has delivered already. */
  readonly id = randomUUID();
  private client: pg.Client | undefined;
  private timer: NodeJS.Timeout | undefined;
  private stopped = false;
  private isReceiving = false;
  /** Called when the notification of a probe arrives. */
  private onEcho: (() => void) | undefined;

  /**
   * Whether notifications arrive, by the last probe. A cut connection, or a pooler that holds notifications back, is
   * noticed within 3 s.
   */
  get isListening(): boolean {
    return this.client !== undefined && this.isReceiving;
  }

  /** @param notify sends a notification through a connection other than the listening one */
  constructor(
    private readonly target: PostgresTarget,
    private readonly deliver: Deliver,
    private readonly reportGap: () => void,
    private readonly notify: (payload: string) => Promise<unknown>,
  ) {}

  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    const { client } = this;
    this.client = undefined;
    await client?.end().catch(() => undefined);
  }

  /** Connects and listens. @throws the driver's error if the server can't be reached */
  async connect(): Promise<void> {
    const client = new pg.Client({
      connectionString: this.target.url,
      application_name: 'control-plane announcements',
      connectionTimeoutMillis: CONNECT_MS,
      query_timeout: ANSWER_MS,
      keepAlive: true,
    });
    client.on('notification', ({ payload }) => this.receive(payload ?? ''));
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
    await this.probe(client);
  }

  /**
   * Notifies itself and waits for the notification. An answer of the connection is not enough: a pooler or a reset may
   * have dropped the LISTEN.
   */
  private async probe(client: pg.Client): Promise<void> {
    const echo = new Promise<true>((resolve) => {
      this.onEcho = () => resolve(true);
    });
    const sending = this.notify(JSON.stringify([this.id, []])).then(
      () => true,
      () => false,
    );
    // Check the connection itself too: it may be cut while the pool is busy.
    const answers = await client.query('SELECT 1').then(
      () => true,
      () => false,
    );
    if (!answers) return this.lost(client);
    const isSent = await sending;
    if (isSent && !(await Promise.race([echo, sleep(ANSWER_MS, false, { ref: false })])))
      return this.lost(client);
    // If the pool is busy, the result is unknown; caches read their rows again after 5 s in any case.
    this.confirm(client, isSent);
  }

  private confirm(client: pg.Client, isReceiving: boolean): void {
    if (this.client !== client) return;
    if (isReceiving && !this.isReceiving) {
      this.isReceiving = true;
      // Rows that were cached before may have changed without an announcement.
      this.reportGap();
    }
    this.timer = setTimeout(() => void this.probe(client), PROBE_MS).unref();
  }

  private lost(client: pg.Client): void {
    if (this.stopped || this.client !== client) return;
    this.client = undefined;
    this.isReceiving = false;
    clearTimeout(this.timer);
    client.end().catch(() => undefined);
    this.reportGap();
    this.reconnect();
  }

  private reconnect(): void {
    this.timer = setTimeout(() => {
      this.connect().then(
        // Announcements since the connection was lost are lost too.
        () => this.reportGap(),
        () => {
          this.reportGap();
          if (!this.stopped) this.reconnect();
        },
      );
    }, RETRY_MS).unref();
  }

  private receive(payload: string): void {
    let sender: string;
    let batch: Announcement[];
    try {
      [sender, batch] = JSON.parse(payload) as [string, Announcement[]];
      // Its own are delivered already; a probe waits for their arrival.
      if (sender === this.id) this.onEcho?.();
      else for (const announcement of batch) this.deliver(...announcement);
    } catch {
      // From another program, or a version with another format: treat it as a lost announcement.
      this.reportGap();
    }
  }
}
