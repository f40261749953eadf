import { setImmediate as nextTurn } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { AgentKinds } from '../agents/agent-kinds';
import { Liveness } from '../agents/liveness';
import { Clock, toTimestamp } from '../clock';
import { ConcurrencyService, type LimitedWindow, type Place } from '../concurrency/concurrency.service';
import type { WindowScope } from '../concurrency/window.entity';
import { Database } from '../database/database';
import type { Statements } from '../database/statements';
import { fail } from '../errors';
import { SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import { Overload } from '../telemetry/overload';
import { longestBackoffMs } from './backoff';
import type { Outcome } from './result.entity';
import { type Ahead, type Count, countAhead, type DueCount, type PlaceCount, sumOf } from './task-ahead';
import { TaskKinds } from './task-kinds';
import { countRoom } from './task-room';
import {
  explain,
  explainFinished,
  leasesNeeded,
  type Takers,
  type Wait,
  type WhyFacts,
  type WhyTask,
  waitOf,
} from './task-why';
import type { TaskWhy, WhyAttempt } from './task-why.dto';
import { findByKeys } from './tasks.service';

/** So many tasks are counted before one, of each kind; then it is said that there are at least so many. */
const MAX_COUNTED = 10_000;
/** The pace is judged by so many of the tasks that finished last, in the last so many milliseconds. */
const PACE_TASKS = 1_000;
const PACE_MS = 600_000;
/** Of how many agents the leases are counted before the event loop serves others. */
const COUNTED_AT_ONCE = 100;

const ZERO: Count = { count: 0, isExact: true };
const NONE_AHEAD: Ahead = {
  leases: ZERO,
  places: { target: ZERO, kind: ZERO, global: ZERO },
};

/**
 * The best tasks of a state and kind, in the order of the state's index, so that it ends after so many whatever there is.
 * To look for those before a task alone would let PostgreSQL go by ids, through all tasks that there ever were.
 */
const bestOf = (state: 'queued' | 'waiting', also = ''): string =>
  `SELECT id, target, priority FROM tasks WHERE state = '${state}' AND kind = $3 ${also} ORDER BY priority DESC, id LIMIT $4`;

const IS_BEFORE = '(priority > $1 OR (priority = $1 AND id < $2))';

/** Explains why a task does not run. Only reads, locks nothing, and bounds what it counts. */
@Injectable()
export class TaskWhyService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly liveness: Liveness,
    private readonly agentKinds: AgentKinds,
    private readonly concurrency: ConcurrencyService,
    private readonly kinds: TaskKinds,
    private readonly lifecycle: Lifecycle,
    private readonly overload: Overload,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {}

  /**
   * Tells the one reason that keeps a task from running, and the least change that would let it. Every replica answers the
   * same, but for `unknown_kind`, `draining` and `overloaded`, which are about the one asked.
   * @throws ERR_NOT_FOUND there is no such task, or it is no longer kept
   */
  explain(taskId: number): Promise<TaskWhy> {
    return this.database.read(async (statements) => {
      const task = await statements.first<WhyTask>(
        `SELECT id, kind, target, state, reason, priority, run_at, not_after, attempts, max_attempts, lease_id, unique_key, finished_at
         FROM tasks WHERE id = $1`,
        taskId,
      );
      if (!task) throw fail('ERR_NOT_FOUND', { task_id: taskId });
      if (task.finished_at === null) return this.explainUnfinished(statements, task);
      const { unique_key: key } = task;
      const holder = key === null ? undefined : (await findByKeys(statements, [key])).get(key);
      return explainFinished(task, holder?.id);
    });
  }

  private async explainUnfinished(statements: Statements, task: WhyTask): Promise<TaskWhy> {
    const now = this.clock.now();
    const lease =
      task.lease_id === null
        ? undefined
        : await statements.first<{ id: number; agent_id: number; deadline_at: number }>(
            'SELECT id, agent_id, deadline_at FROM leases WHERE id = $1',
            task.lease_id,
          );
    const { retryBackoffMs, retryBackoffMaxMs } = this.settings;
    const longest = longestBackoffMs(Math.max(1, task.attempts), retryBackoffMs, retryBackoffMaxMs);
    const wait = waitOf(task, lease?.deadline_at, longest, now);
    // One that is queued has its places, unless it loses them with its time.
    const isWaiting = task.state !== 'queued' || wait !== undefined;
    const windows = isWaiting ? await this.windowsOf(statements, task) : [];
    const { ahead, aheadNow } = isWaiting
      ? await this.ahead(statements, task, windows, wait)
      : { ahead: NONE_AHEAD, aheadNow: NONE_AHEAD };
    const queuedBefore = await this.countBefore(statements, 'queued', { kind: task.kind }, task);
    return explain({
      now,
      task,
      isKindKnown: this.kinds.has(task.kind),
      wait,
      lease,
      lastAttempt: wait?.reason === 'backoff' ? await this.lastAttempt(statements, task.id) : undefined,
      windows,
      ...{ ahead, aheadNow },
      pace: await this.pace(statements, windows, now),
      queuedBefore,
      takers: await this.takers(statements, task, leasesNeeded(queuedBefore, ahead), lease?.agent_id),
      load: this.overload.level,
      maxLeasesPerAgent: this.settings.maxLeasesPerAgent,
      isDraining: this.lifecycle.draining,
    });
  }

  /** The windows with a limit that a task counts in. */
  private async windowsOf(statements: Statements, { kind, target }: Place): Promise<LimitedWindow[]> {
    const windows = await this.concurrency.limitedWindows(statements, [{ kind, target }]);
    return windows.filter((window) => window.scope === 'global' || window.kind === kind);
  }

  /** How many tasks come before it, once its windows have room: for a lease of its kind, and for a place in each window. */
  private async ahead(
    statements: Statements,
    task: WhyTask,
    windows: readonly LimitedWindow[],
    wait: Wait | undefined,
  ): Promise<Pick<WhyFacts, 'ahead' | 'aheadNow'>> {
    if (windows.length === 0 && !wait) return { ahead: NONE_AHEAD, aheadNow: NONE_AHEAD };
    const scopes = new Set(windows.map(({ scope }) => scope));
    const leaving = wait
      ? await this.leavingBefore(statements, task.id, wait.end)
      : { places: [], isExact: true };
    const own = await this.countBefore(statements, 'waiting', { kind: task.kind, target: task.target }, task);
    // Only windows that others share with its target make those matter, and those that get a place meanwhile.
    const kinds = scopes.has('global')
      ? await this.concurrency.waitingKinds(statements)
      : scopes.has('kind') || leaving.places.length > 0 || !leaving.isExact
        ? [task.kind]
        : [];
    const waiting = await this.waitingPlaces(statements, kinds, task);
    // Tasks that come due meanwhile are there as well.
    const due = wait ? await this.dueBefore(statements, task, wait.end) : [];
    const places = [...waiting.places, ...due];
    const rooms = places.length === 0 ? [] : await this.concurrency.limitedWindows(statements, places);
    const isCounted = leaving.isExact && sumOf(due) <= MAX_COUNTED;
    const around = { task, own, waiting, leaving: leaving.places, rooms, windows, isCounted };
    const ahead = countAhead({ ...around, due });
    return { ahead, aheadNow: due.length === 0 ? ahead : countAhead({ ...around, due: [] }) };
  }

  /** How many tasks of a state are before one. */
  private async countBefore(
    statements: Statements,
    state: 'queued' | 'waiting',
    { kind, target }: { kind: string; target?: string },
    task: WhyTask,
  ): Promise<Count> {
    const aimed = target === undefined ? '' : 'AND target = $5';
    const row = await statements.first<{ count: number }>(
      `SELECT count(*) AS count FROM (${bestOf(state, aimed)}) AS best WHERE ${IS_BEFORE}`,
      ...[task.priority, task.id, kind, MAX_COUNTED + 1],
      ...(target === undefined ? [] : [target]),
    );
    const count = row?.count ?? 0;
    return { count: Math.min(count, MAX_COUNTED), isExact: count <= MAX_COUNTED };
  }

  /** How many waiting tasks of each target of the kinds are before one. */
  private async waitingPlaces(
    statements: Statements,
    kinds: readonly string[],
    task: WhyTask,
  ): Promise<{ places: PlaceCount[]; isExact: boolean }> {
    const places: PlaceCount[] = [];
    let isExact = true;
    for (const kind of kinds) {
      const rows = await statements.rows<{ target: string; count: number }>(
        `SELECT target, count(*) AS count FROM (${bestOf('waiting')}) AS best WHERE ${IS_BEFORE} GROUP BY target`,
        ...[task.priority, task.id, kind, MAX_COUNTED + 1],
      );
      if (sumOf(rows) > MAX_COUNTED) isExact = false;
      places.push(...rows.map((row) => ({ kind, ...row })));
    }
    return { places, isExact };
  }

  /** How many tasks of each target come due before an instant, of those that do first. */
  private dueBefore(statements: Statements, { id, priority }: WhyTask, atMs: number): Promise<DueCount[]> {
    return statements.rows<DueCount>(
      `SELECT kind, target, count(*) AS count, sum(CASE WHEN ${IS_BEFORE} THEN 1 ELSE 0 END) AS before FROM (
         SELECT id, kind, target, priority FROM tasks WHERE state = 'scheduled' AND run_at <= $3 ORDER BY run_at, id LIMIT $4
       ) AS due WHERE id <> $2 GROUP BY kind, target`,
      priority,
      id,
      atMs,
      MAX_COUNTED + 2,
    );
  }

  /** How many queued tasks of each place end before an instant, as their time is up. */
  private async leavingBefore(
    statements: Statements,
    taskId: number,
    atMs: number,
  ): Promise<{ places: PlaceCount[]; isExact: boolean }> {
    const rows = await statements.rows<PlaceCount & { state: string }>(
      `SELECT kind, target, state, count(*) AS count FROM (
         SELECT id, kind, target, state FROM tasks
         WHERE not_after IS NOT NULL AND state IN ('scheduled', 'waiting', 'queued') AND not_after <= $2
         ORDER BY not_after LIMIT $3
       ) AS soon WHERE id <> $1 GROUP BY kind, target, state`,
      taskId,
      atMs,
      MAX_COUNTED + 2,
    );
    return {
      places: rows.filter(({ state }) => state === 'queued'),
      isExact: sumOf(rows) <= MAX_COUNTED,
    };
  }

  /** How many tasks a millisecond were completed lately in each of the windows, where there were some. */
  private async pace(
    statements: Statements,
    windows: readonly LimitedWindow[],
    now: number,
  ): Promise<Partial<Record<WindowScope, number>>> {
    if (windows.length === 0) return {};
    const rows = await statements.rows<{ kind: string; target: string; count: number; first: number }>(
      `SELECT kind, target, count(*) AS count, min(finished_at) AS first FROM (
         SELECT kind, target, state, finished_at FROM tasks WHERE finished_at IS NOT NULL AND finished_at > $1
         ORDER BY finished_at DESC LIMIT $2) AS lately
       WHERE state = 'completed' GROUP BY kind, target`,
      now - PACE_MS,
      PACE_TASKS,
    );
    const pace: Partial<Record<WindowScope, number>> = {};
    for (const { scope, kind, target } of windows) {
      const within = rows.filter(
        (row) => scope === 'global' || (row.kind === kind && (scope === 'kind' || row.target === target)),
      );
      const count = within.reduce((sum, row) => sum + row.count, 0);
      const spanMs = now - Math.min(...within.map((row) => row.first));
      // Of a single one nobody can tell.
      if (count > 1 && spanMs > 0) pace[scope] = count / spanMs;
    }
    return pace;
  }

  /** The attempt after which a task waits. */
  private async lastAttempt(statements: Statements, taskId: number): Promise<WhyAttempt | undefined> {
    const row = await statements.first<{
      id: number;
      agent_id: number;
      attempt: number;
      state: 'cancelled' | 'expired';
      outcome: Outcome | null;
      ended_at: number | null;
    }>(
      `SELECT l.id, l.agent_id, l.attempt, l.state, l.ended_at,
         CASE WHEN r.standing = 'attempt' THEN r.outcome END AS outcome
       FROM leases l LEFT JOIN results r ON r.lease_id = l.id
       WHERE l.task_id = $1 AND l.state IN ('cancelled', 'expired') ORDER BY l.id DESC LIMIT 1`,
      taskId,
    );
    if (!row) return undefined;
    const { id: lease_id, agent_id, attempt, state: ended, outcome, ended_at } = row;
    return { lease_id, agent_id, attempt, ended, outcome, ended_at: toTimestamp(ended_at) };
  }

  /**
   * The agents that take the task's kind, and how much room they have.
   * @param needed how many leases have to be granted until the task is
   * @param holder who holds the task, and has room for it if it loses it
   */
  private async takers(
    statements: Statements,
    { kind }: WhyTask,
    needed: number,
    holder: number | undefined,
  ): Promise<Takers> {
    const silentSince = this.liveness.silentSince();
    const census = await this.agentKinds.census(statements, kind, silentSince);
    const of = (status: string) => census.find((row) => row.status === status);
    const online = of('online')?.count ?? 0;
    return {
      online,
      offline: of('offline')?.count ?? 0,
      draining: of('draining')?.count ?? 0,
      disabled: of('disabled')?.count ?? 0,
      ...(online === 0
        ? { with_room: 0, free: ZERO }
        : await countRoom(
            {
              takers: (aboveId, limit) =>
                this.agentKinds.onlineTakers(statements, kind, silentSince, aboveId, limit),
              held: (ids, most) => this.leasesOf(statements, ids, most),
              heldOfKind: (ids) => this.leasesOfKind(statements, ids, kind),
            },
            this.settings.maxLeasesPerAgent,
            needed,
            holder,
          )),
      last_asked_at: of('online')?.asked_at ?? null,
      candidate: online === 0 ? await this.candidate(statements, kind, silentSince, holder) : undefined,
    };
  }

  private async candidate(
    statements: Statements,
    kind: string,
    silentSince: number,
    holder: number | undefined,
  ): Promise<Takers['candidate']> {
    const nearest = await this.agentKinds.nearest(statements, kind, silentSince);
    if (!nearest) return undefined;
    const { id, status, is_silent: isSilent } = nearest;
    const { maxLeasesPerAgent } = this.settings;
    const leases = await this.leasesOf(statements, [id], maxLeasesPerAgent);
    // One that holds more than it may has no room, also without the task's lease.
    const held = leases ? (leases.get(id) ?? 0) - (id === holder ? 1 : 0) : maxLeasesPerAgent;
    return { id, status, isSilent: isSilent === 1, held };
  }

  /** How many live leases each of the agents holds; undefined if they hold more than `most` in all. */
  private async leasesOf(
    statements: Statements,
    agentIds: readonly number[],
    most: number,
  ): Promise<Map<number, number> | undefined> {
    const of = new Map<number, number>();
    let count = 0;
    for (let begin = 0; begin < agentIds.length; begin += COUNTED_AT_ONCE) {
      const rows = await statements.rows<{ agent_id: number; held: number }>(
        `SELECT agent_id, count(*) AS held FROM (
           SELECT agent_id FROM leases WHERE state = 'active' AND ${statements.dialect.isAmong('agent_id', '$1')} LIMIT $2) AS live
         GROUP BY agent_id`,
        JSON.stringify(agentIds.slice(begin, begin + COUNTED_AT_ONCE)),
        most - count + 1,
      );
      for (const { agent_id: id, held } of rows) {
        of.set(id, held);
        count += held;
      }
      if (count > most) return undefined;
      await nextTurn();
    }
    return of;
  }

  private async leasesOfKind(
    statements: Statements,
    agentIds: readonly number[],
    kind: string,
  ): Promise<Map<number, number>> {
    const rows = await statements.rows<{ agent_id: number; held: number }>(
      `SELECT l.agent_id, count(*) AS held FROM leases l JOIN tasks t ON t.id = l.task_id
       WHERE l.state = 'active' AND ${statements.dialect.isAmong('l.agent_id', '$1')} AND coalesce(t.kind, '') = $2
       GROUP BY l.agent_id`,
      JSON.stringify(agentIds),
      kind,
    );
    return new Map(rows.map((row) => [row.agent_id, row.held]));
  }
}
