import { politenessText } from './politeness';

const report = (fields: object = {}) => ({
  ...{ kind: 'dns', target: '192.0.2.53:53' },
  ...{ from: '2026-11-26T00:00:00.000Z', to: '2026-11-27T00:00:00.000Z' },
  ...{ generated_at: '2026-11-28T09:00:00.000Z', is_complete: true, is_exact: true },
  ...{ checks: 1, first_start_at: '2026-11-26T01:02:03.004Z', last_start_at: '2026-11-26T01:02:03.004Z' },
  most_starts_in_a_second: { count: 1, at: '2026-11-26T01:02:03.004Z' },
  peak_concurrent: { count: 1, at: '2026-11-26T01:02:03.004Z' },
  outcomes: { success: 1, timeout: 0 },
  ...{ agents: 1, by_agent: [], rules: [], rules_left_out: 0 },
  ...fields,
});

const rule = (from: string, to: string | null, fields: object = {}) => ({
  ...{ scope: 'target', from: `2026-11-26T${from}:00.000Z`, to: to && `2026-11-26T${to}:00.000Z` },
  ...{ limit: null, rate: 5, max_rate: 5, adaptive: true, reason: 'operator' },
  ...fields,
});

/** The rows below the heads of the table of limits. */
const rulesIn = (text: string): string[] =>
  (text.split('These limits applied:\n')[1] ?? '').split('\n\n')[0]?.split('\n').slice(1) ?? [];

describe('the text of a politeness report', () => {
  it('is one that can be sent', () => {
    expect(politenessText(report())).toBe(`dns checks of 192.0.2.53:53 on 2026-11-26 (UTC)

We started 1 check from 1 agent, the first at 01:02:03.004, the last at 01:02:03.004.
At most 1 started within one second, from 01:02:03.004 on.
At most 1 ran at once, at 01:02:03.004.

OUTCOME    CHECKS
succeeded  1

No limit and no rate applied to this target.

All times are UTC. A check starts when its agent is told to start it, and runs until its result is reported.`);
  });

  it('has one row for an adaptive rate, until an operator changes it', () => {
    const rules = [
      rule('00:00', null, { scope: 'global', limit: 100, rate: null, max_rate: null, adaptive: false }),
      rule('00:00', '03:00', { rate: 2 }),
      rule('03:00', '04:00', { rate: 5, reason: 'room' }),
      rule('04:00', '05:00', { rate: 0.5, reason: 'dead' }),
      rule('05:00', '06:00', { limit: 3, rate: 0.5 }),
      rule('07:00', null, { limit: 3, rate: 0.5 }),
    ];
    expect(rulesIn(politenessText(report({ rules })))).toEqual([
      '00:00:00.000  24:00         all checks together  100      -                no',
      '00:00:00.000  05:00:00.000  this target          -        at most 5        yes',
      '05:00:00.000  06:00:00.000  this target          3        at most 0.5      yes',
      '07:00:00.000  24:00         this target          3        at most 0.5      yes',
    ]);
    const today = { generated_at: '2026-11-26T09:00:00.000Z', rules: [rule('08:00', null)] };
    expect(rulesIn(politenessText(report(today)))).toEqual([
      '08:00:00.000  now  this target  -        at most 5        yes',
    ]);
  });

  it('says what it does not know', () => {
    const text = politenessText(report({ is_complete: false, is_exact: false, rules_left_out: 3 }));
    expect(text).toMatch(/may be left out.*\n.*lower bounds.*\n.*left out/);
  });

  it('names checks that ran into the day though none started', () => {
    const text = politenessText(
      report({
        ...{ checks: 0, first_start_at: null, last_start_at: null, outcomes: { success: 0 }, agents: 0 },
        most_starts_in_a_second: { count: 0, at: null },
        peak_concurrent: { count: 2, at: '2026-11-26T00:00:00.000Z' },
      }),
    );
    expect(text).toContain('We started no checks.\nAt most 2 ran at once, at 00:00:00.000.\n');
  });

  it('shows a hostile target without its control characters', () => {
    expect(politenessText(report({ target: 'a\u001b[31m\u202e' }))).toContain('a\\u001b[31m\\u202e');
  });
});
