import { setImmediate as nextTurn } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { AgentKinds } from '../agents/agent-kinds';
import { Liveness } from '../agents/liveness';
import { Clock, toTimestamp } from '../clock';
import { ConcurrencyService } from '../concurrency/concurrency.service';
import type { CountingScope, WindowKey } from '../concurrency/window.entity';
import { inForce, roomNow } from '../concurrency/window-bounds';
import { selectMovingWindows, selectWideWindows } from '../concurrency/windows.queries';
import { Database } from '../database/database';
import type { Statements } from '../database/statements';
import { fail } from '../errors';
import { TaskKinds } from '../kinds/task-kinds';
import { longestBackoffMs } from '../leases/retries';
import { QueueDepth } from '../queue/depth';
import { isBefore, rankOf } from '../queue/lanes';
import { type Position, selectLanes, selectOpenLanes } from '../queue/lanes.queries';
import { SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import { Overload } from '../telemetry/overload';
import { type Count, countAhead, type QueuedWindow, sumOf, type TargetCount } from './task-ahead';
import { countRoom, type Held } from './task-room';
import {
  explain,
  explainFinished,
  leasesNeeded,
  type PaceChange,
  type Takers,
  type Wait,
  type WhyFacts,
  type WhyTask,
  waitOf,
} from './task-why';
import type { TaskWhy, WhyAttempt } from './task-why.dto';
import {
  countBefore,
  countCompleted,
  countDue,
  countHeld,
  countMovingBefore,
  selectDeadline,
  selectLastFailed,
} from './task-why.queries';
import { selectKeyHolders, selectTask, type TaskRow } from './tasks.queries';

/** How many tasks are counted before one, of each kind; if there are more, the answer says that it is a lower bound. */
const MAX_COUNTED = 10_000;
/** How many open lanes of targets are looked at, of each kind, and in how many of them one statement counts. */
const MAX_LANES = 1_000;
const LANES_AT_ONCE = 32;
/** How many of the tasks of a kind that were completed last say the pace, and for how long, in milliseconds. */
const PACE_TASKS = 1_000;
const PACE_MS = 600_000;
/** Of how many agents the leases are counted before the event loop serves others. */
const COUNTED_AT_ONCE = 100;

const ZERO: Count = { count: 0, isExact: true };

/** Explains why a task does not run. Only reads, locks nothing, and bounds what it counts. */
@Injectable()
export class TaskWhyService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly liveness: Liveness,
    private readonly agentKinds: AgentKinds,
    private readonly concurrency: ConcurrencyService,
    private readonly depth: QueueDepth,
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
      const task = await selectTask(statements, taskId);
      if (!task) throw fail('ERR_NOT_FOUND', { task_id: taskId });
      if (task.finished_at === null) return this.explainUnfinished(statements, task);
      const { unique_key: key } = task;
      const holder = key === null ? undefined : (await selectKeyHolders(statements, [key])).get(key);
      return explainFinished(task, holder?.id);
    });
  }

  private async explainUnfinished(statements: Statements, task: TaskRow): Promise<TaskWhy> {
    const now = this.clock.now();
    const { lease_id: leaseId, held_by: holder } = task;
    const deadline = leaseId === null ? undefined : await selectDeadline(statements, leaseId);
    const { retryBackoffMs, retryBackoffMaxMs } = this.settings;
    const longest = longestBackoffMs(Math.max(1, task.attempts), retryBackoffMs, retryBackoffMaxMs);
    const wait = waitOf(task, deadline, longest, now);
    const windows = await this.windowsOf(statements, task);
    const { ahead, aheadNow } = await this.ahead(statements, task, windows, wait, now);
    return explain({
      now,
      task,
      isKindKnown: this.kinds.has(task.kind),
      wait,
      lease: leaseId === null || holder === null ? undefined : { id: leaseId, agent_id: holder },
      lastAttempt: wait?.reason === 'backoff' ? await this.lastAttempt(statements, task.id) : undefined,
      ...{ ahead, aheadNow },
      pace: await this.pace(statements, windows, now),
      paceChanges: await this.paceChanges(statements, windows),
      takers: await this.takers(statements, task, leasesNeeded(ahead), holder ?? undefined),
      load: this.overload.level,
      maxLeasesPerAgent: this.settings.maxLeasesPerAgent,
      isDraining: this.lifecycle.draining,
    });
  }

  /** The windows that a task counts in. */
  private async windowsOf(statements: Statements, task: WindowKey): Promise<QueuedWindow[]> {
    const windows = await this.concurrency.limitedWindows(statements, [task]);
    const queued = windows.length === 0 ? [] : await this.concurrency.countQueued(statements, windows);
    return windows.map((window, i) => ({ ...window, queued: queued[i] as number }));
  }

  /** How many tasks come before it, once its windows have room: for a lease of its kind, and for a slot of each window. */
  private async ahead(
    statements: Statements,
    task: WhyTask,
    windows: readonly QueuedWindow[],
    wait: Wait | undefined,
    now: number,
  ): Promise<Pick<WhyFacts, 'ahead' | 'aheadNow'>> {
    const position = { rank: rankOf(task.priority), id: task.id };
    const ownTarget = windows.find(({ scope }) => scope === 'target');
    // Only a limit of everything makes other kinds matter.
    const kinds = windows.some(({ scope }) => scope === 'global') ? await this.depth.kinds(statements) : [];
    const others = { counts: [] as TargetCount[], isExact: true };
    for (const kind of new Set([task.kind, ...kinds])) {
      const ofKind = await this.countOfKind(statements, kind, ownTarget, position, now);
      others.counts.push(...ofKind.counts);
      others.isExact &&= ofKind.isExact;
    }
    // After the others: a task that is moved into the lane meanwhile is counted twice then, and not left out.
    const inLane = ownTarget ? await this.countInLane(statements, ownTarget, position, now) : ZERO;
    // Of a target whose tasks are still being moved into its lane, some are among the others.
    const isMoved = !ownTarget || ownTarget.moved_through === null;
    const own = { ...inLane, isExact: inLane.isExact && (isMoved || others.isExact) };
    const due = wait ? await countDue(statements, task, wait.end, MAX_COUNTED + 1) : [];
    const rooms = await this.concurrency.limitedWindows(statements, [...others.counts, ...due]);
    const around = { task, windows, own, others, waits: wait !== undefined, rooms };
    const ahead = countAhead({ ...around, due: { counts: due, isExact: sumOf(due) <= MAX_COUNTED } });
    if (due.length === 0) return { ahead, aheadNow: ahead };
    return { ahead, aheadNow: countAhead({ ...around, due: { counts: [], isExact: true } }) };
  }

  /** How many queued tasks are before a position in the lane of a limited target. */
  private async countInLane(
    statements: Statements,
    key: WindowKey,
    position: Position,
    now: number,
  ): Promise<Count> {
    const [lane] = await selectLanes(statements, [key]);
    if (!lane) return ZERO;
    const found =
      (await countBefore(statements, [lane.id], position, now, MAX_COUNTED + 1)).get(lane.id) ?? 0;
    return { count: Math.min(found, MAX_COUNTED), isExact: found <= MAX_COUNTED };
  }

  /**
   * How many queued tasks of a kind are before a position: those in the lane that its tasks share, and those of targets
   * whose lanes are open, of each at most the room of its window.
   * @param except a target whose lane is left out
   */
  private async countOfKind(
    statements: Statements,
    kind: string,
    except: WindowKey | undefined,
    position: Position,
    now: number,
  ): Promise<{ counts: TargetCount[]; isExact: boolean }> {
    const counts: TargetCount[] = [];
    // One more is looked for than is counted, to know whether there are more.
    let left = MAX_COUNTED;
    let isExact = true;
    const count = (found: number): number => {
      if (found > left) isExact = false;
      const counted = Math.min(found, left);
      left -= counted;
      return counted;
    };
    const [shared] = await selectLanes(statements, [{ kind, target: '' }]);
    if (shared) {
      const found = (await countBefore(statements, [shared.id], position, now, left + 1)).get(shared.id) ?? 0;
      const isMoving = found > 0 && (await selectMovingWindows(statements, kind)).length > 0;
      const moving = isMoving
        ? await countMovingBefore(statements, shared.id, position, now, Math.min(found, left))
        : [];
      counts.push({ kind, target: '', count: count(found) - sumOf(moving) }, ...moving);
    }
    const { wide } = await selectWideWindows(statements);
    const open = await selectOpenLanes(statements, kind, MAX_LANES + 1);
    const before = open.filter((lane) => isBefore({ rank: lane.head_rank, id: lane.head_id }, position));
    // Those with the least room first: one statement counts in each of its lanes up to the most room of any of them.
    const lanes = before
      .filter(({ target }) => !(except?.kind === kind && except.target === target))
      .map(({ id, target, window }) => {
        const room = window ? roomNow(inForce(window, wide), now) : Infinity;
        return { id, target, room: Math.min(room, MAX_COUNTED + 1) };
      })
      .sort((a, b) => a.room - b.room);
    for (let begin = 0; begin < lanes.length && isExact; begin += LANES_AT_ONCE) {
      await nextTurn();
      const some = lanes.slice(begin, begin + LANES_AT_ONCE);
      const ids = some.map(({ id }) => id);
      const most = Math.min(some.at(-1)?.room ?? 0, left + 1);
      const found = await countBefore(statements, ids, position, now, most);
      for (const { id, target, room } of some)
        counts.push({ kind, target, count: count(Math.min(found.get(id) ?? 0, room)) });
    }
    return { counts, isExact: isExact && before.length <= MAX_LANES };
  }

  /** How many tasks a millisecond were completed lately in each of the windows, if there were some. */
  private async pace(
    statements: Statements,
    windows: readonly QueuedWindow[],
    now: number,
  ): Promise<Partial<Record<CountingScope, number>>> {
    const pace: Partial<Record<CountingScope, number>> = {};
    for (const { scope, kind, target } of windows) {
      for (const one of scope === 'global' ? await this.depth.kinds(statements) : [kind]) {
        const { count, first } = await countCompleted(
          statements,
          one,
          scope === 'target' ? target : undefined,
          now - PACE_MS,
          PACE_TASKS,
        );
        // A single one says nothing of how often that is.
        if (count > 1 && first !== null && now > first)
          pace[scope] = (pace[scope] ?? 0) + count / (now - first);
      }
    }
    return pace;
  }

  /** The last change of the rate of each window that has one. */
  private async paceChanges(
    statements: Statements,
    windows: readonly QueuedWindow[],
  ): Promise<WhyFacts['paceChanges']> {
    const changes: Partial<Record<CountingScope, PaceChange>> = {};
    for (const { scope, kind, target, rate } of windows) {
      const change =
        rate === null ? undefined : await this.concurrency.lastChange(statements, { scope, kind, target });
      if (change) changes[scope] = change;
    }
    return changes;
  }

  /** The attempt after which a task waits. */
  private async lastAttempt(statements: Statements, taskId: number): Promise<WhyAttempt | undefined> {
    const row = await selectLastFailed(statements, taskId);
    if (!row) return undefined;
    const { id: lease_id, agent_id, attempt, state: ended, outcome, ended_at } = row;
    return { lease_id, agent_id, attempt, ended, outcome, ended_at: toTimestamp(ended_at) };
  }

  /**
   * The agents that take the task's kind, and how much room they have.
   * @param needed how many leases have to be granted until the task is
   * @param holder the agent that holds the task, and has room for it if it loses it
   */
  private async takers(
    statements: Statements,
    { kind }: WhyTask,
    needed: number,
    holder: number | undefined,
  ): Promise<Takers> {
    const silentSince = this.liveness.silentSince();
    const counts = await this.agentKinds.countByStatus(statements, kind, silentSince);
    const of = (status: string) => counts.find((row) => row.status === status);
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
                this.agentKinds.listOnline(statements, kind, silentSince, aboveId, limit),
              held: (ids, most) => this.heldBy(statements, ids, kind, most),
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
    const nearest = await this.agentKinds.findNearest(statements, kind, silentSince);
    if (!nearest) return undefined;
    const { id, status, is_silent: isSilent } = nearest;
    const { maxLeasesPerAgent } = this.settings;
    const leases = await this.heldBy(statements, [id], kind, maxLeasesPerAgent);
    // One that holds more than it may has no room, also without the task's lease.
    const held = leases ? (leases.get(id)?.all ?? 0) - (id === holder ? 1 : 0) : maxLeasesPerAgent;
    return { id, status, isSilent: isSilent === 1, held };
  }

  /** How many live leases each of the agents holds; undefined if that is more than `most` in all. */
  private async heldBy(
    statements: Statements,
    agentIds: readonly number[],
    kind: string,
    most: number,
  ): Promise<Map<number, Held> | undefined> {
    const held = new Map<number, Held>();
    let count = 0;
    for (let begin = 0; begin < agentIds.length; begin += COUNTED_AT_ONCE) {
      const some = agentIds.slice(begin, begin + COUNTED_AT_ONCE);
      for (const [id, of] of await countHeld(statements, some, kind, most - count + 1)) {
        held.set(id, of);
        count += of.all;
      }
      if (count > most) return undefined;
      await nextTurn();
    }
    return held;
  }
}
