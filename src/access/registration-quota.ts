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
import { announce, callerThrottler, rateLimited } from './quotas';

/**
 * Charges a registration to its hostname only if it succeeds, so that nobody can lock a host out, and what fails to its
 * address.
 */
@Injectable()
export class RegistrationQuota {
  /** New identities, of all callers together. */
  private readonly total: QuotaThrottler | undefined;

  constructor(
    @InjectThrottlerOptions() options: ThrottlerModuleOptions,
    @InjectThrottlerStorage() private readonly storage: QuotaStorage,
    private readonly failedAuth: FailedAuth,
  ) {
    this.total = callerThrottler(options, 'register-total');
  }

  /**
   * Gives a registration the charge that its handler takes. Until that is taken the headers tell what is there.
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
    if (throttler && before) announce(throttler, before, reply);
    request.charge = {
      waitMs: before?.isBlocked ? before.timeToBlockExpire * 1_000 : 0,
      success: (tx, of) => this.takeAll(tx, of, { throttler, caller, before, reply }),
      failure: () => this.failedAuth.charge(address),
      beforeLookup: () => this.failedAuth.check(address),
    };
    return true;
  }

  /** Takes a token from the bucket of all new identities, if it is one, and from the hostname's; from both or none. */
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
      // What all callers together have left is told to nobody until it is nothing.
      if (of === 'new' && this.total) taken.push(await this.take(tx, this.total, 'all', reply, 'if refused'));
      if (throttler) taken.push(await this.take(tx, throttler, caller, reply));
    } catch (error) {
      giveBack();
      throw error;
    }
    return () => {
      giveBack();
      if (throttler && before) announce(throttler, before, reply);
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
    if (record.isBlocked || !tells) announce(throttler, record, reply);
    if (record.isBlocked) throw rateLimited(throttler.name, record.timeToBlockExpire);
    return [key, ttl, limit];
  }
}

/** The caller that registers, and what its bucket answered before. */
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

/** What a registration is counted by: its hostname or, if it has none that is valid, its address. */
function registrantOf(body: unknown, address: string): string {
  const hostname = (body as { hostname?: unknown } | null | undefined)?.hostname;
  return typeof hostname === 'string' && hostname.length <= MAX_HOSTNAME && isName(hostname)
    ? `host:${hostnameKey(hostname)}`
    : `nameless:${address}`;
}
