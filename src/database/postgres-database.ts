import { AsyncLocalStorage } from 'node:async_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { DataSource } from 'typeorm';
import type { Clock } from '../clock';
import { fail } from '../errors';
import type { Extension } from '../extensions';
import type { PostgresTarget, Settings } from '../settings';
import { inSpan } from '../tracing';
import { Announcements, CHANNEL, publish } from './announcements';
import type { BucketTable } from './bucket-table';
import { Database, type DatabaseStats } from './database';
import { DatabaseClock } from './database-clock';
import { DatabaseError, DatabaseUnreachable } from './database-error';
import { type Announcement, type Deliver, Effects } from './effects';
import { knownMigrations, migrate, missingMigrations } from './migrations';
import {
  checkServer,
  driverErrorOf,
  isConnectionBroken,
  isConnectionLost,
  isDiskFull,
  isLockTimeout,
  isReadOnly,
  isRetryable,
  isUniqueViolation,
  LOCK_TIMEOUT_MS,
  NOW,
  PostgresStatements,
  poolOptions,
  refuseTransactionPooling,
  toCallerError,
  unknownEffect,
} from './postgres';
import { PostgresBuckets } from './postgres-buckets';
import { PostgresProbe } from './postgres-probe';
import type { DatabaseReplacements } from './sqlite-database';
import { type SqlValue, type Statements, type Transaction, UnitIsOver } from './statements';

/** How often a unit is run again after conflicts with others. */
const MAX_RERUNS = 3;

/** How often the server's clock is read if nothing is written, in milliseconds. */
const OBSERVE_CLOCK_MS = 5_000;

/** The advisory lock of migrations: a number that other programs on the same server do not use. */
const MIGRATION_LOCK = 6_214_503_001;

/** The class of the advisory locks of jobs. */
const JOB_LOCKS = 62_145;

/** The class of the advisory locks that units take by name. */
const NAMED_LOCKS = 62_146;

const SELECT_NOW = `SELECT ${NOW} AS now`;

/** How long the disk counts as full after the server reported it, in milliseconds. */
const DISK_FULL_MS = 30_000;

/** How long the size of the database is cached, in milliseconds. */
const SIZE_MS = 60_000;

/**
 * Begins, and reads the time, in one round trip. Names the isolation level, because the database's default may
 * differ.
 */
const BEGIN = `BEGIN ISOLATION LEVEL READ COMMITTED; ${SELECT_NOW}`;

/** A PostgreSQL database, which any number of processes can share. */
export class PostgresDatabase extends Database {
  readonly mayHaveReplicas = true;
  readonly buckets: BucketTable = new PostgresBuckets(this);
  readonly endsWithProcess = false;
  readonly maxGatheredUnits = 1;
  private readonly inside = new AsyncLocalStorage<true>();
  private readonly pool: pg.Pool;
  private readonly reader: Statements;
  private readonly announcements: Announcements;
  private readonly timer: NodeJS.Timeout;
  private closed: Promise<void> | undefined;
  private lastExclusive: Promise<unknown> = Promise.resolve();
  private readonly serverClock = new DatabaseClock();
  private readonly probe: PostgresProbe;
  private attempts = 0;
  private diskFullUntil = Number.NEGATIVE_INFINITY;
  private size: { bytes: number | undefined; askedAt: number } | undefined;
  /** The server's, unless a test replaces it. */
  readonly clock: Clock;

  private constructor(
    readonly source: DataSource,
    clock: Clock | undefined,
    target: PostgresTarget,
    readonly applied: readonly string[],
  ) {
    super();
    this.clock = clock ?? this.serverClock;
    this.probe = new PostgresProbe(target);
    this.pool = poolOf(source);
    this.reader = new PostgresStatements(this.pool, source.manager);
    this.announcements = new Announcements(
      target,
      (topic, message) => this.deliver(topic, message),
      () => this.gap(),
      // Through another connection: a listening connection receives its own notifications even if it misses all
      // others.
      (payload) => this.pool.query('SELECT pg_notify($1, $2)', [CHANNEL, payload]),
    );
    this.timer = setInterval(() => void this.observeClock().catch(() => undefined), OBSERVE_CLOCK_MS).unref();
  }

  /**
   * Connects and, unless the settings forbid it, migrates. If several processes start at once, one migrates, and the
   * others wait for it.
   * @param settings.limited whether statements have a time limit
   * @throws DatabaseError it can't be reached or used, was written by a newer version, or lacks migrations that the
   * settings forbid to apply
   */
  static async open(
    target: PostgresTarget,
    {
      migrateOnStart,
      poolSize,
      limited = true,
    }: Pick<Settings, 'migrateOnStart' | 'poolSize'> & { limited?: boolean },
    entities: DataSource['options']['entities'],
    extensions: readonly Extension[],
    { clock }: DatabaseReplacements = {},
  ): Promise<PostgresDatabase> {
    const source = new DataSource({
      // A job holds one connection for its lock while it writes on another.
      ...poolOptions(target, Math.max(2, poolSize), { limited, planned: true }),
      migrations: knownMigrations(),
      entities,
    });
    try {
      await source.initialize();
    } catch (error) {
      throw toConnectError(error);
    }
    try {
      await checkServer(new PostgresStatements(poolOf(source), source.manager));
      await refuseTransactionPooling(poolOf(source));
      const runner = source.createQueryRunner();
      const missing = await missingMigrations(source, runner, extensions).finally(() => runner.release());
      const applied = missing.length > 0 ? await migrateAlone(target, extensions, migrateOnStart) : [];
      const database = new PostgresDatabase(source, clock, target, applied);
      await database.observeClock();
      await database.announcements.connect();
      return database;
    } catch (error) {
      await source.destroy();
      throw toStartError(error);
    }
  }

  /** Reads a database, also while servers use it. */
  static async inspect<T>(target: PostgresTarget, work: (statements: Statements) => Promise<T>): Promise<T> {
    const source = new DataSource({
      ...poolOptions(target, 1, { limited: true, planned: false }),
      migrations: knownMigrations(),
    });
    await source.initialize().catch((error: unknown) => {
      throw toConnectError(error);
    });
    try {
      return await work(new PostgresStatements(poolOf(source), source.manager));
    } finally {
      await source.destroy();
    }
  }

  async write<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    if (this.insideWrite) throw new Error('write() was called inside a unit of work; use its transaction');
    return inSpan('unit_of_work', () => this.run(work));
  }

  /** Runs a unit of work, again if it conflicts with another. */
  private async run<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    for (let reruns = 0; ; reruns++) {
      try {
        return await this.attempt(work);
      } catch (error) {
        if (isDiskFull(error)) this.diskFullUntil = performance.now() + DISK_FULL_MS;
        if (isReadOnly(error)) this.closeIdle();
        if (!(isRetryable(error) || isUniqueViolation(error)) || reruns === MAX_RERUNS)
          throw toCallerError(error);
        // Wait for a random time, or the same units would conflict again.
        await sleep(Math.random() * 20 * 2 ** reruns);
      }
    }
  }

  async read<T>(work: (statements: Statements) => Promise<T>): Promise<T> {
    for (let reruns = 0; ; reruns++) {
      try {
        return await work(this.reader);
      } catch (error) {
        // The pool has closed the failed connection.
        if (!isRetryable(error) || reruns === MAX_RERUNS) throw toCallerError(error);
      }
    }
  }

  readOthers(work: (statements: Statements) => Promise<void>): Promise<void> {
    return this.read(work);
  }

  get insideWrite(): boolean {
    return this.inside.getStore() === true;
  }

  get isListening(): boolean {
    return this.announcements.isListening;
  }

  exclusively(name: string, work: () => Promise<void>): Promise<boolean> {
    // One after the other: each holds one connection and needs another, so several could use up the pool and
    // deadlock.
    const turn = this.lastExclusive.then(() => this.runExclusively(name, work));
    this.lastExclusive = turn.catch(() => undefined);
    return turn;
  }

  private async runExclusively(name: string, work: () => Promise<void>): Promise<boolean> {
    const client = await acquireClient(this.pool).catch((error: unknown) => {
      throw toCallerError(error);
    });
    let broken: Error | undefined;
    try {
      const { rows } = await client.query<{ locked: boolean }>(
        'SELECT pg_try_advisory_lock($1, hashtext($2)) AS locked',
        [JOB_LOCKS, name],
      );
      if (!rows[0]?.locked) return false;
      try {
        await work();
      } finally {
        // If the lock can't be released, close the connection, which releases it.
        await client
          .query('SELECT pg_advisory_unlock($1, hashtext($2))', [JOB_LOCKS, name])
          .catch((error) => {
            broken = error;
          });
      }
      return true;
    } catch (error) {
      throw toCallerError(error);
    } finally {
      releaseClient(client, broken);
    }
  }

  get writeQueueDepth(): number {
    return this.pool.waitingCount;
  }

  get writes(): number {
    return this.attempts;
  }

  /**
   * The server's disk can't be measured: the space counts as low for a while after the server reported a full disk.
   */
  get isSpaceLow(): boolean {
    return performance.now() < this.diskFullUntil;
  }

  async stats(): Promise<DatabaseStats> {
    const { idleCount, totalCount, waitingCount } = this.pool;
    const connections = { idle: idleCount, busy: totalCount - idleCount, waiting: waitingCount };
    const now = performance.now();
    // Cached, because the server reads the size of each of its files.
    if (!this.size || now - this.size.askedAt > SIZE_MS) {
      // Set first, so that concurrent scrapes do not ask too.
      this.size = { bytes: this.size?.bytes, askedAt: now };
      const { rows } = await this.pool.query<{ bytes: number }>(
        'SELECT pg_database_size(current_database()) AS bytes',
      );
      this.size.bytes = rows[0]?.bytes;
    }
    return { connections, sizeBytes: this.size.bytes };
  }

  /** Asks on its own connection, so that it does not wait for the pool. */
  ready(): Promise<void> {
    return this.probe.ask();
  }

  close(): Promise<void> {
    this.closed ??= (async () => {
      clearInterval(this.timer);
      await this.probe.stop();
      await this.announcements.stop();
      if (this.source.isInitialized) await this.source.destroy();
    })();
    return this.closed;
  }

  private async attempt<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    const client = await acquireClient(this.pool);
    this.attempts++;
    let tx: UnitOfWork | undefined;
    let broken: Error | undefined;
    let value: T;
    let committingSince: number | undefined;
    try {
      const now = await this.begin(client);
      const unit = new UnitOfWork(client, this.source.manager, now, (...announcement) =>
        this.deliver(...announcement),
      );
      tx = unit;
      value = await this.inside.run(true, () => work(unit));
      unit.isOver = true;
      committingSince = performance.now();
      const { announcements } = tx.effects;
      await inSpan('commit', () => commit(client, this.announcements.id, announcements), {
        'control_plane.units': 1,
      });
      this.committed({ units: 1, durationMs: performance.now() - committingSince, failed: false });
    } catch (error) {
      if (tx) tx.isOver = true;
      if (committingSince !== undefined)
        this.committed({ units: 1, durationMs: performance.now() - committingSince, failed: true });
      // Close a connection whose transaction can't be rolled back. Do not try it on a broken one, which may not
      // answer for long.
      const { cause = error } = error as Error;
      broken = isConnectionBroken(cause) ? (cause as Error) : await rollBack(client);
      throw error;
    } finally {
      releaseClient(client, broken);
    }
    tx.effects.apply();
    return value;
  }

  /** @returns the unit's instant */
  private async begin(client: pg.PoolClient): Promise<number> {
    const askedAt = performance.now();
    // Two statements give two results; the types of node-postgres declare one.
    const [, answer] = (await client.query(BEGIN)) as unknown as pg.QueryResult<{ now: number }>[];
    const now = (answer as pg.QueryResult<{ now: number }>).rows[0]?.now as number;
    this.serverClock.observe(now, askedAt);
    return this.clock === this.serverClock ? now : this.clock.now();
  }

  /** Closes the idle connections: they are connected to the same server as one that became read-only. */
  private closeIdle(): void {
    for (let left = this.pool.idleCount; left > 0; left--)
      this.pool.connect().then(
        (client) => client.release(true),
        () => undefined,
      );
  }

  private async observeClock(): Promise<void> {
    const askedAt = performance.now();
    const { rows } = await this.pool.query<{ now: number }>(SELECT_NOW);
    this.serverClock.observe(rows[0]?.now as number, askedAt);
  }
}

class UnitOfWork extends PostgresStatements implements Transaction {
  readonly effects: Effects;
  isOver = false;
  /** Of the statement that made the transaction fail, until it is undone to a savepoint. */
  private failure: unknown;

  constructor(
    client: pg.PoolClient,
    manager: DataSource['manager'],
    readonly now: number,
    deliver: Deliver,
  ) {
    super(client, manager);
    this.effects = new Effects(deliver);
  }

  override async rows<Row>(sql: string, ...values: SqlValue[]): Promise<Row[]> {
    if (this.isOver) throw new UnitIsOver();
    return super.rows(sql, ...values);
  }

  override async run(sql: string, ...values: SqlValue[]): Promise<number> {
    if (this.isOver) throw new UnitIsOver();
    return super.run(sql, ...values);
  }

  afterCommit(effect: () => void): void {
    this.effects.add(effect);
  }

  announce(topic: string, message: string): void {
    this.effects.add([topic, message]);
  }

  /**
   * Returns the first error of statements in one round trip. Those after it only report that one failed (25P02), or
   * that they were not prepared (26000), and their promises may settle first.
   */
  protected override causeOf(error: unknown): unknown {
    if (isConnectionLost(error)) return error;
    this.failure ??= error;
    return this.failure;
  }

  /** After a conflict with another unit, the whole unit is run again, not only the part. */
  async attempt<T>(part: () => Promise<T>): Promise<PromiseSettledResult<T>> {
    const outcome = await this.effects.attempt(this, part, isRetryable);
    if (outcome.status === 'rejected') this.failure = undefined;
    return outcome;
  }

  async lockRows(table: string, ids: readonly number[], mode: 'update' | 'share' = 'update'): Promise<void> {
    if (ids.length === 0) return;
    const { isAmong, forUpdate, forShare } = this.dialect;
    const lock = mode === 'share' ? forShare() : forUpdate();
    await this.rows(
      `SELECT id FROM ${table} WHERE ${isAmong('id', '$1')} ORDER BY id ${lock}`,
      JSON.stringify(ids),
    );
  }

  async lockTable(table: string, mode?: 'shared'): Promise<void> {
    await this.run(`LOCK TABLE ${table} IN ${mode === 'shared' ? 'ROW ' : ''}EXCLUSIVE MODE`);
  }

  async lockName(name: string, mode: 'shared' | 'exclusive', waitMs?: number): Promise<void> {
    const acquire = mode === 'shared' ? 'pg_advisory_xact_lock_shared' : 'pg_advisory_xact_lock';
    const lock = () =>
      this.rows(`SELECT ${acquire}($1::int, hashtext($2)) IS NULL AS taken`, NAMED_LOCKS, name);
    const wait = (ms: number) => this.run(`SET LOCAL lock_timeout = ${Math.round(ms)}`);
    // The time limit is for this statement alone; all three are sent in one round trip.
    await (waitMs === undefined ? lock() : Promise.all([wait(waitMs), lock(), wait(LOCK_TIMEOUT_MS)])).catch(
      (error: unknown) => {
        throw isLockTimeout(error)
          ? fail('ERR_UNAVAILABLE', { reason: 'lock' }, { retryAfterMs: 1_000, cause: error })
          : error;
      },
    );
  }
}

/** Creates the error for a failed connection: refused by the server, or no server was reached. */
function toConnectError(error: unknown): DatabaseError {
  const { message, code } = error as NodeJS.ErrnoException;
  // If a name has several addresses, the error of all of them has no message.
  const text = `The PostgreSQL server can't be used: ${message || code}`;
  return error instanceof pg.DatabaseError ? new DatabaseError(text) : new DatabaseUnreachable(text);
}

/** Converts an error of the start that an operator can fix to a message; returns others unchanged. */
function toStartError(thrown: unknown): unknown {
  const error = driverErrorOf(thrown);
  if (!(error instanceof pg.DatabaseError)) return thrown;
  if (error.code === '42501')
    return new DatabaseError(
      `The database's user lacks a right (${error.message}): make it the owner of the database, or grant it CREATE ON SCHEMA public.`,
    );
  return /^(?:08|25006|28|3D|53|57)/.test(error.code ?? '') ? toConnectError(error) : thrown;
}

/** Returns TypeORM's pool, from which units of work take their connections. */
function poolOf(source: DataSource): pg.Pool {
  return (source.driver as unknown as { master: pg.Pool }).master;
}

/**
 * Ignores errors of a connection: the running statement gets them too, and an event without a listener would end the
 * process.
 */
const ignoreError = (): void => undefined;

/** Takes a connection from the pool. */
async function acquireClient(pool: pg.Pool): Promise<pg.PoolClient> {
  return (await pool.connect()).on('error', ignoreError) as pg.PoolClient;
}

/** Returns a connection to its pool, which closes it if it is broken. */
function releaseClient(client: pg.PoolClient, broken?: Error | boolean): void {
  client.release(broken);
  client.off('error', ignoreError);
}

/**
 * Sends the announcements and COMMIT in one round trip: if an announcement fails, so does the transaction, and COMMIT
 * rolls it back.
 * @throws ERR_UNAVAILABLE the connection was lost: it is unknown whether the unit is stored
 */
async function commit(
  client: pg.PoolClient,
  sender: string,
  announcements: readonly Announcement[],
): Promise<void> {
  const [, { command }] = await Promise.all([
    publish(client, sender, announcements),
    client.query('COMMIT'),
  ]).catch((error: unknown) => {
    throw isConnectionLost(error) ? unknownEffect(error) : error;
  });
  // COMMIT rolled back, because a statement failed and the unit ignored its error.
  if (command !== 'COMMIT')
    throw new Error('A statement of the unit of work failed, and the unit ignored the error.');
}

/** Rolls back. @returns the error if that failed */
async function rollBack(client: pg.PoolClient): Promise<Error | undefined> {
  return client.query('ROLLBACK').then(
    () => undefined,
    (failure: Error) => failure,
  );
}

/** Migrates on connections without time limits: migrations, and waiting for another process's, may take long. */
async function migrateAlone(
  target: PostgresTarget,
  extensions: readonly Extension[],
  migrateOnStart: boolean,
): Promise<string[]> {
  const source = new DataSource({
    ...poolOptions(target, 2, { limited: false, planned: false }),
    migrations: knownMigrations(),
  });
  await source.initialize();
  try {
    // The end of the connection releases the lock.
    await poolOf(source).query('SELECT pg_advisory_lock($1)', [MIGRATION_LOCK]);
    const runner = source.createQueryRunner();
    return await migrate(source, runner, extensions, migrateOnStart).finally(() => runner.release());
  } finally {
    await source.destroy();
  }
}
