import { FAILURES } from '../kinds/observations';
import { judgeReport } from './leases.dto';

const report = (more: object) => judgeReport({ lease_id: 7, ...more }, 'completed.3');

describe('a report', () => {
  it('has null for what it leaves out', () => {
    const bare = {
      ...{ lease_id: 7, outcome: null, failure: null, rtt_ms: null, observations: [], traceparent: null },
    };
    expect(report({})).toEqual(bare);
    expect(report({ outcome: null, failure: null, rtt_ms: null, observations: null })).toEqual(bare);
  });

  it.each(FAILURES)('may say the failure %s', (failure) => {
    expect(report({ failure })).toMatchObject({ lease_id: 7, failure });
  });

  it.each([0, 0.25, 12.5, 3_600_000])('may say that the target answered after %d ms', (rtt_ms) => {
    expect(report({ rtt_ms })).toMatchObject({ lease_id: 7, rtt_ms });
  });

  it.each<[object, string, string]>([
    [{ failure: 'maybe' }, 'failure', `must be one of ${FAILURES.join(', ')}`],
    [{ failure: 'Refused' }, 'failure', `must be one of ${FAILURES.join(', ')}`],
    [{ failure: ['refused'] }, 'failure', `must be one of ${FAILURES.join(', ')}`],
    [{ rtt_ms: '5' }, 'rtt_ms', 'must be a number from 0 to 3600000'],
    [{ rtt_ms: -1 }, 'rtt_ms', 'must be a number from 0 to 3600000'],
    [{ rtt_ms: 3_600_000.5 }, 'rtt_ms', 'must be a number from 0 to 3600000'],
    [{ rtt_ms: [] }, 'rtt_ms', 'must be a number from 0 to 3600000'],
  ])('of %j is invalid, and its field is named', (more, field, message) => {
    expect(report(more)).toEqual({
      ...{ lease_id: 7, reason: 'invalid', details: { [`completed.3.${field}`]: message } },
    });
  });
});
