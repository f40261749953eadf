import pg from 'pg';
import type { PostgresTarget } from '../settings';
import { IS_READ_ONLY } from './postgres';

/** How long a connection, and an answer, may take, in milliseconds. */
const PATIENCE_MS = 2_000;

/**
 * Asks the server whether it takes writes, on a connection of its own: that the pool's are all in use says nothing of it.
 * All who ask at once share an answer.
 */
export class PostgresProbe {
  private client: pg.Client | undefined;
  private asking: Promise<void> | undefined;
  private stopped = false;

  constructor(private readonly target: PostgresTarget) {}

  /** @throws an error that says why the server takes no writes, or the driver's */
  ask(): Promise<void> {
    this.asking ??= this.askServer().finally(() => {
      this.asking = undefined;
    });
    return this.asking;
  }

  async stop(): Promise<void> {
    this.stopped = true;
    await this.asking?.catch(() => undefined);
    await this.client?.end().catch(() => undefined);
  }

  private async askServer(): Promise<void> {
    if (this.stopped) throw new Error('The database is closed.');
    const kept = this.client;
    this.client = undefined;
    if (kept) {
      try {
        return await this.askOn(kept);
      } catch {
        // It may have been cut off long ago, or lead to a server that is no longer the primary.
      }
    }
    await this.askOn(await this.connect());
  }

  private async askOn(client: pg.Client): Promise<void> {
    try {
      const { rows } = await client.query<{ read_only: boolean }>(`SELECT ${IS_READ_ONLY} AS read_only`);
      if (rows[0]?.read_only) throw new Error('The server takes no writes.');
    } catch (error) {
      client.end().catch(() => undefined);
      throw error;
    }
    this.client = client;
  }

  private async connect(): Promise<pg.Client> {
    const client = new pg.Client({
      connectionString: this.target.url,
      application_name: 'control-plane probe',
      connectionTimeoutMillis: PATIENCE_MS,
      query_timeout: PATIENCE_MS,
      keepAlive: true,
    });
    // A connection that is lost says so to the next question.
    client.on('error', () => undefined);
    await client.connect().catch((error: unknown) => {
      client.end().catch(() => undefined);
      throw error;
    });
    return client;
  }
}
