import pg from 'pg';
import { isConnectionBroken, isRetryable, toCallerError } from './postgres';

const error = (code: string, fields: object = {}) =>
  Object.assign(new pg.DatabaseError('a message in some language', 0, 'error'), { code, ...fields });

describe('what an error of PostgreSQL means', () => {
  it.each([
    ['a demoted primary', error('25006')],
    [
      'a plan that a migration made void, whatever the language',
      error('0A000', { routine: 'RevalidateCachedQuery' }),
    ],
    ['a prepared statement that is gone', error('26000')],
  ])('%s: the connection is closed, and the unit runs again on another', (_, cause) => {
    expect([isConnectionBroken(cause), isRetryable(cause)]).toEqual([true, true]);
    expect(toCallerError(cause)).toMatchObject({
      code: 'ERR_UNAVAILABLE',
      retryable: true,
      retryAfterMs: 1_000,
    });
  });

  it('a feature that there is not: neither, and nobody is told to come again', () => {
    const cause = error('0A000', { message: 'cached plan must not change result type' });
    expect([isConnectionBroken(cause), isRetryable(cause), toCallerError(cause)]).toEqual([
      false,
      false,
      cause,
    ]);
  });

  it.each(['55P03', '53100', '57P01'])('%s: come again', (code) => {
    expect(toCallerError(error(code))).toMatchObject({ code: 'ERR_UNAVAILABLE', retryable: true });
  });
});
