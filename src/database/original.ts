import { existsSync } from 'node:fs';
import type Sqlite from 'better-sqlite3';
import { DatabaseError } from './database-error';
import { isOriginal } from './foreign';
import { openForReading, toOpenError } from './sqlite';

/** An agent in the original control plane's database. */
export interface OriginalAgent {
  readonly id: number;
  readonly hostname: string;
  /** In clear text: the original does not hash it. */
  readonly auth_token: string;
  /** In ms since the epoch; null if unknown. */
  readonly created_at: number | null;
  readonly last_heartbeat: number | null;
  readonly state: 'active' | 'disabled' | 'revoked';
}

/** A task in the original control plane's database. */
export interface OriginalTask {
  readonly id: number;
  readonly kind: string;
  /** JSON, with the kind repeated in it. */
  readonly spec: string;
}

/** The last id of each of the original's counters. */
export type OriginalIds = Readonly<Record<'agents' | 'tasks' | 'leases', number>>;

/**
 * Reads a database of the original control plane, at one state of it, whether or not its server runs. It does not read
 * leases, metrics, configurations and windows.
 */
export class OriginalDatabase {
  private constructor(
    readonly path: string,
    private readonly file: Sqlite.Database,
  ) {}

  /**
   * Opens it, and reads all of it once, so that an import of a damaged file fails before it creates anything.
   * @throws DatabaseInUse another process has locked it
   * @throws DatabaseError it can't be opened, is not such a database, or is damaged
   */
  static open(path: string): OriginalDatabase {
    if (!existsSync(path)) throw new DatabaseError(`There is no database ${path}.`);
    let file: Sqlite.Database | undefined;
    try {
      file = openForReading(path);
      if (!isOriginal(file))
        throw new DatabaseError(
          `${path} is not a database of the original control plane, or of an unknown version of it: it must have ` +
            'the tables agents, tasks and sequences, with their columns. Nothing was changed.',
        );
      file.exec('BEGIN');
      const original = new OriginalDatabase(path, file);
      original.check();
      return original;
    } catch (error) {
      file?.close();
      throw toOpenError({ type: 'sqlite', path }, error);
    }
  }

  /** Reads all agents, by id. */
  agents(): OriginalAgent[] {
    return this.reading(() =>
      this.select<Row>('agents').map((row) => ({
        id: this.idOf(row.id),
        hostname: String(row.hostname),
        auth_token: String(row.auth_token),
        created_at: instantOf(row.created_at),
        last_heartbeat: instantOf(row.last_heartbeat),
        state: isSet(row.revoked) ? 'revoked' : isSet(row.disabled) ? 'disabled' : 'active',
      })),
    );
  }

  /** Reads the queued tasks with ids above `after`, by id. */
  *queuedTasks(after: number): Generator<OriginalTask> {
    const rows = this.reading(
      () =>
        this.file
          .prepare(`SELECT id, kind, spec FROM tasks WHERE status = 'queued' AND id > ? ORDER BY id`)
          .iterate(after) as IterableIterator<Row>,
    );
    try {
      while (true) {
        const { done, value: row } = this.reading(() => rows.next());
        if (done) return;
        yield { id: this.idOf(row.id), kind: String(row.kind), spec: String(row.spec) };
      }
    } finally {
      rows.return?.();
    }
  }

  /** Counts the tasks that an agent has or had: the original never marks one as done. */
  countTaken(): number {
    return this.reading(
      () => this.file.prepare(`SELECT count(*) FROM tasks WHERE status <> 'queued'`).pluck().get() as number,
    );
  }

  /** Reads the last ids that it assigned. */
  lastIds(): OriginalIds {
    return this.reading(() => {
      const rows = this.select<{ name: string; value: unknown }>('sequences');
      const counters = new Map(rows.map(({ name, value }) => [name, this.idOf(value)]));
      const last = (counter: string, table: string) =>
        Math.max(counters.get(counter) ?? 0, this.maxId(table));
      return {
        agents: last('agent_id', 'agents'),
        tasks: last('task_id', 'tasks'),
        leases: last('lease_id', 'leases'),
      };
    });
  }

  close(): void {
    this.file.close();
  }

  /** Reads each page of the file, and each value that the import needs. */
  private check(): void {
    const [verdict] = this.reading(() => this.file.pragma('quick_check(1)') as { quick_check: string }[]);
    if (verdict?.quick_check !== 'ok')
      throw this.damaged(String(verdict?.quick_check).replace(/^\*{3}.*\n/, ''));
    this.lastIds();
    this.countTaken();
    this.agents();
    for (const _ of this.queuedTasks(0));
  }

  /** Turns errors of SQLite into messages about the file. */
  private reading<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      const { code, message } = error as { code?: unknown; message: string };
      if (/^SQLITE_(CORRUPT|NOTADB|IOERR|ERROR)/.test(String(code)))
        throw this.damaged(`${message} (${code})`);
      throw toOpenError({ type: 'sqlite', path: this.path }, error);
    }
  }

  private damaged(finding: string): DatabaseError {
    return new DatabaseError(
      `${this.path} is damaged or has another format than the original's: ${finding.replaceAll('\n', ' ')}. Nothing was changed; ` +
        'import an intact copy.',
    );
  }

  /** @throws DatabaseError it can't be an id of the original */
  private idOf(value: unknown): number {
    if (Number.isSafeInteger(value) && (value as number) >= 0) return value as number;
    throw this.damaged(`an id is ${JSON.stringify(value) ?? value}`);
  }

  private maxId(table: string): number {
    const exists = this.file.prepare('SELECT 1 FROM sqlite_schema WHERE name = ?').get(table);
    return exists ? this.idOf(this.file.prepare(`SELECT max(id) FROM "${table}"`).pluck().get() ?? 0) : 0;
  }

  private select<R>(table: 'agents' | 'sequences'): R[] {
    return this.file.prepare(`SELECT * FROM "${table}" ORDER BY 1`).all() as R[];
  }
}

type Row = Record<string, unknown>;

const isSet = (value: unknown): boolean => Number(value) !== 0;

/** Reads `2026-01-01 00:00:00`, UTC, as SQLite's CURRENT_TIMESTAMP writes it, and RFC 3339. */
function instantOf(value: unknown): number | null {
  if (typeof value !== 'string') return null;
  const text = value.replace(' ', 'T');
  const instant = Date.parse(/(?:Z|[+-]\d\d:?\d\d)$/.test(text) ? text : `${text}Z`);
  return Number.isFinite(instant) && instant > 0 ? instant : null;
}
