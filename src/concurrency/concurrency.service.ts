import { setTimeout as sleep } from 'node:timers/promises';
import { Inject, Injectable, Logger, type OnApplicationBootstrap } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { ApiError, type ErrorDetails, fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, type PageQuery, pageOf } from '../http/pagination';
import { MAX_PROBLEMS } from '../http/validation';
import { AuditLog } from '../operators/audit-log';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings, SettingsError } from '../settings';
import type { LimitInput, WindowChangeView, WindowsQuery, WindowView } from './concurrency.dto';
import type { CountingWindow, WindowKey, WindowRow, WindowScope } from './window.entity';
import { everyTargetOf, hasBounds, inForce, perSecond, perThousandSeconds } from './window-bounds';
import type { OperatorEvidence, RuleBounds } from './window-rules';
import { changeViewOf, EVERY, NO_WINDOW, viewOf } from './window-views';
import { type ChangedWindow, firstColumns, IDLE_MS, LIMITS_LOCK, nextColumns, stateOf } from './windows';
import {
  deleteWindowChanges,
  deleteWindows,
  deleteWindowsById,
  type InheritedPlace,
  insertInherited,
  insertWindowChanges,
  insertWindows,
  type LockedWindow,
  lockIdle,
  lockNamedWindows,
  type NamedWindow,
  selectInherited,
  selectLastLease,
  selectNamedWindows,
  selectWideWindows,
  selectWindow,
  selectWindowChanges,
  selectWindowPage,
  type WindowChange,
} from './windows.queries';

const HOUR_MS = 3_600_000;
/** The name under which a setting sets limits. */
const BY_SETTINGS: OperatorIdentity = { tokenId: 0, name: 'settings', role: 'admin', address: '' };

/**
 * How long a call that sets limits waits for running units of work at a time, in milliseconds. No unit can begin
 * meanwhile, so the wait is short at first, and is repeated after a pause; on a server whose units always take longer, it
 * doubles, so that a limit can be set under any load.
 */
const LOCK_WAIT_MS = 100;
const MAX_LOCK_WAIT_MS = 3_200;
const LOCK_PAUSE_MS = 50;
const SHORT_TRIES = 5;
const LOCK_TRIES = 11;

/** How long the given try waits, in milliseconds. */
const lockWaitMs = (tries: number): number =>
  Math.min(MAX_LOCK_WAIT_MS, LOCK_WAIT_MS * 2 ** Math.max(0, tries - SHORT_TRIES));

/** The registry of kinds, which normalises targets. */
export interface TargetNames {
  /** All kinds, sorted. */
  names(): string[];
  has(kind: string): boolean;
  /** Returns the normalised target of a kind's window, or the problem with the text. */
  parseTarget(kind: string, text: string): { target: string } | { problem: string };
  /** Returns the targets that a text can mean, of the kind or of any. @throws ERR_VALIDATION there is none */
  findTargets(text: string, kind?: string): WindowKey[];
}

/** The bounds of a window. */
type Bounds = Pick<WindowRow, 'max_slots' | 'max_rate' | 'adaptive'>;

const NO_BOUNDS: Bounds = { max_slots: null, max_rate: null, adaptive: 0 };

/** The bounds to change of a window; null lifts one. */
interface LimitToSet extends NamedWindow {
  readonly changes: Partial<Bounds>;
}

/** The counts of tasks and leases that windows need from their owners. */
export interface WindowContents {
  /** Counts the live leases in each of the windows, in order. */
  countLeased(statements: Statements, windows: readonly NamedWindow[]): Promise<number[]>;
  /** Counts the live leases of a kind at each target that has some. */
  countLeasedByTarget(statements: Statements, kind: string): Promise<{ target: string; count: number }[]>;
  /** Counts the queued tasks that each of the windows limits, in order. */
  countQueued(statements: Statements, windows: readonly NamedWindow[]): Promise<number[]>;
}

/**
 * Called in the transaction that sets limits, once they are written, with the current windows and the lifted ones.
 */
export type LimitsListener = (
  tx: Transaction,
  changed: { readonly set: readonly ChangedWindow[]; readonly lifted: readonly NamedWindow[] },
) => Promise<void>;

/** Called in the transaction that deletes idle windows. */
export type DeletionListener = (tx: Transaction, windows: readonly NamedWindow[]) => Promise<void>;

/**
 * Owns concurrency_windows: the limits that operators set on everything, a kind, or a target of a kind, and the live
 * leases of each. Slots are taken when leases are granted and released when they end, see {@link Windows}.
 */
@Injectable()
export class ConcurrencyService implements OnApplicationBootstrap {
  private readonly logger = new Logger('Concurrency');
  private readonly kindsToAdapt: Set<string>;
  private readonly limitsListeners: LimitsListener[] = [];
  private readonly deletionListeners: DeletionListener[] = [];
  private targetNames: TargetNames | undefined;
  private contents: Partial<WindowContents> = {};

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly audit: AuditLog,
    private readonly jobs: JobRunner,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    jobs.declare('window-retention');
    this.kindsToAdapt = new Set(settings.adaptiveKinds);
  }

  /** Subscribes to set limits. The listener runs in the transaction. */
  onLimitsSet(listener: LimitsListener): void {
    this.limitsListeners.push(listener);
  }

  /** Subscribes to the deletion of idle windows. The listener runs in the transaction. */
  onIdleDeleted(listener: DeletionListener): void {
    this.deletionListeners.push(listener);
  }

  /** Sets the registry of kinds, which normalises targets of limits and filters as those of tasks. */
  spellTargetsWith(names: TargetNames): void {
    this.targetNames = names;
  }

  /** Sets the functions that count the leases and tasks of windows. */
  countWith(contents: Partial<WindowContents>): void {
    this.contents = { ...this.contents, ...contents };
  }

  /** Finds the windows with a limit or a rate of tasks of these targets. */
  async limitedWindows(statements: Statements, keys: readonly WindowKey[]): Promise<CountingWindow[]> {
    const rows = await selectNamedWindows(statements, namesOf(keys));
    return rows
      .map((row) => inForce(row, rows))
      .filter((row): row is CountingWindow => row.scope !== 'every_target' && hasBounds(row));
  }

  /**
   * Sets limits and rates, all or none, in force when it resolves: from then on no lease is granted beyond them. Leases
   * over a lowered limit stay live. What is left out of a limit stays as it is. Its duration does not depend on the number of
   * tasks.
   * @returns the windows that were set, in the same order
   * @throws ERR_VALIDATION an unknown kind, an impossible target of the kind, or a window that is named twice
   * @throws ERR_UNAVAILABLE the running units of work did not end in time
   */
  async setLimits(by: OperatorIdentity, limits: readonly LimitInput[]): Promise<WindowView[]> {
    const windows = this.windowsToSet(limits);
    for (let tries = 1; ; tries++) {
      try {
        return await this.database.write((tx) => this.store(tx, by, windows, lockWaitMs(tries)));
      } catch (error) {
        if (!isLockTimeout(error) || tries === LOCK_TRIES) throw error;
        await sleep(LOCK_PAUSE_MS * (0.5 + Math.random()));
      }
    }
  }

  /**
   * Lists the windows with a limit or a rate, newest first.
   * @throws ERR_VALIDATION the target is impossible for the kind, or for any kind
   */
  async list(query: WindowsQuery): Promise<Page<WindowView>> {
    const { kind, target, limit } = query;
    const scope = target === EVERY ? 'every_target' : query.scope;
    const targets = target && target !== EVERY ? this.targetNames?.findTargets(target, kind) : undefined;
    return this.database.read(async (statements) => {
      const { wide } = await selectWideWindows(statements);
      const found = await selectWindowPage(
        statements,
        { scope, kind, targets, below: olderThan(query) },
        limit + 1,
      );
      const rows = found.map((row) => inForce(row, wide));
      const queued = await this.countQueued(statements, rows);
      const now = this.clock.now();
      return pageOf(
        rows.map((row, i) => ({ row, queued: queued[i] as number })),
        limit,
        ({ row }) => row.id,
        ({ row, queued }) => viewOf(row, queued, now),
      );
    });
  }

  /**
   * Lists the changes of a window's limit and rate, the latest first, as long as tasks are kept.
   * @throws ERR_NOT_FOUND there is no such window
   */
  history(id: number, query: PageQuery): Promise<Page<WindowChangeView>> {
    return this.database.read(async (statements) => {
      const window = await selectWindow(statements, id);
      if (!window) throw fail('ERR_NOT_FOUND', { window_id: id });
      const rows = await selectWindowChanges(statements, window, olderThan(query), query.limit + 1);
      return pageOf(rows, query.limit, (row) => row.id, changeViewOf);
    });
  }

  /** Returns the last change of a window's limit or rate; undefined if none is kept. */
  async lastChange(
    statements: Statements,
    window: NamedWindow,
  ): Promise<{ at: number; before: number | null; message: string } | undefined> {
    const [row] = await selectWindowChanges(statements, window, Number.MAX_SAFE_INTEGER, 1);
    if (!row) return undefined;
    const { rate_before: before, message } = changeViewOf(row);
    return { at: row.changed_at, before, message };
  }

  /**
   * Has every target of the kinds that the settings name adapt its rate, but for kinds with a limit or a rate for every target.
   * @throws SettingsError there is no such kind
   */
  async onApplicationBootstrap(): Promise<void> {
    const unknown = this.settings.adaptiveKinds.filter((kind) => this.targetNames?.has(kind) === false);
    if (unknown.length > 0)
      throw new SettingsError(
        `CONTROL_PLANE_ADAPTIVE_KINDS names ${unknown.join(', ')}; there are ${this.targetNames?.names().join(', ')}`,
      );
    await this.adaptKinds();
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected hourly(): Promise<void> {
    return this.jobs.run('window-retention', HOUR_MS, async () => {
      await this.adaptKinds();
      await this.purge();
    });
  }

  /** Does so once after the start: an operator can change it afterwards. */
  private async adaptKinds(): Promise<void> {
    for (const kind of [...this.kindsToAdapt]) {
      const every = [{ scope: 'every_target' as const, kind, target: '' }];
      try {
        const rows = await this.database.read((statements) => selectNamedWindows(statements, every));
        if (!rows.some(hasBounds))
          await this.setLimits(BY_SETTINGS, [{ kind, target: EVERY, adaptive: true }]);
        this.kindsToAdapt.delete(kind);
      } catch (error) {
        // The server is of more use without it than not at all.
        this.logger.error(
          { kind, err: error },
          'targets do not adapt yet; this is tried again within the hour',
        );
      }
    }
  }

  /** Deletes old changes of rates, and inherited windows of targets that nothing was queued for lately. */
  async purge(): Promise<void> {
    const now = this.clock.now();
    await this.jobs.purge((limit) =>
      this.database.write((tx) => deleteWindowChanges(tx, now - this.settings.taskRetentionMs, limit)),
    );
    let after: InheritedPlace = { kind: '', id: 0 };
    await this.jobs.purge(async (limit) => {
      const windows = await this.database.read((statements) => selectInherited(statements, after, limit));
      await this.database.write((tx) => this.deleteIdle(tx, windows, now));
      after = windows.at(-1) ?? after;
      return windows.length;
    });
  }

  /** Deletes those of the windows that are idle and have no queued tasks. */
  private async deleteIdle(tx: Transaction, among: readonly InheritedPlace[], now: number): Promise<void> {
    await tx.lockName(LIMITS_LOCK, 'shared');
    const windows = await lockIdle(tx, among, now);
    if (windows.length === 0) return;
    const queued = await this.countQueued(tx, windows);
    const idle = windows.filter((_, i) => queued[i] === 0);
    await deleteWindowsById(
      tx,
      idle.map(({ id }) => id),
    );
    for (const listener of this.deletionListeners) await listener(tx, idle);
  }

  private async store(
    tx: Transaction,
    by: OperatorIdentity,
    windows: readonly LimitToSet[],
    waitMs: number,
  ): Promise<WindowView[]> {
    await tx.lockName(LIMITS_LOCK, 'exclusive', waitMs);
    const known = new Map((await lockNamedWindows(tx, windows)).map((row) => [nameOf(row), row]));
    const before = windows.map((window) => ownBoundsOf(known.get(nameOf(window))));
    const after = windows.map(({ changes }, i) => ({ ...(before[i] as Bounds), ...changes }));
    const { wide } = await selectWideWindows(tx);
    await this.storeEveryTarget(tx, windows, known, before, after);
    // Of these the targets that have no bounds of their own inherit.
    const templates = (await selectWideWindows(tx)).wide;
    const inherits = ({ scope, kind }: NamedWindow) =>
      scope === 'target' && everyTargetOf(templates, kind) !== undefined;
    const set = windows.flatMap((window, i) =>
      window.scope !== 'every_target' && (hasBounds(after[i] as Bounds) || inherits(window))
        ? [{ window, bounds: after[i] as Bounds }]
        : [],
    );
    await this.storeWindows(tx, set, known, templates);
    const lifted = windows.filter(
      (window, i) =>
        window.scope !== 'every_target' &&
        !hasBounds(after[i] as Bounds) &&
        !inherits(window) &&
        known.has(nameOf(window)),
    );
    await deleteWindows(tx, lifted);
    const rows = (await selectNamedWindows(tx, windows)).map((row) => inForce(row, templates));
    await insertWindowChanges(
      tx,
      windows.map((window, i): WindowChange => {
        const { scope, kind, target } = window;
        const row = rows.find((one) => nameOf(one) === nameOf(window));
        const old = known.get(nameOf(window));
        return {
          ...{ scope, kind, target, changed_at: tx.now, reason: 'operator' },
          ...{ rate_before: old ? inForce(old, wide).rate : null, rate_after: row?.rate ?? null },
          evidence: JSON.stringify({
            ...evidenceOf(after[i] as Bounds),
            before: evidenceOf(before[i] as Bounds),
          } satisfies OperatorEvidence),
        };
      }),
    );
    for (const listener of this.limitsListeners)
      await listener(tx, { set: rows.map((row) => stateOf(row, tx.now)), lifted });
    await this.audit.record(tx, by, {
      action: 'concurrency-limits.set',
      subject: 'concurrency-limits',
      before: {
        limits: windows.flatMap((window, i) => {
          const bounds = before[i] as Bounds;
          return hasBounds(bounds) ? [limitOf(window, bounds)] : [];
        }),
      },
      after: { limits: windows.map((window, i) => limitOf(window, after[i] as Bounds)) },
    });
    const byName = new Map(rows.filter(hasBounds).map((row) => [nameOf(row), row]));
    const queued = await this.countQueued(tx, windows);
    return windows.map((window, i) =>
      viewOf(byName.get(nameOf(window)) ?? { ...NO_WINDOW, ...window }, queued[i] as number, tx.now),
    );
  }

  /**
   * Stores the bounds of every target of kinds. The windows of targets that inherit them are updated, or deleted, by a job; so
   * the row of lifted ones stays until then.
   */
  private async storeEveryTarget(
    tx: Transaction,
    windows: readonly LimitToSet[],
    known: ReadonlyMap<string, WindowRow>,
    before: readonly Bounds[],
    after: readonly Bounds[],
  ): Promise<void> {
    for (const [i, window] of windows.entries()) {
      if (window.scope !== 'every_target') continue;
      const row = known.get(nameOf(window));
      const bounds = after[i] as Bounds;
      if (!row && !hasBounds(bounds)) continue;
      const { max_slots: slots, max_rate: rate } = bounds;
      // Each change has a number, so that the job knows whether there was another meanwhile.
      const moved_through = Math.max((row?.moved_through ?? 0) + 1, tx.now);
      await insertWindows(tx, [{ ...window, ...bounds, slots, rate, pacing: null, moved_through }]);
      if (hasBounds(before[i] as Bounds) || !hasBounds(bounds)) continue;
      // Leases that were granted before count too.
      const counts = (await this.contents.countLeasedByTarget?.(tx, window.kind)) ?? [];
      const lastLeaseId = bounds.adaptive ? await selectLastLease(tx) : 0;
      const first = firstColumns(bounds, tx.now, lastLeaseId);
      await insertInherited(
        tx,
        counts.map(({ target, count: leased }) => {
          return { ...first, kind: window.kind, target, leased, expires_at: tx.now + IDLE_MS };
        }),
      );
    }
  }

  /** Stores windows with bounds of their own, and those that inherit them from now on. */
  private async storeWindows(
    tx: Transaction,
    set: readonly { readonly window: LimitToSet; readonly bounds: Bounds }[],
    known: ReadonlyMap<string, LockedWindow>,
    templates: readonly WindowRow[],
  ): Promise<void> {
    // An existing window has its count already.
    const added = set.filter(({ window }) => !known.has(nameOf(window))).map(({ window }) => window);
    const counts = (await this.contents.countLeased?.(tx, added)) ?? [];
    const leased = new Map(added.map((window, i) => [window, counts[i] as number]));
    const isAdaptive = [...set.map(({ bounds }) => bounds), ...templates].some((one) => one.adaptive === 1);
    const lastLeaseId = isAdaptive ? await selectLastLease(tx) : 0;
    await insertWindows(
      tx,
      set.map(({ window, bounds: own }) => {
        const row = known.get(nameOf(window));
        const template = everyTargetOf(templates, window.kind);
        const isOwn = hasBounds(own);
        const bounds = isOwn || !template ? own : template;
        // Ids of tasks are above 0: move its queued tasks from the first one on.
        const isNew = !row || row.inherited === 1;
        return {
          ...{ scope: window.scope, kind: window.kind, target: window.target },
          ...nextColumns(row, bounds, tx.now, lastLeaseId),
          inherited: isOwn ? 0 : 1,
          expires_at: isOwn ? null : tx.now + IDLE_MS,
          leased: leased.get(window) ?? 0,
          moved_through: window.scope !== 'target' ? null : isNew ? 0 : row.moved_through,
        };
      }),
    );
  }

  /** Counts the queued tasks that each of the windows limits, in order. */
  async countQueued(statements: Statements, windows: readonly NamedWindow[]): Promise<number[]> {
    return (await this.contents.countQueued?.(statements, windows)) ?? windows.map(() => 0);
  }

  /** Resolves the windows of limits, with normalised targets. @throws ERR_VALIDATION */
  private windowsToSet(limits: readonly LimitInput[]): LimitToSet[] {
    const problems: ErrorDetails = {};
    const seen = new Set<string>();
    const windows = limits.map((limit, i): LimitToSet => {
      const kind = limit.kind ?? '';
      const scope = scopeOf(limit);
      let target = '';
      if (kind && this.targetNames && !this.targetNames.has(kind)) {
        problems[`limits.${i}.kind`] = `must be one of ${this.targetNames.names().join(', ')}`;
      } else if (limit.target && scope === 'target') {
        const parsed = this.targetNames?.parseTarget(kind, limit.target) ?? { target: limit.target };
        if ('target' in parsed) target = parsed.target;
        else problems[`limits.${i}.target`] = parsed.problem;
      }
      if (limit.adaptive && (scope === 'global' || scope === 'kind'))
        problems[`limits.${i}.adaptive`] = `must come with a target, or '${EVERY}' for every target`;
      if (typeof limit.rate === 'number' && !isInSteps(limit.rate))
        problems[`limits.${i}.rate`] = 'must be a number from 0.001 to 1000000, in steps of 0.001';
      const changes = changesOf(limit);
      if (Object.keys(changes).length === 0)
        problems[`limits.${i}.limit`] = 'is required, or a rate, or adaptive';
      const key = nameOf({ scope, kind, target });
      if (seen.has(key)) problems[`limits.${i}`] ??= 'names a window that is in the list already';
      seen.add(key);
      return { scope, kind, target, changes };
    });
    const named = Object.entries(problems).slice(0, MAX_PROBLEMS);
    if (named.length > 0) throw fail('ERR_VALIDATION', Object.fromEntries(named));
    return windows;
  }
}

const isLockTimeout = (error: unknown): boolean =>
  error instanceof ApiError && error.code === 'ERR_UNAVAILABLE' && error.details?.reason === 'lock';

const nameOf = ({ scope, kind, target }: NamedWindow): string => `${scope}\0${kind}\0${target}`;

function scopeOf({ kind, target }: LimitInput): WindowScope {
  if (!kind) return 'global';
  if (!target) return 'kind';
  return target === EVERY ? 'every_target' : 'target';
}

const isInSteps = (rate: number): boolean => Math.abs(rate * 1_000 - Math.round(rate * 1_000)) < 1e-6 * rate;

/** The bounds that a limit changes. */
function changesOf({ limit, rate, adaptive }: LimitInput): Partial<Bounds> {
  return {
    ...(limit === undefined ? {} : { max_slots: limit }),
    ...(rate === undefined ? {} : { max_rate: rate === null ? null : perThousandSeconds(rate) }),
    ...(adaptive === undefined ? {} : { adaptive: adaptive ? 1 : 0 }),
  };
}

/** The bounds that were set for a window itself. */
function ownBoundsOf(row: WindowRow | undefined): Bounds {
  if (!row || row.inherited === 1) return NO_BOUNDS;
  const { max_slots, max_rate, adaptive } = row;
  return { max_slots, max_rate, adaptive };
}

const evidenceOf = ({ max_slots: limit, max_rate: maxRate, adaptive }: Bounds): RuleBounds => ({
  ...{ limit, maxRate, adaptive: adaptive === 1 },
});

/** Lists the windows that tasks of these targets can count in, and those that they can inherit from. */
function namesOf(keys: readonly WindowKey[]): NamedWindow[] {
  const names = keys.flatMap(({ kind, target }): NamedWindow[] => [
    { scope: 'kind', kind, target: '' },
    { scope: 'every_target', kind, target: '' },
    { scope: 'target', kind, target },
  ]);
  const everything: NamedWindow = { scope: 'global', kind: '', target: '' };
  return [...new Map([everything, ...names].map((name) => [nameOf(name), name])).values()];
}

/** Formats a limit for the audit log. */
function limitOf({ scope, kind, target }: NamedWindow, { max_slots, max_rate, adaptive }: Bounds) {
  return {
    kind: kind || undefined,
    target: scope === 'every_target' ? EVERY : target || undefined,
    limit: max_slots,
    ...(max_rate === null ? {} : { rate: perSecond(max_rate) }),
    ...(adaptive ? { adaptive: true } : {}),
  };
}
