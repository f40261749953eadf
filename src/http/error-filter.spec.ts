import { fail } from '../errors';
import { refusalOf } from './error-filter';

describe('why a request was turned away', () => {
  it.each([
    [fail('ERR_RATE_LIMITED', { quota: 'claim' }), { reason: 'quota', quota: 'claim' }],
    [
      fail('ERR_RATE_LIMITED', { budget: 'metrics_bytes_per_day' }),
      { reason: 'quota', quota: 'metrics_bytes_per_day' },
    ],
    [fail('ERR_RATE_LIMITED'), { reason: 'quota', quota: 'failed-auth' }],
    [fail('ERR_UNAUTHORIZED'), { reason: 'authentication' }],
    [fail('ERR_TOKEN_EXPIRED'), { reason: 'authentication' }],
    [fail('ERR_FORBIDDEN', { state: 'revoked' }), { reason: 'forbidden' }],
    [fail('ERR_UNAVAILABLE', { reason: 'overload' }), { reason: 'overload' }],
    [fail('ERR_UNAVAILABLE', { reason: 'in_flight' }), { reason: 'in_flight' }],
    [fail('ERR_UNAVAILABLE'), { reason: 'database' }],
    // Never a text that somebody else may have chosen.
    [fail('ERR_UNAVAILABLE', { reason: 'of another sort' }), { reason: 'database' }],
    [fail('ERR_VALIDATION', { reason: 'overload' }), undefined],
    [fail('ERR_NOT_FOUND'), undefined],
    [fail('ERR_CONFLICT'), undefined],
    [fail('ERR_BACKEND'), undefined],
  ])('%s is %j', (error, refusal) => {
    expect(refusalOf(error)).toEqual(refusal);
  });
});
