import { Inject, Injectable, Logger, type OnModuleInit } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { writePrivately } from '../database/private-file';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/decorators';
import { hashToken, isWellFormed, mintToken, sameHash } from '../http/tokens';
import { fileBesideDatabase, SETTINGS, type Settings } from '../settings';
import type { OperatorTokenEntity } from './operator-token.entity';

/** The name of the first admin's token, which comes from the setting or is made at first start. */
const BOOTSTRAP = 'bootstrap';
const CACHED_TOKENS = 1_000;

type Known = Pick<OperatorTokenEntity, 'id' | 'name' | 'role' | 'expires_at'>;

/** Owns operator_tokens: who operates the control plane. */
@Injectable()
export class OperatorsService implements OnModuleInit {
  private readonly logger = new Logger('Operators');
  /** By hash. Nothing in this process withdraws a token while it runs, so what is here holds. */
  private readonly cache = new LRUCache<string, Known>({ max: CACHED_TOKENS });
  /** The hash of the setting's token; empty where there is none. */
  private readonly settingHash: string;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.settingHash = settings.adminToken === undefined ? '' : hashToken(settings.adminToken);
  }

  /** Sees to it that there is an admin: the one of the setting, else one whose token is left in a file. */
  async onModuleInit(): Promise<void> {
    if (this.settingHash !== '') return this.storeBootstrap(this.settingHash, 'setting');
    const known = await this.database.write(async (tx) => {
      await tx.run(`DELETE FROM operator_tokens WHERE origin = 'setting'`);
      return tx.first(
        `SELECT id FROM operator_tokens
         WHERE role = 'admin' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1) LIMIT 1`,
        this.clock.now(),
      );
    });
    if (known) return;
    const token = mintToken('dcpo_');
    const path = fileBesideDatabase(this.settings.database, 'admin-token');
    // The file first: a token in the database that nobody knows would never be replaced.
    writePrivately(path, `${token}\n`);
    await this.storeBootstrap(hashToken(token), 'file');
    this.logger.log({ path }, "the first admin's token is in this file");
  }

  /**
   * Tells whose token this is. The look-up is by hash, so its time says nothing about the token.
   * @param beforeLookup called before the database is read; may throw to prevent it
   * @throws ERR_UNAUTHORIZED unknown or withdrawn
   * @throws ERR_TOKEN_EXPIRED it was right once
   */
  async authenticate(token: string, beforeLookup: () => void): Promise<OperatorIdentity> {
    const hash = hashToken(token);
    // A typo shows by its checksum. The setting's token can be any string, also one that looks like ours.
    if (token.startsWith('dcpo_') && !isWellFormed('dcpo_', token) && !sameHash(this.settingHash, hash))
      throw fail('ERR_UNAUTHORIZED');
    let known = this.cache.get(hash);
    if (!known) {
      beforeLookup();
      known = await this.database.read((statements) =>
        statements.first<Known>(
          'SELECT id, name, role, expires_at FROM operator_tokens WHERE token_hash = $1 AND revoked_at IS NULL',
          hash,
        ),
      );
      if (!known) throw fail('ERR_UNAUTHORIZED');
      this.cache.set(hash, known);
    }
    if (known.expires_at !== null && known.expires_at <= this.clock.now())
      throw fail('ERR_TOKEN_EXPIRED', undefined, { message: 'The token has expired.' });
    return { tokenId: known.id, name: known.name, role: known.role };
  }

  /** Makes this the only token of its origin: a setting that was changed takes the old one out. */
  private async storeBootstrap(hash: string, origin: 'setting' | 'file'): Promise<void> {
    await this.database.write(async (tx) => {
      await tx.run('DELETE FROM operator_tokens WHERE origin = $1 AND token_hash <> $2', origin, hash);
      // Who sets a token that is stored already means that one, whatever became of it.
      await tx.run(
        `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at) VALUES ($1, 'admin', $2, $3, $4)
         ON CONFLICT (token_hash) DO UPDATE SET name = excluded.name, role = excluded.role, origin = excluded.origin,
           expires_at = NULL, revoked_at = NULL`,
        BOOTSTRAP,
        origin,
        hash,
        this.clock.now(),
      );
    });
  }
}
