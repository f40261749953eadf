import { isDeepStrictEqual } from 'node:util';

import type { AgentTransition } from '../../src/agents/fleet.service';
import type { Outcome } from '../../src/kinds/observations';
import type { LeaseState, Standing } from '../../src/leases/lease.entity';
import type { TaskReason, TaskState } from '../../src/queue/task.entity';
import { onPostgres } from './harness';

/**
 * Whether two values are the same as JSON. Read again, for rows of the driver may be made in the realm of the test file that
 * loaded it first, and then their lists are not strictly equal to ours.
 */
const isSameJson = (a: unknown, b: unknown): boolean => isDeepStrictEqual(plain(a), plain(b));
const plain = (value: unknown): unknown =>
  value === undefined ? undefined : JSON.parse(JSON.stringify(value));

/**
 * The reference for the queue: what tasks, leases and limits must do, said once more in the plainest way, without a
 * database. It does not choose what the service is free to choose (ids, the jitter of a backoff, which of two calls at
 * once came first): it takes the service's answer and says whether there is a way to explain it.
 */

export interface Terms {
  leaseMs: number;
  lifetimeMs: number;
  backoffMs: number;
  backoffMaxMs: number;
  /** A silence of the service that is longer counts as an outage. */
  outageMs: number;
}

export interface NewTask {
  kind: string;
  target: string;
  spec: object;
  priority: number;
  runAt: number | null;
  notAfter: number | null;
  maxAttempts: number;
  uniqueKey: string | null;
}

export interface Report {
  lease: number;
  outcome?: Outcome;
  /** Tells this report's observations from those of any other. */
  serial: number;
}

/** A call, or the reaper's run. */
export type Operation =
  | { op: 'enqueue'; tasks: NewTask[] }
  | { op: 'claim'; agent: number; capacities: Record<string, number>; key?: string }
  | { op: 'extend'; agent: number; leases: number[]; byMs: number }
  | { op: 'report'; agent: number; completed: Report[]; cancelled: Report[] }
  | { op: 'cancel'; task: number }
  | { op: 'retry'; task: number }
  | { op: 'change'; agent: number; transition: AgentTransition }
  | { op: 'limit'; kind: string | null; target: string | null; limit: number | null }
  | { op: 'reap' }
  /** What the server does by itself that must not show: counts are added up, tasks are moved into lanes. */
  | { op: 'tidy' };

/** What a call was answered, reduced to what the reference speaks of; or the code of its error. */
export type Answer = { error: string } | { is: unknown };

/** An instant, or the bounds of one that the service is free to choose within. */
type Instant = number | { from: number; to: number };

export interface TaskRow {
  id: number;
  kind: string;
  target: string;
  spec: object;
  state: TaskState;
  priority: number;
  run_at: Instant | null;
  not_after: number | null;
  attempts: number;
  max_attempts: number;
  unique_key: string | null;
  lease_id: number | null;
  reason: TaskReason | null;
  finished_at: number | null;
}

export interface LeaseRow {
  id: number;
  task_id: number;
  agent_id: number;
  attempt: number;
  state: LeaseState;
  granted_at: number;
  deadline_at: number;
  lifetime_ends_at: number;
  ended_at: number | null;
}

export interface ResultRow {
  lease_id: number;
  task_id: number;
  agent_id: number;
  standing: Standing;
  report: 'completed' | 'cancelled';
  outcome: Outcome | null;
  serial: number;
  received_at: number;
}

/** Everything that is stored, as rows in the order of their ids. */
export interface Snapshot {
  tasks: TaskRow[];
  leases: LeaseRow[];
  results: ResultRow[];
  agents: Record<number, string>;
  limits: Record<string, number>;
}

/** The state of the reference: plain data, so that it can be copied to try another explanation. */
interface World {
  now: number;
  tasks: Map<number, TaskRow>;
  leases: Map<number, LeaseRow>;
  /** By lease. */
  results: Map<number, ResultRow>;
  agents: Map<number, 'active' | 'draining' | 'disabled'>;
  limits: Map<string, number>;
  keys: Map<string, { request: string; leases: number[] }>;
  lastTask: number;
  lastLease: number;
  /** The same two before the operations that are being explained. */
  lastTaskBefore: number;
  lastLeaseBefore: number;
  /** Whether a claim may leave out tasks: it does not wait for those that others have locked at the moment. */
  mayMiss: boolean;
  /** When the service was last seen to run. */
  lastSeen: number;
  /** What the reaper's look found; what it then does depends on it. */
  found: { overdue: boolean; due: boolean };
}

/** The service did what the reference does not allow. */
class Mismatch extends Error {}

/** Answers a question that the reference leaves open: a way to explain what was seen has to be found. */
type Choose = () => boolean;

/** A part of an operation that happens at one instant: nothing comes in between. */
type Part = (answer: Answer, choose: Choose) => void;

const UNFINISHED: ReadonlySet<TaskState> = new Set<TaskState>(['scheduled', 'queued', 'leased']);
const bestFirst = (a: TaskRow, b: TaskRow) => b.priority - a.priority || a.id - b.id;

/** The window that a limit is on: `''`, `dns`, `dns|192.0.2.53`. */
export const windowName = (kind: string | null, target: string | null): string =>
  kind === null ? '' : target === null ? kind : `${kind}|${target}`;

const windowsOf = (task: Pick<TaskRow, 'kind' | 'target'>): string[] => [
  '',
  task.kind,
  windowName(task.kind, task.target),
];

export class ReferenceModel {
  private constructor(
    private readonly terms: Terms,
    private world: World,
  ) {}

  /** An empty queue, at an instant, when the reaper has just run. */
  static empty(terms: Terms, now: number, agents: readonly number[]): ReferenceModel {
    return new ReferenceModel(terms, {
      now,
      tasks: new Map(),
      leases: new Map(),
      results: new Map(),
      agents: new Map(agents.map((id) => [id, 'active'])),
      limits: new Map(),
      keys: new Map(),
      lastTask: 0,
      lastLease: 0,
      lastTaskBefore: 0,
      lastLeaseBefore: 0,
      mayMiss: false,
      lastSeen: now,
      found: { overdue: false, due: false },
    });
  }

  get now(): number {
    return this.world.now;
  }

  get tasks(): TaskRow[] {
    return [...this.world.tasks.values()].sort((a, b) => a.id - b.id);
  }

  get leases(): LeaseRow[] {
    return [...this.world.leases.values()].sort((a, b) => a.id - b.id);
  }

  /** Time goes on; the service is not seen to run meanwhile. */
  advance(ms: number): void {
    this.world.now += ms;
  }

  /**
   * The service is seen to run. After an outage, holders could not reach it: their leases get one more duration from its
   * end on.
   */
  seen(): void {
    const { now, lastSeen } = this.world;
    this.world.lastSeen = now;
    if (now - lastSeen <= this.terms.outageMs) return;
    for (const lease of this.world.leases.values()) {
      if (lease.state === 'active') lease.deadline_at = Math.max(lease.deadline_at, now + this.terms.leaseMs);
    }
  }

  /**
   * Finds an order of the operations, and choices of the service, that explain all answers and what is stored after
   * them; takes that for what happened.
   * @throws Error if there is none: says why not, for the order in which they were asked
   */
  explain(operations: readonly Operation[], answers: readonly Answer[], after: Snapshot): void {
    let reason: string | undefined;
    this.world.lastTaskBefore = this.world.lastTask;
    this.world.lastLeaseBefore = this.world.lastLease;
    this.world.mayMiss = onPostgres && operations.length > 1;
    const done = operations.map(() => 0);
    const search = (model: ReferenceModel): ReferenceModel | undefined => {
      const open = operations.map((_, i) => i).filter((i) => (done[i] as number) < partsOf(operations[i]));
      if (open.length === 0) {
        const problem = model.adopt(after);
        reason ??= problem;
        return problem === undefined ? model : undefined;
      }
      for (const i of open) {
        const [operation, answer] = [operations[i] as Operation, answers[i] as Answer];
        for (const next of model.ways((m) => m.parts(operation)[done[i] as number] as Part, answer)) {
          if (next instanceof Mismatch) {
            reason ??= `${operation.op}: ${next.message}`;
            continue;
          }
          (done[i] as number)++;
          const found = search(next);
          (done[i] as number)--;
          if (found) return found;
        }
      }
      return undefined;
    };
    const found = search(this);
    if (!found) throw new Error(reason);
    this.world = found.world;
  }

  /** Every way in which a part can go on from here. */
  private *ways(part: (model: ReferenceModel) => Part, answer: Answer): Generator<ReferenceModel | Mismatch> {
    const untried: boolean[][] = [[]];
    for (let given = untried.pop(); given; given = untried.pop()) {
      const model = new ReferenceModel(this.terms, copyOf(this.world));
      let asked = 0;
      let problem: Mismatch | undefined;
      try {
        const chosen = given;
        part(model)(answer, () => chosen[asked++] ?? false);
      } catch (error) {
        if (!(error instanceof Mismatch)) throw error;
        problem = error;
      }
      for (let i = given.length; i < asked; i++) {
        untried.push([...given, ...Array<boolean>(i - given.length).fill(false), true]);
      }
      yield problem ?? model;
    }
  }

  /** Compares with what is stored, and takes from it what the service was free to choose. @returns the difference */
  private adopt(after: Snapshot): string | undefined {
    const { tasks, results, agents, limits } = this.world;
    for (const row of after.tasks) {
      const task = tasks.get(row.id);
      const bounds = task?.run_at;
      if (!task || typeof bounds !== 'object' || bounds === null) continue;
      const chosen = row.run_at as number | null;
      if (chosen === null || chosen < bounds.from || chosen > bounds.to)
        return `task ${row.id} runs at ${chosen}, not within ${bounds.from}..${bounds.to}`;
      task.run_at = chosen;
    }
    return (
      difference('task', this.tasks, after.tasks) ??
      difference('lease', this.leases, after.leases) ??
      difference(
        'result of lease',
        [...results.values()].sort((a, b) => a.lease_id - b.lease_id),
        after.results,
      ) ??
      difference('agents', [Object.fromEntries(agents)], [after.agents]) ??
      difference('limits', [Object.fromEntries(limits)], [after.limits])
    );
  }

  private parts(operation: Operation): Part[] {
    switch (operation.op) {
      case 'enqueue':
        return [(answer) => expectAnswer(answer, this.enqueue(operation, answer))];
      case 'claim':
        return [(answer) => expectAnswer(answer, this.claim(operation, answer))];
      case 'extend':
        return [(answer) => expectAnswer(answer, this.extend(operation))];
      case 'report':
        return [(answer, choose) => expectAnswer(answer, this.report(operation, choose))];
      case 'cancel':
        return [(answer) => expectAnswer(answer, this.cancel(operation.task))];
      case 'retry':
        return [(answer) => expectAnswer(answer, this.retry(operation.task))];
      case 'change':
        return [(answer) => expectAnswer(answer, this.change(operation.agent, operation.transition))];
      case 'limit':
        return [(answer) => expectAnswer(answer, this.setLimit(operation))];
      case 'tidy':
        return [(answer) => expectAnswer(answer, { is: null })];
      case 'reap':
        return [
          () => this.seen(),
          () => {
            this.world.found.overdue = this.overdue().length > 0;
          },
          () => {
            this.world.found.due = this.due().length > 0 || this.outOfTime().length > 0;
          },
          (_, choose) => this.expire(choose),
          () => this.endOutOfTime(),
          (answer) => {
            this.makeReady();
            expectAnswer(answer, { is: null });
          },
        ];
    }
  }

  private enqueue({ tasks }: Operation & { op: 'enqueue' }, answer: Answer): Answer {
    const { now } = this.world;
    const late = tasks.some(
      ({ runAt, notAfter }) =>
        notAfter !== null && (notAfter <= now || (runAt !== null && notAfter <= runAt)),
    );
    if (late) return { error: 'ERR_VALIDATION' };
    const isSame = (task: TaskRow, asked: NewTask) =>
      task.kind === asked.kind && isSameJson(task.spec, asked.spec);
    const firstOfKey = new Map<string, NewTask>();
    for (const asked of tasks) {
      if (asked.uniqueKey === null) continue;
      const holder = this.holderOf(asked.uniqueKey);
      const first = firstOfKey.get(asked.uniqueKey) ?? asked;
      firstOfKey.set(asked.uniqueKey, first);
      if (holder ? !isSame(holder, asked) : !isSameJson(first.spec, asked.spec))
        return { error: 'ERR_CONFLICT' };
    }
    const got = idsOf(answer, 'enqueue');
    const told = (answer as { is: { state: TaskState }[] }).is;
    // A sequence gives ids at once: those of two enqueues of the same moment may interleave.
    let newest = onPostgres ? this.world.lastTaskBefore : this.world.lastTask;
    const expected = tasks.map((asked, i) => {
      const holder = asked.uniqueKey === null ? undefined : this.holderOf(asked.uniqueKey);
      // Of a task that is there already it is told how it was found, which may change until the new ones are stored.
      if (holder) return this.world.mayMiss ? { id: holder.id, state: told[i]?.state } : holder;
      const id = got[i] as number;
      if (!(id > newest) || this.world.tasks.has(id))
        throw new Mismatch(`task ${id} is not newer than ${newest}`);
      newest = id;
      this.world.lastTask = Math.max(this.world.lastTask, id);
      const task: TaskRow = {
        id,
        kind: asked.kind,
        target: asked.target,
        spec: asked.spec,
        state: 'scheduled',
        priority: asked.priority,
        run_at: asked.runAt,
        not_after: asked.notAfter,
        attempts: 0,
        max_attempts: asked.maxAttempts,
        unique_key: asked.uniqueKey,
        lease_id: null,
        reason: null,
        finished_at: null,
      };
      if (asked.runAt === null || asked.runAt <= now) task.state = 'queued';
      this.world.tasks.set(id, task);
      return task;
    });
    return { is: expected.map(({ id, state }) => ({ id, state })) };
  }

  private claim({ agent, capacities, key }: Operation & { op: 'claim' }, answer: Answer): Answer {
    const { now, keys, leases } = this.world;
    const wanted = Object.entries(capacities).filter(([, capacity]) => capacity > 0);
    const request = JSON.stringify(Object.entries(capacities).sort());
    const before = key === undefined ? undefined : keys.get(`${agent} ${key}`);
    if (wanted.length === 0)
      return before && before.request !== request ? { error: 'ERR_CONFLICT' } : { is: [] };
    if (this.world.agents.get(agent) === 'disabled') return { error: 'ERR_FORBIDDEN' };
    if (before) {
      if (before.request !== request) return { error: 'ERR_CONFLICT' };
      const live = before.leases
        .map((id) => leases.get(id) as LeaseRow)
        .filter((lease) => lease.state === 'active');
      return { is: live.map((lease) => this.grantOf(lease)) };
    }
    if (this.world.agents.get(agent) === 'draining') return { is: [] };
    const given = new Set(
      'is' in answer ? (answer.is as { task_id: number }[]).map((one) => one.task_id) : [],
    );
    const held = (kind: string) =>
      this.leases.filter(
        ({ agent_id, state, task_id }) =>
          agent_id === agent && state === 'active' && this.world.tasks.get(task_id)?.kind === kind,
      ).length;
    const left = new Map(wanted.map(([kind, capacity]) => [kind, capacity - held(kind)]));
    const best: TaskRow[] = [];
    const candidates = this.tasks
      .filter((task) => task.state === 'queued' && (task.not_after === null || task.not_after > now))
      .filter((task) => !this.world.mayMiss || given.has(task.id))
      .sort(bestFirst);
    for (const task of candidates) {
      const budget = left.get(task.kind) ?? 0;
      if (budget <= 0 || !this.fits(task)) continue;
      left.set(task.kind, budget - 1);
      // From here on it holds its slots.
      task.state = 'leased';
      best.push(task);
    }
    const got = idsOf(answer, 'claim');
    // A sequence gives ids at once, and who has the first need not be who is first to have it stored.
    const newest = onPostgres ? this.world.lastLeaseBefore : this.world.lastLease;
    const granted = best.map((task, i) => {
      const id = got[i] as number;
      if (!(id > newest) || leases.has(id)) throw new Mismatch(`lease ${id} is not newer than ${newest}`);
      this.world.lastLease = Math.max(this.world.lastLease, id);
      task.state = 'leased';
      task.attempts++;
      task.lease_id = id;
      const lease: LeaseRow = {
        id,
        task_id: task.id,
        agent_id: agent,
        attempt: task.attempts,
        state: 'active',
        granted_at: now,
        deadline_at: now + this.terms.leaseMs,
        lifetime_ends_at: now + this.terms.lifetimeMs,
        ended_at: null,
      };
      leases.set(id, lease);
      return lease;
    });
    if (key !== undefined && granted.length > 0)
      keys.set(`${agent} ${key}`, { request, leases: granted.map((lease) => lease.id) });
    return { is: granted.map((lease) => this.grantOf(lease)) };
  }

  private extend({ agent, leases, byMs }: Operation & { op: 'extend' }): Answer {
    if (this.world.agents.get(agent) === 'disabled') return { error: 'ERR_FORBIDDEN' };
    const outcomes: object[] = [];
    const revoked: number[] = [];
    const until = this.now + Math.min(Math.max(byMs, 10_000), this.terms.leaseMs);
    for (const id of leases) {
      const lease = this.world.leases.get(id);
      if (lease?.state !== 'active' || lease.agent_id !== agent) {
        revoked.push(id);
        continue;
      }
      lease.deadline_at = Math.max(lease.deadline_at, Math.min(until, lease.lifetime_ends_at));
      outcomes.push({ lease_id: id, new_deadline_ms: Math.max(0, lease.deadline_at - this.now) });
    }
    return { is: { outcomes, revoked } };
  }

  private report({ agent, completed, cancelled }: Operation & { op: 'report' }, choose: Choose): Answer {
    if (this.world.agents.get(agent) === 'disabled') return { error: 'ERR_FORBIDDEN' };
    const rejected: object[] = [];
    const reports = [
      ...completed.map((report) => ({
        ...report,
        as: 'completed' as const,
        outcome: report.outcome ?? null,
      })),
      ...cancelled.map((report) => ({
        ...report,
        as: 'cancelled' as const,
        outcome: report.outcome ?? null,
      })),
    ];
    for (const { lease: id, as, outcome, serial } of reports) {
      const lease = this.world.leases.get(id);
      const before = this.world.results.get(id);
      const keep = (standing: Standing, { task_id }: LeaseRow) =>
        this.world.results.set(id, {
          lease_id: id,
          task_id,
          agent_id: agent,
          standing,
          report: as,
          outcome,
          serial,
          received_at: this.now,
        });
      if (lease?.agent_id !== agent) {
        rejected.push({ lease_id: id, reason: 'unknown' });
      } else if (lease.state === 'active') {
        const task = this.end(lease, as);
        if (as === 'completed') this.finish(task, 'completed', null);
        else this.giveBack(task, choose);
        keep(as === 'completed' ? 'final' : 'attempt', lease);
      } else if (lease.state === 'expired' || lease.state === 'revoked') {
        rejected.push({ lease_id: id, reason: lease.state });
        if (!before) keep('late', lease);
      } else if (before?.report !== as || before.outcome !== outcome) {
        rejected.push({ lease_id: id, reason: 'conflict' });
      }
    }
    const acknowledged = reports.length - rejected.length;
    return { is: rejected.length === 0 ? { acknowledged } : { acknowledged, rejected } };
  }

  private cancel(id: number): Answer {
    const task = this.world.tasks.get(id);
    if (!task) return { error: 'ERR_NOT_FOUND' };
    if (task.state === 'completed' || task.state === 'dead') return { error: 'ERR_CONFLICT' };
    if (task.state !== 'cancelled') {
      const lease = task.lease_id === null ? undefined : this.world.leases.get(task.lease_id);
      if (lease) this.end(lease, 'revoked');
      this.finish(task, 'cancelled', 'operator');
    }
    return { is: this.viewOf(task) };
  }

  private retry(id: number): Answer {
    const task = this.world.tasks.get(id);
    if (!task) return { error: 'ERR_NOT_FOUND' };
    if (task.state !== 'dead' && task.state !== 'cancelled') return { error: 'ERR_CONFLICT' };
    if (task.unique_key !== null && this.holderOf(task.unique_key)) return { error: 'ERR_CONFLICT' };
    task.attempts = 0;
    task.run_at = null;
    task.reason = null;
    task.finished_at = null;
    if (task.not_after !== null && task.not_after <= this.now) task.not_after = null;
    task.state = 'queued';
    return { is: this.viewOf(task) };
  }

  private change(agent: number, transition: AgentTransition): Answer {
    const before = this.world.agents.get(agent);
    if (transition === 'drain' && before === 'disabled') return { error: 'ERR_CONFLICT' };
    const state =
      transition === 'enable' ? 'active' : transition === 'drain' ? 'draining' : ('disabled' as const);
    this.world.agents.set(agent, state);
    const held = this.leases.filter((lease) => lease.agent_id === agent && lease.state === 'active');
    if (state === 'disabled') {
      for (const lease of held) {
        const task = this.end(lease, 'revoked');
        // The operator cut the attempt off, so it does not count.
        task.state = 'queued';
        task.attempts--;
      }
    }
    return { is: { status: state, live_leases: state === 'disabled' ? 0 : held.length } };
  }

  private setLimit({ kind, target, limit }: Operation & { op: 'limit' }): Answer {
    const name = windowName(kind, target);
    if (limit === null) this.world.limits.delete(name);
    else this.world.limits.set(name, limit);
    const inside = (state: TaskState) =>
      this.tasks.filter((task) => task.state === state && windowsOf(task).includes(name)).length;
    const leased = inside('leased');
    return {
      is: {
        limit,
        leased: limit === null ? null : leased,
        available: limit === null ? null : Math.max(0, limit - leased),
        // Of a target only those are told that are in its lane already.
        ...(target === null ? { queued: inside('queued') } : {}),
      },
    };
  }

  private overdue(): LeaseRow[] {
    return this.leases.filter((lease) => lease.state === 'active' && lease.deadline_at <= this.now);
  }

  private due(): TaskRow[] {
    return this.tasks
      .filter((task) => task.state === 'scheduled' && task.run_at !== null && latest(task.run_at) <= this.now)
      .sort((a, b) => latest(a.run_at as Instant) - latest(b.run_at as Instant) || a.id - b.id);
  }

  private outOfTime(): TaskRow[] {
    return this.tasks.filter(
      (task) =>
        task.state !== 'leased' &&
        UNFINISHED.has(task.state) &&
        task.not_after !== null &&
        task.not_after <= this.now,
    );
  }

  private expire(choose: Choose): void {
    if (!this.world.found.overdue) return;
    for (const lease of this.overdue()) this.giveBack(this.end(lease, 'expired'), choose);
  }

  private endOutOfTime(): void {
    if (!this.world.found.due) return;
    for (const task of this.outOfTime()) this.finish(task, 'dead', 'not_after');
  }

  private makeReady(): void {
    if (!this.world.found.due) return;
    for (const task of this.due()) task.state = 'queued';
  }

  /** Ends a live lease. @returns its task, which somebody else has to take further */
  private end(lease: LeaseRow, state: LeaseState): TaskRow {
    lease.state = state;
    lease.ended_at = this.now;
    const task = this.world.tasks.get(lease.task_id) as TaskRow;
    task.lease_id = null;
    return task;
  }

  private finish(task: TaskRow, state: TaskState, reason: TaskReason | null): void {
    task.state = state;
    task.reason = reason;
    task.finished_at = this.now;
  }

  /** An attempt failed: another one after a while, unless there have been enough or the time is up by then. */
  private giveBack(task: TaskRow, choose: Choose): void {
    if (task.attempts >= task.max_attempts) {
      this.finish(task, 'dead', 'max_attempts');
      return;
    }
    const longest = Math.min(this.terms.backoffMaxMs, this.terms.backoffMs * 2 ** (task.attempts - 1));
    const from = this.now + Math.floor(longest / 2);
    const to = this.now + longest;
    const end = task.not_after ?? Number.POSITIVE_INFINITY;
    if (from >= end || (to >= end && choose())) {
      this.finish(task, 'dead', 'not_after');
    } else {
      task.state = 'scheduled';
      task.run_at = { from, to: Math.min(to, end - 1) };
    }
  }

  private fits(task: TaskRow): boolean {
    return windowsOf(task).every((name) => this.roomIn(name) > 0);
  }

  private roomIn(name: string): number {
    const limit = this.world.limits.get(name);
    if (limit === undefined) return Number.POSITIVE_INFINITY;
    return (
      limit - this.tasks.filter((task) => task.state === 'leased' && windowsOf(task).includes(name)).length
    );
  }

  private holderOf(key: string): TaskRow | undefined {
    return this.tasks.find((task) => task.unique_key === key && UNFINISHED.has(task.state));
  }

  private grantOf(lease: LeaseRow): object {
    const task = this.world.tasks.get(lease.task_id) as TaskRow;
    return {
      lease_id: lease.id,
      task_id: task.id,
      kind: task.kind,
      lease_until_ms: Math.max(0, lease.deadline_at - this.now),
      spec: task.spec,
    };
  }

  private viewOf({ id, state, reason, attempts }: TaskRow): object {
    const leases = this.leases.filter((lease) => lease.task_id === id);
    return { id, state, reason, attempts, leases: leases.map((lease) => [lease.id, lease.state]) };
  }
}

/** A copy that can be changed on its own; instants and specs are replaced and never changed. */
function copyOf(world: World): World {
  const rows = <Row extends object>(map: Map<number, Row>) =>
    new Map(Array.from(map, ([id, row]) => [id, { ...row }]));
  return {
    ...world,
    tasks: rows(world.tasks),
    leases: rows(world.leases),
    results: new Map(world.results),
    agents: new Map(world.agents),
    limits: new Map(world.limits),
    keys: new Map(world.keys),
    found: { ...world.found },
  };
}

const latest = (instant: Instant): number => (typeof instant === 'number' ? instant : instant.to);

const partsOf = (operation: Operation | undefined): number => (operation?.op === 'reap' ? 6 : 1);

function expectAnswer(answer: Answer, expected: Answer): void {
  if (!isSameJson(answer, expected))
    throw new Mismatch(`answered ${JSON.stringify(answer)}, expected ${JSON.stringify(expected)}`);
}

/** The ids that the service gave, in the order of its answer. */
function idsOf(answer: Answer, what: 'enqueue' | 'claim'): number[] {
  if (!('is' in answer)) throw new Mismatch(`answered ${answer.error}, expected a success`);
  return (answer.is as { id: number; lease_id: number }[]).map((item) =>
    what === 'enqueue' ? item.id : item.lease_id,
  );
}

function difference(
  what: string,
  expected: readonly object[],
  stored: readonly object[],
): string | undefined {
  for (let i = 0; i < Math.max(expected.length, stored.length); i++) {
    if (!isSameJson(expected[i], stored[i]))
      return `${what}: stored ${JSON.stringify(stored[i])}, expected ${JSON.stringify(expected[i])}`;
  }
  return undefined;
}
