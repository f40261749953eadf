import { ApiError } from '../errors';
import { hashToken } from '../http/tokens';
import type { KnownAgent } from './agents.queries';
import { decideRegistration, type RegistrationFacts } from './registration-decision';

const NOW = 1_000_000;
const CURRENT = hashToken('current');
const PREVIOUS = hashToken('previous');
const OWNED = { hash: hashToken('owned'), expiresAt: null };

const agent = (fields: Partial<KnownAgent> = {}): KnownAgent => ({
  id: 1,
  hostname: 'Probe-1',
  hostname_key: 'probe-1',
  origin: 'open',
  state: 'active',
  token_hash: CURRENT,
  token_expires_at: null,
  previous_token_hash: PREVIOUS,
  previous_token_expires_at: NOW + 500,
  enrollment_token_id: null,
  registered_at: 0,
  handed_over_at: null,
  trial_ends_at: null,
  first_lease_at: null,
  last_heartbeat_at: 0,
  ...fields,
});

/** What is decided, or the error's code and what it says of retries. */
function decide(facts: Partial<RegistrationFacts>): unknown {
  try {
    const { action, ...rest } = decideRegistration({
      now: NOW,
      known: undefined,
      aliveMs: 0,
      shownHash: undefined,
      ownerToken: undefined,
      isEnrolled: false,
      repeatedTokenHash: undefined,
      waitMs: 0,
      ...facts,
    });
    return 'held' in rest ? [action, rest.held?.hash] : [action, rest];
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return [error.code, error.retryable, error.retryAfterMs];
  }
}

describe('a registration', () => {
  it('of a name that nobody has makes an agent', () => {
    expect(decide({})).toEqual(['create', { origin: 'open' }]);
    expect(decide({ isEnrolled: true })).toEqual(['create', { origin: 'enrolled' }]);
  });

  it.each([
    ['its token', { shownHash: CURRENT }, CURRENT],
    ['its token before the last rotation', { shownHash: PREVIOUS }, PREVIOUS],
    ['an enrollment token', { isEnrolled: true }, CURRENT],
    [
      'an enrollment token and another that is void',
      { isEnrolled: true, shownHash: hashToken('x') },
      CURRENT,
    ],
  ])('with %s keeps a live agent', (_, proof, held) => {
    for (const origin of ['open', 'enrolled', 'operator'] as const)
      expect(decide({ known: agent({ origin }), aliveMs: 1, ...proof })).toEqual(['renew', held]);
  });

  it('without proof gets an agent that registered openly, once it is silent', () => {
    const known = agent();
    expect(decide({ known, aliveMs: 1, waitMs: 0 })).toEqual(['ERR_CONFLICT', true, 1]);
    expect(decide({ known, aliveMs: 1, waitMs: 7 })).toEqual(['ERR_CONFLICT', true, 7]);
    expect(decide({ known, aliveMs: 0, waitMs: 7 })).toEqual(['hand-over', undefined]);
    expect(decide({ known, aliveMs: -1 })).toEqual(['hand-over', undefined]);
    expect(decide({ known: agent({ state: 'draining' }) })).toEqual(['hand-over', undefined]);
  });

  it.each(['enrolled', 'operator'] as const)('without proof never gets an agent that is %s', (origin) => {
    for (const aliveMs of [1, -1])
      expect(decide({ known: agent({ origin }), aliveMs })).toEqual(['ERR_CONFLICT', false, undefined]);
  });

  it.each([
    ['a token that expired', { known: agent({ token_expires_at: NOW }), shownHash: CURRENT }],
    [
      'a replaced token past its time',
      { known: agent({ previous_token_expires_at: NOW }), shownHash: PREVIOUS },
    ],
    ['a token of nobody', { known: agent(), shownHash: hashToken('x') }],
  ])('with %s proves nothing', (_, facts) => {
    expect(decide({ aliveMs: 5, ...facts })).toEqual(['ERR_CONFLICT', true, 5]);
  });

  it('of an agent that was handed over goes back to its owner, and to one who was sent by an operator', () => {
    const known = agent({ handed_over_at: 1 });
    expect(decide({ known, aliveMs: 1, shownHash: OWNED.hash, ownerToken: OWNED })).toEqual([
      'hand-back',
      OWNED.hash,
    ]);
    expect(decide({ known, aliveMs: 1, isEnrolled: true })).toEqual(['hand-back', undefined]);
    // Its present holder does not take it from itself.
    expect(decide({ known, aliveMs: 1, shownHash: CURRENT, isEnrolled: true })).toEqual(['renew', CURRENT]);
  });

  it('under a key is repeated while the agent has the token that it got, and is superseded after', () => {
    const known = agent();
    expect(decide({ known, aliveMs: 1, repeatedTokenHash: CURRENT })).toEqual(['repeat', CURRENT]);
    expect(decide({ known, repeatedTokenHash: CURRENT, shownHash: PREVIOUS })).toEqual(['repeat', PREVIOUS]);
    for (const gone of [undefined, agent({ token_hash: hashToken('newer') })])
      expect(decide({ known: gone, aliveMs: -1, repeatedTokenHash: CURRENT, isEnrolled: true })).toEqual([
        'ERR_CONFLICT',
        false,
        undefined,
      ]);
  });

  it.each(['disabled', 'revoked'] as const)(
    'of an agent that is %s is refused, whatever is shown',
    (state) => {
      const known = agent({ state });
      for (const facts of [{}, { shownHash: CURRENT }, { isEnrolled: true }, { repeatedTokenHash: CURRENT }])
        expect(decide({ known, ...facts })).toEqual(['ERR_FORBIDDEN', false, undefined]);
    },
  );
});
