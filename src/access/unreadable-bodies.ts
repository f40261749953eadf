import { Inject, Injectable } from '@nestjs/common';
import { InjectThrottlerStorage } from '@nestjs/throttler';
import type { ParseFailures } from '../http/bodies';
import { SETTINGS, type Settings } from '../settings';
import { type QuotaStorage, quotaKey } from './quota-storage';
import { rateLimited } from './quotas';
import type { TokenBuckets } from './token-buckets';

const NAME = 'parse-failures';

/** Limits how many bodies that can't be parsed one caller may send to each replica. */
@Injectable()
export class UnreadableBodies implements ParseFailures {
  constructor(
    @InjectThrottlerStorage() private readonly storage: QuotaStorage,
    @Inject(SETTINGS) private readonly settings: Pick<Settings, 'parseFailures'>,
  ) {}

  check(caller: string): void {
    const quota = this.settings.parseFailures;
    if (!quota) return;
    const { admitted, nextInMs } = this.bucketsOf(caller).look(quotaKey(caller, NAME), quota);
    if (!admitted) throw rateLimited(NAME, Math.ceil(nextInMs / 1_000));
  }

  charge(caller: string): void {
    const quota = this.settings.parseFailures;
    if (quota) this.bucketsOf(caller).take(quotaKey(caller, NAME), quota);
  }

  private bucketsOf(caller: string): TokenBuckets {
    return caller.startsWith('address:') ? this.storage.addresses : this.storage.callers;
  }
}
