import { FAILURES, type Failure, OUTCOMES } from './observations';
import { checkedEvidence, type EndedCheck, type Evidence, SIGNALS, targetSignal } from './signals';

const NOW = 1_764_000_000_000;
const completed = (more: Partial<EndedCheck> = {}): EndedCheck => ({
  report: 'completed',
  received_at: NOW,
  ...more,
});
const observations = [{ name: 'note', value: 'x' }];

describe('what a report says of its target', () => {
  it.each<[Failure, string]>([
    ['refused', 'pushed_back'],
    ['throttled', 'pushed_back'],
    ['timeout', 'bad'],
    ['unreachable', 'bad'],
    ['local', 'local'],
    ['policy', 'local'],
  ])('is by its failure %s: %s, whatever else it says', (failure, signal) => {
    for (const outcome of [...OUTCOMES, null])
      for (const found of SIGNALS)
        for (const report of ['completed', 'cancelled'] as const)
          expect(targetSignal(completed({ failure, outcome, report }), { signal: found }).signal).toBe(
            signal,
          );
  });

  it.each(SIGNALS)('without a failure is what its kind found: %s', (signal) => {
    for (const outcome of [...OUTCOMES, null])
      expect(targetSignal(completed({ outcome, failure: null }), { signal }).signal).toBe(signal);
  });

  it.each([
    ['success', 'answered'],
    ['timeout', 'bad'],
    ['error', 'local'],
    [null, 'local'],
    [undefined, 'local'],
  ] as const)('without a failure and a finding is by its outcome %s: %s', (outcome, signal) => {
    for (const evidence of [undefined, {}, { signal: undefined, rttMs: 3 }])
      expect(targetSignal(completed({ outcome }), evidence).signal).toBe(signal);
    expect(targetSignal(completed({ outcome, report: 'cancelled', observations })).signal).toBe(signal);
  });

  it.each([...OUTCOMES, null])('is nothing if the lease is returned without a reason, as %s', (outcome) => {
    for (const none of [undefined, null, []])
      expect(targetSignal(completed({ report: 'cancelled', outcome, observations: none }))).toEqual({
        signal: 'local',
        rttMs: null,
        retryAfterMs: null,
      });
  });

  it('takes the duration that is said, else the one that was found', () => {
    const found = { rttMs: 7 };
    const success = completed({ outcome: 'success' });
    expect(targetSignal({ ...success, rtt_ms: 0 }, found).rttMs).toBe(0);
    expect(targetSignal({ ...success, rtt_ms: null }, found).rttMs).toBe(7);
    expect(targetSignal(success).rttMs).toBeNull();
  });

  it('has the duration of an answer only, and a pause only of a target that pushes back', () => {
    const found = { rttMs: 7, retryAfterMs: 9 };
    const times = FAILURES.map((failure) => targetSignal(completed({ failure, rtt_ms: 5 }), found));
    expect(times.map(({ rttMs }) => rttMs)).toEqual([null, null, null, null, null, null]);
    expect(times.map(({ retryAfterMs }) => retryAfterMs)).toEqual([9, 9, null, null, null, null]);
    expect(targetSignal(completed({ outcome: 'success' }), found)).toEqual({
      signal: 'answered',
      rttMs: 7,
      retryAfterMs: null,
    });
  });
});

describe('what a kind may return', () => {
  it.each<[unknown, Evidence | undefined]>([
    [undefined, undefined],
    [{}, { signal: undefined, rttMs: null, retryAfterMs: null }],
    [
      { signal: 'bad', more: 1 },
      { signal: 'bad', rttMs: null, retryAfterMs: null },
    ],
    [
      { rttMs: 0, retryAfterMs: null },
      { signal: undefined, rttMs: 0, retryAfterMs: null },
    ],
    [
      { rttMs: 1e308, retryAfterMs: 1e9 },
      { signal: undefined, rttMs: 3_600_000, retryAfterMs: 3_600_000 },
    ],
  ])('is %j', (found, evidence) => {
    expect(checkedEvidence(found)).toEqual(evidence);
  });

  it.each<[unknown, string]>([
    [null, 'no object'],
    ['answered', 'no object'],
    [7, 'no object'],
    [{ signal: 'constructor' }, 'not one of answered, pushed_back, bad, local'],
    [{ signal: null }, 'not one of'],
    [{ signal: ['bad'] }, 'not one of'],
    [{ rttMs: -1 }, 'no rttMs'],
    [{ rttMs: Number.NaN }, 'no rttMs'],
    [{ rttMs: '5' }, 'no rttMs'],
    [{ retryAfterMs: Number.POSITIVE_INFINITY }, 'no retryAfterMs'],
    [{ retryAfterMs: -0.5 }, 'no retryAfterMs'],
    [{ retryAfterMs: 5n }, 'no retryAfterMs'],
    [Promise.resolve({ signal: 'bad' }), 'a promise'],
    // Unhandled, it would end the test run.
    [Promise.reject(new Error('later')), 'a promise'],
  ])('is not %p', (found, message) => {
    expect(() => checkedEvidence(found)).toThrow(message);
  });
});
