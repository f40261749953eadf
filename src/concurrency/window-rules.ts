import { FIRST_RATE } from './pacing';
import type { ChangeReason, WindowRow, WindowScope } from './window.entity';

/** The bounds of a window: what operators set. The rate is in starts per 1,000 s. */
export interface RuleBounds {
  readonly limit: number | null;
  readonly maxRate: number | null;
  readonly adaptive: boolean;
}

/** What is stored with an operator's change of a window: the bounds after it, and before it. */
export interface OperatorEvidence extends RuleBounds {
  readonly before: RuleBounds;
}

const NO_RULE: RuleBounds = { limit: null, maxRate: null, adaptive: false };

/** A change of a window, in the order in which they were made. */
export interface RuleChange {
  /** In ms since the epoch. */
  readonly at: number;
  readonly reason: ChangeReason;
  readonly rateBefore: number | null;
  readonly rateAfter: number | null;
  /** Only if an operator made it. */
  readonly bounds: { readonly before: RuleBounds; readonly after: RuleBounds } | undefined;
}

/** What held from an instant on, at one window. */
export interface RuleState {
  readonly at: number;
  readonly reason: ChangeReason;
  readonly bounds: RuleBounds;
  /** The rate that the change set, or a higher one that the next change found: not each growth is recorded. */
  readonly rate: number | null;
}

/** A limit or a rate that held at a target, for some time. Rates are in starts per 1,000 s. */
export interface Rule extends RuleBounds {
  readonly scope: WindowScope;
  readonly from: number;
  /** Null if it held until the end of the period. */
  readonly to: number | null;
  /** Of an adaptive one the highest, as far as it is recorded. */
  readonly rate: number | null;
  readonly reason: ChangeReason;
}

/** Finds what held at a window in a period from its changes, which are added oldest first. */
export class WindowStates {
  private states: (Omit<RuleState, 'bounds' | 'rate'> & {
    readonly bounds: RuleBounds | undefined;
    rate: number | null | undefined;
  })[];
  // What the first change replaced is what held before it.
  private firstBounds: RuleBounds | undefined;
  private isPresent = true;

  /** @param to the end of the period, exclusive; both in ms since the epoch */
  constructor(
    private readonly from: number,
    private readonly to: number,
  ) {
    this.states = [{ at: from, reason: 'operator', bounds: undefined, rate: undefined }];
  }

  /** Adds the next change. @returns whether later ones are of use */
  add({ at, reason, rateBefore, rateAfter, bounds }: RuleChange): boolean {
    this.firstBounds ??= bounds?.before;
    if (this.isPresent) this.found(rateBefore);
    if (at < this.to) {
      const state = { reason, bounds: bounds?.after ?? this.states.at(-1)?.bounds, rate: rateAfter };
      if (at <= this.from) this.states = [{ ...state, at: this.from }];
      else this.states.push({ ...state, at });
      return true;
    }
    this.isPresent = false;
    return this.firstBounds === undefined;
  }

  /** Returns what held, from the beginning of the period on. @param present how the window is now, if there is one */
  end(present: { readonly bounds: RuleBounds; readonly rate: number | null } | undefined): RuleState[] {
    if (this.isPresent) this.found(present?.rate ?? null);
    const first = this.firstBounds ?? present?.bounds ?? NO_RULE;
    return this.states.map(({ at, reason, bounds = first, rate = null }) => ({ at, reason, bounds, rate }));
  }

  /** Takes into account the rate that the last state had become. */
  private found(rate: number | null): void {
    const last = this.states.at(-1);
    if (!last) return;
    if (last.rate === undefined) last.rate = rate;
    else if (last.rate !== null && rate !== null) last.rate = Math.max(last.rate, rate);
  }
}

/** What held at the windows of a target, each from the beginning of the period on. */
export type TargetStates = Readonly<Record<WindowScope, readonly RuleState[]>>;

/**
 * Lists the rules that held at a target, the earliest first, from the widest to the narrowest. A target has one rule of its own or
 * of every target of its kind.
 */
export function rulesOf({ global, kind, every_target: every, target }: TargetStates): Rule[] {
  const wide = (scope: WindowScope, states: readonly RuleState[]): Rule[] =>
    lasting(
      states.flatMap((state, i) => [
        { scope, at: state.at, to: states[i + 1]?.at, reason: state.reason, bounds: state.bounds },
      ]),
    );
  return [...wide('global', global), ...wide('kind', kind), ...lasting(ofTarget(every, target))].sort(
    (a, b) => a.from - b.from,
  );
}

interface Held {
  readonly scope: WindowScope;
  readonly at: number;
  readonly to: number | undefined;
  readonly reason: ChangeReason;
  readonly bounds: RuleBounds;
  /** Of an adaptive one. */
  readonly adapted?: number | null;
}

/** What held at a target: its own bounds, else those of every target of its kind. */
function ofTarget(every: readonly RuleState[], own: readonly RuleState[]): Held[] {
  const instants = [...new Set([...every, ...own].map(({ at }) => at))].sort((a, b) => a - b);
  const lastAt = (states: readonly RuleState[], at: number) =>
    states.findLast((state) => state.at <= at) as RuleState;
  return instants.map((at, i): Held => {
    const [template, target] = [lastAt(every, at), lastAt(own, at)];
    const isOwn = isRule(target.bounds);
    const { bounds } = isOwn ? target : template;
    // Of a target that has the bounds of every target, also what is reported of it changes its rate.
    const later = template.at > target.at ? template : target;
    const { reason } = isOwn || bounds.adaptive ? (isOwn ? target : later) : template;
    return {
      ...{ scope: isOwn ? 'target' : 'every_target', at, to: instants[i + 1], reason, bounds },
      adapted: target.rate,
    };
  });
}

const isRule = ({ limit, maxRate, adaptive }: RuleBounds): boolean =>
  limit !== null || maxRate !== null || adaptive;

/** Joins what is equal, and leaves out the times without a limit or a rate. */
function lasting(held: readonly Held[]): Rule[] {
  const rules: Rule[] = [];
  for (const { scope, at, to = null, reason, bounds, adapted = null } of held) {
    if (to === at || !isRule(bounds)) continue;
    const { limit, maxRate, adaptive } = bounds;
    const rate = adaptive ? Math.min(adapted ?? FIRST_RATE, maxRate ?? Number.POSITIVE_INFINITY) : maxRate;
    const rule: Rule = { scope, from: at, to, limit, rate, maxRate, adaptive, reason };
    const last = rules.at(-1);
    if (last && last.to === at && isEqual(last, rule)) rules[rules.length - 1] = { ...last, to };
    else rules.push(rule);
  }
  return rules;
}

const isEqual = (a: Rule, b: Rule): boolean =>
  a.scope === b.scope &&
  a.limit === b.limit &&
  a.rate === b.rate &&
  a.maxRate === b.maxRate &&
  a.adaptive === b.adaptive;

/** The bounds of a stored window that are its own. */
export function boundsOfRow(row: WindowRow | undefined): RuleBounds {
  if (!row || row.inherited === 1) return NO_RULE;
  return { limit: row.max_slots, maxRate: row.max_rate, adaptive: row.adaptive === 1 };
}
