import { randomBytes } from 'node:crypto';
import { Injectable, Logger, type OnModuleInit } from '@nestjs/common';
import type { JWK } from 'jose';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { fail } from '../errors';
import { bundleText, canonicalText, findUnportable, signedText, type UnsignedBundle } from './bundle';
import type { ConfigBundle } from './config.dto';
import type { ConfigEntity } from './config.entity';
import { SigningKey } from './signing-key';

const DAY_MS = 86_400_000;

/** How long a bundle is good for where the publisher does not say, and at the most. */
const DEFAULT_LIFETIME_MS = 30 * DAY_MS;
const MAX_LIFETIME_MS = 3_650 * DAY_MS;

/** A bundle that agents may have now. */
export interface BundleInForce {
  readonly revision: string;
  /** The bundle as JSON, ready to be sent. */
  readonly text: string;
}

/**
 * Owns agent_configs: signed bundles of configuration, numbered by `seq`. The newest is in force until it expires; then
 * none is, for agents refuse a `seq` below the one they have. It is kept in memory, so asking for it costs no read.
 */
@Injectable()
export class ConfigService implements OnModuleInit {
  private readonly logger = new Logger('Config');
  private newest: (BundleInForce & { readonly seq: number; readonly expiresAt: number }) | undefined;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly key: SigningKey,
  ) {}

  /**
   * Loads the bundle in force. One that was signed with another key is published again with this one; so is one out of a
   * backup, for agents may have seen a later `seq` than it has.
   */
  async onModuleInit(): Promise<void> {
    const row = await this.database.read((statements) =>
      statements.first<ConfigEntity>('SELECT * FROM agent_configs ORDER BY seq DESC LIMIT 1'),
    );
    if (!row) return;
    this.keep(row);
    const leftMs = row.expires_at - this.clock.now();
    const restored = row.seq < (await this.newestSeq());
    if ((row.kid === this.key.kid && !restored) || leftMs <= 0) return;
    // Agents verify with the key that is published now; the old one may have been replaced because it leaked.
    const { revision } = await this.publish(JSON.parse(row.config), { expiresInMs: leftMs });
    this.logger.warn(
      { kid: this.key.kid, revision },
      restored
        ? 'restored from a backup; published anew'
        : 'the signing key was replaced; published anew with it',
    );
  }

  /**
   * Signs a configuration and puts it in force, durably and in place of the one before.
   * @param expiresInMs how long agents may use it, in milliseconds: 30 days unless said otherwise, ten years at the most
   * @throws ERR_VALIDATION naming each field that is not portable JSON: integers beyond 2^53, halves of surrogate pairs
   */
  async publish(
    config: object,
    { expiresInMs = DEFAULT_LIFETIME_MS }: { expiresInMs?: number } = {},
  ): Promise<ConfigBundle> {
    const problems = findUnportable(config);
    if (!(Number.isInteger(expiresInMs) && expiresInMs >= 1 && expiresInMs <= MAX_LIFETIME_MS))
      problems.expires_in = 'must be from a millisecond to ten years';
    if (Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
    const text = canonicalText(config);
    // Signed before the transaction, in which nothing but the database may be awaited. Whoever finds that another took
    // the seq meanwhile signs again with the next one.
    for (;;) {
      const issuedAt = this.clock.now();
      const bundle: UnsignedBundle = {
        revision: randomBytes(8).toString('hex'),
        seq: (await this.newestSeq()) + 1,
        issued_at: issuedAt,
        expires_at: issuedAt + expiresInMs,
        config: text,
      };
      const row: ConfigEntity = {
        ...bundle,
        kid: this.key.kid,
        signature: await this.key.sign(signedText(bundle)),
      };
      if (await this.store(row)) return JSON.parse(bundleText(row));
    }
  }

  /** The revision in force; undefined while there is none. Answers from memory. */
  currentRevision(): string | undefined {
    return this.inForce()?.revision;
  }

  /** @throws ERR_NOT_FOUND, retryable: nothing was published yet, or the newest has expired */
  current(): BundleInForce {
    const bundle = this.inForce();
    if (!bundle)
      throw fail('ERR_NOT_FOUND', undefined, {
        message: 'There is no configuration in force; ask again later.',
        retryable: true,
      });
    return bundle;
  }

  /** The public keys by which bundles in force can be verified. */
  verifyingKeys(): JWK[] {
    return [this.key.jwk];
  }

  private inForce(): BundleInForce | undefined {
    return this.newest && this.newest.expiresAt > this.clock.now() ? this.newest : undefined;
  }

  /** The last seq that was given, or passed over after a restore. */
  private async newestSeq(): Promise<number> {
    const row = await this.database.read((statements) =>
      statements.first<{ seq: number | null }>(`SELECT ${statements.dialect.lastId('agent_configs')} AS seq`),
    );
    return row?.seq ?? 0;
  }

  /** @returns whether the seq was still free */
  private store(row: ConfigEntity): Promise<boolean> {
    return this.database.write(async (tx) => {
      const stored = await tx.run(
        `INSERT INTO agent_configs (seq, revision, issued_at, expires_at, config, kid, signature)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (seq) DO NOTHING`,
        row.seq,
        row.revision,
        row.issued_at,
        row.expires_at,
        row.config,
        row.kid,
        row.signature,
      );
      if (stored === 1) tx.afterCommit(() => this.keep(row));
      return stored === 1;
    });
  }

  private keep(row: ConfigEntity): void {
    this.newest = {
      seq: row.seq,
      revision: row.revision,
      expiresAt: row.expires_at,
      text: bundleText(row),
    };
  }
}
