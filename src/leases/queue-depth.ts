import { Injectable } from '@nestjs/common';
import { ConcurrencyService, type Place } from '../concurrency/concurrency.service';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { ClaimWaiters } from './claim-waiters';
import type { TaskState } from './task.entity';

/** One task going from a state to another; null is before it was created or after it was deleted. */
export interface Shift extends Place {
  from: TaskState | null;
  to: TaskState | null;
}

/** How many tasks of a kind are in a state. */
export interface Depth {
  kind: string;
  state: TaskState;
  count: number;
  /** When the oldest of them was created, in ms since the epoch; null for finished tasks. */
  oldest_created_at: number | null;
}

/** Under what it is announced that tasks became ready; the message is their kind and number. */
const READY = 'ready';

const HOLDS_SLOT: ReadonlySet<TaskState | null> = new Set<TaskState>(['queued', 'leased']);

/** A task that waits for a slot. */
interface WaitingTask extends Place {
  id: number;
  priority: number;
}

/** How many waiting tasks one look takes, and of how many targets. */
const BATCH = 100;

/**
 * Keeps everything that counts tasks in step with them, in the transaction that changes them: the depth by kind and
 * state (task_counts), the concurrency windows, the tasks that wait for a slot, and the claims that wait for tasks.
 * Whoever changes a task's state calls {@link shift}.
 */
@Injectable()
export class QueueDepth {
  constructor(
    private readonly concurrency: ConcurrencyService,
    private readonly waiters: ClaimWaiters,
    private readonly database: Database,
  ) {
    database.onAnnouncement(READY, (message) => {
      const [kind, count] = JSON.parse(message) as [string, number];
      this.waiters.wake(kind, count);
    });
    database.onGap(() => this.waiters.wakeAll());
    this.concurrency.onCeilings({
      // A claim that holds tasks and waits for the counters would be waited for; so none may be on its way.
      before: async (tx) => {
        const lock = tx.dialect.lockTable('tasks');
        if (lock) await tx.run(lock);
      },
      after: (tx) => this.fitCeilings(tx),
    });
  }

  /**
   * Records changes of state; slots that they free go to tasks that wait, best first. A leased task that becomes queued
   * keeps its slot, unless the ceiling has no room for it any more.
   */
  async shift(tx: Transaction, shifts: readonly Shift[]): Promise<void> {
    if (shifts.length === 0) return;
    await this.concurrency.lock(tx);
    await this.count(tx, shifts);
    const freed = shifts.filter((shift) => HOLDS_SLOT.has(shift.from) && !HOLDS_SLOT.has(shift.to));
    // A ceiling that was lowered lets the leases over it run on; their tasks may not begin again beyond it.
    const begunAgain = shifts.some((shift) => shift.from === 'leased' && shift.to === 'queued');
    if ((freed.length === 0 && !begunAgain) || !(await this.concurrency.hasCeilings(tx))) return;
    if (begunAgain) await this.fitCeilings(tx);
    else await this.admitWaiting(tx, freed);
  }

  /** For tasks that could be handed out, says which may be and which must wait, in the order given. */
  async readyStates(tx: Transaction, places: readonly Place[]): Promise<('queued' | 'waiting')[]> {
    await this.concurrency.lock(tx);
    return (await this.concurrency.admit(tx, places)).map((admitted) => (admitted ? 'queued' : 'waiting'));
  }

  /** Has claims that wait look again: tasks were locked by one that did not take them. */
  announceReady(tx: Transaction, kinds: readonly string[], count: number): void {
    for (const kind of kinds) tx.announce(READY, JSON.stringify([kind, count]));
  }

  /** Makes ready what waits though there is room; see {@link ConcurrencyService.passedOver}. */
  async admitPassedOver(): Promise<void> {
    const any = await this.database.read((statements) => this.concurrency.passedOver(statements, 1));
    if (any.length === 0) return;
    await this.database.write(async (tx) => {
      await this.concurrency.lock(tx);
      await this.admitWaiting(tx, await this.concurrency.passedOver(tx, BATCH));
    });
  }

  /** The depth of every kind and state that has tasks. */
  depths(statements: Statements): Promise<Depth[]> {
    return statements.rows<Depth>(
      `SELECT c.kind, c.state, c.count,
         CASE WHEN c.state IN ('scheduled', 'waiting', 'queued', 'leased') THEN
           (SELECT t.created_at FROM tasks t WHERE t.kind = c.kind AND t.state = c.state ORDER BY t.id LIMIT 1)
         END AS oldest_created_at
       FROM task_counts c WHERE c.count > 0 ORDER BY c.kind, c.state`,
    );
  }

  /** Every kind that ever had tasks. */
  async kinds(statements: Statements): Promise<string[]> {
    const rows = await statements.rows<{ kind: string }>(
      'SELECT DISTINCT kind FROM task_counts ORDER BY kind',
    );
    return rows.map((row) => row.kind);
  }

  private async count(tx: Transaction, shifts: readonly Shift[]): Promise<void> {
    const counts = new Map<string, { kind: string; state: string; count: number }>();
    const windows = new Map<
      string,
      { kind: string; target: string; ready: number; leased: number; waiting: number }
    >();
    const woken = new Map<string, number>();
    for (const { kind, target, from, to } of shifts) {
      let window = windows.get(`${kind}\0${target}`);
      if (!window) {
        window = { kind, target, ready: 0, leased: 0, waiting: 0 };
        windows.set(`${kind}\0${target}`, window);
      }
      for (const [state, by] of [
        [from, -1],
        [to, 1],
      ] as const) {
        if (state === null) continue;
        const key = `${kind}\0${state}`;
        const entry = counts.get(key);
        if (entry) entry.count += by;
        else counts.set(key, { kind, state, count: by });
        if (state === 'queued') window.ready += by;
        else if (state === 'leased') window.leased += by;
        else if (state === 'waiting') window.waiting += by;
      }
      if (to === 'queued') woken.set(kind, (woken.get(kind) ?? 0) + 1);
    }
    await tx.run(
      `INSERT INTO task_counts (kind, state, count)
       SELECT kind, state, count FROM ${tx.dialect.rowset('$1', { kind: 'text', state: 'text', count: 'integer' })} AS r
       WHERE true
       ON CONFLICT (kind, state) DO UPDATE SET count = task_counts.count + excluded.count`,
      JSON.stringify([...counts.values()]),
    );
    await this.concurrency.move(tx, [...windows.values()]);
    for (const [kind, count] of woken) this.announceReady(tx, [kind], count);
  }

  /** Makes tasks ready that waited for a slot, best first, until no more fit. */
  private async admitWaiting(tx: Transaction, freed: readonly Place[]): Promise<void> {
    while (await this.admitNext(tx, freed));
  }

  /** @returns whether it made any ready, so that there may be more */
  private async admitNext(tx: Transaction, freed: readonly Place[]): Promise<boolean> {
    const kinds = await this.concurrency.openKinds(tx);
    // Without a ceiling on more than targets, a slot is of use to its own target only.
    if (!kinds) return this.admit(tx, await this.headsOf(tx, await this.concurrency.openAmong(tx, freed)));
    const best = await this.bestOf(tx, kinds);
    if (await this.admit(tx, best)) return true;
    if (best.length < BATCH) return false;
    // The best are all of targets that are full. Walking on past them could take long; so go by the targets with room.
    const targets = await this.bestTargets(tx, await this.concurrency.openTargets(tx, kinds));
    // No further than a batch: beyond it, a target that is not among these could have a better one.
    return this.admit(tx, (await this.headsOf(tx, targets)).slice(0, BATCH));
  }

  /** Makes those ready that fit, in the order given. @returns whether any did */
  private async admit(tx: Transaction, tasks: readonly WaitingTask[]): Promise<boolean> {
    const fits = await this.concurrency.admit(tx, tasks);
    const admitted = tasks.filter((_, i) => fits[i]);
    if (admitted.length > 0) await this.putTo(tx, admitted, 'waiting', 'queued');
    return admitted.length > 0;
  }

  /** The best waiting tasks of the kinds, a batch at most. */
  private async bestOf(tx: Transaction, kinds: readonly string[]): Promise<WaitingTask[]> {
    if (kinds.length === 0) return [];
    // A derived table for each: a LIMIT must not reach across the union.
    const perKind = kinds.map(
      (_, i) =>
        `SELECT id, kind, target, priority FROM (SELECT id, kind, target, priority FROM tasks WHERE state = 'waiting' AND kind = $${i + 2}
         ORDER BY priority DESC, id LIMIT $1 ${tx.dialect.skipLocked()}) AS k${i}`,
    );
    return tx.rows<WaitingTask>(
      `${perKind.join(' UNION ALL ')} ORDER BY priority DESC, id LIMIT $1`,
      BATCH,
      ...kinds,
    );
  }

  /** Of targets with waiting tasks, those with the best of them, a batch at most. */
  private bestTargets(tx: Transaction, targets: readonly Place[]): Promise<Place[]> {
    return tx.rows<Place>(
      `SELECT t.kind, t.target FROM ${tx.dialect.rowset('$1', { kind: 'text', target: 'text' })} AS r
       JOIN tasks t ON t.id = (
         SELECT id FROM tasks WHERE state = 'waiting' AND kind = r.kind AND target = r.target
         ORDER BY priority DESC, id LIMIT 1)
       ORDER BY t.priority DESC, t.id LIMIT $2`,
      JSON.stringify(targets),
      BATCH,
    );
  }

  /** The best waiting tasks of each of the targets, together in their order. */
  private async headsOf(tx: Transaction, targets: readonly Place[]): Promise<WaitingTask[]> {
    const heads: WaitingTask[] = [];
    for (const { kind, target } of targets) {
      heads.push(
        ...(await tx.rows<WaitingTask>(
          `SELECT id, kind, target, priority FROM tasks WHERE state = 'waiting' AND kind = $1 AND target = $2
           ORDER BY priority DESC, id LIMIT $3 ${tx.dialect.skipLocked()}`,
          kind,
          target,
          BATCH,
        )),
      );
    }
    return heads.sort((a, b) => b.priority - a.priority || a.id - b.id);
  }

  /** After ceilings changed: what is over goes back to waiting, what now fits becomes ready. */
  private async fitCeilings(tx: Transaction): Promise<void> {
    for (
      let over = await this.concurrency.excesses(tx);
      over.length > 0;
      over = await this.concurrency.excesses(tx)
    ) {
      const { scope, kind, target, excess } = over[0] as (typeof over)[number];
      const tasks = await tx.rows<{ id: number; kind: string; target: string }>(
        `SELECT id, kind, target FROM tasks WHERE state = 'queued'
         AND ($1 = '' OR kind = $1) AND ($2 = '' OR target = $2) ORDER BY priority, id DESC LIMIT $3
         ${tx.dialect.skipLocked()}`,
        kind,
        target,
        excess,
      );
      // Those that are being claimed are leased by the time that somebody else counts.
      if (tasks.length === 0 && tx.dialect.concurrent) break;
      if (tasks.length === 0)
        throw new Error(`window ${scope}/${kind}/${target} counts tasks that are not there`);
      await this.putTo(tx, tasks, 'queued', 'waiting');
    }
    const waiting = await tx.rows<Place>(
      `SELECT kind, target FROM tasks WHERE state = 'waiting' GROUP BY kind, target`,
    );
    if (waiting.length > 0) await this.admitWaiting(tx, waiting);
  }

  private async putTo(
    tx: Transaction,
    tasks: readonly { id: number; kind: string; target: string }[],
    from: TaskState,
    to: 'queued' | 'waiting',
  ): Promise<void> {
    await tx.run(
      `UPDATE tasks SET state = $2 WHERE ${tx.dialect.isAmong('id', '$1')}`,
      JSON.stringify(tasks.map((task) => task.id)),
      to,
    );
    await this.count(
      tx,
      tasks.map(({ kind, target }) => ({ kind, target, from, to })),
    );
  }
}
