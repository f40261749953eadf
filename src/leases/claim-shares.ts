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
  // Those that asked for most come first where less is left than there are kinds.
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
