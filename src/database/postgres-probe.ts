import pg from 'pg';
import type { PostgresTarget } from '../settings';
import { IS_READ_ONLY } from './postgres';

/** The time limit of a connection, and of an answer, in milliseconds. */
const TIMEOUT_MS = 2_000;

/**
 * Asks the server whether it accepts writes, on its own connection, because a busy pool does not mean that the server
 * is unavailable. Concurrent callers share an answer.
 */
export class PostgresProbe {
  private client: pg.Client | undefined;
  private checking: Promise<void> | undefined;
  private stopped = false;

  constructor(private readonly target: PostgresTarget) {}

  /** Resolves if the server accepts writes. @throws an error with the reason, or the driver's */
  ask(): Promise<void> {
    this.checking ??= this.checkServer().finally(() => {
      this.checking = undefined;
    });
    return this.checking;
  }

  async stop(): Promise<void> {
    this.stopped = true;
    await this.checking?.catch(() => undefined);
    await this.client?.end().catch(() => undefined);
  }

  private async checkServer(): Promise<void> {
    if (this.stopped) throw new Error('The database is closed.');
    const open = this.client;
    this.client = undefined;
    if (open) {
      try {
        return await this.checkOn(open);
      } catch {
        // It may be broken, or connected to a server that is no longer the primary: connect again.
      }
    }
    await this.checkOn(await this.connect());
  }

  private async checkOn(client: pg.Client): Promise<void> {
    try {
      const { rows } = await client.query<{ read_only: boolean }>(`SELECT ${IS_READ_ONLY} AS read_only`);
      if (rows[0]?.read_only) throw new Error('The server is read-only.');
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
      connectionTimeoutMillis: TIMEOUT_MS,
      query_timeout: TIMEOUT_MS,
      keepAlive: true,
    });
    // The next query reports a lost connection.
    client.on('error', () => undefined);
    await client.connect().catch((error: unknown) => {
      client.end().catch(() => undefined);
      throw error;
    });
    return client;
  }
}
