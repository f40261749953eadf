import { Injectable } from '@nestjs/common';
import {
  InjectThrottlerOptions,
  InjectThrottlerStorage,
  type ThrottlerModuleOptions,
} from '@nestjs/throttler';
import type { FastifyReply } from 'fastify';
import { hostnameKey, MAX_HOSTNAME } from '../agents/hostnames';
import type { Transaction } from '../database/statements';
import { clientAddress } from '../http/client-address';
import type { Charge, ControlPlaneRequest } from '../http/control-plane-request';
import type { QuotaThrottler } from '../http/quota.decorators';
import { isName } from '../http/text';
import { callerAddress } from './addresses';
import { FailedAuth } from './failed-auth';
import { type QuotaRecord, type QuotaStorage, quotaKey } from './quota-storage';
import { callerThrottler, rateLimited, setQuotaHeaders } from './quotas';

/**
 * Charges a successful registration to its hostname, and a failed one to its address, so that failing on purpose can't lock a
 * host out.
 */
@Injectable()
export class RegistrationQuota {
  /** The quota of new identities, shared by all callers. */
  private readonly total: QuotaThrottler | undefined;

  constructor(
    @InjectThrottlerOptions() options: ThrottlerModuleOptions,
    @InjectThrottlerStorage() private readonly storage: QuotaStorage,
    private readonly failedAuth: FailedAuth,
  ) {
    this.total = callerThrottler(options, 'register-total');
  }

  /**
   * Gives a registration the charge that its handler applies. Until then, the headers show the bucket before it.
   * @param throttler the quota of a hostname; undefined if it is off
   */
  async prepare(
    request: ControlPlaneRequest,
    reply: FastifyReply,
    throttler: QuotaThrottler | undefined,
  ): Promise<true> {
    const address = callerAddress(clientAddress(request));
    const caller = registrantOf(request.body, address);
    const before = throttler && (await this.storage.peek(...bucketOf(throttler, caller)));
    if (throttler && before) setQuotaHeaders(throttler, before, reply);
    request.charge = {
      waitMs: before?.isBlocked ? before.timeToBlockExpire * 1_000 : 0,
      success: (tx, of) => this.takeAll(tx, of, { throttler, caller, before, reply }),
      failure: () => this.failedAuth.charge(address),
      beforeLookup: () => this.failedAuth.check(address),
    };
    return true;
  }

  /** Takes a token from the hostname's bucket and, for a new identity, from the common one; from both or none. */
  private async takeAll(
    tx: Transaction,
    of: Parameters<Charge['success']>[1],
    { throttler, caller, before, reply }: Registrant,
  ): Promise<() => void> {
    const taken: Bucket[] = [];
    const giveBack = () => {
      for (const bucket of taken.splice(0)) this.storage.decrement(...bucket);
    };
    try {
      // The headers show the common bucket only if it refuses: callers need not know what the others have left.
      if (of === 'new' && this.total) taken.push(await this.take(tx, this.total, 'all', reply, 'if refused'));
      if (throttler) taken.push(await this.take(tx, throttler, caller, reply));
    } catch (error) {
      giveBack();
      throw error;
    }
    return () => {
      giveBack();
      if (throttler && before) setQuotaHeaders(throttler, before, reply);
    };
  }

  private async take(
    tx: Transaction,
    throttler: QuotaThrottler,
    caller: string,
    reply: FastifyReply,
    tells?: 'if refused',
  ): Promise<Bucket> {
    const [key, ttl, limit] = bucketOf(throttler, caller);
    const record = await this.storage.increment(key, ttl, limit, 0, throttler.name, tx);
    if (record.isBlocked || !tells) setQuotaHeaders(throttler, record, reply);
    if (record.isBlocked) throw rateLimited(throttler.name, record.timeToBlockExpire);
    return [key, ttl, limit];
  }
}

/** The caller that registers, and the state of its bucket before. */
interface Registrant {
  readonly throttler: QuotaThrottler | undefined;
  readonly caller: string;
  readonly before: QuotaRecord | undefined;
  readonly reply: FastifyReply;
}

type Bucket = readonly [key: string, ttl: number, limit: number];

const bucketOf = ({ name, ttl, limit }: QuotaThrottler, caller: string): Bucket => [
  quotaKey(caller, name),
  ttl,
  limit,
];

/** Returns the key of a registration: its hostname or, without a valid one, its address. */
function registrantOf(body: unknown, address: string): string {
  const hostname = (body as { hostname?: unknown } | null | undefined)?.hostname;
  return typeof hostname === 'string' && hostname.length <= MAX_HOSTNAME && isName(hostname)
    ? `host:${hostnameKey(hostname)}`
    : `nameless:${address}`;
}
