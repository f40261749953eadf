import { setTimeout as sleep } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { ApiError, type ErrorDetails, fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, pageOf } from '../http/pagination';
import { MAX_PROBLEMS } from '../http/validation';
import { AuditLog } from '../operators/audit-log';
import type { LimitInput, WindowsQuery, WindowView } from './concurrency.dto';
import type { WindowKey, WindowRow, WindowScope } from './window.entity';
import { LIMITS_LOCK } from './windows';
import {
  deleteWindows,
  insertWindows,
  lockNamedWindows,
  type NamedWindow,
  selectNamedWindows,
  selectWindowPage,
} from './windows.queries';

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

/** A limit to set; null lifts it. */
export interface LimitToSet extends NamedWindow {
  readonly slots: number | null;
}

/** The counts of tasks and leases that windows need from their owners. */
export interface WindowContents {
  /** Counts the live leases in each of the windows, in order. */
  countLeased(statements: Statements, windows: readonly NamedWindow[]): Promise<number[]>;
  /** Counts the queued tasks that each of the windows limits, in order. */
  countQueued(statements: Statements, windows: readonly NamedWindow[]): Promise<number[]>;
}

/**
 * Called in the transaction that sets limits, once they are written, with the current windows and the lifted ones.
 */
export type LimitsListener = (
  tx: Transaction,
  changed: { readonly set: readonly WindowRow[]; readonly lifted: readonly NamedWindow[] },
) => Promise<void>;

/**
 * Owns concurrency_windows: the limits that operators set on everything, a kind, or a target of a kind, and the live
 * leases of each. Slots are taken when leases are granted and released when they end, see {@link Windows}.
 */
@Injectable()
export class ConcurrencyService {
  private readonly limitsListeners: LimitsListener[] = [];
  private targetNames: TargetNames | undefined;
  private contents: Partial<WindowContents> = {};

  constructor(
    private readonly database: Database,
    private readonly audit: AuditLog,
  ) {}

  /** Subscribes to set limits. The listener runs in the transaction. */
  onLimitsSet(listener: LimitsListener): void {
    this.limitsListeners.push(listener);
  }

  /** Sets the registry of kinds, which normalises targets of limits and filters as those of tasks. */
  spellTargetsWith(names: TargetNames): void {
    this.targetNames = names;
  }

  /** Sets the functions that count the leases and tasks of windows. */
  countWith(contents: Partial<WindowContents>): void {
    this.contents = { ...this.contents, ...contents };
  }

  /** Finds the windows with a limit of tasks of these targets. */
  limitedWindows(statements: Statements, keys: readonly WindowKey[]): Promise<WindowRow[]> {
    return selectNamedWindows(statements, namesOf(keys));
  }

  /**
   * Sets limits, all or none, in force when it resolves: from then on no lease is granted beyond them. Leases over a
   * lowered limit stay live. Its duration does not depend on the number of tasks.
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
   * Lists the windows with a limit, newest first.
   * @throws ERR_VALIDATION the target is impossible for the kind, or for any kind
   */
  async list(query: WindowsQuery): Promise<Page<WindowView>> {
    const { scope, kind, target, limit } = query;
    const targets = target ? this.targetNames?.findTargets(target, kind) : undefined;
    return this.database.read(async (statements) => {
      const rows = await selectWindowPage(
        statements,
        { scope, kind, targets, below: olderThan(query) },
        limit + 1,
      );
      const queued = await this.countQueued(statements, rows);
      return pageOf(
        rows.map((row, i) => ({ row, queued: queued[i] as number })),
        limit,
        ({ row }) => row.id,
        ({ row, queued }) => viewOf(row, queued),
      );
    });
  }

  private async store(
    tx: Transaction,
    by: OperatorIdentity,
    windows: readonly LimitToSet[],
    waitMs: number,
  ): Promise<WindowView[]> {
    await tx.lockName(LIMITS_LOCK, 'exclusive', waitMs);
    const before = await lockNamedWindows(tx, windows);
    const set = windows.filter(hasSlots);
    const known = new Set(before.map(nameOf));
    // An existing window has its count already.
    const added = set.filter((window) => !known.has(nameOf(window)));
    const counts = (await this.contents.countLeased?.(tx, added)) ?? [];
    const leased = new Map(added.map((window, i) => [window, counts[i] as number]));
    await insertWindows(
      tx,
      set.map((window) => {
        // Ids of tasks are above 0: move its queued tasks from the first one on.
        return {
          ...window,
          leased: leased.get(window) ?? 0,
          moved_through: window.scope === 'target' ? 0 : null,
        };
      }),
    );
    const lifted = windows.filter((window) => !hasSlots(window) && known.has(nameOf(window)));
    await deleteWindows(tx, lifted);
    const rows = await selectNamedWindows(tx, windows);
    for (const listener of this.limitsListeners) await listener(tx, { set: rows, lifted });
    await this.audit.record(tx, by, {
      action: 'concurrency-limits.set',
      subject: 'concurrency-limits',
      before: { limits: before.map(limitOf) },
      after: { limits: windows.map(limitOf) },
    });
    const byName = new Map(rows.map((row) => [nameOf(row), row]));
    const queued = await this.countQueued(tx, windows);
    return windows.map((window, i) =>
      viewOf(byName.get(nameOf(window)) ?? { ...window, slots: null, leased: null }, queued[i] as number),
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
      const key = nameOf({ scope, kind, target });
      if (seen.has(key)) problems[`limits.${i}`] ??= 'names a window that is in the list already';
      seen.add(key);
      return { scope, kind, target, slots: limit.limit };
    });
    const named = Object.entries(problems).slice(0, MAX_PROBLEMS);
    if (named.length > 0) throw fail('ERR_VALIDATION', Object.fromEntries(named));
    return windows;
  }
}

const isLockTimeout = (error: unknown): boolean =>
  error instanceof ApiError && error.code === 'ERR_UNAVAILABLE' && error.details?.reason === 'lock';

const hasSlots = (window: LimitToSet): window is LimitToSet & { readonly slots: number } =>
  window.slots !== null;

const nameOf = ({ scope, kind, target }: NamedWindow): string => `${scope}\0${kind}\0${target}`;

/** Lists the windows that tasks of these targets can count in. */
function namesOf(keys: readonly WindowKey[]): NamedWindow[] {
  const names = keys.flatMap(({ kind, target }): NamedWindow[] => [
    { scope: 'kind', kind, target: '' },
    { scope: 'target', kind, target },
  ]);
  const everything: NamedWindow = { scope: 'global', kind: '', target: '' };
  return [...new Map([everything, ...names].map((name) => [nameOf(name), name])).values()];
}

/** Formats a limit for the audit log. */
function limitOf({ kind, target, slots }: WindowKey & { readonly slots: number | null }) {
  return { kind: kind || undefined, target: target || undefined, limit: slots };
}

function viewOf(
  { scope, kind, target, slots, leased }: NamedWindow & { slots: number | null; leased: number | null },
  queued: number,
): WindowView {
  return {
    scope,
    kind: kind || null,
    target: target || null,
    limit: slots,
    leased,
    queued,
    available: slots === null ? null : Math.max(0, slots - (leased ?? 0)),
  };
}
