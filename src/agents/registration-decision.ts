import { fail } from '../errors';
import type { AgentOrigin } from './agent.entity';
import type { KnownAgent } from './agents.queries';
import { currentToken, findHeldToken, type HeldToken, outOfService } from './credentials';

/** The facts for the decision, all read in the registration's unit of work, after the hostname was locked. */
export interface RegistrationFacts {
  /** The unit's instant, in ms since the epoch. */
  readonly now: number;
  /** The agent that has the hostname, or that the first call under the same key registered. */
  readonly known: KnownAgent | undefined;
  /** How long that agent still counts as online, in ms; zero or less once it has missed its heartbeat. */
  readonly aliveMs: number;
  /** The hash of the token that the caller sent as that agent's. */
  readonly shownHash: string | undefined;
  /** That token, if it was the owner's before the agent was handed over. */
  readonly ownerToken: HeldToken | undefined;
  /** Whether the caller showed an enrollment token. */
  readonly isEnrolled: boolean;
  /** If the same call under the same key was answered in the last 10 minutes: the hash of its token. */
  readonly repeatedTokenHash: string | undefined;
  /** How long until the quota admits the caller, in ms. */
  readonly waitMs: number;
}

/** The decision; `held` is the token that the caller may still use for a while. */
export type RegistrationDecision =
  /** No agent has the hostname, or there is none. */
  | { readonly action: 'create'; readonly origin: AgentOrigin }
  /** A repeated call: the answer may have been lost. */
  | { readonly action: 'repeat'; readonly known: KnownAgent; readonly held: HeldToken }
  /** The caller has proof that it holds the agent. */
  | { readonly action: 'renew'; readonly known: KnownAgent; readonly held: HeldToken }
  /** The caller has proof that it held the agent before it was handed over. */
  | { readonly action: 'hand-back'; readonly known: KnownAgent; readonly held: HeldToken | undefined }
  /** The caller has no proof, and the agent is silent. */
  | { readonly action: 'hand-over'; readonly known: KnownAgent; readonly held: undefined };

/**
 * Decides which agent the caller becomes.
 * @throws ERR_FORBIDDEN the agent is disabled or revoked
 * @throws ERR_CONFLICT the caller may not take over the agent, or not yet (retryable); or the key's registration is
 * superseded
 */
export function decideRegistration(facts: RegistrationFacts): RegistrationDecision {
  const { now, known, shownHash, isEnrolled, repeatedTokenHash } = facts;
  if (known?.state === 'disabled' || known?.state === 'revoked') throw outOfService(known.state);
  const held = known && shownHash !== undefined ? findHeldToken(known, shownHash, now) : undefined;
  if (repeatedTokenHash !== undefined) {
    // If the agent's holder or token has changed since then, the key is void.
    if (known?.token_hash !== repeatedTokenHash) throw superseded();
    return { action: 'repeat', known, held: held ?? currentToken(known) };
  }
  if (!known) return { action: 'create', origin: isEnrolled ? 'enrolled' : 'open' };
  if (held) return { action: 'renew', known, held };
  // A holder without proof loses the agent to its owner.
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
    { message: 'The agent of this key has a newer token, or was deleted; register under another key.' },
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
