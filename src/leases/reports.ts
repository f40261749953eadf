import type { AttemptOutcome } from '../agents/agent.entity';
import type { Observation } from '../kinds/observations';
import {
  type LeaseReport,
  lengthOfObservations,
  type RejectedReport,
  textOfObservations,
} from './leases.dto';
import type { ReportedLease } from './leases.queries';

/** One item of a report, as the request was judged: a report, or why it is not valid. */
export interface JudgedItem {
  readonly as: 'completed' | 'cancelled';
  readonly item: LeaseReport | RejectedReport;
}

/** A report of a live lease: it ends the lease. */
export interface EndingReport {
  readonly as: 'completed' | 'cancelled';
  readonly lease: ReportedLease;
  readonly report: LeaseReport;
  /** As they are stored; null if there are none. */
  readonly observations: string | null;
  readonly ending: AttemptOutcome;
}

/** A report of a lease that had expired or was revoked: it is kept as evidence. */
export interface LateReport {
  readonly as: 'completed' | 'cancelled';
  readonly lease: ReportedLease;
  readonly report: LeaseReport;
  readonly observations: string | null;
}

/** What the items of a report come to. */
export interface Classified {
  readonly ends: readonly EndingReport[];
  readonly late: readonly LateReport[];
  readonly rejected: readonly RejectedReport[];
  readonly acknowledged: number;
}

const textOf = ({ observations }: LeaseReport): string | null =>
  observations?.length ? textOfObservations(observations) : null;

const isRejected = (item: LeaseReport | RejectedReport): item is RejectedReport => 'reason' in item;

/** The leases that a report names. */
export const leaseIdsOf = (items: readonly JudgedItem[]): number[] =>
  items.flatMap(({ item }) => (isRejected(item) ? [] : [item.lease_id]));

/** Whether a report brings observations, which take space. */
export const bringsObservations = (items: readonly JudgedItem[]): boolean =>
  items.some(({ item }) => !isRejected(item) && (item.observations?.length ?? 0) > 0);

/** How much of a unit's weight this number of characters of observations is: as much as a report without any. */
const CHARACTERS_OF_ONE = 4_096;

/** The weight of a report for a unit of work: by its items, and by the text that they bring. */
export const weightOf = (items: readonly JudgedItem[]): number =>
  items.reduce(
    (sum, { item }) =>
      sum + 1 + (isRejected(item) ? 0 : lengthOfObservations(item.observations ?? []) / CHARACTERS_OF_ONE),
    0,
  );

/**
 * Says what each item of an agent's report does, in their order: a later item on the same lease finds it as in a call of its own.
 * @param leases those that the report names, as they are now; one of another agent looks as if there were none
 */
export function classify(
  agentId: number,
  items: readonly JudgedItem[],
  leases: ReadonlyMap<number, ReportedLease>,
): Classified {
  const ends: EndingReport[] = [];
  const late: LateReport[] = [];
  const rejected: RejectedReport[] = [];
  const seen = new Map<number, Pick<ReportedLease, 'state' | 'report' | 'outcome'>>();
  for (const { as, item } of items) {
    if (isRejected(item)) {
      rejected.push(item);
      continue;
    }
    const { lease_id } = item;
    const lease = leases.get(lease_id);
    if (lease?.agent_id !== agentId) {
      rejected.push({ lease_id, reason: 'unknown' });
      continue;
    }
    const { state, report, outcome } = seen.get(lease_id) ?? lease;
    const said = item.outcome ?? null;
    if (state === 'active') {
      const ending = as === 'completed' ? (said ?? 'unsaid') : as;
      ends.push({ as, lease, report: item, observations: textOf(item), ending });
      seen.set(lease_id, { state: as, report: as, outcome: said });
    } else if (state === 'expired' || state === 'revoked') {
      rejected.push({ lease_id, reason: state });
      if (report !== null) continue;
      late.push({ as, lease, report: item, observations: textOf(item) });
      seen.set(lease_id, { state, report: as, outcome: said });
    } else if (report !== as || outcome !== said) {
      rejected.push({ lease_id, reason: 'conflict' });
    }
  }
  return { ends, late, rejected, acknowledged: items.length - rejected.length };
}

/** The names of observations in which agents say what went wrong, the best first. */
const MESSAGE_NAMES = ['error', 'error_message', 'failure', 'reason', 'message'];
/** How much of it is kept, in UTF-16 units. */
const MAX_MESSAGE = 300;

/**
 * What an agent says went wrong: the first text that it observed under a name for that.
 * @returns a JSON string, because it may hold what a database can't keep as it is; null if it says nothing
 */
export function messageOf(observations: readonly Pick<Observation, 'name' | 'value'>[]): string | null {
  for (const name of MESSAGE_NAMES) {
    const said = observations.find((one) => one.name === name && typeof one.value === 'string' && one.value);
    if (said) return JSON.stringify(shortened(said.value as string));
  }
  return null;
}

/** Not between the two halves of a character. */
function shortened(text: string): string {
  const cut = text.slice(0, MAX_MESSAGE);
  return text.length > MAX_MESSAGE && /[\ud800-\udbff]$/.test(cut) ? cut.slice(0, -1) : cut;
}
