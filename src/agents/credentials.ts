import { type ApiError, fail } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import { sameHash } from '../http/tokens';
import type { AgentEntity } from './agent.entity';

/** The columns that decide whether a call of an agent is allowed. */
export type Credentials = Pick<
  AgentEntity,
  'id' | 'state' | 'token_hash' | 'token_expires_at' | 'previous_token_hash' | 'previous_token_expires_at'
>;

/** The token that a caller uses until it has the new one. */
export interface HeldToken {
  readonly hash: string;
  readonly expiresAt: number | null;
}

/** A hash that no token has. */
const NO_HASH = '-'.repeat(64);

/**
 * Compares a token's hash with both tokens of an agent, in the same time for an unknown agent.
 * @param now in ms since the epoch
 */
export function matchToken(
  agent: Credentials | undefined,
  presented: string,
  now: number,
): 'current' | 'previous' | 'expired' | 'none' {
  const current = sameHash(agent?.token_hash ?? NO_HASH, presented);
  const previous = sameHash(agent?.previous_token_hash ?? NO_HASH, presented);
  if (current) return (agent?.token_expires_at ?? Infinity) > now ? 'current' : 'expired';
  if (previous) return (agent?.previous_token_expires_at ?? 0) > now ? 'previous' : 'expired';
  return 'none';
}

/** Returns the error that refuses a call; undefined if it is allowed. Checks the token before the agent's state. */
export function refusalOf(
  agent: Credentials | undefined,
  { tokenHash }: Pick<AgentIdentity, 'tokenHash'>,
  now: number,
): ApiError | undefined {
  const match = matchToken(agent, tokenHash, now);
  if (!agent || match === 'none' || agent.state === 'deleted') return fail('ERR_UNAUTHORIZED');
  if (match === 'expired') return fail('ERR_TOKEN_EXPIRED');
  return isInService(agent) ? undefined : outOfService(agent.state);
}

/** Whether the agent's calls are served at all. */
export const isInService = ({ state }: Pick<Credentials, 'state'>): boolean =>
  state === 'active' || state === 'draining';

/** Finds the agent's token with this hash; undefined if none that works has it. */
export function findHeldToken(agent: Credentials, presented: string, now: number): HeldToken | undefined {
  const match = matchToken(agent, presented, now);
  if (match === 'current') return currentToken(agent);
  return match === 'previous' ? { hash: presented, expiresAt: agent.previous_token_expires_at } : undefined;
}

/** Returns the token that an agent uses: the one before the last rotation, until the new one is used. */
export function tokenInUse(agent: Credentials, now: number): HeldToken {
  const { previous_token_hash: hash, previous_token_expires_at: expiresAt } = agent;
  return hash !== null && (expiresAt ?? 0) > now ? { hash, expiresAt } : currentToken(agent);
}

export function currentToken({ token_hash: hash, token_expires_at: expiresAt }: Credentials): HeldToken {
  return { hash, expiresAt };
}

/** Creates the error for an agent that is disabled or revoked. */
export function outOfService(state: string): ApiError {
  return fail('ERR_FORBIDDEN', { state }, { message: `This agent is ${state}.` });
}
