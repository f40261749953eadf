import { setImmediate as nextTurn } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { AgentsService } from '../agents/agents.service';
import { Clock, toTimestamp } from '../clock';
import { RuleHistory } from '../concurrency/rule-history';
import type { WindowKey } from '../concurrency/window.entity';
import { perSecond } from '../concurrency/window-bounds';
import type { Rule } from '../concurrency/window-rules';
import { Database } from '../database/database';
import { fail } from '../errors';
import type { HangUpSignal } from '../http/hang-up';
import { parseTimestamp } from '../http/timestamps';
import { TaskKinds } from '../kinds/task-kinds';
import { QueueDepth } from '../queue/depth';
import { SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import { CheckCounter, type Peak } from './check-counter';
import type { PeakView, PolitenessQuery, PolitenessReport, RuleView } from './politeness.dto';
import { selectChecksOf, selectTaskFrom, selectTasksOf, type TasksOfKind } from './politeness.queries';
import { selectLastId } from './task-lists.queries';

const DAY_MS = 86_400_000;
/** How many tasks or checks a statement reads before the event loop serves others. */
const TASKS_AT_ONCE = 1_000;
const CHECKS_AT_ONCE = 2_000;
/** How many tasks of the target a report reads; if there are more, it says that it is not exact. */
const MAX_TASKS = 5_000_000;
/** Ids and instants of creation are in the same order, but for transactions that ran at the same time, and a clock set back. */
const ORDER_SLACK_MS = 3_600_000;
const MAX_AGENTS = 100;
const MAX_RULES = 500;
/** How many reports may be asked for at a time. */
const MAX_IN_LINE = 32;
const RETRY_AFTER_MS = 5_000;

/** Reports how a target was treated on a day, from stored leases and limits. Only reads, and locks nothing. */
@Injectable()
export class PolitenessReports {
  /** Settles when the reports that were asked for so far are made. */
  private line: Promise<unknown> = Promise.resolve();
  private inLine = 0;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly kinds: TaskKinds,
    private readonly agents: AgentsService,
    private readonly depth: QueueDepth,
    private readonly rules: RuleHistory,
    private readonly lifecycle: Lifecycle,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {}

  /**
   * Reports on a target and a UTC day. It reads the target's tasks page by page; a process makes one report after the other, so
   * that they neither add up in memory nor keep other reads waiting.
   * @throws ERR_VALIDATION an impossible target of the kind, or a day that does not exist or has not begun
   * @throws ERR_UNAVAILABLE too many reports are asked for, or the server stops
   */
  async report(query: PolitenessQuery, hangUp: HangUpSignal): Promise<PolitenessReport> {
    const now = this.clock.now();
    // Also of an extension that was removed: its tasks are still stored.
    if (!this.kinds.has(query.kind)) {
      const stored = await this.database.read((statements) => this.depth.kinds(statements));
      if (!stored.includes(query.kind))
        throw fail('ERR_VALIDATION', { kind: `must be one of ${this.kinds.names().join(', ')}` });
    }
    const [key] = this.kinds.findTargets(query.target, query.kind) as [WindowKey];
    const from = beginningOf(query.day, now);
    if (this.inLine >= MAX_IN_LINE) {
      const message = 'Too many politeness reports are being made; try again later.';
      throw fail('ERR_UNAVAILABLE', { reason: 'in_flight' }, { message, retryAfterMs: RETRY_AFTER_MS });
    }
    this.inLine++;
    const made = this.line.then(() => this.build(key, from, now, hangUp));
    this.line = made.catch(() => undefined);
    try {
      return await made;
    } finally {
      this.inLine--;
    }
  }

  private async build(
    key: WindowKey,
    from: number,
    now: number,
    hangUp: HangUpSignal,
  ): Promise<PolitenessReport> {
    const to = from + DAY_MS;
    const counter = new CheckCounter(from, to);
    const isExact = await this.count(counter, key, from, to, hangUp);
    const peaks = counter.peaks();
    let step = peaks.next();
    for (; !step.done; step = peaks.next()) await nextTurn();
    const { startsInASecond, concurrent } = step.value;
    const rules = await this.rules.rulesAt(key, from, to);
    const agents = [...counter.byAgent].sort(([a, x], [b, y]) => y - x || a - b);
    const shown = agents.slice(0, MAX_AGENTS);
    const hostnames = await this.database.read((statements) =>
      this.agents.hostnamesOf(
        statements,
        shown.map(([id]) => id),
      ),
    );
    return {
      ...{ kind: key.kind, target: key.target, from: toTimestamp(from), to: toTimestamp(to) },
      generated_at: toTimestamp(now),
      is_complete: from >= now - this.settings.taskRetentionMs,
      is_exact: isExact,
      checks: counter.checks,
      first_start_at: toTimestamp(counter.firstStart),
      last_start_at: toTimestamp(counter.lastStart),
      most_starts_in_a_second: viewOf(startsInASecond),
      peak_concurrent: viewOf(concurrent),
      outcomes: counter.endings,
      agents: agents.length,
      by_agent: shown.map(([id, checks]) => ({
        ...{ agent_id: id, hostname: hostnames.get(id) ?? null, checks },
      })),
      rules: rules.slice(0, MAX_RULES).map(ruleViewOf),
      rules_left_out: Math.max(0, rules.length - MAX_RULES),
    };
  }

  /** Counts the checks of a target in a period, those of the newest tasks first. @returns whether all were counted */
  private async count(
    counter: CheckCounter,
    { kind, target }: WindowKey,
    from: number,
    to: number,
    hangUp: HangUpSignal,
  ): Promise<boolean> {
    let below = await this.firstTaskAfter(to + ORDER_SLACK_MS);
    for (let count = 0; count < MAX_TASKS; count += TASKS_AT_ONCE) {
      const tasks = await this.database.read((statements) =>
        selectTasksOf(statements, target, below, TASKS_AT_ONCE),
      );
      // A task has no check before it was created, or after it finished.
      const some = tasks.filter(
        (task) => task.kind === kind && task.created_at < to && (task.finished_at ?? to) >= from,
      );
      const ids = some.map(({ id }) => id);
      const unfinished = some.filter((task) => task.finished_at === null).map(({ id }) => id);
      if (ids.length > 0) await this.countOf(counter, { kind, ids, unfinished }, from);
      const last = tasks.at(-1);
      if (tasks.length < TASKS_AT_ONCE || !last) return true;
      below = last.id;
      await nextTurn();
      if (this.lifecycle.stopping) throw fail('ERR_UNAVAILABLE');
      // Nobody gets the answer.
      if (hangUp.aborted) return false;
    }
    return false;
  }

  private async countOf(counter: CheckCounter, tasks: TasksOfKind, from: number): Promise<void> {
    let above = { taskId: 0, leaseId: 0 };
    for (;;) {
      const checks = await this.database.read((statements) =>
        selectChecksOf(statements, tasks, from, above, CHECKS_AT_ONCE),
      );
      for (const check of checks) counter.add(check);
      const last = checks.at(-1);
      if (checks.length < CHECKS_AT_ONCE || !last) return;
      above = { taskId: last.task_id, leaseId: last.id };
      await nextTurn();
    }
  }

  /** Returns an id such that no task from it on was created before an instant: by halving, because ids ascend with time. */
  private firstTaskAfter(instant: number): Promise<number> {
    return this.database.read(async (statements) => {
      let low = 0;
      let high = (await selectLastId(statements)) + 1;
      while (low < high) {
        const middle = Math.floor((low + high) / 2);
        const task = await selectTaskFrom(statements, middle);
        if (task && task.created_at < instant) low = task.id + 1;
        else high = middle;
      }
      return low;
    });
  }
}

/** Returns the beginning of a UTC day. @throws ERR_VALIDATION it does not exist, or has not begun */
function beginningOf(day: string | undefined, now: number): number {
  const today = Math.floor(now / DAY_MS) * DAY_MS;
  if (day === undefined) return today;
  const from = parseTimestamp(`${day}T00:00:00Z`);
  if (from === undefined) throw fail('ERR_VALIDATION', { day: 'must be a date such as 2026-01-31' });
  if (from <= today) return from;
  throw fail('ERR_VALIDATION', {
    day: `must not be after today, which is ${toTimestamp(today).slice(0, 10)} in UTC`,
  });
}

const viewOf = ({ count, at }: Peak): PeakView => ({ count, at: toTimestamp(at) });

function ruleViewOf({ scope, from, to, limit, rate, maxRate, adaptive, reason }: Rule): RuleView {
  return {
    ...{ scope, from: toTimestamp(from), to: toTimestamp(to), limit },
    ...{ rate: perSecond(rate), max_rate: perSecond(maxRate), adaptive, reason },
  };
}
