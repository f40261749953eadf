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

/** How many units one commit takes at most, and for how long it goes on taking them. */
const MAX_UNITS = 512;
const MAX_BATCH_MS = 25;
/** If this many units wait, they are run while the sync before them runs; fewer gather until it ends. */
const ENOUGH_UNITS = 64;
/** How many of them the span of a commit names. */
const MAX_LINKS = 64;

/** How long another process may hold the file's lock before those who wait are told to come again, in milliseconds. */
const LOCK_WAIT_MS = 5_000;
const MAX_PAUSE_MS = 50;
/** From when on that shows in {@link WriteQueue.trouble}. */
const TROUBLED_AFTER_MS = 1_000;

/** TypeORM declares the flag read-only, because it sets it itself; here the queue begins and commits. */
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

  // The writer is alone: nobody else could change what a lock would keep.
  async lockRows(): Promise<void> {}

  async lockTable(): Promise<void> {}

  async lockName(): Promise<void> {}
}

/** What a queue needs of who owns the file. */
export interface WriteQueueOptions {
  readonly clock: Clock;
  /** The value of `user_version` that this process set at its start; another one there means another process. */
  readonly generation: number;
  readonly deliver: Deliver;
  /** Called when the disk is full. @returns whether there is room now, so that the same may be tried again */
  readonly makeRoom: () => boolean;
  /** Tells whether the file still has the name that it was opened by. */
  readonly hasItsName: () => boolean;
  /** Puts commits on the disk. Left out for a database in memory. */
  readonly log?: Pick<WriteAheadLog, 'written' | 'inFlight'>;
  /** Called after each commit; the next one begins when it resolves. */
  readonly afterCommit?: () => Promise<void>;
  /** Called once when this process may never write again: another one writes, the file is gone, or a sync failed. */
  readonly onFenced: (reason: Error) => void;
  /** Is told of each commit. */
  readonly onCommit?: (commit: Commit) => void;
  /** How long another program may hold the file's lock, in milliseconds. */
  readonly lockWaitMs?: number;
}

/** A unit that ran. */
interface RanUnit {
  readonly unit: Unit;
  /** Answers its caller, to be called once the commit is on the disk. */
  readonly answer: () => void;
  /** Undefined if it threw. */
  readonly effects?: Effects;
}

/**
 * The one writer of a SQLite file. Units wait in a queue; each drain takes what waits, gives every unit a savepoint of
 * its own inside one `BEGIN IMMEDIATE`, and commits once. A unit that throws is undone alone. The log is synced beside the
 * event loop, and only then are the units answered; the next ones run meanwhile.
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
  private onEnough: (() => void) | undefined;

  constructor(
    private readonly runner: QueryRunner,
    private readonly dialect: Dialect,
    private readonly options: WriteQueueOptions,
  ) {}

  /** How many commits were tried. */
  get commits(): number {
    return this.batches;
  }

  /** Why the last commit failed, or waits; undefined if it is well. */
  get trouble(): unknown {
    return this.fenced ?? this.failure;
  }

  /** How many units wait for the next commit. */
  get depth(): number {
    return this.waiting.length;
  }

  /** Whether the caller is a unit of this queue. */
  get insideUnit(): boolean {
    return this.inside.getStore() === true;
  }

  /**
   * Does the work in a transaction and answers when it is on the disk.
   * Not re-entrant: a unit that called this would wait for itself, so that is refused.
   * @throws ERR_UNAVAILABLE when the commit fails; nothing is stored then, or nobody knows, as the message says
   */
  run<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    if (this.insideUnit) {
      return Promise.reject(
        new Error('write() was called inside a unit of work; use the transaction that is there'),
      );
    }
    if (this.fenced) return Promise.reject(notStored(this.fenced));
    const span = startChild('unit_of_work');
    const answered = new Promise<T>((resolve, reject) => {
      this.waiting.push({ work, resolve: resolve as (value: unknown) => void, reject, span });
      if (this.waiting.length === ENOUGH_UNITS) this.onEnough?.();
      this.draining ??= detached(() => this.drain());
    });
    return span ? endWith(span, answered) : answered;
  }

  /** Resolves when everything that waited is on the disk and answered, or refused. */
  async idle(): Promise<void> {
    while (this.draining) await this.draining;
    await this.answered;
  }

  /** Refuses all writes from now on, and says why. */
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

  /** Waits until enough units are there to be worth a commit. */
  private async gather(): Promise<void> {
    // One turn of the event loop, so that all requests that have arrived share the commit.
    await nextTurn();
    // Whatever is committed while a sync runs waits for the next one. To commit it now would only make more commits.
    while (this.options.log?.inFlight && this.waiting.length < ENOUGH_UNITS) {
      const enough = new Promise<void>((resolve) => {
        this.onEnough = resolve;
      });
      await Promise.race([this.options.log.inFlight, enough]);
    }
  }

  private async commitBatch(): Promise<void> {
    const taken: Unit[] = [];
    const ran: RanUnit[] = [];
    this.batches++;
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
      // SQLite may have rolled back already (disk full, I/O error); a second ROLLBACK then says so and changes nothing.
      await this.runner.query('ROLLBACK').catch(() => undefined);
      this.failure = error;
      if (isSyncFailure(error)) this.fence(new SyncFailed(error as Error));
      else if (isDiskError(error) && this.options.makeRoom()) {
        this.waiting.unshift(...taken);
        return;
      }
      // BEGIN itself failed: nobody was taken yet, and without this nobody would ever be answered.
      if (taken.length === 0) taken.push(...this.waiting.splice(0));
      const lost = notStored(error);
      for (const unit of taken) unit.reject(lost);
      return;
    }
    // At once, and not after the sync: others can read the change from now on.
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
   * Begins the transaction. Waits for another program that holds the lock (a shell, a backup tool) without holding up the
   * event loop, as SQLite's own waiting would.
   * @throws the driver's error if it takes too long; DatabaseInUse if another process serves the file
   */
  private async begin(): Promise<void> {
    const { generation, hasItsName, lockWaitMs = LOCK_WAIT_MS } = this.options;
    for (let waitedMs = 0, pauseMs = 1; ; pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS)) {
      // A sync may have failed meanwhile.
      if (this.fenced) throw this.fenced;
      try {
        await this.runner.query('BEGIN IMMEDIATE');
        break;
      } catch (error) {
        if (!codeOf(error).startsWith('SQLITE_BUSY') || waitedMs >= lockWaitMs) throw error;
        if (waitedMs > TROUBLED_AFTER_MS) this.failure = error;
        await sleep(pauseMs);
        waitedMs += pauseMs;
      }
    }
    // TypeORM's own saves must not open a transaction inside this one.
    markTransaction(this.runner, true);
    const [row] = (await this.runner.query('PRAGMA user_version')) as { user_version: number }[];
    const isOurs = row?.user_version === generation;
    if (isOurs && hasItsName()) return;
    const reason = isOurs
      ? new DatabaseError(
          'The database file, or the log beside it, was moved, removed or replaced while in use, so this process stops. What it ' +
            'stored last is in the log beside the name that the file had: give it that name back before you start again.',
        )
      : new DatabaseInUse(
          'Another process has opened the database to write. This one has stored all that it answered, and stops.',
        );
    this.fence(reason);
    throw reason;
  }

  /** Runs one unit in its savepoint. */
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
      // Fails where SQLite gave up the whole transaction: then the batch is lost, and the caller of this says so.
      await this.runner.query('ROLLBACK TO unit');
      await this.runner.query('RELEASE unit');
      return { unit, answer: () => unit.reject(error) };
    } finally {
      tx.isOver = true;
    }
  }
}

/** Begins one span for a commit: below the first unit that is traced, with links to the others. */
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

/** Does the effects of a unit that is committed. @returns what answers its caller: an effect that throws harms nobody else */
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
    message: 'The disk failed before the change was on it, so it may be stored or not; try again.',
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
