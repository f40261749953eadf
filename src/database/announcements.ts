import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import type { PostgresTarget } from '../settings';
import type { Announcement, Deliver } from './effects';
import type { Queryable } from './postgres';

export const CHANNEL = 'control_plane';

/** A notification holds 8,000 bytes at most; more announcements than fit go in several. */
const MAX_BYTES = 7_500;

/** How soon after a lost connection the next try is made, in milliseconds. */
const RETRY_MS = 500;

/** How often it is tried whether notifications arrive, and how long one may take. */
const PROBE_MS = 1_000;
const ANSWER_MS = 2_000;
const CONNECT_MS = 5_000;

/**
 * Sends announcements to the other replicas, in the transaction that they are about. All of it is sent before this returns, so
 * that what is sent next shares the flight.
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
 * Receives what other replicas announce, on a connection of its own. When that is lost, or notifications don't arrive by it,
 * it is made again, and its listeners are told that some may have been missed.
 */
export class Announcements {
  /** By which a process knows its own announcements, which it has heard already. */
  readonly id = randomUUID();
  private client: pg.Client | undefined;
  private timer: NodeJS.Timeout | undefined;
  private stopped = false;
  private heard = false;
  /** Told when the notification that a probe has sent is heard. */
  private onEcho: (() => void) | undefined;

  /**
   * Whether notifications arrive, as far as is known: tried every second. A connection that is cut, or that a pooler keeps
   * notifications from, is noticed within 3 s.
   */
  get isListening(): boolean {
    return this.client !== undefined && this.heard;
  }

  /** @param notify sends a notification, by another connection than the one that listens */
  constructor(
    private readonly target: PostgresTarget,
    private readonly deliver: Deliver,
    private readonly gap: () => void,
    private readonly notify: (payload: string) => Promise<unknown>,
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
   * Notifies itself and waits to receive it. An answer of the connection would not do: it says nothing of a LISTEN that a pooler
   * or a reset has dropped.
   */
  private async probe(client: pg.Client): Promise<void> {
    const echo = new Promise<true>((resolve) => {
      this.onEcho = () => resolve(true);
    });
    const sending = this.notify(JSON.stringify([this.id, []])).then(
      () => true,
      () => false,
    );
    // The connection itself too: it may be cut while the pool is busy.
    const answers = await client.query('SELECT 1').then(
      () => true,
      () => false,
    );
    if (!answers) return this.lost(client);
    const isSent = await sending;
    if (isSent && !(await Promise.race([echo, sleep(ANSWER_MS, false, { ref: false })])))
      return this.lost(client);
    // A pool that is busy proves nothing; what is kept in memory is looked up again after 5 s in any case.
    this.confirm(client, isSent);
  }

  private confirm(client: pg.Client, heard: boolean): void {
    if (this.client !== client) return;
    if (heard && !this.heard) {
      this.heard = true;
      // What was kept before was not told of changes.
      this.gap();
    }
    this.timer = setTimeout(() => void this.probe(client), PROBE_MS).unref();
  }

  private lost(client: pg.Client): void {
    if (this.stopped || this.client !== client) return;
    this.client = undefined;
    this.heard = false;
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

  private receive(payload: string): void {
    let sender: string;
    let batch: Announcement[];
    try {
      [sender, batch] = JSON.parse(payload) as [string, Announcement[]];
      // Its own it has heard already; that they arrive is what a probe waits for.
      if (sender === this.id) this.onEcho?.();
      else for (const announcement of batch) this.deliver(...announcement);
    } catch {
      // Somebody else's, or of a version that says it otherwise: whatever it was is looked up.
      this.gap();
    }
  }
}
