import { setTimeout as sleep } from 'node:timers/promises';
import { Inject, Injectable, Logger, type OnModuleInit } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Clock, toTimestamp } from '../clock';
import { Batcher } from '../database/batcher';
import { Database } from '../database/database';
import { writePrivately } from '../database/private-file';
import { RowCache } from '../database/row-cache';
import type { Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, type PageQuery, pageOf } from '../http/pagination';
import { hashSecret, hashToken, isHashOf, isWellFormed, mintToken, sameHash } from '../http/tokens';
import { adminTokenFile, SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import { AuditLog, PROCESS } from './audit-log';
import type { OperatorTokenEntity } from './operator-token.entity';
import {
  type Bootstrap,
  type CachedToken,
  findByHash,
  findToken,
  findUnrevoked,
  hasValidAdmin,
  insertIssued,
  listAdminIds,
  listEarlierSettings,
  listSlowHashes,
  listTokens,
  listValidTokens,
  markRevoked,
  markUsed,
  upsertAdmin,
} from './operator-tokens.queries';
import type { CreatedOperatorToken, CreateOperatorTokenRequest, OperatorTokenView } from './operators.dto';

/** The name of the first admin's token, which comes from the setting or is created at the first start. */
const BOOTSTRAP = 'bootstrap';
const CACHED_TOKENS = 1_000;

/** How many verified secrets, chosen by persons, are kept in memory. */
const MAX_VERIFIED = 100;
/** How long a valid token is remembered for an outage of the database, in ms. */
const RECENT_MS = 3_600_000;
/** How long to wait for the database before the remembered token is used, in ms. */
const RECENT_AFTER_MS = 1_000;
/** With how many stored slow hashes a secret is compared at most; there is one, or two while the setting changes. */
const MAX_COMPARED = 5;
/** How many calls may wait for a slow hash; hashes are computed one at a time. */
const MAX_VERIFYING = 16;
/** The minimum length of the setting's secret, in characters. */
const MIN_SECRET = 24;
/** How often a replica checks whether another one has stored the setting's token, in ms. */
const STORE_RETRY_MS = 50;

/** How often the last use of a token is recorded, in ms. */
const USE_INTERVAL_MS = 60_000;

/** The command line when no server runs. It is an admin, because it has access to the database's file anyway. */
const COMMAND_LINE: OperatorIdentity = { tokenId: 0, name: 'command line', role: 'admin', address: 'local' };

/** Matches the form of a generated token, whether or not its checksum is right. */
const MISTYPED = /^dcpo_[0-9A-Za-z]{49}$/;

/** Owns operator_tokens: creates, verifies and revokes the tokens of operators. */
@Injectable()
export class OperatorsService implements OnModuleInit {
  private readonly logger = new Logger('Operators');
  /** By hash. */
  private readonly tokens: RowCache<CachedToken>;
  private readonly uses: Batcher<number, undefined>;
  /** The hash of the command line's token; empty if it has none. */
  private commandLineHash = '';
  /** The id of the setting's token, once it is stored. */
  private settingId: number | undefined;
  /** The stored slow hash of each verified secret, by the secret's SHA-256, which is kept in memory only. */
  private readonly verified = new LRUCache<string, string>({ max: MAX_VERIFIED });
  /** Tokens that were valid lately, by their stored hash: used while the database does not answer. */
  private readonly recent = new LRUCache<string, CachedToken>({ max: MAX_VERIFIED, ttl: RECENT_MS });
  private verifying = 0;
  private verifyQueue: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly audit: AuditLog,
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly lifecycle: Lifecycle,
  ) {
    this.tokens = new RowCache(database, 'operator-tokens', CACHED_TOKENS);
    database.onAnnouncement('operator-tokens', (key) => this.recent.delete(key));
    this.uses = new Batcher(database, (tx, ids) => this.storeUses(tx, ids));
  }

  /**
   * Ensures that there is an admin: the one of the setting, else a new one whose token is written to a file. The token of
   * an earlier setting stays valid until an operator revokes it, because replicas get a new setting one after the other.
   */
  async onModuleInit(): Promise<void> {
    if (!this.lifecycle.serves) return;
    const { adminToken } = this.settings;
    if (adminToken !== undefined) await this.admitSetting(adminToken);
    // Of replicas that start together, only one creates it.
    await this.database.exclusively('first-admin', () => this.makeFirstAdmin());
    // Fill the cache, because look-ups can be refused for an address that also sends guesses.
    await this.tokens.fill(async (statements) => {
      const rows = await listValidTokens(statements, this.clock.now(), CACHED_TOKENS);
      return new Map(rows.map(({ token_hash, ...known }) => [token_hash, known]));
    });
  }

  private async admitSetting(secret: string): Promise<void> {
    const { id, revoked_at } = await this.storeSetting(secret);
    this.settingId = id;
    if (revoked_at !== null)
      this.logger.error(
        { id },
        'the token of CONTROL_PLANE_ADMIN_TOKEN was revoked and is not valid; set another',
      );
    const others = await this.database.read((statements) =>
      listEarlierSettings(statements, this.clock.now(), id),
    );
    if (others.length > 0)
      this.logger.warn(
        { ids: others.map((other) => other.id) },
        'tokens of an earlier CONTROL_PLANE_ADMIN_TOKEN are still valid; revoke them: control-plane token revoke ID',
      );
  }

  private async makeFirstAdmin(): Promise<void> {
    if (await this.database.read((statements) => hasValidAdmin(statements, this.clock.now()))) return;
    const token = mintToken('dcpo_');
    const path = adminTokenFile(this.settings.database);
    // The file first: a token in the database that was shown to nobody would never be replaced.
    writePrivately(path, `${token}\n`);
    await this.storeBootstrap(hashToken(token), 'file');
    this.logger.log({ path }, "the first admin's token is in this file");
  }

  /**
   * Stores the setting's token. A secret that a person chose is stored as a slow hash. Its salt is random, so of replicas
   * that start together only one computes it, and the others find it.
   */
  private async storeSetting(secret: string): Promise<Bootstrap> {
    if (isWellFormed('dcpo_', secret)) return this.storeBootstrap(hashToken(secret), 'setting');
    let stored = await this.findSlowHash(secret);
    while (stored === undefined) {
      const isOurTurn = await this.database.exclusively('admin-setting', async () => {
        stored = await this.findSlowHash(secret);
        if (stored !== undefined) return;
        const created = await hashSecret(secret);
        await this.storeBootstrap(created, 'setting');
        stored = created;
      });
      if (!isOurTurn) await sleep(STORE_RETRY_MS);
    }
    this.verified.set(hashToken(secret), stored);
    return this.storeBootstrap(stored, 'setting');
  }

  /** Finds the stored slow hash of a secret, valid or not. */
  private async findSlowHash(secret: string): Promise<string | undefined> {
    for (const stored of await this.database.read((statements) => listSlowHashes(statements)))
      if (await isHashOf(stored, secret)) return stored;
    return undefined;
  }

  /**
   * Identifies the operator of a token. The look-up is by hash, so its duration reveals nothing about the token.
   * @param address the caller's address, for the audit log
   * @param beforeLookup called with the credential, and whether a slow hash may be needed, before the database is read; may
   *   throw to prevent the look-up
   * @param duringOutage if given, a token that was valid within the hour is accepted while the database does not answer
   * @throws ERR_UNAUTHORIZED the token is unknown or revoked
   * @throws ERR_TOKEN_EXPIRED the token has expired
   * @throws ERR_UNAVAILABLE too many calls wait for a slow hash
   */
  async authenticate(
    token: string,
    address: string,
    beforeLookup: (credential: string, isCostly: boolean) => void,
    duringOutage?: 'during outage',
  ): Promise<OperatorIdentity> {
    const hash = hashToken(token);
    if (sameHash(this.commandLineHash, hash)) return COMMAND_LINE;
    const key = this.verified.get(hash) ?? hash;
    let known = this.tokens.get(key);
    if (!known) {
      // The checksum detects typos. A secret that a person chose can be any string, even one that looks like a token.
      const isMinted = isWellFormed('dcpo_', token);
      if (key === hash && !isMinted && (token.length < MIN_SECRET || MISTYPED.test(token)))
        throw fail('ERR_UNAUTHORIZED');
      // A token that was valid a moment ago is no guess: its cached row is only too old.
      if (!this.tokens.peek(key) && key === hash) beforeLookup(`operator:${hash}`, !isMinted);
      const stored = key === hash && !isMinted ? await this.verify(token, hash) : key;
      if (stored !== undefined)
        known = await (duringOutage ? this.lookUpOrUseRecent(stored) : this.lookUp(stored));
      if (!known) {
        // Revoked: from now on it counts as a guess.
        this.verified.delete(hash);
        this.recent.delete(key);
        throw fail('ERR_UNAUTHORIZED');
      }
    }
    if (duringOutage) this.recent.set(key, known);
    const now = this.clock.now();
    if (known.expires_at !== null && known.expires_at <= now)
      throw fail('ERR_TOKEN_EXPIRED', undefined, { message: 'The token has expired.' });
    if ((known.last_used_at ?? 0) <= now - USE_INTERVAL_MS) this.recordUse(known, now);
    return { tokenId: known.id, name: known.name, role: known.role, address };
  }

  /** Reads the token. Returns the remembered one if the database fails or does not answer within a second. */
  private async lookUpOrUseRecent(stored: string): Promise<CachedToken | undefined> {
    const recent = this.recent.get(stored);
    const lookup = this.lookUp(stored);
    if (!recent) return lookup;
    const ended = new AbortController();
    try {
      return await Promise.race([
        lookup,
        sleep(RECENT_AFTER_MS, recent, { ref: false, signal: ended.signal }),
      ]);
    } catch {
      return recent;
    } finally {
      lookup.catch(() => undefined);
      ended.abort();
    }
  }

  private lookUp(stored: string): Promise<CachedToken | undefined> {
    return this.tokens.load(stored, (statements) => findUnrevoked(statements, stored));
  }

  /**
   * Finds the slow hash of a secret among the valid ones, and remembers it. Hashes that are known to belong to another
   * secret are skipped. So if the setting is present, or after the first valid call, guesses cost no hashing.
   * @throws ERR_UNAVAILABLE too many calls wait already
   */
  private async verify(secret: string, hash: string): Promise<string | undefined> {
    const rows = await this.database.read((statements) => listSlowHashes(statements, MAX_COMPARED));
    const others = new Set(this.verified.values());
    const candidates = rows.filter((stored) => !others.has(stored));
    if (candidates.length === 0) return undefined;
    if (this.verifying >= MAX_VERIFYING)
      throw fail('ERR_UNAVAILABLE', { reason: 'verifying' }, { retryAfterMs: 1_000 });
    this.verifying++;
    // One at a time: each takes tens of megabytes and a thread of the pool that also reads files.
    const turn = this.verifyQueue.then(async () => {
      for (const stored of candidates) if (await isHashOf(stored, secret)) return stored;
      return undefined;
    });
    this.verifyQueue = turn.catch(() => undefined);
    try {
      const stored = await turn;
      if (stored !== undefined) this.verified.set(hash, stored);
      return stored;
    } finally {
      this.verifying--;
    }
  }

  /** Creates a token for the command line in this process. It is not stored, and ends with the process. */
  admitCommandLine(): string {
    const token = mintToken('dcpo_');
    this.commandLineHash = hashToken(token);
    return token;
  }

  /** Creates a token. Only its hash is stored, so it is shown only in this result. */
  async create(
    by: OperatorIdentity,
    { name, role, expires_in: expiresIn }: CreateOperatorTokenRequest,
  ): Promise<CreatedOperatorToken> {
    const token = mintToken('dcpo_');
    const view = await this.database.write(async (tx) => {
      const row = await insertIssued(tx, {
        name,
        role,
        token_hash: hashToken(token),
        expires_at: expiresIn == null ? null : tx.now + expiresIn * 1_000,
      });
      const view = viewOf(row);
      await this.audit.record(tx, by, {
        action: 'operator-token.create',
        subject: `operator-token/${view.id}`,
        after: { name, role, expires_at: view.expires_at },
      });
      return view;
    });
    // Fills the cache. If that fails, the token's first call looks it up.
    await this.lookUp(hashToken(token)).catch(() => undefined);
    return { ...view, token };
  }

  /** Lists tokens, including revoked ones, newest first. */
  list(query: PageQuery): Promise<Page<OperatorTokenView>> {
    return this.database.read(async (statements) => {
      const rows = await listTokens(statements, olderThan(query), query.limit + 1);
      return pageOf(rows, query.limit, (row) => row.id, viewOf);
    });
  }

  /**
   * Revokes a token, effective when the promise resolves. Revoking it again changes nothing.
   * @throws ERR_NOT_FOUND there is no such token
   * @throws ERR_CONFLICT it is the setting of this server, or the last valid token of an admin
   */
  revoke(by: OperatorIdentity, id: number): Promise<void> {
    return this.database.write(async (tx) => {
      const token = await findToken(tx, id);
      if (!token) throw fail('ERR_NOT_FOUND', { operator_token_id: id });
      if (token.revoked_at !== null) return;
      if (id === this.settingId) {
        throw fail(
          'ERR_CONFLICT',
          { origin: 'setting' },
          {
            message:
              'This token is the CONTROL_PLANE_ADMIN_TOKEN of this server; set another, start again, then revoke it.',
          },
        );
      }
      await this.requireAnotherAdmin(tx, id);
      // Recorded first: a token may revoke itself.
      await this.recordRevocation(tx, by, token);
      await markRevoked(tx, id);
    });
  }

  /** Records a revocation, and removes the token from the caches of all replicas. */
  private async recordRevocation(
    tx: Transaction,
    by: OperatorIdentity,
    { id, name, role, token_hash: hash }: OperatorTokenEntity,
  ): Promise<void> {
    await this.audit.record(tx, by, {
      action: 'operator-token.withdraw',
      subject: `operator-token/${id}`,
      before: { name, role },
    });
    this.tokens.announceChange(tx, hash);
  }

  /** Records a use in the background. If that fails, the next use is recorded. */
  private recordUse(known: CachedToken, now: number): void {
    const before = known.last_used_at;
    known.last_used_at = now;
    this.uses.run(known.id).catch((error: unknown) => {
      known.last_used_at = before;
      this.logger.warn({ err: error }, "a token's use could not be recorded");
    });
  }

  private async storeUses(tx: Transaction, ids: readonly number[]): Promise<undefined[]> {
    await markUsed(tx, ids);
    return ids.map(() => undefined);
  }

  /** @throws ERR_CONFLICT no other valid token of an admin is left */
  private async requireAnotherAdmin(tx: Transaction, id: number): Promise<void> {
    // Locked: if two admins revoke each other's token, one must see the other's revocation.
    await tx.lockRows('operator_tokens', await listAdminIds(tx));
    if (await hasValidAdmin(tx, tx.now, id)) return;
    throw fail('ERR_CONFLICT', undefined, {
      message: "This is the last admin's token; make another first.",
    });
  }

  /** Stores the token of the setting, or the one that the process created. A revoked token stays revoked. */
  private storeBootstrap(hash: string, origin: 'setting' | 'file'): Promise<Bootstrap> {
    return this.database.write(async (tx) => {
      const known = await findByHash(tx, hash);
      if (known && known.revoked_at !== null) return known;
      if (known?.origin === origin && known.role === 'admin') return known;
      // A setting can name a token that is stored already: it then becomes the admin's.
      const stored = await upsertAdmin(tx, { name: BOOTSTRAP, origin, token_hash: hash });
      await this.audit.record(tx, PROCESS, {
        action: 'operator-token.create',
        subject: `operator-token/${stored.id}`,
        after: { name: BOOTSTRAP, role: 'admin', origin },
      });
      this.tokens.announceChange(tx, hash);
      return stored;
    });
  }
}

function viewOf(row: OperatorTokenEntity): OperatorTokenView {
  return {
    id: row.id,
    name: row.name,
    role: row.role,
    origin: row.origin,
    created_at: toTimestamp(row.created_at),
    expires_at: toTimestamp(row.expires_at),
    revoked_at: toTimestamp(row.revoked_at),
    last_used_at: toTimestamp(row.last_used_at),
  };
}
