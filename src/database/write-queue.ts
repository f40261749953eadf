import { AsyncLocalStorage } from 'node:async_hooks';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import type { Span } from '@opentelemetry/api';
import type { QueryRunner } from 'typeorm';
import type { Clock } from '../clock';
import { fail } from '../errors';
import { contextOf, detached, endSpan, endWith, linkTo, startBelow, startChild, within } from '../tracing';
import type { Commit } from './database';
import { DatabaseError, DatabaseInUse, SyncFailed } from './database-error';
import type { Dialect } from './dialect';
import { type Deliver, Effects } from './effects';
import { SqliteStatements, type SqlValue, type Transaction, UnitIsOver } from './statements';
import { isSyncFailure, type WriteAheadLog } from './write-ahead-log';

/** The most units of one commit, and the longest time for running them, in milliseconds. */
const MAX_UNITS = 512;
const MAX_BATCH_MS = 25;
/** If this number of units waits, they run while the previous sync runs; fewer wait until it ends. */
const GATHERED_UNITS = 64;
/**
 * If a commit had this number of units, many callers do different things: each unit has what many of them sent. Then
 * commits begin this far apart, in milliseconds, so that more share each. Callers of one sort never wait for it.
 */
const BUSY_UNITS = 4;
const BUSY_PACE_MS = 12;
/** The most units that the span of a commit links to. */
const MAX_LINKS = 64;

/** How long another process may hold the file's lock before waiting units are answered 503, in milliseconds. */
const LOCK_WAIT_MS = 5_000;
const MAX_PAUSE_MS = 50;
/** After how long the wait shows in {@link WriteQueue.problem}, in milliseconds. */
const PROBLEM_AFTER_MS = 1_000;

/** Sets TypeORM's flag, which is declared read-only because TypeORM sets it; here the queue begins and commits. */
function markTransaction(runner: { isTransactionActive: boolean }, active: boolean): void {
  runner.isTransactionActive = active;
}

interface Unit {
  work: (tx: Transaction) => Promise<unknown>;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
  /** Of the caller's trace. */
  span: Span | undefined;
}

class UnitOfWork extends SqliteStatements implements Transaction {
  readonly effects: Effects;
  isOver = false;

  constructor(
    runner: QueryRunner,
    dialect: Dialect,
    readonly now: number,
    deliver: Deliver,
  ) {
    super(runner, dialect);
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

  attempt<T>(part: () => Promise<T>): Promise<PromiseSettledResult<T>> {
    return this.effects.attempt(this, part);
  }

  // Locks do nothing: the writer is alone.
  async lockRows(): Promise<void> {}

  async lockTable(): Promise<void> {}

  async lockName(): Promise<void> {}
}

/** The options of a queue. */
export interface WriteQueueOptions {
  readonly clock: Clock;
  /**
   * The value of `user_version` that this process set at its start; if it changes, another process has opened the
   * file.
   */
  readonly generation: number;
  readonly deliver: Deliver;
  /** Called when the disk is full. @returns whether there is room now, so that the batch can be run again */
  readonly freeDiskSpace: () => boolean;
  /** Whether the file still has the name under which it was opened. */
  readonly isInPlace: () => boolean;
  /** Syncs commits to the disk. Left out for a database in memory. */
  readonly log?: Pick<WriteAheadLog, 'written' | 'inFlight'>;
  /** Called after each commit; the next one begins when it resolves. */
  readonly afterCommit?: () => Promise<void>;
  /**
   * Called once when this process may never write again: another process writes, the file was removed, or a sync
   * failed.
   */
  readonly onFenced: (reason: Error) => void;
  /** Called after each commit. */
  readonly onCommit?: (commit: Commit) => void;
  /** How long another program may hold the file's lock, in milliseconds. */
  readonly lockWaitMs?: number;
}

/** A unit that ran. */
interface RanUnit {
  readonly unit: Unit;
  /** Answers the caller; call it once the commit is on the disk. */
  readonly answer: () => void;
  /** Undefined if it threw. */
  readonly effects?: Effects;
}

/**
 * The only writer of a SQLite file. It takes the units that wait, runs each in its own savepoint inside one `BEGIN
 * IMMEDIATE`, and commits once. If a unit throws, it is rolled back alone. The log is synced off the event loop, and
 * only then are the units answered; the next ones run meanwhile.
 */
export class WriteQueue {
  private readonly waiting: Unit[] = [];
  private readonly inside = new AsyncLocalStorage<true>();
  private draining: Promise<void> | undefined;
  private fenced: Error | undefined;
  private failure: unknown;
  private batches = 0;
  /** Resolves when the commits so far are answered. */
  private answered: Promise<unknown> = Promise.resolve();
  private onGathered: (() => void) | undefined;
  /** When the last commit began, by `performance.now()`, and how many units it had. */
  private last = { beganAt: 0, units: 0 };

  constructor(
    private readonly runner: QueryRunner,
    private readonly dialect: Dialect,
    private readonly options: WriteQueueOptions,
  ) {}

  /** The number of tried commits. */
  get commits(): number {
    return this.batches;
  }

  /** The reason why the last commit failed or waits; undefined if commits succeed. */
  get problem(): unknown {
    return this.fenced ?? this.failure;
  }

  /** The number of units that wait for the next commit. */
  get depth(): number {
    return this.waiting.length;
  }

  /** Whether the caller is a unit of this queue. */
  get insideUnit(): boolean {
    return this.inside.getStore() === true;
  }

  /**
   * Runs the work in a transaction and resolves when it is on the disk. Refuses calls from inside a unit, which would
   * wait for themselves.
   * @throws ERR_UNAVAILABLE the commit failed; the message says whether the change is certainly not stored
   */
  run<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    if (this.insideUnit) {
      return Promise.reject(new Error('write() was called inside a unit of work; use its transaction'));
    }
    if (this.fenced) return Promise.reject(notStored(this.fenced));
    const span = startChild('unit_of_work');
    const answered = new Promise<T>((resolve, reject) => {
      this.waiting.push({ work, resolve: resolve as (value: unknown) => void, reject, span });
      if (this.waiting.length === GATHERED_UNITS) this.onGathered?.();
      this.draining ??= detached(() => this.drain());
    });
    return span ? endWith(span, answered) : answered;
  }

  /** Resolves when all units that waited are stored and answered, or refused. */
  async idle(): Promise<void> {
    while (this.draining) await this.draining;
    await this.answered;
  }

  /** Refuses all writes from now on, with this reason. */
  fence(reason: Error): void {
    if (this.fenced) return;
    this.fenced = reason;
    this.options.onFenced(reason);
  }

  private async drain(): Promise<void> {
    while (this.waiting.length > 0) {
      await this.gather();
      await this.commitBatch();
      await this.options.afterCommit?.();
    }
    this.draining = undefined;
  }

  /** Waits until a commit is worthwhile. */
  private async gather(): Promise<void> {
    // Wait one turn of the event loop, so that all requests that have arrived share the commit.
    await nextTurn();
    const paceMs = this.last.units < BUSY_UNITS ? 0 : this.last.beganAt + BUSY_PACE_MS - performance.now();
    if (paceMs >= 1) await sleep(paceMs);
    // A commit during a sync waits for the next sync anyway, so committing now would only make more commits.
    while (this.options.log?.inFlight && this.waiting.length < GATHERED_UNITS) {
      const gathered = new Promise<void>((resolve) => {
        this.onGathered = resolve;
      });
      await Promise.race([this.options.log.inFlight, gathered]);
    }
  }

  private async commitBatch(): Promise<void> {
    const taken: Unit[] = [];
    const ran: RanUnit[] = [];
    this.batches++;
    const beganAt = performance.now();
    let committingSince = performance.now();
    let span: Span | undefined;
    const ended = (failure?: { error: unknown }): void => {
      if (span) endSpan(span, failure);
      this.options.onCommit?.({
        units: taken.length,
        durationMs: performance.now() - committingSince,
        failed: failure !== undefined,
      });
    };
    try {
      await this.begin();
      const until = performance.now() + MAX_BATCH_MS;
      while (taken.length < MAX_UNITS && performance.now() < until) {
        const unit = this.waiting.shift();
        if (!unit) break;
        taken.push(unit);
        ran.push(await this.runUnit(unit));
      }
      committingSince = performance.now();
      span = startCommit(taken);
      await this.runner.query('COMMIT');
      markTransaction(this.runner, false);
    } catch (error) {
      ended({ error });
      markTransaction(this.runner, false);
      // SQLite may have rolled back already (disk full, I/O error); a second ROLLBACK then fails and changes nothing.
      await this.runner.query('ROLLBACK').catch(() => undefined);
      this.failure = error;
      if (isSyncFailure(error)) this.fence(new SyncFailed(error as Error));
      else if (isDiskError(error) && this.options.freeDiskSpace()) {
        this.waiting.unshift(...taken);
        return;
      }
      // BEGIN itself failed: no unit was taken yet, so take those that wait, or they would never be answered.
      if (taken.length === 0) taken.push(...this.waiting.splice(0));
      const lost = notStored(error);
      for (const unit of taken) unit.reject(lost);
      return;
    }
    this.last = { beganAt, units: taken.length };
    // Now, and not after the sync, because others can read the change from now on.
    const answers = ran.map(applyEffects);
    const onDisk = (): void => {
      this.failure = undefined;
      ended();
      for (const answer of answers) answer();
    };
    if (!this.options.log) {
      onDisk();
      return;
    }
    this.answered = this.options.log.written().then(onDisk, (error: Error) => {
      ended({ error });
      this.fence(new SyncFailed(error));
      const unknown = unknownEffect(error);
      for (const unit of taken) unit.reject(unknown);
    });
  }

  /**
   * Begins the transaction. Waits for another program that holds the lock (a shell, a backup tool) without blocking the
   * event loop, as SQLite's busy timeout would.
   * @throws the driver's error if it takes too long; DatabaseInUse if another process serves the file
   */
  private async begin(): Promise<void> {
    const { generation, isInPlace, lockWaitMs = LOCK_WAIT_MS } = this.options;
    for (let waitedMs = 0, pauseMs = 1; ; pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS)) {
      // A sync may have failed meanwhile.
      if (this.fenced) throw this.fenced;
      try {
        await this.runner.query('BEGIN IMMEDIATE');
        break;
      } catch (error) {
        if (!codeOf(error).startsWith('SQLITE_BUSY') || waitedMs >= lockWaitMs) throw error;
        if (waitedMs > PROBLEM_AFTER_MS) this.failure = error;
        await sleep(pauseMs);
        waitedMs += pauseMs;
      }
    }
    // TypeORM's own saves must not open a transaction inside this one.
    markTransaction(this.runner, true);
    const [row] = (await this.runner.query('PRAGMA user_version')) as { user_version: number }[];
    const isOurs = row?.user_version === generation;
    if (isOurs && isInPlace()) return;
    const reason = isOurs
      ? new DatabaseError(
          'The database file, or the log beside it, was moved, removed or replaced while in use, so this process stops. Its ' +
            'latest changes are in the log beside the old name of the file: restore that name before you start again.',
        )
      : new DatabaseInUse(
          'Another process has opened the database to write. This process has stored all changes that it answered, and stops.',
        );
    this.fence(reason);
    throw reason;
  }

  /** Runs a unit in its savepoint. */
  private async runUnit(unit: Unit): Promise<RanUnit> {
    const tx = new UnitOfWork(this.runner, this.dialect, this.options.clock.now(), this.options.deliver);
    await this.runner.query('SAVEPOINT unit');
    try {
      const value = await this.inside.run(true, () => within(unit.span, () => unit.work(tx)));
      await this.runner.query('RELEASE unit');
      return { unit, effects: tx.effects, answer: () => unit.resolve(value) };
    } catch (error) {
      tx.isOver = true;
      // The disk's fault and not the unit's: it concerns all.
      if (isDiskError(error)) throw error;
      // Fails if SQLite has rolled back the whole transaction: then the batch fails, and the caller reports it.
      await this.runner.query('ROLLBACK TO unit');
      await this.runner.query('RELEASE unit');
      return { unit, answer: () => unit.reject(error) };
    } finally {
      tx.isOver = true;
    }
  }
}

/** Begins the span of a commit: below the first traced unit, with links to the others. */
function startCommit(units: readonly Unit[]): Span | undefined {
  const [first, ...others] = units.flatMap(({ span }) => span ?? []);
  return (
    first &&
    startBelow(
      first,
      'commit',
      { 'control_plane.units': units.length },
      others.slice(0, MAX_LINKS).map((unit) => linkTo(contextOf(unit), 'unit')),
    )
  );
}

/**
 * Applies the effects of a committed unit. @returns the function that answers its caller; an effect that throws fails
 * only this caller
 */
function applyEffects({ unit, answer, effects }: RanUnit): () => void {
  try {
    effects?.apply();
    return answer;
  } catch (error) {
    return () => unit.reject(error);
  }
}

const unknownEffect = (cause: unknown): Error =>
  fail('ERR_UNAVAILABLE', undefined, {
    message: 'The disk failed during the commit, so the change may be stored or not; try again.',
    retryAfterMs: 1_000,
    cause,
  });

const notStored = (cause: unknown): Error =>
  fail('ERR_UNAVAILABLE', undefined, {
    message: 'The database could not store the change; nothing of it was kept.',
    retryAfterMs: 1_000,
    cause,
  });

/** Whether the disk is full, or can't be read or written. A full one fails in several ways: the log's index can't grow. */
const isDiskError = (error: unknown): boolean => /^SQLITE_(?:FULL|IOERR)/.test(codeOf(error));

/** SQLite's extended code. */
const codeOf = (error: unknown): string => String((error as { code?: unknown } | null)?.code ?? '');
