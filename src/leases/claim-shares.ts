/** How many a claim asks for of a kind, and how many there are. */
export interface KindDemand {
  readonly kind: string;
  readonly asked: number;
  readonly available: number;
}

/**
 * Shares what one claim may have among the kinds, in proportion to what was asked of each; what a kind has no tasks for goes to
 * the others.
 * @returns how many of each kind, `limit` at most in all
 */
export function shareOut(demands: readonly KindDemand[], limit: number): Map<string, number> {
  const shares = new Map(demands.map(({ kind }) => [kind, 0]));
  const roomOf = ({ kind, asked, available }: KindDemand) =>
    Math.min(asked, available) - (shares.get(kind) as number);
  // Those that asked for most come first if less is left than there are kinds.
  let open = demands.filter((demand) => roomOf(demand) > 0).sort((a, b) => b.asked - a.asked);
  let left = limit;
  while (left > 0 && open.length > 0) {
    const inAll = open.reduce((sum, { asked }) => sum + asked, 0);
    const toShare = left;
    for (const demand of open) {
      const part = Math.max(1, Math.floor((toShare * demand.asked) / inAll));
      const share = Math.min(part, roomOf(demand), left);
      shares.set(demand.kind, (shares.get(demand.kind) as number) + share);
      left -= share;
    }
    open = open.filter((demand) => roomOf(demand) > 0);
  }
  return shares;
}

/** A task as far as it is shared out. */
interface SharedTask {
  readonly id: number;
  readonly kind: string;
  readonly priority: number;
}

/** What one claim may still be granted, and what it was given so far. */
export interface ClaimPlan<Task extends SharedTask> {
  /** The kinds that the agent may be granted more of. */
  readonly open: readonly string[];
  /** How many of each of them at most. */
  readonly budgets: ReadonlyMap<string, number>;
  /** How many in all at most. */
  readonly limit: number;
  readonly tasks: Task[];
}

/**
 * Says what a claim may be granted.
 * @param wanted how many leases of each kind the agent is willing to hold
 * @param held how many of each kind it holds
 * @param maxHeld how many it may hold in all
 * @param maxGranted how many one claim grants
 */
export function planClaim<Task extends SharedTask>(
  wanted: readonly (readonly [kind: string, capacity: number])[],
  held: ReadonlyMap<string, number>,
  maxHeld: number,
  maxGranted: number,
): ClaimPlan<Task> {
  const room = maxHeld - [...held.values()].reduce((sum, count) => sum + count, 0);
  const budgets = new Map(
    wanted
      .map(([kind, capacity]) => [kind, capacity - (held.get(kind) ?? 0)] as const)
      .filter(([, budget]) => room > 0 && budget > 0),
  );
  return { open: [...budgets.keys()], budgets, limit: Math.max(0, Math.min(room, maxGranted)), tasks: [] };
}

/** How many more of each kind a claim is to be given, if there are no more of those that are exhausted. */
function missingOf(
  { budgets, limit, tasks }: ClaimPlan<SharedTask>,
  exhausted: ReadonlySet<string>,
): Map<string, number> {
  const given = (kind: string) => tasks.filter((task) => task.kind === kind).length;
  // In all, by what was asked at first: what is shared out twice would not be in that proportion.
  const demands = [...budgets].map(([kind, asked]) => ({
    kind,
    asked,
    available: exhausted.has(kind) ? given(kind) : asked,
  }));
  let left = limit - tasks.length;
  const missing = new Map<string, number>();
  for (const [kind, share] of shareOut(demands, limit)) {
    const more = Math.min(left, Math.max(0, share - given(kind)));
    missing.set(kind, more);
    left -= more;
  }
  return missing;
}

/**
 * Takes tasks for several claims, and shares them out: to each claim its share of each kind, in the order given. What a kind has no
 * tasks for goes to the kinds that have.
 * @param take takes the best tasks of kinds, the given number of each at most, or a few more
 * @returns the tasks that no claim wants
 */
export async function shareTasks<Task extends SharedTask>(
  plans: readonly ClaimPlan<Task>[],
  take: (wanted: ReadonlyMap<string, number>) => Promise<readonly Task[]>,
): Promise<{ unwanted: Task[] }> {
  const exhausted = new Set<string>();
  const unwanted: Task[] = [];
  for (;;) {
    const shares = plans.map((plan) => missingOf(plan, exhausted));
    const wanted = new Map<string, number>();
    for (const share of shares)
      for (const [kind, count] of share) if (count > 0) wanted.set(kind, (wanted.get(kind) ?? 0) + count);
    if (wanted.size === 0) break;
    const byKind = Map.groupBy(await take(wanted), ({ kind }) => kind);
    for (const [kind, count] of wanted) {
      const tasks = byKind.get(kind) ?? [];
      let next = 0;
      for (const [i, plan] of plans.entries()) {
        const given = tasks.slice(next, next + (shares[i]?.get(kind) ?? 0));
        next += given.length;
        plan.tasks.push(...given);
      }
      unwanted.push(...tasks.slice(next));
      if (tasks.length < count) exhausted.add(kind);
    }
    if ([...wanted.keys()].every((kind) => !exhausted.has(kind))) break;
  }
  for (const { tasks } of plans) tasks.sort((a, b) => b.priority - a.priority || a.id - b.id);
  return { unwanted };
}
