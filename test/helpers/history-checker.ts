import { readFileSync } from 'node:fs';
import { TASK_STATES, type TaskState } from '../../src/queue/task.entity';
import type { Json } from './api';

/** What clients do, each with what it sends as its request. */
export interface Requests {
  enqueue: { tasks: object[] };
  claim: { agent_id: number; capacities: Record<string, number> };
  extend: { agent_id: number; lease_ids: number[]; extend_by_ms: number };
  report: { agent_id: number; completed: Reported[]; cancelled: Reported[] };
  cancel: { task_id: number };
  /** Of everything, a kind, or a target of it; null lifts it. */
  limit: { kind: string | null; target: string | null; limit: number | null };
  metrics: { agent_id: number; timestamp: string; gauges: { name: string; value: number }[] };
}

export interface Reported {
  lease_id: number;
  observations: { name: string; value: string }[];
}

export type Operation = keyof Requests;

/** One try of a call: `at` is on the one monotonic clock of all clients, in milliseconds. */
export interface Sent<Op extends Operation = Operation> {
  type: 'sent';
  id: number;
  at: number;
  replica: string;
  op: Op;
  key?: string;
  request: Requests[Op];
}

/** How a try ended: `status` is null where no answer came, and then nobody knows what it did. */
export interface Ended {
  type: 'ended';
  id: number;
  at: number;
  status: number | null;
  retryAfter: string | null;
  body: Json;
}

export type Entry = Sent | Ended;

/** What the database says once everything is over. */
export interface Tables {
  tasks: {
    id: number;
    kind: string;
    target: string;
    state: string;
    attempts: number;
    max_attempts: number;
  }[];
  /** Where open tasks are that nobody holds. */
  places: { task_id: number; place: string }[];
  leases: {
    id: number;
    task_id: number;
    agent_id: number;
    attempt: number;
    state: string;
    granted_at: number;
    deadline_at: number;
    ended_at: number | null;
    report: string | null;
    observations: string | null;
  }[];
  metrics: { id: number; agent_id: number }[];
  windows: { scope: string; kind: string; target: string; slots: number; leased: number }[];
  counts: ({ kind: string } & Record<TaskState, number>)[];
}

/** Reads what the checker needs; all of it must be of one snapshot. */
export async function readTables(rows: (sql: string) => Promise<Json[]>): Promise<Tables> {
  const sums = TASK_STATES.map((state) => `CAST(sum(${state}) AS bigint) AS ${state}`).join(', ');
  return {
    tasks: await rows('SELECT id, kind, target, state, attempts, max_attempts FROM tasks ORDER BY id'),
    places: await rows(
      `SELECT task_id, 'queued' AS place FROM ready UNION ALL SELECT task_id, 'scheduled' AS place FROM scheduled`,
    ),
    leases: await rows(
      `SELECT id, task_id, agent_id, attempt, state, granted_at, deadline_at, ended_at, report, observations
       FROM leases ORDER BY id`,
    ),
    metrics: await rows('SELECT id, agent_id FROM agent_metrics ORDER BY id'),
    windows: await rows('SELECT scope, kind, target, slots, leased FROM concurrency_windows'),
    counts: await rows(
      `SELECT kind, ${sums} FROM (
         SELECT kind, ${TASK_STATES.join(', ')} FROM task_counts
         UNION ALL SELECT kind, ${TASK_STATES.join(', ')} FROM task_count_deltas) AS counts GROUP BY kind`,
    ),
  };
}

/** Reads the log that clients wrote, one entry a line. */
export const readHistory = (file: string): Entry[] =>
  readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Entry);

/** Two replicas tell the database's time from their last look at it, so they differ by as long as that took. */
const CLOCK_MS = 150;

interface Call<Op extends Operation = Operation> {
  sent: Sent<Op>;
  ended: Ended | undefined;
}

/** When a client knew for sure that a lease was live. */
interface Live {
  lease: number;
  task: number;
  agent: number;
  /** When it may have been granted at the earliest. */
  asked: number;
  from: number;
  /** The deadline, as far as its holder was told. */
  deadline: number;
  /** When somebody asked for its end. */
  endAsked: number;
}

/**
 * Judges a run: what clients were answered, against what the database says and against what is promised.
 * @returns a sentence for each promise that was broken
 */
export function violationsOf(history: readonly Entry[], tables: Tables): string[] {
  return new Judgement(history, tables).violations;
}

class Judgement {
  readonly violations: string[] = [];
  private readonly calls: Call[];
  private readonly tasks: Map<number, Tables['tasks'][number]>;
  private readonly leases: Map<number, Tables['leases'][number]>;
  private readonly leasesOf: Map<number, Tables['leases']>;
  private readonly places: Map<number, Tables['places']>;
  private readonly live = new Map<number, Live>();

  constructor(
    history: readonly Entry[],
    private readonly tables: Tables,
  ) {
    const ended = new Map(history.flatMap((entry) => (entry.type === 'ended' ? [[entry.id, entry]] : [])));
    this.calls = history.flatMap((entry) =>
      entry.type === 'sent' ? [{ sent: entry, ended: ended.get(entry.id) }] : [],
    );
    this.tasks = new Map(tables.tasks.map((task) => [task.id, task]));
    this.leases = new Map(tables.leases.map((lease) => [lease.id, lease]));
    this.leasesOf = Map.groupBy(tables.leases, (lease) => lease.task_id);
    this.places = Map.groupBy(tables.places, (row) => row.task_id);
    this.answersAreDocumented();
    this.enqueuedTasksAreThere();
    this.metricsAreThere();
    this.grantsHold();
    this.reportsHold();
    this.cancelsHold();
    this.leasesDoNotEndEarly();
    this.oneLiveLeaseAsClientsSaw();
    this.limitsAreThere();
    this.limitsAsClientsSaw();
    for (const task of tables.tasks) this.taskIsConsistent(task);
    this.countersAreRight();
  }

  private broken(condition: boolean, sentence: string): void {
    if (condition) this.violations.push(sentence);
  }

  private of<Op extends Operation>(op: Op): Call<Op>[] {
    return this.calls.filter((call) => call.sent.op === op) as Call<Op>[];
  }

  /** The calls that were answered with success. */
  private acknowledged<Op extends Operation>(op: Op): (Call<Op> & { ended: Ended })[] {
    return this.of(op).filter(
      (call): call is Call<Op> & { ended: Ended } => Math.floor((call.ended?.status ?? 0) / 100) === 2,
    );
  }

  private answersAreDocumented(): void {
    for (const { sent, ended } of this.calls) {
      if (!ended || ended.status === null || ended.status < 300) continue;
      const call = `${sent.op} ${sent.id}`;
      if (ended.status === 503)
        this.broken(!/^[1-9]\d*$/.test(ended.retryAfter ?? ''), `${call}: 503 without Retry-After`);
      else if (ended.status !== 409 || !(ended.body.retryable || sent.op === 'cancel'))
        this.broken(true, `${call}: answered ${ended.status} ${JSON.stringify(ended.body)}`);
    }
  }

  private enqueuedTasksAreThere(): void {
    const byKey = new Map<string, string>();
    const keyOf = new Map<number, string>();
    for (const { sent, ended } of this.acknowledged('enqueue')) {
      const key = sent.key ?? `without a key ${sent.id}`;
      const ids: number[] = ended.body.tasks.map((task: { id: number }) => task.id);
      this.broken(
        (byKey.get(key) ?? String(ids)) !== String(ids),
        `enqueue ${sent.id}: another answer under the same key`,
      );
      byKey.set(key, String(ids));
      for (const id of ids) {
        this.broken(!this.tasks.has(id), `task ${id}: acknowledged and lost`);
        this.broken((keyOf.get(id) ?? key) !== key, `task ${id}: two enqueues were answered with it`);
        keyOf.set(id, key);
      }
    }
  }

  private metricsAreThere(): void {
    const stored = new Map(this.tables.metrics.map((row) => [String(row.id), row.agent_id]));
    for (const { sent, ended } of this.acknowledged('metrics'))
      this.broken(
        stored.get(ended.body.id) !== sent.request.agent_id,
        `envelope ${ended.body.id}: acknowledged and lost`,
      );
  }

  private grantsHold(): void {
    const firstTry = new Map<string, number>();
    for (const { sent } of this.of('claim'))
      if (sent.key !== undefined)
        firstTry.set(sent.key, Math.min(sent.at, firstTry.get(sent.key) ?? sent.at));
    for (const { sent, ended } of this.acknowledged('claim')) {
      const agent = sent.request.agent_id;
      const asked = (sent.key === undefined ? undefined : firstTry.get(sent.key)) ?? sent.at;
      for (const { lease_id, task_id, lease_until_ms } of ended.body.leases) {
        const row = this.leases.get(lease_id);
        this.broken(row === undefined, `lease ${lease_id}: granted and lost`);
        this.broken(
          row !== undefined && (row.task_id !== task_id || row.agent_id !== agent),
          `lease ${lease_id}: granted to agent ${agent} on task ${task_id}, the database says otherwise`,
        );
        const before = this.live.get(lease_id);
        this.broken(
          before !== undefined && before.agent !== agent,
          `lease ${lease_id}: granted to agents ${before?.agent} and ${agent}`,
        );
        this.live.set(lease_id, {
          lease: lease_id,
          task: task_id,
          agent,
          asked,
          from: Math.min(ended.at, before?.from ?? Number.POSITIVE_INFINITY),
          deadline: Math.max(sent.at + lease_until_ms, before?.deadline ?? 0),
          endAsked: Number.POSITIVE_INFINITY,
        });
      }
    }
    for (const { sent, ended } of this.acknowledged('extend')) {
      for (const { lease_id, new_deadline_ms } of ended.body.outcomes) {
        const live = this.live.get(lease_id);
        if (live) live.deadline = Math.max(live.deadline, sent.at + new_deadline_ms);
        else this.broken(true, `lease ${lease_id}: extended, and nobody was granted it`);
      }
    }
    // A try that was not answered may have ended it too.
    for (const { sent } of this.of('report'))
      for (const { lease_id } of [...sent.request.completed, ...sent.request.cancelled])
        this.endAsked(this.live.get(lease_id), sent.at);
    for (const { sent } of this.of('cancel'))
      for (const live of this.live.values())
        if (live.task === sent.request.task_id) this.endAsked(live, sent.at);
  }

  private endAsked(live: Live | undefined, at: number): void {
    if (live) live.endAsked = Math.min(live.endAsked, at);
  }

  private reportsHold(): void {
    for (const { sent, ended } of this.acknowledged('report')) {
      const reasons = new Map<number, string>(
        (ended.body.rejected ?? []).map((one: { lease_id: number; reason: string }) => [
          one.lease_id,
          one.reason,
        ]),
      );
      const { completed, cancelled } = sent.request;
      this.broken(
        ended.body.acknowledged !== completed.length + cancelled.length - reasons.size,
        `report ${sent.id}: acknowledged ${ended.body.acknowledged} of ${completed.length + cancelled.length}`,
      );
      for (const report of completed) this.reportHolds(report, 'completed', reasons.get(report.lease_id));
      for (const report of cancelled) this.reportHolds(report, 'cancelled', reasons.get(report.lease_id));
    }
  }

  private reportHolds(report: Reported, as: string, rejected: string | undefined): void {
    const lease = this.leases.get(report.lease_id);
    const name = `lease ${report.lease_id}`;
    const isStored = lease?.observations === JSON.stringify(report.observations);
    if (rejected === undefined) {
      this.broken(
        lease?.state !== as || lease.report !== as,
        `${name}: its report as ${as} was acknowledged, the database has ${lease?.state}, reported as ${lease?.report}`,
      );
      this.broken(
        lease?.report === as && !isStored,
        `${name}: the result that was acknowledged is not the one stored`,
      );
      const task = this.tasks.get(lease?.task_id ?? 0);
      this.broken(
        as === 'completed' && task?.state !== 'completed',
        `${name}: its task was acknowledged as completed and is ${task?.state}`,
      );
    } else {
      // Its holder never changes its mind, and reports what it was granted only.
      this.broken(
        rejected !== 'expired' && rejected !== 'revoked',
        `${name}: its report was rejected as ${rejected}`,
      );
      this.broken(
        lease?.state !== rejected,
        `${name}: its report was rejected as ${rejected}, the database has ${lease?.state}`,
      );
      this.broken(lease?.report === as && !isStored, `${name}: the late report is not the one stored`);
      this.broken(lease?.report === null, `${name}: its late report is lost`);
    }
  }

  private cancelsHold(): void {
    for (const { sent, ended } of this.acknowledged('cancel')) {
      const id = sent.request.task_id;
      const task = this.tasks.get(id);
      this.broken(
        ended.body.state !== 'cancelled' || task?.state !== 'cancelled',
        `task ${id}: its cancel was acknowledged and it is ${task?.state}`,
      );
    }
  }

  private leasesDoNotEndEarly(): void {
    const cancelled = new Set(this.of('cancel').map(({ sent }) => sent.request.task_id));
    // A report that took effect is acknowledged again, so only a cancel explains that one is rejected.
    for (const { ended } of this.acknowledged('report'))
      for (const { lease_id } of ended.body.rejected ?? [])
        if (!cancelled.has(this.live.get(lease_id)?.task ?? 0)) this.notBeforeItsDeadline(lease_id, ended.at);
    for (const { ended } of this.acknowledged('extend'))
      for (const lease_id of ended.body.revoked)
        if ((this.live.get(lease_id)?.endAsked ?? 0) > ended.at)
          this.notBeforeItsDeadline(lease_id, ended.at);
    for (const { id, state, ended_at, deadline_at } of this.tables.leases)
      this.broken(
        state === 'expired' && (ended_at ?? 0) < deadline_at,
        `lease ${id}: expired before its deadline`,
      );
  }

  private notBeforeItsDeadline(id: number, at: number): void {
    const early = (this.live.get(id)?.deadline ?? 0) - at;
    this.broken(early > CLOCK_MS, `lease ${id}: ended ${Math.round(early)} ms early`);
  }

  /** The stretches in which leases were live beyond doubt, however the clocks of replicas may stand. */
  private surelyLive(): (Live & { until: number })[] {
    return [...this.live.values()]
      .map((live) => ({ ...live, until: Math.min(live.endAsked, live.deadline - CLOCK_MS) }))
      .filter((live) => live.until > live.from)
      .sort((a, b) => a.from - b.from);
  }

  private oneLiveLeaseAsClientsSaw(): void {
    const last = new Map<number, Live & { until: number }>();
    for (const live of this.surelyLive()) {
      const before = last.get(live.task);
      this.broken(
        before !== undefined && before.until > live.from,
        `task ${live.task}: leases ${before?.lease} and ${live.lease} were live at once`,
      );
      this.broken(
        before !== undefined && before.lease >= live.lease,
        `task ${live.task}: lease ${live.lease} came after ${before?.lease}`,
      );
      if (!before || before.until < live.until) last.set(live.task, live);
    }
  }

  /** For each window that a client has limited: the calls that did, in order. */
  private limitCalls(): Map<string, Call<'limit'>[]> {
    const calls = this.of('limit').sort((a, b) => a.sent.at - b.sent.at);
    return Map.groupBy(calls, ({ sent: { request } }) => nameOf(windowOf(request)));
  }

  private limitsAreThere(): void {
    const stored = new Map(this.tables.windows.map((window) => [nameOf(window), window.slots]));
    for (const [name, calls] of this.limitCalls()) {
      const last = calls.at(-1);
      if (last?.ended?.status !== 200) continue;
      const { limit } = last.sent.request;
      const is = stored.get(name) ?? null;
      this.broken(is !== limit, `window ${name}: its limit ${limit} was acknowledged and is ${is}`);
    }
  }

  /** Whatever is granted while a limit is in force beyond doubt is within it; what was granted before goes on. */
  private limitsAsClientsSaw(): void {
    const live = this.surelyLive();
    const grants = Map.groupBy(this.live.values(), ({ asked, from, agent }) => `${agent} ${asked} ${from}`);
    for (const [name, calls] of this.limitCalls()) {
      for (const [i, { sent, ended }] of calls.entries()) {
        const { limit } = sent.request;
        if (ended?.status !== 200 || limit === null) continue;
        const end = calls[i + 1]?.sent.at ?? Number.POSITIVE_INFINITY;
        const window = windowOf(sent.request);
        const isInside = ({ task }: Live) => isIn(window, this.tasks.get(task));
        const inside = live.filter(isInside);
        for (const granted of grants.values()) {
          const [{ asked, from }] = granted as [Live];
          if (asked < ended.at || from > end) continue;
          const count = granted.filter(isInside).length;
          if (count === 0) continue;
          const beside = inside.filter((one) => one.from <= asked && one.until >= from).length;
          this.broken(
            count + beside > limit,
            `window ${name}: ${count} leases were granted beside ${beside}, its limit is ${limit}`,
          );
        }
      }
    }
  }

  private taskIsConsistent(task: Tables['tasks'][number]): void {
    const name = `task ${task.id}`;
    const leases = this.leasesOf.get(task.id) ?? [];
    const active = leases.filter((lease) => lease.state === 'active');
    this.broken(active.length > 1, `${name}: ${active.length} live leases`);
    const places = [
      ...(this.places.get(task.id) ?? []).map(({ place }) => place),
      ...active.map(() => 'leased'),
    ];
    this.broken(
      places.length !== (task.state === 'open' ? 1 : 0),
      `${name}: ${task.state}, and ${places.join(' and ') || 'nowhere'}`,
    );
    const ended = leases.length - active.length;
    this.broken(
      task.attempts !== ended || leases.length > task.max_attempts,
      `${name}: ${task.attempts} attempts of ${task.max_attempts}, ${ended} leases that ended`,
    );
    for (const [i, lease] of leases.entries()) {
      this.broken(
        lease.attempt !== i + 1,
        `${name}: lease ${lease.id} is its ${i + 1}., and says ${lease.attempt}.`,
      );
      const before = leases[i - 1];
      this.broken(
        before !== undefined && (before.ended_at === null || before.ended_at > lease.granted_at + CLOCK_MS),
        `${name}: lease ${lease.id} began before ${before?.id} had ended`,
      );
    }
    const completed = leases.filter((lease) => lease.state === 'completed');
    const finals = completed.filter((lease) => lease.report === 'completed');
    const wanted = task.state === 'completed' ? 1 : 0;
    this.broken(
      finals.length !== wanted || completed.length !== wanted,
      `${name}: ${task.state} with ${finals.length} final results and ${completed.length} completed leases`,
    );
  }

  private countersAreRight(): void {
    const { tasks, leases, windows, counts } = this.tables;
    const live = new Set(leases.filter(({ state }) => state === 'active').map((lease) => lease.task_id));
    const stateOf = (task: Tables['tasks'][number]): string =>
      task.state !== 'open'
        ? task.state
        : live.has(task.id)
          ? 'leased'
          : (this.places.get(task.id)?.[0]?.place ?? 'nowhere');
    for (const window of windows) {
      const is = tasks.filter((task) => live.has(task.id) && isIn(window, task)).length;
      this.broken(
        window.leased !== is,
        `window ${nameOf(window)}: says ${window.leased} leased, the tasks are ${is}`,
      );
    }
    const says = new Map(counts.map((row) => [row.kind, row]));
    const is = Map.groupBy(tasks, ({ kind }) => kind);
    for (const kind of new Set([...says.keys(), ...is.keys()]))
      for (const state of TASK_STATES) {
        const said = says.get(kind)?.[state] ?? 0;
        const counted = (is.get(kind) ?? []).filter((task) => stateOf(task) === state).length;
        this.broken(said !== counted, `count of ${kind} ${state}: says ${said}, the tasks are ${counted}`);
      }
  }
}

/** What a limit counts. */
type Window = Pick<Tables['windows'][number], 'scope' | 'kind' | 'target'>;

const windowOf = ({ kind, target }: Requests['limit']): Window => ({
  scope: target !== null ? 'target' : kind !== null ? 'kind' : 'global',
  kind: kind ?? '',
  target: target ?? '',
});

const isIn = ({ scope, kind, target }: Window, task: Tables['tasks'][number] | undefined): boolean =>
  task !== undefined &&
  (scope === 'global' || (task.kind === kind && (scope === 'kind' || task.target === target)));

const nameOf = ({ scope, kind, target }: Window): string => [scope, kind, target].filter(Boolean).join(' ');
