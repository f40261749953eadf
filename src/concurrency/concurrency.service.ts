import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { type ErrorDetails, fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { type Page, type PageQuery, pageOf } from '../http/pagination';
import { MAX_PROBLEMS } from '../http/validation';
import { AuditLog } from '../operators/audit-log';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import type { LimitInput, WindowsQuery, WindowView } from './concurrency.dto';
import { WindowEntity, type WindowScope } from './window.entity';

const HOUR_MS = 3_600_000;
const MINUTE_MS = 60_000;

/** A change of the counters of one target; its kind's and the global window follow. */
export interface WindowMove {
  kind: string;
  target: string;
  ready: number;
  leased: number;
  waiting: number;
}

/** Where a task asks to become ready. */
export interface Place {
  kind: string;
  target: string;
}

/** What is done in the transaction that changes ceilings, before and after it does. */
export interface CeilingListener {
  before(tx: Transaction): Promise<void>;
  after(tx: Transaction): Promise<void>;
}

/** Knows the kinds of tasks, and how each spells its targets. */
export interface TargetNames {
  /** Every kind there is, sorted. */
  names(): string[];
  has(kind: string): boolean;
  /** The spelling under which a kind's windows are kept, or what is wrong with the text. */
  parseTarget(kind: string, text: string): { target: string } | { problem: string };
  /** The targets that a text can mean, of the kind or of any. @throws ERR_VALIDATION there is none */
  findTargets(text: string, kind?: string): Place[];
}

/** A window with a limit, and what it holds. */
export interface LimitedWindow extends Place {
  scope: WindowScope;
  limit: number;
  leased: number;
  queued: number;
  waiting: number;
}

/** A window that holds more than its ceiling, and by how much. */
export interface Excess {
  scope: WindowScope;
  kind: string;
  target: string;
  excess: number;
}

type Room = Map<string, number>;

/** Of a window w: it is a target's, and has tasks waiting and room. */
const OPEN_TARGET = `w.scope = 'target' AND w.waiting > 0 AND (w.ceiling IS NULL OR w.ready + w.leased < w.ceiling)`;

const keyOf = (scope: WindowScope, kind: string, target: string): string => `${scope}\0${kind}\0${target}`;

/** The windows that a task of a place counts in. */
function windowsOf({ kind, target }: Place): [WindowScope, string, string][] {
  return [
    ['global', '', ''],
    ['kind', kind, ''],
    ['target', kind, target],
  ];
}

/**
 * Owns concurrency_windows: for all tasks, each kind, and each target of a kind, how many are ready (queued), leased and
 * waiting. Counters change in the transaction that changes the tasks. Where a window has a ceiling, ready + leased never
 * exceeds it: what does not fit waits, and is admitted when a slot frees.
 */
@Injectable()
export class ConcurrencyService {
  private readonly ceilingListeners: CeilingListener[] = [];
  private targetNames: TargetNames | undefined;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
    private readonly audit: AuditLog,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.jobs.declare('window-retention');
  }

  /** Has this called, in the transaction, when ceilings are changed: the tasks must be made to fit them. */
  onCeilings(listener: CeilingListener): void {
    this.ceilingListeners.push(listener);
  }

  /** Says who knows the kinds, and spells the targets of limits and filters as their tasks' are. */
  spellTargetsWith(names: TargetNames): void {
    this.targetNames = names;
  }

  /**
   * Has everybody else who counts tasks wait until the unit ends, so that what is decided by the counters holds. It comes
   * last of all that a unit locks, so nobody waits long; the row of the global window stands for all of them.
   */
  async lock(tx: Transaction): Promise<void> {
    if (!tx.dialect.concurrent) return;
    await tx.rows(
      `SELECT id FROM concurrency_windows WHERE kind = '' AND target = '' AND scope = 'global' ${tx.dialect.forUpdate()}`,
    );
  }

  /** Adds to the counters. Set-based: one statement, however many targets; one more where there are new ones. */
  async move(tx: Transaction, moves: readonly WindowMove[]): Promise<void> {
    const sums = new Map<string, WindowMove & { scope: WindowScope }>();
    for (const move of moves) {
      for (const [scope, kind, target] of windowsOf(move)) {
        const key = keyOf(scope, kind, target);
        const sum = sums.get(key);
        if (sum) {
          sum.ready += move.ready;
          sum.leased += move.leased;
          sum.waiting += move.waiting;
        } else {
          sums.set(key, {
            scope,
            kind,
            target,
            ready: move.ready,
            leased: move.leased,
            waiting: move.waiting,
          });
        }
      }
    }
    const changed = [...sums.values()].filter(
      (sum) => sum.ready !== 0 || sum.leased !== 0 || sum.waiting !== 0,
    );
    if (changed.length === 0) return;
    const { now } = tx;
    const values = [JSON.stringify(changed), now, this.expiryOf(now)] as const;
    const rowset = tx.dialect.rowset('$1', {
      ...{ scope: 'text', kind: 'text', target: 'text' },
      ...{ ready: 'integer', leased: 'integer', waiting: 'integer' },
    });
    const moved = await tx.run(
      `UPDATE concurrency_windows
       SET ready = concurrency_windows.ready + r.ready, leased = concurrency_windows.leased + r.leased,
           waiting = concurrency_windows.waiting + r.waiting, updated_at = $2, expires_at = $3
       FROM ${rowset} AS r
       WHERE concurrency_windows.kind = r.kind AND concurrency_windows.target = r.target
         AND concurrency_windows.scope = r.scope`,
      ...values,
    );
    if (moved === changed.length) return;
    // The others are there now; nothing could have gone from one that was not.
    await tx.run(
      `INSERT INTO concurrency_windows (scope, kind, target, ready, leased, waiting, updated_at, expires_at)
       SELECT scope, kind, target, ready, leased, waiting, $2, $3 FROM ${rowset} AS r
       WHERE NOT EXISTS (SELECT 1 FROM concurrency_windows w
         WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope)`,
      ...values,
    );
  }

  /**
   * Decides for each place, in order, whether a task may become ready there (true) or must wait (false). The caller
   * moves the counters accordingly, in the same transaction.
   */
  async admit(tx: Transaction, places: readonly Place[]): Promise<boolean[]> {
    if (places.length === 0 || !(await this.hasCeilings(tx))) return places.map(() => true);
    const room = await this.roomOf(tx, places);
    return places.map((place) => takeSlot(room, place));
  }

  /** Whether any window has a ceiling: where none has, nothing ever waits. */
  async hasCeilings(tx: Transaction): Promise<boolean> {
    return (
      (await tx.first('SELECT 1 AS one FROM concurrency_windows WHERE ceiling IS NOT NULL LIMIT 1')) !==
      undefined
    );
  }

  /**
   * The kinds that have tasks waiting and room in the windows of the kind and of everything; which of their targets have
   * room is left open. Undefined where no window that wide has a ceiling, so that no target takes room from another.
   */
  async openKinds(tx: Transaction): Promise<string[] | undefined> {
    const wide = await tx.rows<{ scope: WindowScope; room: number }>(
      `SELECT scope, ceiling - ready - leased AS room FROM concurrency_windows
       WHERE ceiling IS NOT NULL AND scope IN ('global', 'kind')`,
    );
    if (wide.length === 0) return undefined;
    if (wide.some((window) => window.scope === 'global' && window.room <= 0)) return [];
    const rows = await tx.rows<{ kind: string }>(
      `SELECT kind FROM concurrency_windows
       WHERE target = '' AND scope = 'kind' AND waiting > 0 AND (ceiling IS NULL OR ready + leased < ceiling)`,
    );
    return rows.map((row) => row.kind);
  }

  /** The windows with a limit that tasks of the places count in, and those of all kinds; to look at, nothing is locked. */
  limitedWindows(statements: Statements, places: readonly Place[]): Promise<LimitedWindow[]> {
    // CROSS JOIN: SQLite looks each place up. By itself it reads all places again for each window.
    return statements.rows<LimitedWindow>(
      `SELECT scope, kind, target, ceiling AS "limit", leased, ready AS queued, waiting FROM concurrency_windows
       WHERE ceiling IS NOT NULL AND scope IN ('global', 'kind')
       UNION
       SELECT w.scope, w.kind, w.target, w.ceiling AS "limit", w.leased, w.ready AS queued, w.waiting
       FROM ${statements.dialect.rowset('$1', { kind: 'text', target: 'text' })} AS r
       CROSS JOIN concurrency_windows w
       WHERE w.kind = r.kind AND w.target = r.target AND w.scope = 'target' AND w.ceiling IS NOT NULL`,
      JSON.stringify(places.map(({ kind, target }) => ({ kind, target }))),
    );
  }

  /** The kinds that have tasks waiting. */
  async waitingKinds(statements: Statements): Promise<string[]> {
    const rows = await statements.rows<{ kind: string }>(
      `SELECT kind FROM concurrency_windows WHERE target = '' AND scope = 'kind' AND waiting > 0`,
    );
    return rows.map(({ kind }) => kind);
  }

  /** Those of the places that have tasks waiting and room in the target's own window. */
  openAmong(tx: Transaction, places: readonly Place[]): Promise<Place[]> {
    return tx.rows<Place>(
      `SELECT DISTINCT w.kind AS kind, w.target AS target
       FROM ${tx.dialect.rowset('$1', { kind: 'text', target: 'text' })} AS r
       JOIN concurrency_windows w ON w.kind = r.kind AND w.target = r.target
       WHERE ${OPEN_TARGET}`,
      JSON.stringify(places.map(({ kind, target }) => ({ kind, target }))),
    );
  }

  /** All targets of the kinds that have tasks waiting and room in their own window. */
  openTargets(tx: Transaction, kinds: readonly string[]): Promise<Place[]> {
    return tx.rows<Place>(
      `SELECT w.kind AS kind, w.target AS target
       FROM ${tx.dialect.rowset('$1', { kind: 'text' })} AS r JOIN concurrency_windows w ON w.kind = r.kind
       WHERE ${OPEN_TARGET}`,
      JSON.stringify(kinds.map((kind) => ({ kind }))),
    );
  }

  /**
   * Targets that have tasks waiting though all their windows have room. There is none in the long run: where others write
   * at the same time, an admission passes over a task that somebody has locked, who may then leave it as it is.
   */
  passedOver(statements: Statements, limit: number): Promise<Place[]> {
    return statements.rows<Place>(
      `SELECT w.kind, w.target FROM concurrency_windows w
       WHERE ${OPEN_TARGET} AND NOT EXISTS (
         SELECT 1 FROM concurrency_windows full_one
         WHERE full_one.kind IN ('', w.kind) AND full_one.target = '' AND full_one.scope IN ('global', 'kind')
           AND full_one.ceiling <= full_one.ready + full_one.leased)
       LIMIT $1`,
      limit,
    );
  }

  /** Windows that hold more than their ceiling allows while some of it is ready and can be put back to waiting. */
  excesses(tx: Transaction): Promise<Excess[]> {
    return tx.rows<Excess>(
      `SELECT scope, kind, target, ${tx.dialect.least('ready', 'ready + leased - ceiling')} AS excess
       FROM concurrency_windows WHERE ceiling IS NOT NULL AND ready > 0 AND ready + leased > ceiling
       ORDER BY CASE scope WHEN 'target' THEN 0 WHEN 'kind' THEN 1 ELSE 2 END`,
    );
  }

  /**
   * Sets ceilings, all or none, effective at commit: tasks over a lowered one go back to waiting, leases run on.
   * @returns the windows that were set
   * @throws ERR_VALIDATION a kind that there is not, a target that its kind can't have, or one window twice
   */
  async setCeilings(by: OperatorIdentity, limits: readonly LimitInput[]): Promise<WindowView[]> {
    const windows = this.windowsToSet(limits);
    return this.database.write(async (tx) => {
      for (const { before } of this.ceilingListeners) await before(tx);
      await this.lock(tx);
      const columns = { scope: 'text', kind: 'text', target: 'text', ceiling: 'integer' } as const;
      const before = (
        await tx.rows<WindowEntity>(
          `SELECT w.* FROM ${tx.dialect.rowset('$1', columns)} AS r
           JOIN concurrency_windows w ON w.kind = r.kind AND w.target = r.target AND w.scope = r.scope
           WHERE w.ceiling IS NOT NULL ORDER BY w.id`,
          JSON.stringify(windows),
        )
      ).map(ceilingOf);
      await tx.run(
        `INSERT INTO concurrency_windows (scope, kind, target, ceiling, ready, leased, waiting, updated_at, expires_at)
         SELECT scope, kind, target, ceiling, 0, 0, 0, $2, $3 FROM ${tx.dialect.rowset('$1', columns)} AS r
         WHERE true
         ON CONFLICT (kind, target, scope)
         DO UPDATE SET ceiling = excluded.ceiling, updated_at = excluded.updated_at, expires_at = excluded.expires_at`,
        JSON.stringify(windows),
        tx.now,
        this.expiryOf(tx.now),
      );
      for (const { after } of this.ceilingListeners) await after(tx);
      await this.audit.record(tx, by, {
        action: 'concurrency-limits.set',
        subject: 'concurrency-limits',
        before: { ceilings: before },
        after: { ceilings: windows.map(ceilingOf) },
      });
      const rows = await tx.rows<WindowEntity>(
        `SELECT w.* FROM ${tx.dialect.rowset('$1', columns)} AS r
         JOIN concurrency_windows w ON w.kind = r.kind AND w.target = r.target AND w.scope = r.scope ORDER BY w.id`,
        JSON.stringify(windows),
      );
      return rows.map(viewOf);
    });
  }

  /** Which windows the limits name, each by the spelling under which tasks count in it. @throws ERR_VALIDATION */
  private windowsToSet(limits: readonly LimitInput[]) {
    const problems: ErrorDetails = {};
    const seen = new Set<string>();
    const windows = limits.map((limit, i) => {
      const kind = limit.kind ?? '';
      const scope: WindowScope = kind ? (limit.target ? 'target' : 'kind') : 'global';
      let target = '';
      if (kind && this.targetNames && !this.targetNames.has(kind)) {
        problems[`limits.${i}.kind`] = `must be one of ${this.targetNames.names().join(', ')}`;
      } else if (limit.target) {
        const parsed = this.targetNames?.parseTarget(kind, limit.target) ?? { target: limit.target };
        if ('target' in parsed) target = parsed.target;
        else problems[`limits.${i}.target`] = parsed.problem;
      }
      const key = keyOf(scope, kind, target);
      if (seen.has(key)) problems[`limits.${i}`] ??= 'names a window that is in the list already';
      seen.add(key);
      return { scope, kind, target, ceiling: limit.limit };
    });
    const named = Object.entries(problems).slice(0, MAX_PROBLEMS);
    if (named.length > 0) throw fail('ERR_VALIDATION', Object.fromEntries(named));
    return windows;
  }

  /**
   * Lists windows that count something, have a ceiling, or did until lately; newest first.
   * @throws ERR_VALIDATION the target is none that the kind, or any kind, can have
   */
  async list(query: WindowsQuery & PageQuery): Promise<Page<WindowView>> {
    const targets = query.target ? this.targetNames?.findTargets(query.target, query.kind) : undefined;
    return this.database.read(async ({ manager }) => {
      const limit = query.limit ?? 50;
      const builder = manager
        .createQueryBuilder(WindowEntity, 'w')
        .where(
          '(w.ready > 0 OR w.leased > 0 OR w.waiting > 0 OR w.ceiling IS NOT NULL OR w.expires_at > :now)',
          {
            now: this.clock.now(),
          },
        )
        .orderBy('w.id', 'DESC')
        .limit(limit + 1);
      if (query.cursor !== undefined) builder.andWhere('w.id < :cursor', { cursor: query.cursor });
      if (query.scope) builder.andWhere('w.scope = :scope', { scope: query.scope });
      if (query.kind) builder.andWhere('w.kind = :kind', { kind: query.kind });
      if (targets) {
        const any = targets.map((_, i) => `(w.kind = :kind${i} AND w.target = :target${i})`).join(' OR ');
        const named = targets.flatMap(({ kind, target }, i) => [
          [`kind${i}`, kind],
          [`target${i}`, target],
        ]);
        builder.andWhere(`(${any})`, Object.fromEntries(named));
      }
      return pageOf(await builder.getMany(), limit, (row) => row.id, viewOf);
    });
  }

  /** Deletes windows that have expired and count nothing. @returns how many */
  purge(): Promise<number> {
    const now = this.clock.now();
    return this.jobs.purge((limit) =>
      this.database.write(async (tx) => {
        await this.lock(tx);
        return tx.run(
          `DELETE FROM concurrency_windows WHERE id IN (
             SELECT id FROM concurrency_windows
             WHERE scope <> 'global' AND expires_at <= $1 AND ceiling IS NULL AND ready = 0 AND leased = 0 AND waiting = 0
             ORDER BY expires_at LIMIT $2)`,
          now,
          limit,
        );
      }),
    );
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected purgeHourly(): Promise<void> {
    return this.jobs.run('window-retention', HOUR_MS, async () => void (await this.purge()));
  }

  /**
   * When a window expires that changes now: rounded up, for a column that is indexed makes every change of the row dearer
   * where it changes too.
   */
  private expiryOf(now: number): number {
    return Math.ceil((now + this.settings.windowRetentionMs) / MINUTE_MS) * MINUTE_MS;
  }

  /** What room the windows with a ceiling have, of all that the places count in. */
  private async roomOf(tx: Transaction, places: readonly Place[]): Promise<Room> {
    const rows = await tx.rows<{ scope: WindowScope; kind: string; target: string; room: number }>(
      `SELECT scope, kind, target, ceiling - ready - leased AS room FROM concurrency_windows
       WHERE ceiling IS NOT NULL AND scope IN ('global', 'kind')
       UNION
       SELECT w.scope, w.kind, w.target, w.ceiling - w.ready - w.leased AS room
       FROM ${tx.dialect.rowset('$1', { kind: 'text', target: 'text' })} AS r
       JOIN concurrency_windows w ON w.kind = r.kind AND w.target = r.target AND w.scope = 'target'
       WHERE w.ceiling IS NOT NULL`,
      JSON.stringify(places.map(({ kind, target }) => ({ kind, target }))),
    );
    return new Map(rows.map((row) => [keyOf(row.scope, row.kind, row.target), row.room]));
  }
}

/** Takes a slot in every window of a place, or none. */
function takeSlot(room: Room, place: Place): boolean {
  const keys = windowsOf(place).map(([scope, kind, target]) => keyOf(scope, kind, target));
  if (keys.some((key) => (room.get(key) ?? 1) <= 0)) return false;
  for (const key of keys) {
    const left = room.get(key);
    if (left !== undefined) room.set(key, left - 1);
  }
  return true;
}

/** A ceiling as the audit log shows it. */
function ceilingOf({ kind, target, ceiling }: Pick<WindowEntity, 'kind' | 'target' | 'ceiling'>) {
  return { kind: kind || undefined, target: target || undefined, ceiling };
}

function viewOf(row: WindowEntity): WindowView {
  return {
    scope: row.scope,
    kind: row.kind || null,
    target: row.target || null,
    limit: row.ceiling,
    leased: row.leased,
    queued: row.ready + row.waiting,
    available: row.ceiling === null ? null : Math.max(0, row.ceiling - row.leased),
  };
}
