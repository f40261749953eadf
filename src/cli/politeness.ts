import type { Json } from './api-command';
import { escapeControls, table } from './print';

/** How an outcome is said to the owner of a target. */
const OUTCOMES: Readonly<Record<string, string>> = {
  success: 'succeeded',
  timeout: 'timed out',
  error: 'failed',
  unsaid: 'done, no outcome reported',
  cancelled: 'given up by the agent',
  expired: 'not reported in time',
  revoked: 'stopped by an operator',
  live: 'still running',
};

/** Renders a politeness report as a text that can be sent to the owner of a target. */
export function politenessText(report: Json): string {
  const { kind, target, checks, agents, most_starts_in_a_second: starts, peak_concurrent: peak } = report;
  const paragraphs = [
    `${escapeControls(kind)} checks of ${escapeControls(target)} on ${report.from.slice(0, 10)} (UTC)${asOf(report)}`,
  ];
  if (checks === 0)
    paragraphs.push(
      report.is_complete
        ? 'We started no checks.'
        : 'It is not known whether we started checks: they are no longer kept.',
    );
  else
    paragraphs.push(
      [
        `We started ${counted(checks, 'check')} from ${counted(agents, 'agent')}, the first at ${time(report.first_start_at)}, the last at ${time(report.last_start_at)}.`,
        `At most ${starts.count} started within one second, from ${time(starts.at)} on.`,
      ].join('\n'),
    );
  if (peak.count > 0)
    paragraphs[paragraphs.length - 1] += `\nAt most ${peak.count} ran at once, at ${time(peak.at)}.`;
  const outcomes = Object.entries(report.outcomes as Record<string, number>)
    .filter(([, count]) => count > 0)
    .map(([outcome, count]) => ({ outcome: OUTCOMES[outcome] ?? outcome, checks: count }));
  if (outcomes.length > 0) paragraphs.push(table(outcomes, ['outcome', 'checks']));
  const rules = rulesOf(report);
  paragraphs.push(
    rules.length === 0
      ? report.is_complete
        ? 'No limit and no rate applied to this target.'
        : 'It is not known which limits applied.'
      : `These limits applied:\n${table(rules, ['from', 'to', 'applied_to', 'at_once', 'starts_a_second', 'adaptive'])}`,
  );
  const notes = [
    'All times are UTC. A check starts when its agent is told to start it, and runs until its result is reported.',
    ...(report.is_complete || checks === 0
      ? []
      : ['Some checks of this day may be left out: they are no longer kept.']),
    ...(report.is_exact
      ? []
      : ['There are too many checks to count them all: the numbers are lower bounds.']),
    ...(report.rules_left_out > 0 ? ['Some later limits are left out, because they changed too often.'] : []),
  ];
  return [...paragraphs, notes.join('\n')].join('\n\n');
}

const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`;

/** The time of day of a timestamp. */
const time = (timestamp: string): string => timestamp.slice(11, 23);

/** Of a day that is not over: until when it is told. */
const asOf = ({ to, generated_at: at }: Json): string => (at < to ? `, until ${time(at)}` : '');

interface TextRule {
  readonly from: string;
  to: string;
  readonly applied_to: string;
  readonly at_once: string;
  starts_a_second: string;
  readonly adaptive: string;
}

/** Rows for as long as operators changed nothing, the earliest first, with the highest rate of an adaptive one. */
function rulesOf({ kind, rules, to: end, generated_at: at }: Json): TextRule[] {
  const appliedTo: Record<string, string> = {
    global: 'all checks together',
    kind: `all ${kind} checks together`,
    every_target: `each ${kind} target`,
    target: 'this target',
  };
  const rows: (TextRule & { readonly key: string; highest: number })[] = [];
  for (const { scope, from, to, limit, rate, max_rate: maxRate, adaptive } of rules as Json[]) {
    const key = JSON.stringify([scope, limit, maxRate, adaptive]);
    const last = rows.findLast((row) => row.key === key);
    const isSame = last?.to === time(from);
    const row = isSame
      ? last
      : {
          ...{ key, from: time(from), to: '', applied_to: appliedTo[scope] ?? scope },
          ...{ at_once: limit === null ? '-' : String(limit), starts_a_second: '-' },
          ...{ adaptive: adaptive ? 'yes' : 'no', highest: rate },
        };
    if (!isSame) rows.push(row);
    row.to = to === null ? (at < end ? 'now' : '24:00') : time(to);
    row.highest = Math.max(row.highest, rate);
    // Of an adaptive rate only the highest of each time is known.
    if (limit === 0) row.starts_a_second = 'stopped';
    else if (rate !== null) row.starts_a_second = adaptive ? `at most ${row.highest}` : String(rate);
  }
  return rows;
}
