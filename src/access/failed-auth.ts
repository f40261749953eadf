import { Inject, Injectable } from '@nestjs/common';
import { InjectThrottlerStorage } from '@nestjs/throttler';
import { boundedCache } from '../bounded-cache';
import { Clock } from '../clock';
import { fail } from '../errors';
import { hashToken } from '../http/tokens';
import { type Quota, SETTINGS, type Settings } from '../settings';
import { type QuotaStorage, quotaKey } from './quota-storage';
import type { TokenBuckets } from './token-buckets';

/** How many wrong credentials are remembered, and for how long, in ms. */
const MAX_REMEMBERED = 10_000;
const REMEMBERED_MS = 30_000;

/** The size of an address's reserve, as a multiple of its quota, for callers that have not failed themselves. */
const RESERVE = 10;

/** How often one agent's id may fail within that reserve, for each address. */
const PER_ID: Quota = { limit: 3, periodMs: 60_000, burst: 3 };

/** What is known about a look-up beforehand. */
export interface LookUp {
  readonly agentId?: number;
  readonly isCostly?: boolean;
}

/** A look-up that has been charged. Call one of the methods when its result is known. */
export interface Attempt {
  /** Refunds the charge: the credential is right, or was not compared. */
  refund(): void;
  /** Remembers the credential as wrong: it is not looked up again for half a minute. */
  failed(): void;
}

/**
 * Limits how many wrong credentials of one address are looked up, so that guessing never costs many database reads. If the
 * bucket of an address is empty, other callers behind it still have a reserve: one that guesses, or keeps using a revoked
 * token, must not lock them out.
 */
@Injectable()
export class FailedAuth {
  /** Hashes of wrong credentials, with the instant when they are forgotten. */
  private readonly wrong = boundedCache<string, number>(MAX_REMEMBERED);
  private readonly reserve: Quota | undefined;
  private readonly buckets: TokenBuckets;

  constructor(
    @InjectThrottlerStorage() storage: QuotaStorage,
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly clock: Clock,
  ) {
    this.buckets = storage.addresses;
    const quota = settings.failedAuthPerIp;
    this.reserve = quota
      ? { limit: quota.limit * RESERVE, periodMs: quota.periodMs, burst: quota.burst * RESERVE }
      : undefined;
  }

  /**
   * Charges the look-up of a credential to the address.
   * @param credential the credential to look up; only its hash is kept
   * @param agentId the agent that the caller claims to be, if the credential does not contain it
   * @param isCostly true if the look-up costs far more than a read: it may not use the reserve
   * @throws ERR_UNAUTHORIZED the same credential failed a moment ago; this costs nothing
   * @throws ERR_RATE_LIMITED the address has failed too often
   */
  begin(address: string, credential: string, { agentId, isCostly }: LookUp = {}): Attempt {
    const hash = this.refuseKnown(credential);
    const taken = this.take(address, agentId, isCostly);
    return { refund: () => this.giveBack(taken), failed: () => this.remember(hash) };
  }

  /**
   * Checks that the address may fail once more, before another kind of look-up.
   * @throws ERR_RATE_LIMITED the address has failed too often
   */
  check(address: string): void {
    this.giveBack(this.take(address));
  }

  /** Charges a wrong credential that was looked up. */
  charge(address: string): void {
    try {
      this.take(address);
    } catch {
      // Other callers behind the address have used up the rest meanwhile.
    }
  }

  private refuseKnown(credential: string): string {
    const hash = hashToken(credential);
    const until = this.wrong.get(hash);
    const now = this.clock.now();
    // The last condition: if the clock was set back, the credential would be remembered for longer.
    if (until !== undefined && now < until && until <= now + REMEMBERED_MS) throw fail('ERR_UNAUTHORIZED');
    return hash;
  }

  private remember(hash: string): void {
    this.wrong.set(hash, this.clock.now() + REMEMBERED_MS);
  }

  /** @returns the buckets that a token was taken from */
  private take(address: string, agentId?: number, isCostly = false): Taken {
    const quota = this.settings.failedAuthPerIp;
    if (!quota) return [];
    const from = `address:${address}`;
    const first = [quotaKey(from, 'failed-auth'), quota] as const;
    const { admitted, nextInMs } = this.buckets.take(...first);
    if (admitted) return [first];
    const reserve = [quotaKey(from, 'failed-auth-reserve'), this.reserve as Quota] as const;
    const wanted: Taken =
      agentId === undefined
        ? [reserve]
        : [[quotaKey(from, `failed-auth-of-agent-${agentId}`), PER_ID], reserve];
    const empty = isCostly ? 0 : wanted.findIndex((bucket) => !this.buckets.take(...bucket).admitted);
    if (empty === -1) return wanted;
    this.giveBack(wanted.slice(0, empty));
    throw fail('ERR_RATE_LIMITED', undefined, {
      message: 'Too many failed attempts from this address.',
      retryAfterMs: nextInMs,
    });
  }

  private giveBack(taken: Taken): void {
    for (const bucket of taken) this.buckets.giveBack(...bucket);
  }
}

/** The buckets that a token was taken from. */
type Taken = readonly (readonly [key: string, quota: Quota])[];
