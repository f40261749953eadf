import { Inject, Injectable } from '@nestjs/common';
import { InjectThrottlerStorage } from '@nestjs/throttler';
import { fail } from '../errors';
import { SETTINGS, type Settings } from '../settings';
import type { TokenBuckets } from './token-buckets';

/** Limits how often one address may fail to prove who it is, so that guessing never comes to cost database reads. */
@Injectable()
export class FailedAuth {
  constructor(
    @InjectThrottlerStorage() private readonly buckets: TokenBuckets,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {}

  /** @throws ERR_RATE_LIMITED the address has failed too often */
  check(address: string): void {
    this.judge(address, false);
  }

  /** Charges a failure to the address. @throws ERR_RATE_LIMITED it has failed too often already */
  charge(address: string): void {
    this.judge(address, true);
  }

  private judge(address: string, take: boolean): void {
    const quota = this.settings.failedAuthPerIp;
    if (!quota) return;
    const key = `failed-auth:${address}`;
    const { admitted, nextInMs } = take ? this.buckets.take(key, quota) : this.buckets.look(key, quota);
    if (admitted) return;
    throw fail('ERR_RATE_LIMITED', undefined, {
      message: 'Too many failed attempts from this address.',
      retryAfterMs: nextInMs,
    });
  }
}
