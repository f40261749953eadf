import { fail } from '../errors';
import type { AgentOrigin } from './agent.entity';
import type { KnownAgent } from './agents.queries';
import { currentToken, findHeldToken, type HeldToken, outOfService } from './credentials';

/** What a registration is decided by: all of it was read in its unit of work, after the hostname was locked. */
export interface RegistrationFacts {
  /** The unit's instant, in ms since the epoch. */
  readonly now: number;
  /** The agent that has the hostname, or that the first call under the same key registered. */
  readonly known: KnownAgent | undefined;
  /** How long that agent still counts as alive, in ms; zero or less once it has missed its heartbeat. */
  readonly aliveMs: number;
  /** The hash of the token that the caller shows as that agent's. */
  readonly shownHash: string | undefined;
  /** That token, if it is one that an owner had before the agent was handed over. */
  readonly ownerToken: HeldToken | undefined;
  /** Whether the caller showed an enrollment token. */
  readonly isEnrolled: boolean;
  /** If the same call under the same key was answered lately: the hash of the token that it gave. */
  readonly repeatedTokenHash: string | undefined;
  /** How long the quota does not let the caller in, in ms. */
  readonly waitMs: number;
}

/** What to do for a registration; `held` is the token that its caller may use a little longer. */
export type RegistrationDecision =
  /** The hostname is nobody's, or there is none. */
  | { readonly action: 'create'; readonly origin: AgentOrigin }
  /** The same call again: the answer may have been lost. */
  | { readonly action: 'repeat'; readonly known: KnownAgent; readonly held: HeldToken }
  /** The caller has proved that it has the agent. */
  | { readonly action: 'renew'; readonly known: KnownAgent; readonly held: HeldToken }
  /** The caller has proved that it had the agent before others took it. */
  | { readonly action: 'hand-back'; readonly known: KnownAgent; readonly held: HeldToken | undefined }
  /** The caller has proved nothing, and nobody else seems to need the agent. */
  | { readonly action: 'hand-over'; readonly known: KnownAgent; readonly held: undefined };

/**
 * Decides who becomes which agent.
 * @throws ERR_FORBIDDEN the agent is disabled or revoked
 * @throws ERR_CONFLICT the caller may not have the agent, or not yet (retryable); or the key's registration is superseded
 */
export function decideRegistration(facts: RegistrationFacts): RegistrationDecision {
  const { now, known, shownHash, isEnrolled, repeatedTokenHash } = facts;
  if (known?.state === 'disabled' || known?.state === 'revoked') throw outOfService(known.state);
  const held = known && shownHash !== undefined ? findHeldToken(known, shownHash, now) : undefined;
  if (repeatedTokenHash !== undefined) {
    // If the agent's holder changed since then, or its token, the key proves nothing any more.
    if (known?.token_hash !== repeatedTokenHash) throw superseded();
    return { action: 'repeat', known, held: held ?? currentToken(known) };
  }
  if (!known) return { action: 'create', origin: isEnrolled ? 'enrolled' : 'open' };
  if (held) return { action: 'renew', known, held };
  // A holder that got it without proof does not keep it beside an owner.
  if (facts.ownerToken || (isEnrolled && known.handed_over_at !== null))
    return { action: 'hand-back', known, held: facts.ownerToken };
  if (isEnrolled) return { action: 'renew', known, held: currentToken(known) };
  if (known.origin !== 'open') throw needsProof();
  if (facts.aliveMs > 0) throw isOnline(known, Math.max(facts.aliveMs, facts.waitMs));
  return { action: 'hand-over', known, held: undefined };
}

const superseded = () =>
  fail(
    'ERR_CONFLICT',
    { 'idempotency-key': 'was used for a registration that is superseded' },
    { message: 'The agent of this key has another token by now, or is gone; register under another key.' },
  );

const needsProof = () =>
  fail(
    'ERR_CONFLICT',
    { hostname: 'belongs to another agent' },
    {
      message:
        'The hostname belongs to an agent that is handed over only with proof: its token, or an enrollment token.',
    },
  );

const isOnline = ({ hostname }: KnownAgent, retryAfterMs: number) =>
  fail(
    'ERR_CONFLICT',
    { hostname: 'belongs to an agent that is alive' },
    {
      message:
        `The hostname ${hostname} belongs to an agent that is online. Register with its token to replace it, ` +
        'or wait until it is offline.',
      retryable: true,
      retryAfterMs,
    },
  );
