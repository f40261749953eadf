import { AsyncLocalStorage } from 'node:async_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { QueryRunner } from 'typeorm';
import { fail } from '../errors';
import type { Dialect } from './dialect';
import { type Deliver, Effects } from './effects';
import { SqliteStatements, type Transaction } from './statements';

/** How many units one commit takes at the most, and for how long it goes on taking them. */
const MAX_UNITS = 512;
const MAX_BATCH_MS = 25;

/** TypeORM declares the flag read-only, for it means to set it itself; here the queue begins and commits. */
function markTransaction(runner: { isTransactionActive: boolean }, active: boolean): void {
  runner.isTransactionActive = active;
}

interface Unit {
  work: (tx: Transaction) => Promise<unknown>;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
}

class UnitOfWork extends SqliteStatements implements Transaction {
  readonly effects: Effects;

  constructor(runner: QueryRunner, dialect: Dialect, deliver: Deliver) {
    super(runner, dialect);
    this.effects = new Effects(deliver);
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
}

/**
 * The one writer of a SQLite file. Units wait in a queue; each drain takes what waits, gives every unit a savepoint of
 * its own inside one `BEGIN IMMEDIATE`, commits once, and answers only then. A unit that throws is undone alone.
 */
export class WriteQueue {
  private readonly waiting: Unit[] = [];
  private readonly inside = new AsyncLocalStorage<true>();
  private draining: Promise<void> | undefined;

  constructor(
    private readonly runner: QueryRunner,
    private readonly dialect: Dialect,
    private readonly deliver: Deliver,
  ) {}

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
   * @throws ERR_UNAVAILABLE when the commit fails; nothing of the unit is stored then.
   */
  run<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    if (this.insideUnit) {
      return Promise.reject(
        new Error('write() was called inside a unit of work; use the transaction that is there'),
      );
    }
    return new Promise<T>((resolve, reject) => {
      this.waiting.push({ work, resolve: resolve as (value: unknown) => void, reject });
      this.draining ??= this.drain();
    });
  }

  /** Resolves when everything that waited is committed. */
  async idle(): Promise<void> {
    while (this.draining) await this.draining;
  }

  private async drain(): Promise<void> {
    // One turn of the event loop, so that all requests that have arrived share the commit.
    await nextTurn();
    while (this.waiting.length > 0) {
      await this.commitBatch();
      await nextTurn();
    }
    this.draining = undefined;
  }

  private async commitBatch(): Promise<void> {
    const taken: Unit[] = [];
    const answers: (() => void)[] = [];
    try {
      await this.runner.query('BEGIN IMMEDIATE');
      // TypeORM's own saves must not open a transaction inside this one.
      markTransaction(this.runner, true);
      const until = performance.now() + MAX_BATCH_MS;
      while (taken.length < MAX_UNITS && performance.now() < until) {
        const unit = this.waiting.shift();
        if (!unit) break;
        taken.push(unit);
        answers.push(await this.runUnit(unit));
      }
      await this.runner.query('COMMIT');
      markTransaction(this.runner, false);
    } catch (error) {
      markTransaction(this.runner, false);
      // SQLite may have rolled back already (disk full, I/O error); a second ROLLBACK then says so and changes nothing.
      await this.runner.query('ROLLBACK').catch(() => undefined);
      const lost = fail('ERR_UNAVAILABLE', undefined, {
        message: 'The database could not store the change; nothing of it was kept.',
        retryAfterMs: 1_000,
        cause: error,
      });
      // BEGIN itself failed: nobody was taken yet, and without this nobody would ever be answered.
      if (taken.length === 0) taken.push(...this.waiting.splice(0));
      for (const unit of taken) unit.reject(lost);
      return;
    }
    for (const answer of answers) answer();
  }

  /** Runs one unit in its savepoint. @returns what answers its caller, to be called after the commit. */
  private async runUnit(unit: Unit): Promise<() => void> {
    const tx = new UnitOfWork(this.runner, this.dialect, this.deliver);
    await this.runner.query('SAVEPOINT unit');
    try {
      const value = await this.inside.run(true, () => unit.work(tx));
      await this.runner.query('RELEASE unit');
      return () => answerStored(unit, value, tx.effects);
    } catch (error) {
      // Fails where SQLite gave up the whole transaction: then the batch is lost, and the caller of this says so.
      await this.runner.query('ROLLBACK TO unit');
      await this.runner.query('RELEASE unit');
      return () => unit.reject(error);
    }
  }
}

/** Does a stored unit's effects and answers its caller. An effect that throws keeps nobody else from being answered. */
function answerStored(unit: Unit, value: unknown, effects: Effects): void {
  try {
    effects.take();
    unit.resolve(value);
  } catch (error) {
    unit.reject(error);
  }
}
